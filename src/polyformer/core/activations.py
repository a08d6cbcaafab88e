"""Activation functions by the name the field gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyformer.core.config import require
from polyformer.core.packing import learns_in_16_bits

_PIECE = 3 * 2**16  # numbers that one core computes at once, in 32 bits, so that all steps find them in its caches


def gelu_tanh(inputs: Tensor) -> Tensor:
    """x (1 + tanh u) / 2, where u = √(2/π) (x + 0.044715 x³): the tanh approximation of GELU (Hendrycks and Gimpel,
    2016, section 2)."""
    if inputs.numel() >= _PIECE // 2 and learns_in_16_bits(inputs):
        return _LearnedGelu.apply(inputs)
    return functional.gelu(inputs, approximate="tanh")


class _LearnedGelu(torch.autograd.Function):
    """GELU in 16 bits on a CPU, where PyTorch takes three to ten times as long for a tanh as for a sigmoid.

    With v = 2u it is y = x σ(v), and its slope is σ + x v' σ (1 - σ), where x v' = 3v - 4 √(2/π) x. Both follow from
    one sigmoid; the slope is kept for the gradient in place of x, and takes as much memory (and is rounded to 16 bits).
    """

    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        result, slopes = (torch.empty_like(inputs, memory_format=torch.contiguous_format) for _ in range(2))
        factor = 2 * math.sqrt(2 / math.pi)
        first = torch.tensor(factor)
        size = min(_PIECE * torch.get_num_threads(), inputs.numel())
        pieces = (whole.view(-1).split(size) for whole in (inputs.contiguous(), result, slopes))
        room = torch.empty(3, size)
        x, v, sigmoid = room
        for given, values, slope in zip(*pieces, strict=True):
            if len(given) < size:
                x, v, sigmoid = room[:, : len(given)]
            x.copy_(given)
            torch.addcmul(first, x, x, value=0.044715 * factor, out=v)
            v.mul_(x)
            torch.sigmoid(v, out=sigmoid)
            v.sub_(x, alpha=2 / 3 * factor)  # a third of x v'
            values.copy_(x.mul_(sigmoid))
            torch.ops.aten.sigmoid_backward.grad_input(v, sigmoid, grad_input=v)
            slope.copy_(torch.add(sigmoid, v, alpha=3, out=v))
        context.save_for_backward(slopes)
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        (slopes,) = context.saved_tensors
        return gradient * slopes


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "relu_squared": lambda inputs: functional.relu(inputs).square(),  # So et al., 2021 (Primer)
    "gelu": functional.gelu,  # Hendrycks and Gimpel, 2016, exact
    "gelu_tanh": gelu_tanh,  # the same, tanh approximation (GPT)
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
