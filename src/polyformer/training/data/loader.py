"""Batches for the steps of a training run: the same ones however many processes share the work."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from polyformer.core.threads import make_pool
from polyformer.errors import ConfigError, DataError, PolyformerError
from polyformer.training.data.order import generator_of, order_of

if TYPE_CHECKING:
    from torch import Tensor

Example = Mapping[str, Any]
_NAMED_ROWS = 8


class Dataset(Protocol):
    """Rows that can be read in any order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Preparer(Protocol):
    """What a loader needs of an objective."""

    def prepare(self, example: Example, random: np.random.Generator) -> Example: ...

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]: ...


class Loader:
    """The batches of every step, shuffled anew in each epoch.

    The rows of step n are those at positions n * batch_size to (n + 1) * batch_size of an endless order that follows
    from the seed alone; the end of one epoch and the beginning of the next share a step where the rows do not divide.
    Each rank takes a contiguous slice. A row's noise follows from the seed, its epoch and its index. So neither the
    number of ranks, nor the size of the micro-batches, nor where a run was resumed changes what a step learns from.

    Args:
        dataset: rows; one with a method ``order(seed)`` (a `Mixture`) says itself in which order it is read.
        objective: makes noise (``prepare``) and batches (``collate``).
        batch_size: rows of a whole step, over all ranks.
        micro_batch_size: rows of one forward pass on one rank; all of the rank's at once where it is None.
        prefetch: how many steps are made ahead, by threads; 0 makes them when they are asked for.

    Attributes:
        starved_seconds: how long `iterate` has waited for batches that were not ready.

    Raises:
        ConfigError: a size is not positive, or the ranks cannot share the rows evenly.
        DataError: the dataset has no rows.
    """

    def __init__(
        self,
        dataset: Dataset,
        objective: Preparer,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        threads: int = 1,
    ):
        _check_sizes(batch_size, micro_batch_size, rank, world_size)
        if batch_size % world_size:
            raise ConfigError(
                f"batch_size {batch_size} cannot be shared by {world_size} processes: make it a multiple of them"
            )
        if prefetch < 0 or threads < 1:
            raise ConfigError(f"prefetch must be at least 0 and threads at least 1, not {prefetch} and {threads}")
        if not len(dataset):
            raise DataError("there are no rows to train on")
        self.dataset = dataset
        self.objective = objective
        self.batch_size = batch_size
        self.rank_rows = batch_size // world_size
        self.micro_batch_size = min(micro_batch_size or self.rank_rows, self.rank_rows)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.prefetch = prefetch
        self.threads = threads
        self.starved_seconds = 0.0
        self.order = order_of(dataset, seed)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every row is read once; seldom a whole number."""
        return len(self.dataset) / self.batch_size

    def rows(self, number: int, *, all_ranks: bool = False) -> list[tuple[int, int]]:
        """(epoch, index) of each row that this rank, or all of them, read in a step."""
        start, count = number * self.batch_size, self.batch_size
        if not all_ranks:
            start, count = start + self.rank * self.rank_rows, self.rank_rows
        epochs, indices = self._positions(start, count)
        return list(zip(epochs.tolist(), indices.tolist()))

    def _positions(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        if start < 0:
            raise ConfigError(f"steps are counted from 0, not {start // self.batch_size}")
        return self.order.rows(np.arange(start, start + count))

    def describe(self, number: int) -> str:
        """For people: which rows all ranks read in a step, so that they can be looked at."""
        epochs, indices = self._positions(number * self.batch_size, self.batch_size)
        by_epoch = [(epoch, indices[epochs == epoch].tolist()) for epoch in np.unique(epochs)]
        parts = []
        for epoch, rows in by_epoch:
            named = ", ".join(map(str, rows[:_NAMED_ROWS]))
            more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
            parts.append(f"rows {named}{more} (epoch {epoch})")
        return "; ".join(parts)

    def step(self, number: int) -> list[dict[str, Tensor]]:
        """The micro-batches of this rank in a step, counted from 0: a function of the seed and the number alone.

        Raises:
            DataError: a row cannot be made; the message names it.
        """
        examples = _examples(self.dataset, self.objective, self.rows(number), self.seed)
        if self.micro_batch_size < len(examples):
            # Rows of like length go through the network together, so that little of it is padding. Sums do not care.
            examples.sort(key=_length)
        return [
            self.objective.collate(examples[start : start + self.micro_batch_size])
            for start in range(0, len(examples), self.micro_batch_size)
        ]

    def iterate(self, start: int = 0) -> Iterator[list[dict[str, Tensor]]]:
        """The micro-batches of step ``start``, of the next one, and so on without end. Raises as `step`."""
        number = start
        if not self.prefetch:
            while True:
                begin = time.perf_counter()
                batches = self.step(number)
                self.starved_seconds += time.perf_counter() - begin
                yield batches
                number += 1
        pool = make_pool(self.threads, "loader")
        waiting: deque[Future[list[dict[str, Tensor]]]] = deque()
        try:
            while True:
                while len(waiting) < self.prefetch:
                    waiting.append(pool.submit(self.step, number))
                    number += 1
                begin = time.perf_counter()
                batches = waiting.popleft().result()
                self.starved_seconds += time.perf_counter() - begin
                # The next one is begun before this one is used: while a step computes, `prefetch` are being made.
                waiting.append(pool.submit(self.step, number))
                number += 1
                yield batches
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class EvaluationLoader:
    """All rows once, in their own order, with noise that is equal each time.

    Ranks share each batch in contiguous slices and take equally many turns; a rank without a row in the last batch
    gets None for it.

    Args: as of `Loader`; batch_size counts the rows of all ranks together.
        limit: read so many rows at most, from the first on.
        whole_batches: ranks get batches in turn and share none, for losses that depend on all rows of a batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        objective: Preparer,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        limit: int | None = None,
        whole_batches: bool = False,
    ):
        _check_sizes(batch_size, None, rank, world_size)
        if limit is not None and limit < 1:
            raise ConfigError(f"limit must be at least 1, not {limit}")
        if not len(dataset):
            raise DataError("there are no rows to evaluate on")
        self.dataset = dataset
        self.objective = objective
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.size = len(dataset) if limit is None else min(limit, len(dataset))
        self.whole_batches = whole_batches

    def __len__(self) -> int:
        """Number of batches."""
        return (self.size + self.batch_size - 1) // self.batch_size

    def first_row(self) -> dict[str, Tensor]:
        """A batch of the first row alone."""
        return self.objective.collate(_examples(self.dataset, self.objective, [(0, 0)], self.seed))

    def __iter__(self) -> Iterator[dict[str, Tensor] | None]:
        for places in self._turns():
            examples = _examples(self.dataset, self.objective, [(0, place) for place in places], self.seed)
            yield self.objective.collate(examples) if examples else None

    def _turns(self) -> Iterator[range]:
        """The places of the rows that this rank reads together."""
        batches = [range(self.size)[start : start + self.batch_size] for start in range(0, self.size, self.batch_size)]
        if self.whole_batches:
            for first in range(0, len(batches), self.world_size):
                number = first + self.rank
                yield batches[number] if number < len(batches) else range(0)
            return
        for batch in batches:
            first, last = (len(batch) * part // self.world_size for part in (self.rank, self.rank + 1))
            yield batch[first:last]


def _examples(dataset: Dataset, objective: Preparer, rows: Sequence[tuple[int, int]], seed: int) -> list[Example]:
    examples = []
    for epoch, index in rows:
        try:
            examples.append(objective.prepare(dataset[index], generator_of(seed, epoch, index)))
        except PolyformerError as error:
            raise type(error)(f"row {index} of the data: {error}") from error
    return examples


def _length(example: Example) -> int:
    """How many tokens a row has, over all its texts."""
    return sum(len(value) for name, value in example.items() if name.endswith("_ids") and name != "document_ids")


def _check_sizes(batch_size: int, micro_batch_size: int | None, rank: int, world_size: int) -> None:
    if batch_size < 1 or (micro_batch_size is not None and micro_batch_size < 1):
        raise ConfigError(f"batch_size and micro_batch_size must be at least 1, not {batch_size}, {micro_batch_size}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank {rank} is not one of {world_size} processes, which are counted from 0")
