"""The rows of a step do not depend on who reads them, in what portions, or where the run was resumed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyformer.errors import ConfigError, DataError
from polyformer.training.data.loader import EvaluationLoader, Loader
from polyformer.training.data.packing import Mixture, PackedTokens
from polyformer.training.data.store import TokenStore


class Numbers:
    """Rows that are their own numbers."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        assert 0 <= index < self.size
        return {"row": index}


class Noisy:
    """An objective with noise: what each row gets, and nothing else."""

    def prepare(self, example: Mapping[str, Any], random: np.random.Generator) -> Mapping[str, Any]:
        return {**example, "noise": int(random.integers(2**40))}

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


def flat(batches: Sequence[dict[str, torch.Tensor]]) -> list[tuple[int, int]]:
    return [pair for batch in batches for pair in zip(batch["row"].tolist(), batch["noise"].tolist())]


@given(
    size=st.integers(1, 60),
    seed=st.integers(0, 2**64),
    rank_rows=st.integers(1, 5),
    micro=st.integers(1, 7),
    step=st.integers(0, 50),
    prefetch=st.integers(0, 3),
)
def test_ranks_together_read_what_one_reads(
    size: int, seed: int, rank_rows: int, micro: int, step: int, prefetch: int
) -> None:
    batch = 4 * rank_rows
    whole = flat(Loader(Numbers(size), Noisy(), batch_size=batch, seed=seed).step(step))
    for ranks in (1, 2, 4):
        parts = []
        for rank in range(ranks):
            loader = Loader(
                Numbers(size),
                Noisy(),
                batch_size=batch,
                micro_batch_size=micro,
                seed=seed,
                rank=rank,
                world_size=ranks,
                prefetch=prefetch,
            )
            batches = loader.step(step)
            assert all(len(one["row"]) <= micro for one in batches)
            assert len(batches) == -(-batch // ranks // min(micro, batch // ranks))
            parts += flat(batches)
        assert parts == whole


def test_every_row_once_an_epoch_and_the_rest_goes_into_the_next() -> None:
    loader = Loader(Numbers(10), Noisy(), batch_size=4, seed=1)
    rows = [pair for step in range(5) for pair in loader.rows(step)]  # 20 rows: two epochs in five steps
    assert loader.steps_per_epoch == 2.5
    assert sorted(rows) == [(epoch, row) for epoch in (0, 1) for row in range(10)]
    noise = dict.fromkeys(noise for step in range(5) for _, noise in flat(loader.step(step)))
    assert len(noise) == 20  # a row's noise is another in each epoch


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_resumed_run_reads_on(prefetch: int, threads: int) -> None:
    def loader() -> Loader:
        return Loader(
            Numbers(23), Noisy(), batch_size=6, micro_batch_size=2, seed=5, prefetch=prefetch, threads=threads
        )

    whole = [flat(batches) for _, batches in zip(range(12), loader().iterate())]
    for start in (0, 1, 7):
        resumed = [flat(batches) for _, batches in zip(range(12 - start), loader().iterate(start))]
        assert resumed == whole[start:]
        assert flat(loader().step(start)) == whole[start]


def test_another_seed_is_another_order() -> None:
    orders = {tuple(Loader(Numbers(50), Noisy(), batch_size=50, seed=seed).rows(0)) for seed in range(5)}
    assert len(orders) == 5


def test_a_mixture_is_read_by_weight_whatever_the_ranks() -> None:
    mixture = Mixture([Numbers(100), Numbers(7)], [3, 1])
    loader = Loader(mixture, Noisy(), batch_size=8, seed=2)
    for step in range(30):
        small = sum(index >= 100 for _, index in loader.rows(step))
        assert 1 <= small <= 3
    parts = [Loader(mixture, Noisy(), batch_size=8, seed=2, rank=rank, world_size=2).rows(9) for rank in range(2)]
    assert parts[0] + parts[1] == loader.rows(9)


def test_rows_of_a_store(make_store: Callable[..., TokenStore]) -> None:
    class Tokens:
        def prepare(self, example: Mapping[str, Any], random: np.random.Generator) -> Mapping[str, Any]:
            return example

        def collate(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
            return {name: torch.from_numpy(np.stack([one[name] for one in examples])) for name in examples[0]}

    packed = PackedTokens(make_store(["a single man in possession of a good fortune"] * 9), 8)
    batch = Loader(packed, Tokens(), batch_size=4).step(3)[0]
    assert batch["input_ids"].shape == batch["document_ids"].shape == (4, 8)


def test_people_are_told_which_rows_were_in_a_step() -> None:
    loader = Loader(Numbers(10), Noisy(), batch_size=4, seed=1)
    rows = [row for _, row in loader.rows(2)]
    told = loader.describe(2)
    assert told == f"rows {rows[0]}, {rows[1]} (epoch 0); rows {rows[2]}, {rows[3]} (epoch 1)"
    other = Loader(Numbers(10), Noisy(), batch_size=4, seed=1, rank=1, world_size=2)
    assert other.describe(2) == told
    assert "and 12 more" in Loader(Numbers(100), Noisy(), batch_size=20).describe(0)


# --- threads --------------------------------------------------------------------------------------------------------


class Slow(Numbers):
    def __init__(self, size: int, seconds: float):
        super().__init__(size)
        self.seconds = seconds
        self.read: list[int] = []

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        time.sleep(self.seconds)
        self.read.append(index)
        return super().__getitem__(index)


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_steps_are_made_ahead_but_not_without_bound() -> None:
    dataset = Slow(100, 0)
    steps = Loader(dataset, Noisy(), batch_size=1, prefetch=3).iterate()
    next(steps)
    deadline = time.monotonic() + 5
    while len(dataset.read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(dataset.read) == 4  # the one in use, and three to come
    steps.close()
    assert not loader_threads()


def test_waiting_is_counted() -> None:
    slow = Loader(Slow(100, 0.02), Noisy(), batch_size=2)
    for _, _batches in zip(range(4), slow.iterate()):
        pass
    assert slow.starved_seconds > 0.1
    without = Loader(Slow(100, 0.02), Noisy(), batch_size=2, prefetch=0)
    for _, _batches in zip(range(4), without.iterate()):
        pass
    assert without.starved_seconds > 0.1


class Broken(Numbers):
    def __init__(self, size: int, error: BaseException):
        super().__init__(size)
        self.error = error

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        raise self.error


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_in_a_thread_is_the_callers(prefetch: int) -> None:
    broken = Loader(Broken(5, DataError("no such picture")), Noisy(), batch_size=1, prefetch=prefetch)
    with pytest.raises(DataError, match=r"row \d of the data: no such picture"):
        next(broken.iterate())
    other = Loader(Broken(5, OSError("the disk is gone")), Noisy(), batch_size=1, prefetch=prefetch)
    with pytest.raises(OSError, match="the disk is gone"):
        next(other.iterate())
    assert not loader_threads()


def test_ctrl_c_in_the_step_ends_the_threads() -> None:
    def train() -> None:
        for _batches in Loader(Slow(100, 0.01), Noisy(), batch_size=4, threads=2).iterate():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    deadline = time.monotonic() + 5
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loader_threads()


# --- evaluation -----------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 40), batch=st.integers(1, 9), ranks=st.integers(1, 4))
def test_evaluation_reads_each_row_once_in_order(size: int, batch: int, ranks: int) -> None:
    whole = [pair for one in EvaluationLoader(Numbers(size), Noisy(), batch_size=batch) for pair in flat([one or {}])]
    assert [row for row, _ in whole] == list(range(size))
    again = EvaluationLoader(Numbers(size), Noisy(), batch_size=batch + 1)
    assert [pair for one in again for pair in flat([one or {}])] == whole  # the same noise each time
    loaders = [
        EvaluationLoader(Numbers(size), Noisy(), batch_size=batch, rank=r, world_size=ranks) for r in range(ranks)
    ]
    parts = [list(loader) for loader in loaders]
    assert {len(part) for part in parts} == {len(loaders[0])}
    together = [pair for turn in zip(*parts) for one in turn if one is not None for pair in flat([one])]
    assert together == whole


@given(size=st.integers(1, 40), batch=st.integers(1, 9), ranks=st.integers(1, 4))
def test_evaluation_of_whole_batches(size: int, batch: int, ranks: int) -> None:
    """Each batch is read by one rank, as one rank alone would read it, and all take equally many turns."""
    alone = [flat([one or {}]) for one in EvaluationLoader(Numbers(size), Noisy(), batch_size=batch)]
    parts = [
        list(
            EvaluationLoader(Numbers(size), Noisy(), batch_size=batch, rank=rank, world_size=ranks, whole_batches=True)
        )
        for rank in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1
    assert [flat([one]) for turn in zip(*parts) for one in turn if one is not None] == alone


def test_evaluation_of_some() -> None:
    loader = EvaluationLoader(Numbers(40), Noisy(), batch_size=4, limit=6)
    assert [row for one in loader for row, _ in flat([one or {}])] == list(range(6)) and len(loader) == 2


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": 4, "micro_batch_size": 0}, "at least 1"),
        ({"batch_size": 5, "world_size": 2}, "batch_size 5 cannot be shared by 2"),
        ({"batch_size": 4, "rank": 2, "world_size": 2}, "rank 2 is not one of 2"),
        ({"batch_size": 4, "prefetch": -1}, "prefetch must be"),
        ({"batch_size": 4, "threads": 0}, "threads at least 1"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loader(Numbers(3), Noisy(), **settings)  # type: ignore[arg-type]


def test_nothing_to_read() -> None:
    with pytest.raises(DataError, match="no rows to train on"):
        Loader(Numbers(0), Noisy(), batch_size=1)
    with pytest.raises(DataError, match="no rows to evaluate on"):
        EvaluationLoader(Numbers(0), Noisy(), batch_size=1)
    with pytest.raises(ConfigError, match="counted from 0"):
        Loader(Numbers(3), Noisy(), batch_size=2).step(-1)
    with pytest.raises(ConfigError, match="limit"):
        EvaluationLoader(Numbers(3), Noisy(), batch_size=1, limit=0)
