"""How much arithmetic a step is, and how much this machine could do: their ratio is the utilization."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from polyformer.core.packing import fastest_product


@cache
def measured_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> float:
    """FLOP/s of the best of several square matrix products on this device, with the threads that torch now uses."""
    size = 4096 if device.type == "cuda" else 1536
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    flops = 2 * size**3
    multiply = fastest_product(left)
    best, end = 0.0, time.perf_counter() + seconds
    multiply(left, right)
    while best == 0.0 or time.perf_counter() < end:
        _wait(device)
        begin = time.perf_counter()
        multiply(left, right)
        _wait(device)
        best = max(best, flops / (time.perf_counter() - begin))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _recurrent_flops(inputs: Tensor, weights: Iterable[Tensor]) -> int:
    """Of recurrent layers, [steps, batch, size] in either order: every matrix is multiplied with every token."""
    tokens = inputs.shape[0] * inputs.shape[1]
    return 2 * tokens * sum(weight.numel() for weight in weights if weight.dim() == 2)


# PyTorch's table has the attention kernels of GPUs only, no recurrent layers, and nothing of oneDNN's.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *rest, **options: (
        sdpa_flop_count(query.shape, key.shape, value.shape)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, query, key, value, *rest, **options: sdpa_backward_flop_count(
            gradient.shape, query.shape, key.shape, value.shape
        )
    ),
    torch.ops.mkldnn._linear_pointwise: lambda inputs, weight, *rest, **options: 2 * inputs.numel() * weight.shape[0],
    torch.ops.aten.mkldnn_rnn_layer: lambda inputs, *weights, **options: _recurrent_flops(inputs, weights[:2]),
    torch.ops.aten.mkldnn_rnn_layer_backward: (
        lambda inputs, *weights, **options: 2 * _recurrent_flops(inputs, weights[:2])
    ),
    torch.ops.aten._cudnn_rnn: lambda inputs, weights, *rest, **options: _recurrent_flops(inputs, weights),
    torch.ops.aten._cudnn_rnn_backward: lambda inputs, weights, *rest, **options: 2 * _recurrent_flops(inputs, weights),
}


class _Counter(TorchDispatchMode):
    """Adds up the arithmetic of every operation that PyTorch has a formula for: products, convolutions, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # what this process does of it comes by itself
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation in _FORMULAS:
            self.flops += _FORMULAS[operation](*args, **(kwargs or {}))
        elif operation in flop_registry:
            self.flops += flop_registry[operation](*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and attentions in ``work()``, which is run once.

    Attention counts as if nothing were hidden, but for what plain products leave out of it. Products that are computed
    again (activation checkpointing) count as often as they are computed.
    """
    with _Counter() as counter:
        work()
    return counter.flops
