from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from polyformer.core import huge_pages
from polyformer.core.huge_pages import PAGE, join_heap, join_pages, pages_of


def test_pages_that_are_weights_for_the_most_part() -> None:
    assert pages_of([(0, PAGE)]) == [0]
    assert pages_of([(PAGE // 2, 2 * PAGE)]) == [PAGE]  # half of the first page, half of the third
    assert pages_of([(PAGE, PAGE // 2), (PAGE + PAGE // 2, PAGE // 4)]) == [PAGE]  # two neighbours fill it together
    assert pages_of([(5, 100)]) == []
    assert pages_of([]) == []


def test_nothing_to_join_starts_no_thread() -> None:
    assert join_pages([(0, 4096)]) is None


def test_memory_holds_what_it_held() -> None:
    values = torch.arange(6 * PAGE // 8)
    thread = join_pages([(values.data_ptr(), values.nbytes)])
    if thread is None:
        pytest.skip("large pages cannot be had here")
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert torch.equal(values, torch.arange(6 * PAGE // 8))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="the kernel does not tell")
def test_the_kernel_counts_large_pages() -> None:
    values = torch.zeros(16 * PAGE, dtype=torch.uint8)
    values.fill_(1)

    def large() -> int:
        found = re.search(r"AnonHugePages:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text())
        return int(found.group(1)) if found else 0

    before = large()
    thread = join_pages([(values.data_ptr(), values.nbytes)])
    if thread is None:
        pytest.skip("large pages cannot be had here")
    thread.join(timeout=60)
    after = large()
    if after == before:
        pytest.skip("the kernel had no large pages to give, or knows no such request (before Linux 6.1)")
    assert after - before <= values.nbytes // 1024 + PAGE // 1024


def test_the_heap_is_what_the_kernel_calls_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        f"{PAGE:x}-{4 * PAGE:x} rw-p 00000000 00:00 0    [heap]\n"
        f"{8 * PAGE:x}-{9 * PAGE:x} r--p 00000000 fe:00 7  /usr/lib/libc.so.6\n"
        f"{4 * PAGE:x}-{6 * PAGE:x} rw-p 00000000 00:00 0    [heap]\n"
    )
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(huge_pages, "join_pages", asked.extend)
    monkeypatch.setattr(huge_pages, "_MAPS", maps)
    join_heap()
    assert asked == [(PAGE, 3 * PAGE), (4 * PAGE, 2 * PAGE)]
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "absent")
    assert join_heap() is None


def test_where_it_is_forbidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]")
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    assert join_pages([(0, 4 * PAGE)]) is None
    monkeypatch.setattr(huge_pages, "_SETTING", tmp_path / "absent")
    assert join_pages([(0, 4 * PAGE)]) is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert join_pages([(0, 4 * PAGE)]) is None
