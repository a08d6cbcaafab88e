"""Weights in the processor's own order, for inference on a CPU.

oneDNN multiplies by blocks, and reorders a plain matrix into blocks at every call. For a few tokens at a time, as in
decoding, that costs more than the product. `pack` reorders once, and joins matrices that read the same input (query,
key and value; gate and up), which halves the number of calls. The numbers stay the same to the last rounding.

In 16 bits PyTorch multiplies with oneDNN anyway, so packing only helps. In float32 it takes MKL, which uses the widest
instructions on Intel's processors alone: on one core of AMD's Zen 5, 103 GFLOP/s where oneDNN makes 240. So there
float32 is packed too.

The plain weights are given up meanwhile (their parameters stand on the meta device), so memory is not taken twice, but
for the head's table: embedding looks up its rows. (Pages of a mapped file stay in memory until the system wants them
back.) `unpack` brings the plain weights back, bit for bit.

`learned_product` is for training: a linear map with its gradients by oneDNN, where that is faster.
"""

from __future__ import annotations

import copy
import platform
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_FEW_ROWS = 2
"""oneDNN asks for how many rows the layout shall be. In float32 it leaves the matrix plain for one, and has one layout
for all other numbers, which is as fast for one row and faster for several; in 16 bits all are the same."""

ACTIVATIONS_WITHIN = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "")}
"""Activations that oneDNN computes while a product still is in the registers, before it is rounded."""

_MANY_ROWS = 64  # fewer are no work worth a detour


class Packed:
    """One matrix in oneDNN's blocks: [W1; W2; ...] of several linear maps with the same input.

    Args:
        weights: each [out_features, in_features].
        biases: one for each weight, or None.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]):
        self.sizes = [weight.shape[0] for weight in weights]
        with torch.inference_mode(False), torch.no_grad():
            plain, self.bias = joined(weights, biases)
            self.weight = torch.ops.mkldnn._reorder_linear_weight(plain, _FEW_ROWS)

    def __call__(self, inputs: Tensor, activation: str | None = None) -> Tensor:
        """inputs [..., in_features] -> [..., sum of out_features], and on to one of `ACTIVATIONS_WITHIN` if named."""
        kind, variant = ("none", "") if activation is None else ACTIVATIONS_WITHIN[activation]
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, kind, [], variant)

    @property
    def memory(self) -> tuple[int, int]:
        """Where the weights lie: address and bytes."""
        return torch.ops.mkldnn.data_ptr(self.weight), self.weight.numel() * self.weight.dtype.itemsize

    def split(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The result of each map by itself."""
        return self(inputs).split(self.sizes, dim=-1)

    def plain(self) -> list[Tensor]:
        """The weights as they were."""
        with torch.inference_mode(False), torch.no_grad():
            return [part.contiguous() for part in self.weight.to_dense().split(self.sizes)]

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return copy.copy(self)  # nothing here ever changes, so that copies can share it


def joined(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Several linear maps with the same input as one: [W1; W2; ...], and the biases, with zeros where there is none."""
    bias = None
    if any(one is not None for one in biases):
        pairs = zip(weights, biases, strict=True)
        bias = torch.cat([weight.new_zeros(len(weight)) if one is None else one for weight, one in pairs])
    return torch.cat(list(weights)), bias


def can_pack(weight: Tensor) -> bool:
    """Whether this machine multiplies packed matrices of the weight's dtype and device."""
    return onednn_is_faster(weight) or (weight.device.type == "cpu" and can_multiply(weight.dtype))


def can_multiply(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies numbers of a dtype of 16 bits on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def learns_in_16_bits(tensor: Tensor) -> bool:
    """Whether gradients of a tensor of 16 bits on a CPU are wanted, where PyTorch's own operations with gradients are
    slow. Not of one that processes share, nor in what is compiled: operations of ours would break either."""
    return (
        type(tensor) is Tensor
        and tensor.device.type == "cpu"
        and tensor.dtype.itemsize == 2
        and tensor.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def can_learn(inputs: Tensor, *weights: Tensor) -> bool:
    """Whether `learned_product` is faster than what PyTorch does with these inputs and weights.

    In bfloat16 on a CPU it is: PyTorch writes the bias into the whole result before it adds the product to it. In
    float32 it is where there are instructions of 512 bits that MKL does not use.
    """
    if not (
        inputs.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and all(type(weight) is nn.Parameter for weight in weights)  # not one that processes share
        and inputs.numel() >= _MANY_ROWS * inputs.shape[-1]
    ):
        return False
    if torch.is_autocast_enabled("cpu"):
        types = (torch.float32, torch.bfloat16)
        known = inputs.dtype in types and all(weight.dtype in types for weight in weights)
        return known and torch.get_autocast_dtype("cpu") == torch.bfloat16 and can_multiply(torch.bfloat16)
    same = all(inputs.dtype == weight.dtype for weight in weights)
    return same and onednn_is_faster(inputs) and torch.cpu._is_avx512_supported()


def learned_product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs [..., in_features] · weightᵀ + bias -> [..., out_features] by oneDNN, with gradients.

    Under autocast it is computed in its dtype, and so is the result."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else inputs.dtype
    return _LearnedProduct.apply(inputs, weight, bias, dtype)


class _LearnedProduct(torch.autograd.Function):
    """Y = X Wᵀ + b; dX = dY W, dW = dYᵀ X, db = the sum of dY over the rows."""

    @staticmethod
    def forward(context: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        context.types = inputs.dtype, weight.dtype, None if bias is None else bias.dtype
        inputs, weight = inputs.to(dtype), weight.to(dtype)
        context.save_for_backward(inputs, weight)
        return product(inputs, weight, None if bias is None else bias.to(dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = context.saved_tensors
        wants_inputs, wants_weight, wants_bias, _ = context.needs_input_grad
        rows, read = gradient.reshape(-1, gradient.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
        # In 16 bits all of PyTorch's products are oneDNN's, and need no turned matrices.
        multiply = torch.mm if rows.dtype.itemsize == 2 else _transposed_product
        results = (
            multiply(rows, weight).view(inputs.shape) if wants_inputs else None,
            multiply(rows.T, read) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )
        pairs = zip(results, context.types, strict=True)
        return (*(None if result is None else result.to(dtype) for result, dtype in pairs), None)


def learned_split(joint: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """[..., sum of sizes] -> the parts side by side in it, [..., size] each, with gradients.

    PyTorch's own split copies the gradients of all parts into one tensor. Where they lie side by side already, as
    attention in 16 bits writes them, this takes them as they lie."""
    return _LearnedSplit.apply(joint, tuple(sizes))


class _LearnedSplit(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, joint: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
        return joint.split(sizes, dim=-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = _side_by_side(gradients)
        return torch.cat(gradients, dim=-1) if whole is None else whole, None


def _side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose last dimension is the parts one after the other, if that is how they lie in memory."""
    first, width = parts[0], 0
    memory, strides = first.untyped_storage().data_ptr(), first.stride()
    for part in parts:
        beside = part.untyped_storage().data_ptr() == memory and part.storage_offset() == first.storage_offset() + width
        if not beside or part.stride() != strides or part.dtype != first.dtype:
            return None
        width += part.shape[-1]
    whole = strides[-1] == 1 and all(stride >= width for stride in strides[:-1])
    return first.as_strided((*first.shape[:-1], width), strides) if whole else None


def _transposed_product(left: Tensor, right: Tensor) -> Tensor:
    return product(left, right.T)


@cache
def mkl_is_slow() -> bool:
    """Whether PyTorch multiplies float32 with MKL on a processor of AMD's, and has oneDNN too."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkl.is_available():
        return False
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        maker = platform.processor()
    return "AuthenticAMD" in maker


def onednn_is_faster(tensor: Tensor) -> bool:
    """Whether oneDNN multiplies this tensor faster than what PyTorch takes: float32 on a CPU where MKL is slow."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and mkl_is_slow()


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """left [..., size] times right [columns, size] transposed, plus the bias [columns], by oneDNN: [..., columns],
    without gradients."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def fastest_product(tensor: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """What multiplies square matrices like this one the fastest, to measure what a machine can do. (The one transposes
    the second matrix, the other does not.)"""
    return product if onednn_is_faster(tensor) else torch.matmul


def is_in_use(parameter: nn.Parameter) -> bool:
    """Whether something else relies on the plain numbers: a gradient that waits, a computation that can still be gone
    back through, or a reference of someone's."""
    references: int = parameter._use_count()  # type: ignore[attr-defined]
    return parameter.grad is not None or references > 1 or bool(weakref.getweakrefs(parameter))


def give_up(parameter: nn.Parameter) -> None:
    """Free the parameter's memory; its shape and its identity stay."""
    empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
    torch.utils.swap_tensors(parameter, empty)


def bring_back(parameter: nn.Parameter, values: Tensor) -> None:
    """Undo `give_up`."""
    torch.utils.swap_tensors(parameter, nn.Parameter(values, requires_grad=parameter.requires_grad))
