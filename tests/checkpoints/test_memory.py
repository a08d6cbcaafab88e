"""Copying out of maps, and giving pages back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from polyformer.checkpoints import memory
from polyformer.checkpoints.memory import copy_out, give_back_pages, one_thread


def mapped_file(path: Path, count: int) -> torch.Tensor:
    values = torch.arange(count, dtype=torch.float32)
    path.write_bytes(values.numpy().tobytes())
    return torch.from_file(str(path), shared=False, size=count, dtype=torch.float32)


def resident_bytes(path: Path) -> int:
    """How much of a mapped file counts as memory of this process."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            found = str(path) in line
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_copies_are_equal_and_independent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(memory, "PIECE_BYTES", 4096 * 3 + 4)  # pieces that do not fall on pages
    mapped = mapped_file(tmp_path / "x", 50_000)
    expected = torch.arange(50_000, dtype=torch.float32).to(dtype).view(100, 500)
    copy = copy_out(mapped.view(100, 500), dtype)
    assert torch.equal(copy, expected)
    copy.zero_()
    assert torch.equal(mapped.view(100, 500).to(dtype), expected)


def test_views_that_are_not_contiguous(tmp_path: Path) -> None:
    mapped = mapped_file(tmp_path / "x", 600).view(20, 30)
    copy = copy_out(mapped.T, torch.float32)
    assert copy.is_contiguous()
    assert torch.equal(copy, torch.arange(600.0).view(20, 30).T)
    assert copy_out(torch.empty(0, 3), torch.float16).shape == (0, 3)
    assert copy_out(torch.tensor(2.5), torch.float64).item() == 2.5


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_are_given_back_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    mapped = mapped_file(path, 1_000_000)
    assert mapped.sum() > 0
    assert resident_bytes(path) >= 3_900_000
    give_back_pages(mapped)
    assert resident_bytes(path) <= 200_000
    assert torch.equal(mapped, torch.arange(1_000_000, dtype=torch.float32))
    copy_out(mapped, torch.bfloat16)
    assert resident_bytes(path) <= 200_000


def test_neighbours_that_were_written_to_keep_their_values(tmp_path: Path) -> None:
    mapped = mapped_file(tmp_path / "x", 10_000)
    first, second = mapped[:5_001], mapped[5_001:]
    second.fill_(-1)
    give_back_pages(first)
    assert (second == -1).all()
    assert torch.equal(first, torch.arange(5_001, dtype=torch.float32))


def test_the_number_of_threads_comes_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError
    assert torch.get_num_threads() == before
