"""Large memory pages for what is read again and again.

A decoding step reads every weight once. In pages of 4 KiB the processor spends a tenth of that time on looking up where
they are; in pages of 2 MiB next to none. A training step goes through a gigabyte of activations, and takes a fortieth
less. Linux joins pages on request (``MADV_COLLAPSE``, since 6.1); elsewhere, and where the administrator forbids it,
nothing happens and everything works as before.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

PAGE = 2 * 2**20
_COLLAPSE = 25
_WORTH = 0.75  # join a page of which so much is weights; the rest of it would be memory taken for nothing
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPS = Path("/proc/self/maps")


def pages_of(regions: Iterable[tuple[int, int]]) -> list[int]:
    """Addresses of the large pages that consist of (address, bytes) ``regions`` for the most part."""
    covered: Counter[int] = Counter()
    for start, nbytes in regions:
        place, end = start, start + nbytes
        while place < end:
            page = place // PAGE
            stop = min(end, (page + 1) * PAGE)
            covered[page] += stop - place
            place = stop
    return sorted(page * PAGE for page, nbytes in covered.items() if nbytes >= _WORTH * PAGE)


def join_pages(regions: Iterable[tuple[int, int]]) -> threading.Thread | None:
    """Have the memory of ``regions`` joined into large pages, by a thread of its own: it takes milliseconds a page.

    What the memory holds does not change, and memory that is freed meanwhile does no harm.

    Returns:
        The thread; None where there is nothing to join or large pages cannot be had.
    """
    pages = pages_of(regions)
    if not pages or not sys.platform.startswith("linux") or not _allowed():
        return None
    thread = threading.Thread(target=_join, args=(pages,), name="join pages", daemon=True)
    thread.start()
    return thread


def join_heap() -> threading.Thread | None:
    """The same for all memory that the C library has by now for its blocks. It should keep it: `freed_memory`."""
    try:
        lines = [line.split() for line in _MAPS.read_text().splitlines()]
    except OSError:  # not Linux
        return None
    places = [[int(end, 16) for end in line[0].split("-")] for line in lines if line[-1] == "[heap]"]
    return join_pages([(start, end - start) for start, end in places])


def _allowed() -> bool:
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:
        return False


def _join(pages: Sequence[int]) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for number, page in enumerate(pages):
        refused = library.madvise(page, PAGE, _COLLAPSE) != 0
        if refused and number == 0 and ctypes.get_errno() == 22:  # EINVAL: the kernel does not know the request
            return
