"""Keep the memory that one step frees for the next one.

The C library gives large blocks back to the system as soon as they are freed, and asks for them again a moment later,
page by page. Where the same sizes come at every step, as in training, that is work for nothing: a tenth of the time of
a step of a small network, more on virtual machines. PyTorch keeps the memory of a GPU for the same reason.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# Of malloc.h: blocks up to that size come from the heap, and the heap gives its end back only if that is larger.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_BLOCK, _HEAP = 2**30, 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Have this process keep up to 2 GiB that it has freed, from now on.

    Only with the C library of GNU, and not where its environment variables already say something about this.

    Returns:
        Whether it does.
    """
    said = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    said = said or any(f"MALLOC_{name}_" in os.environ for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "TOP_PAD"))
    if said or not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(set_option(_MMAP_THRESHOLD, _BLOCK)) and bool(set_option(_TRIM_THRESHOLD, _HEAP))
