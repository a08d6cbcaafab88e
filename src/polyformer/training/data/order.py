"""The order in which examples are read: a pure function of a seed, so that any position can be computed alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from polyformer.errors import ConfigError

_SORTED_UP_TO = 1 << 16
_ROUNDS = 8
_MIXTURE_CYCLE = 1 << 16
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class Order(Protocol):
    """An endless sequence of rows of a dataset."""

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which rows stand at these positions: (epochs, indices), int64, as many as positions."""
        ...


class Shuffled:
    """Every epoch all rows of one dataset, each once, in an order of its own."""

    def __init__(self, size: int, seed: int):
        self.size = size
        self.seed = seed

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Order`."""
        epochs, within = np.divmod(np.asarray(positions, np.int64), self.size)
        indices = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = permute(within[chosen], self.size, key_of(self.seed, int(epoch)))
        return epochs, indices


class Mixed:
    """Several datasets in turns by weight, each in an order of its own; a row's index is its place in all of them
    joined, and its epoch that of its dataset.

    Which dataset stands at a position is read from a cycle of 65,536 turns that keeps, at every position, each
    dataset's number of turns as near to its weight as whole turns allow.
    """

    def __init__(self, orders: Sequence[Order], sizes: Sequence[int], weights: Sequence[float]):
        self._orders = orders
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._turns = _cycle_of_turns(tuple(float(weight) for weight in weights))
        counts = [np.concatenate([[0], np.cumsum(self._turns == number)]) for number in range(len(orders))]
        self._before = np.stack(counts)  # [datasets, turns + 1]: how often each had its turn before

    def rows(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Order`."""
        cycles, within = np.divmod(np.asarray(positions, np.int64), len(self._turns))
        chosen = self._turns[within]
        epochs, indices = np.empty_like(within), np.empty_like(within)
        for number in np.unique(chosen):
            mine = chosen == number
            before = self._before[number]
            own = cycles[mine] * before[-1] + before[within[mine]]
            epochs[mine], rows = self._orders[number].rows(own)
            indices[mine] = rows + self._starts[number]
        return epochs, indices


def order_of(dataset: Any, seed: int) -> Order:
    """The order that a dataset asks for, or that of `Shuffled`."""
    found: Order = dataset.order(seed) if hasattr(dataset, "order") else Shuffled(len(dataset), seed)
    return found


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where a keyed permutation of range(size) sends these positions.

    Few rows are sorted by random numbers. For many, a Feistel network permutes the next larger power of four and is
    applied again to what falls outside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002, cycle
    walking), so that no table of the rows is needed.

    Args:
        positions: int64, each from 0 to size - 1.
    """
    if size <= _SORTED_UP_TO:
        return _sorted_permutation(size, key)[positions]
    half = np.uint64((int(size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << int(half)) - 1)
    keys = [np.uint64(key_of(key, number)) for number in range(_ROUNDS)]
    values = np.asarray(positions).astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = values[outside] >> half, values[outside] & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        values[outside] = (left << half) | right
        outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64)


def key_of(*numbers: int) -> int:
    """A number of 64 bits that any change of these integers changes."""
    key = 0
    for number in numbers:
        state = np.array([(key + _GOLDEN + number) & _MASK], np.uint64)
        key = int(_mix(state)[0])
    return key


def generator_of(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers that belong to one row in one epoch, whatever batch or process it is read in."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed & _MASK, epoch, index])))


@lru_cache(maxsize=16)
def _sorted_permutation(size: int, key: int) -> np.ndarray:
    numbers = _mix(np.arange(1, size + 1, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))
    permutation = np.argsort(numbers, kind="stable")
    permutation.flags.writeable = False
    return permutation


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014), on uint64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=16)
def _cycle_of_turns(weights: tuple[float, ...]) -> np.ndarray:
    """Whose turn it is at each place of the cycle. int64 [turns]

    Every dataset's n-th turn stands near the middle of the n-th of as many equal stretches as it has turns.
    """
    shares = np.array(weights) / sum(weights)
    exact = shares * _MIXTURE_CYCLE
    turns = np.floor(exact).astype(np.int64)
    for number in np.argsort(turns - exact, kind="stable")[: _MIXTURE_CYCLE - int(turns.sum())]:
        turns[number] += 1  # what rounding down left over goes to the largest remainders
    for number in np.flatnonzero(turns == 0):
        raise ConfigError(
            f"the weight {weights[number]:g} of dataset {number} is less than a {_MIXTURE_CYCLE}th of all: "
            "leave it out or raise it"
        )
    ideal = np.concatenate([(np.arange(count) + 0.5) / count for count in turns])
    owners = np.repeat(np.arange(len(turns)), turns)
    cycle = owners[np.argsort(ideal, kind="stable")]
    cycle.flags.writeable = False
    return cycle
