"""An average of the weights over the last steps, often better than the last ones (Polyak and Juditsky, 1992)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from polyformer.training.tensors import local_part


class ExponentialAverage:
    """average ← memory · average + (1 - memory) · weights, after every step.

    In the first steps the memory is shorter, min(memory, (1 + step) / (10 + step)), so that the random beginning is
    forgotten.

    Args:
        network: whose weights are averaged.
        memory: near 1.
    """

    def __init__(self, network: nn.Module, memory: float):
        self.memory = memory
        self._weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
        self.average = [parameter.detach().clone() for parameter in self._weights]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step ``step``, counted from 0."""
        memory = min(self.memory, (1 + step) / (10 + step))
        averages = [local_part(average) for average in self.average]
        torch._foreach_lerp_(averages, [local_part(weight.detach()) for weight in self._weights], 1 - memory)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the network has the averaged weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights, self.average, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, average in zip(self.names, self.average, strict=True):
            average.copy_(state[name])
