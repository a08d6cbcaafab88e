from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

from polyformer.core import activations
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


@pytest.mark.parametrize("count", [activations._PIECE // 2, 5 * activations._PIECE + 12345])
def test_gelu_is_learned_in_16_bits_to_its_last_digit(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = (3 * torch.randn(count, generator=generator)).bfloat16().requires_grad_()
    gradient = torch.randn(count, generator=generator).bfloat16()
    with torch.no_grad():
        inputs[:4] = torch.tensor([0.0, -0.0, 80.0, -80.0])

    def answers(function: Callable[[Tensor], Tensor], given: Tensor) -> list[Tensor]:
        result = function(given)
        return [result, *torch.autograd.grad(result, given, gradient.to(given.dtype))]

    found = answers(activation("gelu_tanh"), inputs)
    assert "Learned" in type(activation("gelu_tanh")(inputs).grad_fn).__name__
    theirs = answers(partial(functional.gelu, approximate="tanh"), inputs)
    wanted = answers(partial(functional.gelu, approximate="tanh"), inputs.detach().double().requires_grad_())
    # The gradient is rounded twice, the slope and its product with the gradient of the result: up to twice the error.
    for one, other, best, roundings in zip(found, theirs, wanted, (1, 2), strict=True):
        assert one.dtype == torch.bfloat16 and one.isfinite().all()
        assert (one - best).abs().max() <= 1.01 * roundings * (other - best).abs().max()
        assert (one - best).norm() <= 1.01 * roundings * (other - best).norm()


class Shared(Tensor):
    pass


def test_where_gelu_is_pytorchs() -> None:
    """Few numbers, 32 bits, what learns nothing, and what processes share (as a DTensor is: no plain tensor)."""
    many = torch.zeros(activations._PIECE)
    for given in (many[:100].bfloat16().requires_grad_(), many.clone().requires_grad_()):
        assert "Gelu" in type(activation("gelu_tanh")(given).grad_fn).__name__
        assert "Learned" not in type(activation("gelu_tanh")(given).grad_fn).__name__
    assert activation("gelu_tanh")(many.bfloat16()).grad_fn is None
    shared = many.bfloat16().as_subclass(Shared).requires_grad_()
    assert "Learned" not in type(activation("gelu_tanh")(shared).grad_fn).__name__


def test_gelu_of_a_view_is_that_of_its_numbers() -> None:
    whole = torch.randn(600, 512, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    turned, plain = (activation("gelu_tanh")(one) for one in (whole.T, whole))
    assert torch.equal(turned.T, plain)
    weights = torch.randn(600, 512).bfloat16()
    first, second = (torch.autograd.grad(one, whole, weight) for one, weight in ((turned, weights.T), (plain, weights)))
    assert torch.equal(first[0], second[0])
