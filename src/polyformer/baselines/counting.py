"""Counting n-grams: documents in a stream, sorted arrays out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyformer.errors import DataError

Integers = NDArray[np.int64]

NOTHING = -1
"""Stands in a row of tokens where its document had not begun."""


@dataclass(frozen=True)
class Counts:
    """The n-grams of one length.

    Attributes:
        keys: [grams], sorted: number of the first n - 1 tokens x (vocab_size + 1) + last token; none for single tokens,
            whose number is the token, the sign before a document last.
        counts: [grams], adjusted for Kneser-Ney: see `NGram`.
    """

    keys: Integers
    counts: Integers


@dataclass(frozen=True)
class _Table:
    """Different rows of tokens [rows, order], each with the tokens before it, and how often it was seen [rows]."""

    rows: NDArray[np.int32]
    counts: Integers

    @staticmethod
    def of(rows: NDArray[np.int32], counts: Integers, vocab_size: int) -> _Table:
        """Rows that may be equal, each once."""
        base = vocab_size + 2  # the tokens, the sign before a document, NOTHING
        numbers, bound = np.zeros(len(rows), np.int64), 1
        for column in rows.T:
            if bound * base >= 2**63:  # no room for another token: ranks are smaller
                different, numbers = np.unique(numbers, return_inverse=True)
                bound = len(different)
            numbers, bound = numbers * base + column + 1, bound * base
        _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
        sums = np.zeros(len(first), np.int64)
        np.add.at(sums, inverse, counts)
        return _Table(rows[first], sums)

    def join(self, other: _Table, vocab_size: int) -> _Table:
        rows = np.concatenate([self.rows, other.rows])
        return _Table.of(rows, np.concatenate([self.counts, other.counts]), vocab_size)


def count_ngrams(
    documents: Iterable[Integers],
    vocab_size: int,
    order: int,
    *,
    chunk_tokens: int,
    progress: Callable[[int], object] | None = None,
) -> Iterator[Counts]:
    """The n-grams of length 1, 2, ..., ``order``.

    Raises:
        DataError: there is no token.
    """
    tables: list[_Table] = []
    done = 0
    for chunk in _chunks(documents, chunk_tokens):
        rows = _rows(chunk, vocab_size, order)
        tables.append(_Table.of(rows, np.ones(len(rows), np.int64), vocab_size))
        # Tables of about the same size are joined, so that every row is joined few times.
        while len(tables) > 1 and len(tables[-2].counts) <= 2 * len(tables[-1].counts):
            last = tables.pop()
            tables[-1] = tables[-1].join(last, vocab_size)
        done += sum(map(len, chunk))
        if progress is not None:
            progress(done)
    while len(tables) > 1:
        last = tables.pop()
        tables[-1] = tables[-1].join(last, vocab_size)
    if not tables:
        raise DataError("there is no token to count: give documents that are not empty")
    yield from _levels(tables[0], vocab_size, order)


def _chunks(documents: Iterable[Integers], chunk_tokens: int) -> Iterator[list[Integers]]:
    chunk: list[Integers] = []
    tokens = 0
    for document in documents:
        if len(document):
            chunk.append(document)
            tokens += len(document)
        if tokens >= chunk_tokens:
            yield chunk
            chunk, tokens = [], 0
    if chunk:
        yield chunk


def _rows(documents: list[Integers], vocab_size: int, order: int) -> NDArray[np.int32]:
    """Every token with the order - 1 before it: [tokens, order]."""
    before = np.array([NOTHING] * (order - 2) + [vocab_size] * (order > 1), np.int32)
    line = np.concatenate([part for document in documents for part in (before, document.astype(np.int32))])
    rows = np.lib.stride_tricks.sliding_window_view(line, order)
    return rows[(rows[:, -1] != NOTHING) & (rows[:, -1] != vocab_size)]


def _levels(table: _Table, vocab_size: int, order: int) -> Iterator[Counts]:
    """The n-grams that the rows end with, length after length.

    ``ends[j]`` holds for each row the number of the n-gram that ends in column j, -1 where there is none.
    """
    base, rows = vocab_size + 1, table.rows
    ends: dict[int, Any] = {column: rows[:, column].astype(np.int64) for column in range(order)}
    keys, starts_document = np.zeros(0, np.int64), np.zeros(len(rows), bool)
    for length in range(1, order):
        longer = {
            column: np.where(ends[column - 1] >= 0, ends[column - 1] * base + rows[:, column], -1)
            for column in range(length, order)
        }
        longer_keys, first = np.unique(longer[order - 1], return_index=True)
        if longer_keys[0] < 0:
            longer_keys, first = longer_keys[1:], first[1:]
        # Seen after so many different tokens; at the beginning of a document, where nothing is before it: so often.
        count = len(keys) if length > 1 else base
        adjusted = np.bincount(ends[order - 1][first], minlength=count)
        adjusted += np.bincount(
            ends[order - 1][starts_document], table.counts[starts_document], minlength=count
        ).astype(np.int64)
        yield Counts(keys, adjusted)
        starts_document = rows[:, order - length - 1] == vocab_size
        keys = longer_keys
        ends = {column: np.where(found >= 0, np.searchsorted(keys, found), -1) for column, found in longer.items()}
    there = ends[order - 1] >= 0
    count = len(keys) if order > 1 else base
    yield Counts(keys, np.bincount(ends[order - 1][there], table.counts[there], minlength=count).astype(np.int64))
