"""What every whole network has: a device, a dtype, and weights that can be packed for inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from polyformer.core import config as core
from polyformer.core.huge_pages import join_pages
from polyformer.core.linear import Packable

Self = TypeVar("Self", bound="Network")


class Network(core.Module):
    """Base of whole networks.

    After `pack`, linear maps are multiplied in the processor's own order (see `packing`): inference only. Whatever
    needs the plain weights (training, gradients, ``state_dict``, a move to another device or dtype) brings them back
    first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packed = False
        self.register_state_dict_pre_hook(lambda module, *_: module.unpack())
        self.register_load_state_dict_pre_hook(lambda module, *_: module.unpack())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def pack(self: Self) -> Self:
        """Pack every linear map that gains by it; others stay.

        On a CPU: weights in 16 bits where it has instructions for them, and in 32 bits on a processor of AMD's.
        """
        if not self.packed:
            for module in self.modules():
                if isinstance(module, Packable):
                    module.pack()
            self.packed = True
            self._pack_rest()
            join_pages(
                module.joint.memory for module in self.modules() if isinstance(module, Packable) and module.joint
            )
        return self

    def _pack_rest(self) -> None:
        """What a network packs besides the modules that pack themselves."""

    def unpack(self: Self) -> Self:
        """Back to plain weights, bit for bit."""
        if self.packed:
            self.packed = False
            for module in self.modules():
                if isinstance(module, Packable):
                    module.unpack()
        return self

    def train(self: Self, mode: bool = True) -> Self:
        if mode:
            self.unpack()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.unpack()
        return super()._apply(fn, recurse)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.packed and torch.is_grad_enabled():
            self.unpack()  # packed maps have no gradients
        return super().__call__(*args, **options)
