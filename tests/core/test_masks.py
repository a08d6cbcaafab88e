"""Each mask against its definition, written as a rule about two positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyformer import core
from polyformer.core.masks import Mask, Span
from polyformer.errors import ConfigError

# (query position, key position, prefix length) -> may the query look at the key?
Rule = Callable[[int, int, int], bool]
MASKS: list[tuple[Mask, Rule]] = [
    (core.Bidirectional(), lambda q, k, prefix: True),
    (core.Causal(), lambda q, k, prefix: k <= q),
    (core.SlidingWindow(1), lambda q, k, prefix: k == q),
    (core.SlidingWindow(3), lambda q, k, prefix: q - 3 < k <= q),
    (core.SlidingWindow(3, sinks=2), lambda q, k, prefix: k <= q and (k > q - 3 or k < 2)),
    (core.SlidingWindow(50), lambda q, k, prefix: k <= q),
    (core.BlockLocal(1), lambda q, k, prefix: k == q),
    (core.BlockLocal(4), lambda q, k, prefix: k <= q and q // 4 == k // 4),
    (core.BlockLocal(50), lambda q, k, prefix: k <= q),
    (core.PrefixCausal(), lambda q, k, prefix: k <= q or (q < prefix and k < prefix)),
]
IDS = [str(mask) for mask, _ in MASKS]
PREFIXES = torch.tensor([0, 5])
PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 1, 1, 0], [1] * 10, [1, 0, 1, 1, 0, 1, 1, 1, 1, 1]])


def brute_force(rule: Rule, span: Span, prefixes: list[int]) -> torch.Tensor:
    """[rows, new, columns]; a query that may see nothing may see everything."""
    rows = []
    for queries, keys, prefix in zip(span.queries.tolist(), span.keys.tolist(), prefixes):
        row = [[k >= 0 and rule(q, k, prefix) for k in keys] for q in queries]
        rows.append([seen if any(seen) else [True] * len(keys) for seen in row])
    return torch.tensor(rows)


def seen_by(mask: Mask, span: Span) -> torch.Tensor:
    seen = mask.of(span)
    if seen is None:
        return torch.ones(1, span.new, span.columns, dtype=torch.bool)
    assert seen.dtype == torch.bool
    assert seen.shape[1] == 1
    return seen[:, 0].expand(-1, span.new, span.columns)


@pytest.mark.parametrize(("mask", "rule"), MASKS, ids=IDS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 10])
def test_whole_sequences(mask: Mask, rule: Rule, length: int) -> None:
    span = Span.of(length)
    expected = brute_force(rule, span, [0])
    assert torch.equal(seen_by(mask, span), expected)
    assert mask.is_plain_causal(span) <= bool((expected == torch.ones(length, length).tril().bool()).all())


@pytest.mark.parametrize(("mask", "rule"), MASKS, ids=IDS)
@pytest.mark.parametrize("new", [1, 2, 6])
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 7, 8, 11])
def test_new_tokens_after_old_ones(mask: Mask, rule: Rule, start: int, new: int) -> None:
    """Keys from the beginning; and, where the mask reaches only so far, from where it begins to reach."""
    for first in {0, max(0, start - mask.reach[0] + 1) if mask.reach and not mask.reach[1] else 0}:
        span = Span(torch.arange(start, start + new)[None], torch.arange(first, start + new)[None], start)
        assert torch.equal(seen_by(mask, span), brute_force(rule, span, [0]))
        if mask.is_plain_causal(span):
            assert torch.equal(seen_by(mask, span)[0], torch.ones(new, new).tril().bool())


@pytest.mark.parametrize(("mask", "rule"), MASKS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
def test_padding_on_any_side(mask: Mask, rule: Rule, dtype: torch.dtype) -> None:
    span = Span.of(10, PADDING.to(dtype))
    assert span.start is None
    assert span.keys[0].tolist() == [-1, -1, 0, 1, 2, 3, -1, 4, 5, -1]
    assert torch.equal(seen_by(mask, span), brute_force(rule, span, [0, 0, 0]))
    assert not mask.is_plain_causal(span)
    real = PADDING.bool()
    assert not (seen_by(mask, span) & ~real[:, None, :])[real].any()


@pytest.mark.parametrize("padded", [False, True])
def test_prefix_lengths(padded: bool) -> None:
    mask, rule = MASKS[-1]
    span = Span.of(10, PADDING[[0, 2]] if padded else None, prefix_lengths=PREFIXES)
    full = Span(span.queries.expand(2, -1), span.keys.expand(2, -1), span.start, PREFIXES)
    assert torch.equal(seen_by(mask, span), brute_force(rule, full, PREFIXES.tolist()))
    assert not mask.is_plain_causal(span)


@pytest.mark.parametrize(("mask", "rule"), MASKS, ids=IDS)
def test_reach_is_the_truth(mask: Mask, rule: Rule) -> None:
    """Nothing that a window's cache forgets is ever looked at; a mask without a reach does look at the first token."""
    far = [(q, k) for q in range(50) for k in range(q + 1) if rule(q, k, 0)]
    if mask.reach is None:
        assert (49, 0) in far
    else:
        window, sinks = mask.reach
        assert all(k > q - window or k < sinks for q, k in far)
        assert max(q - k for q, k in far if k >= sinks) == min(window, 50) - 1


def test_a_mask_is_worked_out_once_a_pass() -> None:
    span = Span.of(4, torch.tensor([[0, 1, 1, 1]]))
    assert core.Causal().of(span) is core.Causal().of(span)
    assert core.SlidingWindow(2).of(span) is core.SlidingWindow(2).of(span)
    assert core.SlidingWindow(2).of(span) is not core.SlidingWindow(3).of(span)


def test_a_mask_without_padding_is_no_padding() -> None:
    span = Span.of(4, torch.ones(3, 4))
    assert span.start == 0
    assert span.queries.shape == (1, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: core.SlidingWindow(0), "window is 0, but it must be at least 1"),
        (lambda: core.SlidingWindow(4, sinks=-1), "sinks is -1"),
        (lambda: core.BlockLocal(0), "block is 0"),
    ],
)
def test_impossible_masks(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
