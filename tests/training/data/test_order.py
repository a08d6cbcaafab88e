"""The order of rows: every row once an epoch, another order each epoch, all of it computable at any place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyformer.errors import ConfigError
from polyformer.training.data import order
from polyformer.training.data.order import Mixed, Shuffled, generator_of, key_of, permute


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_sorted_permutation_is_one(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@given(st.integers(2, 3000), st.integers(0, 2**64 - 1))
def test_a_network_permutation_is_one_and_needs_no_other_positions(size: int, key: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_SORTED_UP_TO", 0)
        whole = permute(np.arange(size), size, key)
        assert sorted(whole) == list(range(size))
        some = np.arange(size)[:: max(1, size // 7)]
        assert (permute(some, size, key) == whole[some]).all()


def test_a_large_permutation_is_one_and_looks_random() -> None:
    size = order._SORTED_UP_TO + 12_345
    found = permute(np.arange(size), size, key=3)
    assert (np.sort(found) == np.arange(size)).all()
    # Places of a random permutation are not related: of neighbours' differences and of places themselves.
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 0.02
    assert abs((found[: size // 2] < size // 2).mean() - 0.5) < 0.01


def test_the_order_of_a_run_stays_what_it_was() -> None:
    """A run that is resumed with a later version must read on in the same order: these numbers may not change."""
    assert permute(np.arange(6), 10, key_of(5, 0)).tolist() == [9, 7, 2, 4, 5, 0]
    found = permute(np.arange(4), 10**12, key_of(5, 1))
    assert found.tolist() == [
        35475069398,
        786044937764,
        689000101108,
        565226736003,
    ]
    assert key_of(1, 2) == 13608149317741381227


@given(st.integers(1, 200), st.integers(0, 2**70), st.integers(0, 5))
def test_every_row_once_in_each_epoch(size: int, seed: int, first: int) -> None:
    epochs, indices = Shuffled(size, seed).rows(np.arange(first * size, (first + 2) * size))
    assert epochs.tolist() == [first] * size + [first + 1] * size
    assert sorted(indices[:size]) == sorted(indices[size:]) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(Shuffled(50, seed).rows(np.arange(50) + 50 * epoch)[1]) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.01, 100)), min_size=1, max_size=6),
    st.integers(0, 200_000),
    st.integers(1, 3000),
)
def test_a_mixture_keeps_its_shares_in_every_stretch(parts: list[tuple[int, float]], start: int, length: int) -> None:
    sizes, weights = [size for size, _ in parts], [weight for _, weight in parts]
    mixed = Mixed([Shuffled(size, number) for number, size in enumerate(sizes)], sizes, weights)
    _, indices = mixed.rows(np.arange(start, start + length))
    owners = np.searchsorted(np.cumsum(sizes), indices, side="right")
    for number, weight in enumerate(weights):
        # One place of either end, and what rounding to 65,536ths does.
        slack = 2 + len(parts) / 2 + length / 65_536
        assert abs((owners == number).sum() - length * weight / sum(weights)) <= slack


def test_each_dataset_of_a_mixture_is_read_whole_before_it_begins_again() -> None:
    mixed = Mixed([Shuffled(5, 1), Shuffled(300, 2)], [5, 300], [1, 2])
    epochs, indices = mixed.rows(np.arange(3000))
    small = indices < 5
    for epoch in range(100):
        assert sorted(indices[small & (epochs == epoch)]) == [0, 1, 2, 3, 4]
    later = mixed.rows(np.arange(1234, 1300))
    assert (later[0] == epochs[1234:1300]).all() and (later[1] == indices[1234:1300]).all()


def test_a_weight_too_small_to_have_a_turn_is_refused() -> None:
    with pytest.raises(ConfigError, match="dataset 1 is less than"):
        Mixed([Shuffled(5, 1), Shuffled(5, 2)], [5, 5], [1, 1e-9])


def test_a_rows_noise_is_its_own() -> None:
    draws = {(s, e, i): generator_of(s, e, i).integers(2**62) for s in (0, 1) for e in (0, 1) for i in (0, 1)}
    assert len(set(draws.values())) == 8
    assert generator_of(1, 0, 1).integers(2**62) == draws[1, 0, 1]
