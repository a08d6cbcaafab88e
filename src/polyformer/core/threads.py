"""Threads beside the one that computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def make_pool(threads: int, name: str) -> ThreadPoolExecutor:
    """Threads that compute each by itself, on one core.

    Otherwise every thread that calls PyTorch brings helpers of its own, as many as there are cores. OpenMP then counts
    more threads than cores, and has all of them sleep whenever they have nothing to do: waking the helpers of the
    thread that trains cost a tenth of its time.
    """
    number = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, name, _compute_alone)
    started = Barrier(threads)
    for waiting in [pool.submit(started.wait) for _ in range(threads)]:
        waiting.result()
    torch.set_num_threads(number)  # what the threads said of themselves would hold for all that begin later
    return pool


def _compute_alone() -> None:
    torch.get_num_threads()  # a thread takes up the number of all when it is first asked, and would do so later
    torch.set_num_threads(1)
