"""Keys and values of earlier tokens, and who they are.

Two kinds of parts make a `Cache`:

* `Columns` know which token stands in which column: its position in every row, -1 where there is none. They give the
  `Span` of each forward pass. Layers that keep the same tokens share one.
* a `Store` holds the tensors of one layer, column for column: `Store` itself as they are, `Int8Store` in eight bits.

Every operation on rows or columns is done once on the columns' bookkeeping and then on each store. Since positions
belong to columns and padding has none, rows of any length, padded on any side, can be mixed, cut and rearranged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polyformer.core.config import require
from polyformer.core.masks import Bidirectional, Mask, Neighbours, Span

_RESERVE = 32  # tokens beyond the window that are kept, so that as many can be trimmed
_SLACK = 64  # columns beyond those, so that old ones are dropped many at a time
_GROWTH = 256  # columns by which a buffer grows, at least


class Store:
    """Keys and values of one layer, [batch, key_value_heads, columns, head_dim], in buffers with room to grow."""

    def __init__(self, columns: Columns):
        self.columns = columns
        self.buffers: list[Tensor] = []

    @property
    def filled(self) -> bool:
        return bool(self.buffers)

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the new tokens' keys and values; return those of every column the new tokens may look at."""
        new = self.pack(keys, values)
        first, last = self.columns.written
        if not self.buffers:
            self.buffers = [part.new_empty(*part.shape[:2], self.columns.room(), part.shape[3]) for part in new]
        elif self.buffers[0].shape[2] < last:
            self._resize(self.columns.room(), first)
        for buffer, part in zip(self.buffers, new, strict=True):
            buffer[:, :, first:last] = part
        return self.read()

    def read(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the columns in sight."""
        return self.unpack([buffer[:, :, self.columns.in_sight : self.columns.used] for buffer in self.buffers])

    def pack(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        """What is stored of keys and values: tensors [batch, key_value_heads, new, any]."""
        return [keys, values]

    def unpack(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The way back from `pack`."""
        keys, values = parts
        return keys, values

    def _resize(self, room: int, used: int) -> None:
        for number, old in enumerate(self.buffers):
            grown = old.new_empty(*old.shape[:2], room, old.shape[3])
            grown[:, :, :used] = old[:, :, :used]
            self.buffers[number] = grown

    def keep_columns(self, kept: Tensor, room: int) -> None:
        """Keep the columns ``kept`` only, in that order."""
        for number, old in enumerate(self.buffers):
            fresh = old.new_empty(*old.shape[:2], room, old.shape[3])
            fresh[:, :, : len(kept)] = old.index_select(2, kept)
            self.buffers[number] = fresh

    def select(self, rows: Tensor) -> None:
        self.buffers = [buffer.index_select(0, rows.to(buffer.device)) for buffer in self.buffers]

    def reorder(self, rows: Tensor, first: int, used: int) -> None:
        for buffer in self.buffers:
            buffer[:, :, first:used] = buffer[:, :, first:used].index_select(0, rows.to(buffer.device))

    def join(self, stores: Sequence[Store], room: int) -> None:
        """Take the rows of ``stores``, one after the other, each pushed right to the width of the widest."""
        used = self.columns.used
        for parts in zip(*(store.buffers for store in stores), strict=True):
            rows = sum(part.shape[0] for part in parts)
            buffer = parts[0].new_zeros(rows, parts[0].shape[1], room, parts[0].shape[3])
            row = 0
            for part, store in zip(parts, stores, strict=True):
                width = store.columns.used
                buffer[row : row + part.shape[0], :, used - width : used] = part[:, :, :width]
                row += part.shape[0]
            self.buffers.append(buffer)


class Int8Store(Store):
    """Keys and values in eight bits, with one scale per token and head: about half the memory of bfloat16.

    Symmetric rounding to the nearest of 255 levels; the largest number of a vector is exact. Scales are float32.
    """

    def __init__(self, columns: Columns):
        super().__init__(columns)
        self.dtype = torch.float32

    def pack(self, keys: Tensor, values: Tensor) -> list[Tensor]:
        self.dtype = keys.dtype
        return [*self._quantize(keys), *self._quantize(values)]

    def unpack(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        keys, key_scales, values, value_scales = parts
        return (keys * key_scales).to(self.dtype), (values * value_scales).to(self.dtype)

    @staticmethod
    def _quantize(vectors: Tensor) -> tuple[Tensor, Tensor]:
        scales = vectors.abs().amax(-1, keepdim=True).float() / 127
        levels = (vectors.float() / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
        return levels.to(torch.int8), scales

    def join(self, stores: Sequence[Store], room: int) -> None:
        super().join(stores, room)
        self.dtype = next(store.dtype for store in stores if isinstance(store, Int8Store))


class SourceStore(Store):
    """Keys and values of a source, which are written once: no room to grow."""

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.buffers = [keys.contiguous(), values.contiguous()]
        return self.read()

    def join(self, stores: Sequence[Store], room: int) -> None:
        super().join(stores, self.columns.used)


_STORE_CLASSES: dict[str, type[Store]] = {"dense": Store, "int8": Int8Store}


class Columns:
    """Which token stands in which column, for the layers that keep the same tokens.

    While no row has padding the rows are alike and one row of positions serves all (``plain``).

    Args:
        reach: (window, sinks) where layers see only so far, and older tokens may be forgotten; None keeps all.
        capacity: columns there will ever be; None grows.
    """

    def __init__(self, reach: tuple[int, int] | None = None, capacity: int | None = None):
        self.reach = reach
        self.capacity = capacity
        self.stores: list[Store] = []
        self.plain = True
        self.used = 0
        self.in_sight = 0  # the first column that new tokens may look at
        self.written = (0, 0)  # the columns of the newest tokens
        self.positions: Tensor | None = None  # [rows, used]
        self.next: Any = 0  # position of the next token: one number while plain, else [batch]
        self.forgotten: Any = 0  # tokens before this position may be gone (sinks aside)
        self.limit = self._window_room()  # columns a window may have before the old ones are dropped
        self._before: tuple[int, Tensor | None, Any] = (0, None, 0)  # used, positions and next, for `undo`

    # -- one forward pass

    def advance(
        self, new: int, attention_mask: Tensor | None, device: torch.device, prefix_lengths: Tensor | None = None
    ) -> Span:
        """Make room for ``new`` columns and say where they stand."""
        if attention_mask is not None and not bool(attention_mask.all()):
            self.make_ragged(attention_mask.shape[0], device)
        if self.reach is not None and self.used + new > self.limit:
            self._forget()
        self._before = (self.used, self.positions, self.next)
        if self.plain:
            start = int(self.next)
            queries = torch.arange(start, start + new, device=device)[None]
            fresh = queries
            self.next = start + new
        else:
            start = None
            real = torch.ones(len(self.next), new, dtype=torch.bool, device=device)
            if attention_mask is not None:
                real = attention_mask.to(device, torch.bool)
            counted = self.next[:, None] + real.cumsum(-1) - 1
            queries, fresh = counted.clamp(min=0), counted.masked_fill(~real, -1)
            self.next = self.next + real.sum(-1)
        before = self.used
        self.positions = fresh if self.positions is None else torch.cat([self.positions, fresh], dim=1)
        self.used += new
        self.written = (before, self.used)
        self.in_sight = 0
        if self.reach is not None and self.plain and not self.reach[1]:
            self.in_sight = max(0, before - self.reach[0] + 1)
        return Span(queries, self.positions[:, self.in_sight :], start, prefix_lengths)

    def check_room(self, new: int) -> None:
        """
        Raises:
            ConfigError: ``new`` more columns do not fit.
        """
        require(
            self.capacity is None or self.reach is not None or self.used + new <= self.capacity,
            f"the cache has room for {self.capacity} tokens, and {self.used} + {new} are asked for: "
            "give it a larger capacity",
        )

    def undo(self) -> None:
        """Take back the last `advance`: its columns hold nothing that can be relied on."""
        self.used, self.positions, self.next = self._before

    def clear(self) -> None:
        """Back to the first day."""
        self.plain, self.used, self.positions, self.next, self.forgotten = True, 0, None, 0, 0
        for store in self.stores:
            store.buffers = []

    def room(self) -> int:
        """How many columns a buffer should have now."""
        if self.reach is None and self.capacity is not None:
            return self.capacity
        first = self.written[0] == 0
        grown = self.used + (_GROWTH if first else max(_GROWTH, self.used // 2))
        return grown if self.reach is None else max(self.used, min(grown, self.limit))

    def _window_room(self) -> int:
        if self.reach is None:
            return 0
        window, sinks = self.reach
        return window + sinks + _RESERVE + max(_SLACK, window // 4)

    def make_ragged(self, batch: int, device: torch.device) -> None:
        """From here on every row has positions of its own."""
        if not self.plain:
            return
        self.plain = False
        self.next = torch.full((batch,), int(self.next), device=device)
        self.forgotten = torch.full((batch,), int(self.forgotten), device=device)
        if self.positions is not None:
            self.positions = self.positions.expand(batch, -1).contiguous()

    def _forget(self) -> None:
        """Drop the columns that no later token will look at in any row."""
        if self.positions is None:
            return
        window, sinks = self.reach  # type: ignore[misc]
        limit = torch.as_tensor(self.next, device=self.positions.device).reshape(-1, 1) - (window - 1 + _RESERVE)
        old = (self.positions < limit) & (self.positions >= sinks) | (self.positions < 0)
        kept = torch.where(~old.all(0))[0]
        if len(kept) == self.used:
            return
        limit = limit.clamp(min=0).squeeze(1)
        self.forgotten = max(int(self.forgotten), int(limit)) if self.plain else torch.maximum(self.forgotten, limit)
        self.positions = self.positions[:, kept]
        self.used = len(kept)
        # Rows whose windows lie in different columns keep more of them together than one window has.
        self.limit = max(self._window_room(), self.used + _SLACK)
        for store in self.stores:
            store.keep_columns(kept, self.limit)

    # -- rows and columns

    def trim(self, count: Tensor | int) -> None:
        if isinstance(count, Tensor):
            if self.plain and bool((count == count[0]).all()):
                count = int(count[0])
            else:
                self.make_ragged(len(count), count.device)
        after = self.next - count
        self._check_trim(after)
        self.next = after
        if self.positions is None:
            return
        if self.plain:
            kept = self.used - int(count)
        else:
            gone = self.positions >= after[:, None]
            self.positions = self.positions.masked_fill(gone, -1)
            alive = torch.where((self.positions >= 0).any(0))[0]
            kept = int(alive[-1]) + 1 if len(alive) else 0
        self.positions = self.positions[:, :kept]
        self.used = kept

    def _check_trim(self, after: Tensor | int) -> None:
        require(bool(torch.as_tensor(after >= 0).all()), "cannot trim more tokens than the cache holds")
        if self.reach is not None:
            needed = torch.as_tensor(after) - self.reach[0] + 1
            whole = (torch.as_tensor(self.forgotten) <= needed.clamp(min=0)).all()
            require(
                bool(whole),
                f"cannot trim so far: a sliding window of {self.reach[0]} tokens has forgotten what earlier ones need "
                f"(at most {_RESERVE} tokens can be trimmed)",
            )

    def select(self, rows: Tensor) -> None:
        for store in self.stores:
            store.select(rows)
        self._select_positions(rows)

    def reorder(self, rows: Tensor, first_column: int) -> None:
        first = first_column if self.reach is None else 0  # a window's columns have moved
        for store in self.stores:
            store.reorder(rows, first, self.used)
        self._select_positions(rows)

    def _select_positions(self, rows: Tensor) -> None:
        if not self.plain:
            rows = rows.to(self.next.device)
            self.next, self.forgotten = self.next[rows], self.forgotten[rows]
            if self.positions is not None:
                self.positions = self.positions[rows]

    def join(self, others: Sequence[Columns], batches: Sequence[int]) -> None:
        """Take over the rows of ``others``."""
        self.used = max(other.used for other in others)
        first = others[0]
        alike = all(o.plain and o.used == first.used and o.next == first.next for o in others)
        if alike and all(torch.equal(o.positions, first.positions) for o in others):  # type: ignore[arg-type]
            self.next, self.positions = first.next, first.positions
            self.forgotten = max(int(other.forgotten) for other in others)
        else:
            self.plain = False
            rows = []
            for other, batch in zip(others, batches, strict=True):
                assert other.positions is not None
                part = other.positions.expand(batch, -1)
                rows.append(torch.nn.functional.pad(part, (self.used - other.used, 0), value=-1))
            self.positions = torch.cat(rows)
            device = self.positions.device

            def per_row(values: Callable[[Columns], Tensor | int]) -> Tensor:
                parts = (
                    torch.as_tensor(values(o), device=device).expand(b) for o, b in zip(others, batches, strict=True)
                )
                return torch.cat(list(parts))

            self.next = per_row(lambda other: other.next)
            self.forgotten = per_row(lambda other: other.forgotten)
        self.written = (0, self.used)
        self.limit = max(self.limit, self.used)
        room = self.room()
        for number, store in enumerate(self.stores):
            store.join([other.stores[number] for other in others], room)


class Cache:
    """The cache of a whole network: one store a layer, and one `Columns` for each kind of memory among them.

    Args:
        masks: the self-attention mask of each layer; a mask that sees only so far gets a sliding window.
        kind: "dense" or "int8".
        capacity: columns there will ever be, allocated at once; None grows.
        cross_attention: whether each layer also keeps the keys and values of a source.
    """

    def __init__(
        self,
        masks: Sequence[Mask],
        kind: str = "dense",
        *,
        capacity: int | None = None,
        cross_attention: Sequence[bool] | None = None,
    ):
        require(kind in _STORE_CLASSES, f"cache kind {kind!r} is not known; known: {', '.join(_STORE_CLASSES)}")
        require(capacity is None or capacity >= 1, f"cache capacity is {capacity}, but it must be at least 1")
        self.masks = tuple(masks)
        require(
            not any(isinstance(mask, Bidirectional) for mask in self.masks),
            "a bidirectional layer cannot use a cache: its earlier tokens look at later ones",
        )
        self.kind = kind
        self.capacity = capacity
        self.cross_attention = tuple(cross_attention or [False] * len(self.masks))
        self.batch_size: int | None = None
        self._batch_before: int | None = None
        groups: dict[tuple[int, int] | None, Columns] = {}
        self.stores: list[Store] = []
        for mask in self.masks:
            columns = groups.setdefault(mask.reach, Columns(mask.reach, capacity))
            store = _STORE_CLASSES[kind](columns)
            columns.stores.append(store)
            self.stores.append(store)
        self.columns = list(groups.values()) or [Columns(None, capacity)]
        self.source = Columns()  # the source of cross-attention: filled once
        self.neighbours: Neighbours | None = None  # rows that look at the same row of the source; None: each its own
        self._source_span: Span | None = None
        self.cross_stores: list[SourceStore | None] = [
            SourceStore(self.source) if c else None for c in self.cross_attention
        ]
        self.source.stores = [store for store in self.cross_stores if store is not None]

    @property
    def length(self) -> int:
        """Columns stored, padding included (of the layers that forget least)."""
        return max(columns.used for columns in self.columns)

    def row_lengths(self) -> Tensor:
        """[batch]: tokens each row has seen, which is the position of its next one."""
        return torch.as_tensor(self.columns[0].next).expand(self.batch_size or 1)

    @property
    def nbytes(self) -> int:
        """Bytes the buffers take."""
        stores = [*self.stores, *self.source.stores]
        return sum(buffer.nbytes for store in stores for buffer in store.buffers)

    def advance(
        self,
        batch: int,
        new: int,
        device: torch.device,
        attention_mask: Tensor | None = None,
        prefix_lengths: Tensor | None = None,
    ) -> list[Span]:
        """Make room for ``new`` columns of ``batch`` rows: the span of each layer.

        Args:
            attention_mask: [batch, new], true where a new column holds a token; None means everywhere.

        Raises:
            ConfigError: the batch does not fit the rows in the cache, or the capacity is used up.
        """
        require(
            self.batch_size in (None, batch),
            f"the cache holds {self.batch_size} rows, but the input has {batch}: select or merge rows first",
        )
        for columns in self.columns:
            columns.check_room(new)
        self._batch_before, self.batch_size = self.batch_size, batch
        spans = {id(columns): columns.advance(new, attention_mask, device, prefix_lengths) for columns in self.columns}
        return [spans[id(store.columns)] for store in self.stores]

    def undo(self) -> None:
        """Take back the last `advance`, when its forward pass was interrupted: the cache is as it was before."""
        for columns in self.columns:
            if self._batch_before is None:
                columns.clear()
            else:
                columns.undo()
        self.batch_size = self._batch_before

    @property
    def has_source(self) -> bool:
        """Whether it was said what cross-attention looks at."""
        return self.source.used > 0

    def set_source(self, columns: int, device: torch.device, attention_mask: Tensor | None = None) -> None:
        """Say which of the source's columns hold a token, before its keys and values are stored."""
        require(not self.has_source, "the cache has a source already: start a new cache for another one")
        self.source.advance(columns, attention_mask, device)
        self.neighbours, self._source_span = None, None

    def source_span(self) -> Span:
        """The span of cross-attention. It stays the same object, with its mask, until rows change."""
        if self._source_span is None:
            source = self.source
            assert source.positions is not None, "the cache has no source: call set_source"
            queries = source.positions.new_zeros(1, 1)
            self._source_span = Span(queries, source.positions, 0 if source.plain else None)
            self._source_span.neighbours = self.neighbours
        return self._source_span

    @property
    def rows_per_source(self) -> tuple[int, ...]:
        """For each row of the source, how many rows look at it."""
        return (1,) * (self.batch_size or 0) if self.neighbours is None else self.neighbours.counts

    def _select_source(self, rows: Tensor) -> None:
        """Rows that follow one another and look at the same source share its keys and values (beams, samples)."""
        if not self.has_source:
            return
        count = len(self.rows_per_source)
        wanted = rows if self.neighbours is None else self.neighbours.sources().to(rows.device)[rows]
        sources, counts = torch.unique_consecutive(wanted, return_counts=True)
        if len(sources) != count or not torch.equal(sources, torch.arange(count, device=sources.device)):
            self.source.select(sources)
        elif tuple(counts.tolist()) == self.rows_per_source:
            return
        self.neighbours = Neighbours.of(counts.tolist())
        self._source_span = None

    def trim(self, count: Tensor | int) -> None:
        """Forget the last ``count`` tokens, of all rows alike or of each row ([batch]).

        Raises:
            ConfigError: more than the cache holds, or than a sliding window can give back, or less than nothing.
        """
        if isinstance(count, Tensor):
            require(
                tuple(count.shape) == (self.batch_size,),
                f"the cache holds {self.batch_size} rows, but the counts to trim are {list(count.shape)}",
            )
        require(bool(torch.as_tensor(count >= 0).all()), "cannot trim less than no token")
        for columns in self.columns:
            columns._check_trim(columns.next - count)
        for columns in self.columns:
            columns.trim(count)

    def reorder(self, rows: Tensor, *, first_column: int = 0) -> None:
        """Row i becomes the old row ``rows[i]``; the number of rows stays.

        Args:
            rows: [batch].
            first_column: columns before it are promised to be equal in the rows that change places (beams share their
                prompt), and are not copied.
        """
        require(
            len(rows) == self.batch_size, f"reorder needs {self.batch_size} row numbers, but {len(rows)} were given"
        )
        for columns in self.columns:
            columns.reorder(rows, first_column)
        self._select_source(rows)

    def select(self, rows: Tensor) -> None:
        """Keep the rows ``rows`` [any number], in that order; a row may be repeated."""
        for columns in self.columns:
            columns.select(rows)
        self._select_source(rows)
        self.batch_size = len(rows)

    def merge(self, others: Sequence[Cache]) -> Cache:
        """A new cache with the rows of this one and of ``others``, one after the other. Their lengths may differ.

        Raises:
            ConfigError: the caches are of different networks or kinds, or one is empty.
        """
        caches = [self, *others]
        for other in caches:
            same = (other.masks, other.kind, other.cross_attention) == (self.masks, self.kind, self.cross_attention)
            require(same, "only caches of the same network and kind can be merged")
            require(other.batch_size is not None, "an empty cache cannot be merged")
        capacities = [other.capacity for other in caches if other.capacity is not None]
        capacity = max(capacities) if len(capacities) == len(caches) else None
        merged = Cache(self.masks, self.kind, capacity=capacity, cross_attention=self.cross_attention)
        batches = [other.batch_size or 0 for other in caches]
        merged.batch_size = sum(batches)
        for number, columns in enumerate(merged.columns):
            columns.join([other.columns[number] for other in caches], batches)
        if self.has_source:
            counts = [count for other in caches for count in other.rows_per_source]
            merged.neighbours = Neighbours.of(counts)
            merged.source.join([other.source for other in caches], [len(other.rows_per_source) for other in caches])
        return merged
