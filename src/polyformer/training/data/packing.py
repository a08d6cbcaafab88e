"""Datasets: what is in a store as rows to train on, which can be read in any order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence

import numpy as np

from polyformer.errors import ConfigError, DataError
from polyformer.training.data.columns import ListReader
from polyformer.training.data.loader import Dataset, Example
from polyformer.training.data.order import Mixed, Order, key_of, order_of
from polyformer.training.data.store import TokenStore

NOT_JUDGED = -100
"""The label of a token that is no beginning of a word."""


class PackedTokens:
    """All documents one after another, cut into rows of equal length; what is left over at the end is not read.

    A row is ``input_ids`` [length] and, unless ``across``, ``document_ids`` [length]: the number of each token's
    document, from 0 on within the row, so that attention can stay inside documents.

    Args:
        store: with a column of token ids, whose documents end with the end token if it was built so.
        length: tokens of a row.
        across: let the documents of a row see each other.
        column: the column of token ids.

    Raises:
        ConfigError: the length is not positive.
        DataError: the store has fewer tokens than one row.
    """

    def __init__(self, store: TokenStore, length: int, *, across: bool = False, column: str = "input_ids"):
        _check_length(length)
        found = store.tokens(column)
        self._tokens, self._offsets = found.numbers, found.offsets
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
            row["document_ids"] = self._document_ids(start, start + self.length)
        return row

    def _document_ids(self, start: int, end: int) -> np.ndarray:
        first, last = np.searchsorted(self._offsets, [start + 1, end])
        begins = np.unique(self._offsets[first:last]) - start  # of later documents; an empty one begins nothing
        return np.searchsorted(begins, np.arange(end - start), side="right").astype(np.int64)


class Windows:
    """Every document on its own, cut into rows of at most ``length`` tokens: ``input_ids``.

    Args:
        store: with a column of token ids.
        length: the most tokens of a row.
        stride: how many tokens further each row begins; less than the length makes rows overlap, and no token is left
            out. Without it, the length.
        column: the column of token ids.

    Raises:
        ConfigError: a length or stride that cannot be.
        DataError: the store has no tokens.
    """

    def __init__(self, store: TokenStore, length: int, *, stride: int | None = None, column: str = "input_ids"):
        _check_length(length)
        self.stride = length if stride is None else stride
        if not 1 <= self.stride <= length:
            raise ConfigError(f"the stride must be from 1 to the length {length}, not {self.stride}")
        found = store.tokens(column)
        self._tokens, self._offsets = found.numbers, found.offsets
        self.length = length
        sizes = np.diff(self._offsets)
        further = -(-np.maximum(sizes - length, 0) // self.stride)
        self._ends = np.cumsum(np.where(sizes > 0, 1 + further, 0))  # rows up to and with each document
        if not len(self):
            raise DataError("the data has no tokens: all its documents are empty")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> Example:
        _check_index(index, len(self))
        document = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[document - 1]) if document else 0
        start = int(self._offsets[document]) + (index - before) * self.stride
        end = min(start + self.length, int(self._offsets[document + 1]))
        return {"input_ids": self._tokens[start:end].astype(np.int64)}


class BestFit:
    """Documents put together into rows of at most ``length`` tokens; one that is not longer is never cut.

    A longer document is cut into whole rows and a rest. Then the longest piece that is left goes into the fullest row
    that has room for it (best fit decreasing; Ding et al., "Fewer Truncations Improve Language Modeling", 2024). Rows
    are a little shorter than the length; ``input_ids`` and ``document_ids`` as of `PackedTokens`. Takes memory for each
    document: about 50 bytes.

    Raises:
        ConfigError: the length is not positive.
        DataError: the store has no tokens.
    """

    def __init__(self, store: TokenStore, length: int, *, column: str = "input_ids"):
        _check_length(length)
        found = store.tokens(column)
        self._tokens = found.numbers
        self.length = length
        self._starts, self._lengths = _pieces(found.offsets, length)
        rows = best_fit(self._lengths, length)
        self._order = np.argsort(rows, kind="stable")
        self._row_ends = np.cumsum(np.bincount(rows))
        if not len(self):
            raise DataError("the data has no tokens: all its documents are empty")

    def __len__(self) -> int:
        return len(self._row_ends)

    @property
    def filled(self) -> float:
        """The part of all rows that holds tokens."""
        return float(self._lengths.sum()) / (len(self) * self.length)

    def __getitem__(self, index: int) -> Example:
        _check_index(index, len(self))
        first = int(self._row_ends[index - 1]) if index else 0
        pieces = self._order[first : self._row_ends[index]]
        lengths = self._lengths[pieces]
        parts = [self._tokens[start : start + length] for start, length in zip(self._starts[pieces], lengths)]
        return {
            "input_ids": np.concatenate(parts).astype(np.int64),
            "document_ids": np.repeat(np.arange(len(pieces)), lengths),
        }


def _pieces(offsets: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the documents' pieces of at most so many tokens begin, and how long they are."""
    sizes = np.diff(offsets)
    counts = -(-sizes // length)
    first = np.cumsum(counts) - counts
    within = np.arange(int(counts.sum())) - np.repeat(first, counts)
    starts = np.repeat(offsets[:-1], counts) + within * length
    return starts, np.minimum(np.repeat(offsets[1:], counts) - starts, length)


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row that each piece goes into, by best fit decreasing. int64, as many as lengths

    Args:
        lengths: of the pieces, each from 1 to the capacity.
    """
    rows = np.empty(len(lengths), np.int64)
    with_room: dict[int, list[int]] = {}  # room -> rows that have just so much
    rooms: list[int] = []  # the keys, sorted
    count = 0
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        else:
            room, row = capacity, count
            count += 1
        rows[piece] = row
        if room > length:
            if room - length not in with_room:
                insort(rooms, room - length)
            with_room.setdefault(room - length, []).append(row)
    return rows


class Examples:
    """One document is one example, with all that the store keeps of it.

    Where documents were made of words and have ``tags``, a number for each word, an example has ``labels`` instead:
    that number at the first token of a word and -100 (not judged) at the others.

    Args:
        store: any.
        length: the most tokens of a text: one number for all columns of ids, or one for each by name; None for any.
        truncate: cut longer texts, and keep the special tokens at their end; otherwise they are an error.

    Raises:
        ConfigError: a length that cannot be, or of a column that is not there.
        DataError: a text is too long, or a document has not as many tags as words; the message names the document.
    """

    def __init__(self, store: TokenStore, length: int | Mapping[str, int] | None = None, *, truncate: bool = False):
        self._store = store
        self._limits = _limits(store, length)
        self._ending = store.ending
        for name, limit in self._limits.items():
            if limit <= self._ending:
                raise ConfigError(f"{name} of at most {limit} tokens have no room for their {self._ending} end tokens")
            lengths = np.diff(store.tokens(name).offsets)
            longest = int(lengths.max(initial=0))
            if longest > limit and not truncate:
                count, first = int((lengths > limit).sum()), int(np.argmax(lengths > limit))
                raise DataError(
                    f"{name} of document {first} has {lengths[first]:,} tokens, more than {limit:,} (so have {count:,} "
                    f"documents; the longest has {longest:,}): allow more, or set truncate to true"
                )
        self._tagged = "word_starts" in store.columns and "tags" in store.columns
        if self._tagged:
            _check_tags(store)

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Example:
        _check_index(index, len(self))
        example = self._store[index]
        if self._tagged:
            starts, tags = example.pop("word_starts"), example.pop("tags")
            labels = np.full(len(example["input_ids"]), NOT_JUDGED, np.int64)
            labels[starts[starts >= 0]] = tags[starts >= 0]
            example["labels"] = labels
        for name, limit in self._limits.items():
            example[name] = self._cut(example[name], limit)
            if name == "input_ids" and self._tagged:
                example["labels"] = self._cut(example["labels"], limit)
        return example

    def _cut(self, values: np.ndarray, limit: int) -> np.ndarray:
        if len(values) <= limit:
            return values
        return np.concatenate([values[: limit - self._ending], values[len(values) - self._ending :]])


def _limits(store: TokenStore, length: int | Mapping[str, int] | None) -> dict[str, int]:
    """The most tokens of each column of ids."""
    if length is None:
        return {}
    if isinstance(length, int):
        length = dict.fromkeys(store.token_columns, length)
    for name, limit in length.items():
        if name not in store.token_columns:
            raise ConfigError(f"there are no token ids {name!r}, but {', '.join(store.token_columns) or 'none at all'}")
        _check_length(limit)
    return dict(length)


def _check_tags(store: TokenStore) -> None:
    """
    Raises:
        DataError: a document has not as many tags as words.
    """
    columns = [store.column(name) for name in ("word_starts", "tags")]
    if not all(isinstance(column, ListReader) for column in columns):
        raise DataError("tags must be a list of whole numbers for each document: one for each word")
    words, tags = (np.diff(column.offsets) for column in columns if isinstance(column, ListReader))
    for document in np.flatnonzero(words != tags)[:1]:
        raise DataError(f"document {document} has {words[document]} words, but {tags[document]} tags")


class Mixture:
    """Several datasets, read in turns by weight: in any stretch of a run, the share of each is its weight, up to a row
    or two. A dataset that is through begins again, in another order, whatever the others do.

    Its length and its rows are those of all datasets one after another.

    Raises:
        ConfigError: there are not as many weights as datasets, or one is not positive.
        DataError: a dataset is empty.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float] | None = None):
        weights = [1.0] * len(datasets) if weights is None else list(weights)
        if not datasets or len(datasets) != len(weights):
            raise ConfigError(f"a mixture needs a weight for each dataset, but has {len(weights)} for {len(datasets)}")
        for number, (dataset, weight) in enumerate(zip(datasets, weights)):
            if not 0 < weight < float("inf"):
                raise ConfigError(f"the weight of dataset {number} must be positive, not {weight}")
            if not len(dataset):
                raise DataError(f"dataset {number} of the mixture has no rows")
        self.datasets = list(datasets)
        self.weights = weights
        self._ends = np.cumsum([len(dataset) for dataset in datasets])
        self.order(0)  # says now what cannot be

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Example:
        _check_index(index, len(self))
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.datasets[number][index - (int(self._ends[number - 1]) if number else 0)]

    def order(self, seed: int) -> Order:
        """In which order a run with this seed reads the rows."""
        orders = [order_of(dataset, key_of(seed, number)) for number, dataset in enumerate(self.datasets)]
        return Mixed(orders, [len(dataset) for dataset in self.datasets], self.weights)


def _check_length(length: int) -> None:
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise ConfigError(f"the length of a row must be a whole number of at least 1, not {length!r}")


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"row {index} of {size}")
