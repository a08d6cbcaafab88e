"""What a network with a state remembers of the texts it has read: the counterpart of a key/value cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polyformer.core.config import require
from polyformer.errors import ConfigError


class StateCache:
    """The state of every row of a batch; it does not grow with the text.

    It is used like a `Cache`. Only `trim` is refused: a state cannot be turned back.

    Args:
        kind: "dense"; there are no keys and values to keep in eight bits.
        capacity: columns there will ever be; None means any number. The state takes the same room for all.

    Attributes:
        parts: the state, tensors [batch, ...]; none before the first token.
        batch_size: rows; None before the first call.
        length: columns read, padding included.
        source: of a decoder that looks at a source: what it made of it, tensors [batch, ...].
    """

    def __init__(self, kind: str = "dense", *, capacity: int | None = None) -> None:
        require(
            kind == "dense",
            f"cache kind {kind!r} is for keys and values, but this network keeps a state: take 'dense'",
        )
        require(capacity is None or capacity >= 1, f"cache capacity is {capacity}, but it must be at least 1")
        self.capacity = capacity
        self.parts: tuple[Tensor, ...] = ()
        self.source: tuple[Tensor, ...] = ()
        self.batch_size: int | None = None
        self.length = 0
        self._seen: Tensor | None = None

    @property
    def has_source(self) -> bool:
        return bool(self.source)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return sum(part.nbytes for part in (*self.parts, *self.source))

    def row_lengths(self) -> Tensor:
        """[batch]: tokens each row has seen."""
        return torch.zeros(1, dtype=torch.long) if self._seen is None else self._seen

    def check_room(self, batch: int, columns: int) -> None:
        """
        Raises:
            ConfigError: the cache holds another number of rows, or so many more columns are over its capacity.
        """
        require(
            self.batch_size in (None, batch),
            f"the cache holds {self.batch_size} rows, but the input has {batch}: select or merge rows first",
        )
        require(
            self.capacity is None or self.length + columns <= self.capacity,
            f"the cache holds {self.length} of its {self.capacity} columns: {columns} more do not fit",
        )

    def advance(self, parts: Sequence[Tensor], new_tokens: Tensor, columns: int) -> None:
        """Take over the state after ``columns`` more columns, of which ``new_tokens`` [batch] held a token."""
        self.parts = tuple(parts)
        self.batch_size = len(new_tokens)
        self._seen = new_tokens if self._seen is None else self._seen + new_tokens
        self.length += columns

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` [any number], in that order; a row may be repeated."""
        self.parts = tuple(part[rows] for part in self.parts)
        self.source = tuple(part[rows] for part in self.source)
        if self._seen is not None:
            self._seen = self._seen[rows]
        self.batch_size = len(rows)

    def reorder(self, rows: Tensor, *, first_column: int = 0) -> None:
        """Row i becomes the old row ``rows[i]``. A state has no columns that could stay, so ``first_column``, which
        only spares a `Cache` copies, changes nothing."""
        require(
            len(rows) == self.batch_size, f"reorder needs {self.batch_size} row numbers, but {len(rows)} were given"
        )
        self.select(rows)

    def merge(self, others: Sequence[StateCache]) -> StateCache:
        """A new cache with the rows of this one and of ``others``, one after the other.

        Raises:
            ConfigError: one of them is empty, or they belong to different networks or to sources of different lengths.
        """
        caches = [self, *others]
        require(all(cache.batch_size is not None for cache in caches), "an empty cache cannot be merged")
        shapes = {tuple(part.shape[1:] for part in (*cache.parts, *cache.source)) for cache in caches}
        require(len(shapes) == 1, "only caches of the same network, with sources of one length, can be merged")
        merged = StateCache()
        merged.parts = tuple(torch.cat(parts) for parts in zip(*(cache.parts for cache in caches)))
        merged.source = tuple(torch.cat(parts) for parts in zip(*(cache.source for cache in caches)))
        merged._seen = torch.cat([cache.row_lengths() for cache in caches])
        merged.batch_size, merged.length = len(merged._seen), max(cache.length for cache in caches)
        return merged

    def trim(self, count: Tensor | int) -> None:
        """
        Raises:
            ConfigError: anything is to be forgotten.
        """
        if bool(torch.as_tensor(count).any()):
            raise ConfigError("a state cannot forget its last tokens: read the text again from its beginning")
