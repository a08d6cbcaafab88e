from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers.activations import ACT2FN

from polyformer.core.activations import ACTIVATIONS, activation
from polyformer.errors import ConfigError

# Each function of one number, from the paper that `activations` names.
EQUATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_quick": lambda x: x / (1 + math.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "identity": lambda x: x,
}
THEIR_NAMES = {
    "relu": "relu",
    "relu_squared": "relu2",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "gelu_quick": "quick_gelu",
    "silu": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "identity": "linear",
}
INPUTS = torch.linspace(-6, 6, 49, dtype=torch.float64)


def test_every_activation_is_tested() -> None:
    assert set(EQUATIONS) == set(ACTIVATIONS) == set(THEIR_NAMES)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name: str) -> None:
    expected = torch.tensor([EQUATIONS[name](x) for x in INPUTS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(activation(name)(INPUTS), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(activation(name)(INPUTS), ACT2FN[THEIR_NAMES[name]](INPUTS), rtol=1e-10, atol=1e-10)


def test_gelu_tanh_is_the_one_that_gpt2_calls_gelu_new() -> None:
    torch.testing.assert_close(activation("gelu_tanh")(INPUTS), ACT2FN["gelu_new"](INPUTS), rtol=1e-10, atol=1e-10)


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'swish' is not known; known: relu, .*silu"):
        activation("swish")
