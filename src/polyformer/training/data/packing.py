"""Datasets: rows of a store as examples, read in any order."""

from __future__ import annotations

import numpy as np

from polyformer.errors import ConfigError, DataError
from polyformer.training.data.loader import Example
from polyformer.training.data.store import TokenStore


class PackedTokens:
    """All documents one after another, cut into rows of equal length; what is left over at the end is not read.

    Args:
        store: with a column of token ids, which end with the end token if they were built so.
        length: tokens of a row.
        across: let a row's documents see each other; otherwise `document_ids` (numbers from 0 on within the row)
            come with it, so that attention stays inside documents.
        column: the column of token ids.

    Raises:
        ConfigError: the length is not positive.
        DataError: the store has fewer tokens than one row.
    """

    def __init__(self, store: TokenStore, length: int, *, across: bool = False, column: str = "input_ids"):
        if length < 1:
            raise ConfigError(f"the length of a row must be at least 1, not {length}")
        found = store.tokens(column)
        self._tokens, self._offsets = found.tokens, found.offsets
        self.length = length
        self.across = across
        if len(self._tokens) < length:
            raise DataError(
                f"the data has {len(self._tokens):,} tokens, fewer than one row of {length:,}: "
                "take more data or shorter rows"
            )

    def __len__(self) -> int:
        return len(self._tokens) // self.length

    def __getitem__(self, index: int) -> Example:
        _check_index(index, len(self))
        start = index * self.length
        row = {"input_ids": self._tokens[start : start + self.length].astype(np.int64)}
        if not self.across:
            row["document_ids"] = _document_ids(self._offsets, start, start + self.length)
        return row


def _document_ids(offsets: np.ndarray, start: int, end: int) -> np.ndarray:
    """The number of each token's document within a row. int64 [end - start]"""
    first, last = np.searchsorted(offsets, [start + 1, end], side="left")
    begins = np.unique(offsets[first:last]) - start  # where a later document begins; an empty one begins nothing
    return np.searchsorted(begins, np.arange(end - start), side="right").astype(np.int64)


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"row {index} of {size}")
