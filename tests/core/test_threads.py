"""Threads that compute by themselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from polyformer.core.threads import make_pool


@pytest.fixture(autouse=True)
def four() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_of_another() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_each_computes_by_itself_and_nobody_else() -> None:
    with make_pool(3, "helper") as pool:
        meet = threading.Barrier(3)

        def number() -> tuple[str, int]:
            torch.ones(10) + 1
            meet.wait()
            return threading.current_thread().name, torch.get_num_threads()

        found = [waiting.result() for waiting in [pool.submit(number) for _ in range(3)]]
        assert {name for name, _ in found} == {"helper_0", "helper_1", "helper_2"}
        assert [count for _, count in found] == [1, 1, 1]
        assert torch.get_num_threads() == 4
        assert threads_of_another() == 4


def test_a_pool_made_from_another_pool_leaves_it_as_it_was() -> None:
    with make_pool(1, "outer") as outer:

        def nested() -> tuple[int, int]:
            with make_pool(1, "inner") as inner:
                return inner.submit(torch.get_num_threads).result(), torch.get_num_threads()

        assert outer.submit(nested).result() == (1, 1)
    assert torch.get_num_threads() == 4
