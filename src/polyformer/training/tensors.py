"""Tensors of which a process may hold a part only (`torch.distributed.tensor`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

if TYPE_CHECKING:
    from polyformer.training.group import Group


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory; the whole of an ordinary one."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Iterable[Tensor], group: Group) -> float:
    """The norm of all tensors together, the same number on every process.

    Each process adds up the squares of its parts. What several processes hold alike counts once.
    """
    by_parts: dict[int, list[Tensor]] = {}
    for tensor in tensors:
        by_parts.setdefault(_parts(tensor), []).append(local_part(tensor))
    # `group.sum` adds over the processes that read different data: of a tensor in as many parts as there are of
    # these, it finds each part once; of one in fewer parts, each part several times.
    squares = [
        torch.nn.utils.get_total_norm(some).double().square() * parts / group.size for parts, some in by_parts.items()
    ]
    if not squares:
        return 0.0
    return math.sqrt(float(group.sum(torch.stack([square.to(squares[0].device) for square in squares]).sum())))


def _parts(tensor: Tensor) -> int:
    """Into how many parts a tensor is cut."""
    if not isinstance(tensor, DTensor):
        return 1
    sizes = tensor.device_mesh.shape
    return math.prod(size for size, placement in zip(sizes, tensor.placements) if not placement.is_replicate())
