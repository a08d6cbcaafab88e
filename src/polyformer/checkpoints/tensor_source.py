"""Where tensors come from: one small protocol over every kind of checkpoint file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class TensorSource(Protocol):
    """Named tensors in files. Opening one reads headers only; ``load`` reads one tensor.

    A source is closed with ``close()`` or as a context manager. Tensors that were loaded stay valid after that.
    """

    path: Path

    def names(self) -> list[str]:
        """The names of all tensors, in the order of the file."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, outermost dimension first, without reading it."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that ``load(name)`` gives when none is asked for."""
        ...

    def nbytes(self, name: str) -> int:
        """The number of bytes the tensor takes in the file."""
        ...

    def load(self, name: str, dtype: torch.dtype | None = None, *, keep_mapped: bool = True) -> Tensor:
        """Reads one tensor.

        Args:
            name: one of ``names()``.
            dtype: the dtype to convert a floating tensor to; None keeps it as it is. Integer and boolean tensors are
                never converted.
            keep_mapped: the tensor may lie in the memory-mapped file when its dtype is right already: nothing is read
                before it is used. With False it is a copy, and the pages of the file are given back to the system.

        Raises:
            CheckpointError: there is no such tensor, or the file is damaged.
        """
        ...

    def close(self) -> None:
        """Lets go of the files."""
        ...

    def __enter__(self) -> TensorSource: ...

    def __exit__(self, *exception: object) -> None: ...
