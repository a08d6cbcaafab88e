"""Weights in the processor's own order, for inference in 16 bits on a CPU.

oneDNN multiplies by blocks, and reorders a plain matrix into blocks at every call. For a few tokens at a time, as in
decoding, that costs more than the product. `pack` reorders once, and joins matrices that read the same input (query,
key and value; gate and up), which halves the number of calls. The numbers stay the same to the last rounding.

The plain weights are given up meanwhile (their parameters stand on the meta device), so memory is not taken twice, but
for the head's table: embedding looks up its rows. (Pages of a mapped file stay in memory until the system wants them
back.) `unpack` brings the plain weights back, bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_FEW_ROWS = 1  # the layout that suits decoding; long inputs lose nothing measurable by it


class Packed:
    """One matrix in oneDNN's blocks: [W1; W2; ...] of several linear maps with the same input.

    Args:
        weights: each [out_features, in_features].
        biases: one for each weight, or None.
    """

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]):
        self.sizes = [weight.shape[0] for weight in weights]
        with torch.inference_mode(False), torch.no_grad():
            plain = torch.cat([weight.detach() for weight in weights])
            self.weight = torch.ops.mkldnn._reorder_linear_weight(plain, _FEW_ROWS)
            self.bias: Tensor | None = None
            if any(bias is not None for bias in biases):
                pairs = zip(weights, biases, strict=True)
                self.bias = torch.cat([w.new_zeros(w.shape[0]) if b is None else b.detach() for w, b in pairs])

    def __call__(self, inputs: Tensor) -> Tensor:
        """inputs [..., in_features] -> [..., sum of out_features]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")

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


def can_pack(weight: Tensor) -> bool:
    """Whether this machine multiplies packed matrices of the weight's dtype and device."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def give_up(parameter: nn.Parameter) -> None:
    """Free the parameter's memory; its shape and its identity stay."""
    empty = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
    torch.utils.swap_tensors(parameter, empty)


def bring_back(parameter: nn.Parameter, values: Tensor) -> None:
    """Undo `give_up`."""
    torch.utils.swap_tensors(parameter, nn.Parameter(values, requires_grad=parameter.requires_grad))
