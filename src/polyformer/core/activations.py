"""Activation functions by the name the field gives them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from polyformer.core.config import require

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu_squared": lambda inputs: functional.relu(inputs).square(),  # So et al., 2021 (Primer)
    "gelu": functional.gelu,  # Hendrycks and Gimpel, 2016, exact
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),  # the same, tanh approximation (GPT)
    "gelu_quick": lambda inputs: inputs * torch.sigmoid(1.702 * inputs),  # the same, sigmoid approximation (CLIP)
    "silu": functional.silu,  # also called swish
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda inputs: inputs,
}


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function called ``name``.

    Raises:
        ConfigError: there is none of that name; the names are listed.
    """
    require(name in ACTIVATIONS, f"activation {name!r} is not known; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
