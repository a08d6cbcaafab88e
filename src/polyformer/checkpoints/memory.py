"""Memory-mapped tensors: copying them out without ever holding two copies, nor many threads for small work."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# A mapped page counts as memory of the process from its first use on. So a tensor is copied in pieces of this size, and
# the pages of each piece are given back before the next is touched.
PIECE_BYTES = 2 * 2**20


@lru_cache(maxsize=1)
def _libc() -> Any:
    """The C library, with ``madvise`` declared; None where the advice below would mean something else."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return library


def give_back_pages(mapped: Tensor) -> None:
    """Tells the system that the pages under a contiguous, unmodified, file-backed tensor are not needed for now.

    They are read from the file again when touched. Only pages that lie wholly in the tensor are given back:
    those at the edges are shared with its neighbours. Other systems than Linux keep the pages until memory runs low.
    """
    library = _libc()
    if library is None:
        return
    start, end = mapped.data_ptr(), mapped.data_ptr() + mapped.nbytes
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    last = end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        library.madvise(first, last - first, mmap.MADV_DONTNEED)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps PyTorch to one thread in this block.

    For work that is thousands of small steps, such as dequantizing. On an idle machine a second thread gains next to
    nothing there (one dequantizes 300 million weights a second); on a busy one every step waits for the thread that was
    not scheduled, and a second becomes a minute.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def copy_out(mapped: Tensor, dtype: torch.dtype) -> Tensor:
    """Copies a memory-mapped tensor into fresh memory as ``dtype``, giving its pages back piece by piece."""
    if not mapped.is_contiguous():
        return mapped.to(dtype, copy=True, memory_format=torch.contiguous_format)
    result = torch.empty(mapped.shape, dtype=dtype)
    source, target = mapped.view(-1), result.view(-1)
    step = max(1, PIECE_BYTES // mapped.dtype.itemsize)
    for start in range(0, len(source), step):
        piece = source[start : start + step]
        target[start : start + step] = piece
        give_back_pages(piece)
    return result
