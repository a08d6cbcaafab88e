"""Normalization of vectors: LayerNorm and RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core


class LayerNorm(core.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (Ba et al., 2016, equation 4).

    Args of the config:
        size: the last dimension.
        eps: added to the variance.
        bias: whether there is a bias (PaLM and others have none).
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        size: int
        eps: float = 1e-5
        bias: bool = True

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.ones(config.size))
        self.bias = nn.Parameter(torch.zeros(config.size)) if config.bias else None

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.layer_norm(inputs, (self.config.size,), self.weight, self.bias, self.config.eps)


class RMSNorm(core.Module):
    """x / sqrt(mean(x²) + eps) * (weight + offset) over the last dimension (Zhang and Sennrich, 2019, equation 4).

    Args of the config:
        size: the last dimension.
        eps: added to the mean square.
        offset: added to the weight; Gemma stores weight - 1, so that zero is the identity.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        size: int
        eps: float = 1e-6
        offset: float = 0.0

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.full((config.size,), 1.0 - config.offset))

    def forward(self, inputs: Tensor) -> Tensor:
        weight: Tensor = self.weight
        if self.config.offset:
            # The sum is taken in float32: near 1, bfloat16 would lose most of the weight's digits.
            weight = weight.to(torch.promote_types(weight.dtype, torch.float32)) + self.config.offset
            return functional.rms_norm(inputs.to(weight.dtype), (self.config.size,), weight, self.config.eps).to(
                inputs.dtype
            )
        if inputs.device.type == "cpu" and inputs.dtype in (torch.bfloat16, torch.float16):
            return self._by_layer_norm(inputs)
        return functional.rms_norm(inputs, (self.config.size,), weight, self.config.eps)

    def _by_layer_norm(self, inputs: Tensor) -> Tensor:
        """The same through LayerNorm: on a CPU PyTorch has that as one function, and RMSNorm as eight steps.

        [x, -x] has the mean 0 and the variance mean(x²). All is computed in float32 and rounded once.
        """
        size = self.config.size
        doubled, weight = torch.cat([inputs, -inputs], dim=-1), torch.cat([self.weight, self.weight])
        return functional.layer_norm(doubled, (2 * size,), weight, eps=self.config.eps)[..., :size]
