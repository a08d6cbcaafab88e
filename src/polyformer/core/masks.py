"""Who may look at whom. A mask is a rule over positions; a `Span` holds the positions of one forward pass.

Positions count real tokens from 0 in each row. A key column without a token has position -1, and no rule lets anyone
look at it: padding is right on any side because it has no position.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from polyformer.core import config as core
from polyformer.core.config import require

Value = TypeVar("Value")


class Neighbours:
    """Rows that follow one another and look at the same source, such as the beams and samples of one text.

    In cross-attention they become more queries of one row, so that keys and values are kept and read once for all of
    them. Where some sources have fewer rows than others, the missing queries are filled in and left out again.

    Args:
        counts: for each source, how many rows look at it; at least one.
    """

    def __init__(self, counts: Sequence[int]):
        self.counts = tuple(counts)
        self.most = max(self.counts)
        self._filled: Tensor | None = None  # [sources * most]: the row whose queries stand in each place
        self._places: Tensor | None = None  # [rows]: where each row's queries stand
        if min(self.counts) < self.most:
            places = torch.arange(self.most)
            real = places < torch.tensor(self.counts)[:, None]
            self._places = torch.where(real.flatten())[0]
            self._filled = (real.flatten().cumsum(0) - 1).clamp(min=0)

    @staticmethod
    def of(counts: Sequence[int]) -> Neighbours | None:
        """None where every row has a source of its own."""
        return Neighbours(counts) if max(counts, default=1) > 1 else None

    def sources(self) -> Tensor:
        """[rows]: which source each row looks at."""
        return torch.arange(len(self.counts)).repeat_interleave(torch.tensor(self.counts))

    def fold(self, queries: Tensor) -> Tensor:
        """[rows, heads, new, head_dim] -> [sources, heads, most * new, head_dim]."""
        if self._filled is not None:
            self._filled = self._filled.to(queries.device)
            queries = queries.index_select(0, self._filled)
        _, heads, new, size = queries.shape
        parts = queries.reshape(-1, self.most, heads, new, size).transpose(1, 2)
        return parts.reshape(-1, heads, self.most * new, size)

    def unfold(self, results: Tensor) -> Tensor:
        """The way back from `fold`, for results or weights."""
        _, heads, queries, size = results.shape
        new = queries // self.most
        results = results.reshape(-1, heads, self.most, new, size).transpose(1, 2).reshape(-1, heads, new, size)
        if self._places is None:
            return results
        self._places = self._places.to(results.device)
        return results.index_select(0, self._places)


class Span:
    """Where the new tokens of one forward pass stand, and the key columns they may look at.

    Attributes:
        queries: positions of the new tokens, [rows, new]; rows is 1 where all rows are alike.
        keys: positions of the key columns, [rows, columns]; -1 where a column holds no token.
        start: position of the first new token when no row has padding, else None. Then ``queries`` is
            start, start + 1, ... in every row, and the last columns of ``keys`` are the same.
        prefix_lengths: [batch], for prefix-LM masks: so many tokens of each row see one another both ways.
        documents: [rows, columns], of rows that hold several documents: the number of each column's, -1 for padding.
            Positions then begin anew in each document, and nobody looks into another. None: a row is one document.
        bias: what every layer adds to its scores, [rows, heads, new, columns]; the stack sets it.
        neighbours: for cross-attention, which rows of queries look at the same row of keys; None: each at its own.
    """

    def __init__(self, queries: Tensor, keys: Tensor, start: int | None, prefix_lengths: Tensor | None = None):
        self.queries = queries
        self.keys = keys
        self.start = start
        self.prefix_lengths = prefix_lengths
        self.documents: Tensor | None = None
        self.bias: Tensor | None = None
        self.neighbours: Neighbours | None = None
        self._memory: dict[Hashable, Any] = {}

    @staticmethod
    def of(
        length: int,
        attention_mask: Tensor | None = None,
        *,
        device: torch.device | None = None,
        prefix_lengths: Tensor | None = None,
        document_ids: Tensor | None = None,
    ) -> Span:
        """The span of a whole sequence without a cache.

        Args:
            length: number of columns.
            attention_mask: [batch, length], true where there is a token; None means everywhere.
            document_ids: [batch, length]; a document is a run of neighbours with the same id, and -1 is padding. None
                means one document a row.
        """
        if document_ids is not None:
            if attention_mask is not None:
                document_ids = document_ids.masked_fill(~attention_mask.bool(), -1)
            real = document_ids >= 0
            begins = torch.ones_like(real)
            begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
            if bool(((begins & real).sum(-1) > 1).any()):
                return Span._of_documents(begins, real)
            attention_mask = real  # one document a row
        if attention_mask is None or bool(attention_mask.all()):
            positions = torch.arange(length, device=device)[None]
            return Span(positions, positions, 0, prefix_lengths)
        real = attention_mask.bool()
        positions = real.cumsum(-1) - 1
        return Span(positions.clamp(min=0), positions.masked_fill(~real, -1), None, prefix_lengths)

    @staticmethod
    def _of_documents(begins: Tensor, real: Tensor) -> Span:
        """
        Args:
            begins: [batch, length], true where a document or a run of padding begins.
            real: [batch, length], true where there is a token.
        """
        columns = torch.arange(real.shape[1], device=real.device)
        positions = columns - torch.where(begins, columns, 0).cummax(-1).values
        span = Span(positions.masked_fill(~real, 0), positions.masked_fill(~real, -1), None)
        span.documents = (begins.cumsum(-1) - 1).masked_fill(~real, -1)
        return span

    @staticmethod
    def over(source: Span) -> Span:
        """The span of cross-attention: any number of queries, to whom the columns of ``source`` are alike."""
        return Span(source.queries.new_zeros(1, 1), source.keys, source.start)

    @property
    def new(self) -> int:
        return self.queries.shape[1]

    @property
    def columns(self) -> int:
        return self.keys.shape[1]

    def lengths(self) -> Tensor:
        """Tokens so far of the sequence that a column belongs to: [rows, 1], or [rows, columns] of its document."""
        if self.documents is None:
            return self.keys.amax(-1, keepdim=True) + 1
        numbers = self.documents.clamp(min=0)
        counts = torch.zeros_like(numbers).scatter_add_(1, numbers, (self.documents >= 0).long())
        return counts.gather(1, numbers)

    def once(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """``compute()``, remembered for the rest of the pass: layers alike share masks, rotary tables and biases."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]


@dataclass(frozen=True)
class Mask(core.Config):
    """A rule over positions. Subclasses say which keys a query may see."""

    def sees(self, queries: Tensor, keys: Tensor, span: Span) -> Tensor:
        """
        Args:
            queries: positions [rows, new, 1].
            keys: positions [rows, 1, columns], none of them empty as far as this rule is concerned.

        Returns:
            Booleans that broadcast to [rows, new, columns].
        """
        raise NotImplementedError

    def hides_nothing(self, span: Span) -> bool:
        """Whether, for a span without padding, every query may see every key."""
        return False

    def is_plain_causal(self, span: Span) -> bool:
        """Whether, for a span without padding, this is the lower triangle of a square."""
        return False

    @property
    def reach(self) -> tuple[int, int] | None:
        """(window, sinks): no query sees further back than window - 1 positions, but for the first ``sinks``. None:
        no limit."""
        return None

    def of(self, span: Span) -> Tensor | None:
        """Booleans [rows, 1, new, columns], true where a query may look; None where nothing is hidden.

        A padding query sees what it likes: its result means nothing, but it must not be NaN.
        """
        return span.once(("mask", self), lambda: self._compute(span))

    def bias_of(self, span: Span) -> Tensor | None:
        """``span.bias`` with -inf where this rule hides a key; None where the span has no bias."""
        bias, seen = span.bias, self.of(span)
        if bias is None or seen is None:
            return bias
        return span.once(("masked bias", self), lambda: bias.masked_fill(~seen, float("-inf")))

    def _compute(self, span: Span) -> Tensor | None:
        if span.start is not None and self.hides_nothing(span):
            return None
        seen = self.sees(span.queries[:, :, None], span.keys[:, None, :], span)
        if span.start is None:
            seen = seen & (span.keys >= 0)[:, None, :]
            if span.documents is not None:
                seen = seen & (span.documents[:, :, None] == span.documents[:, None, :])
            seen = seen | ~seen.any(-1, keepdim=True)
        return seen[:, None]


@dataclass(frozen=True)
class Bidirectional(Mask):
    """Everyone sees everyone (encoders)."""

    def sees(self, queries: Tensor, keys: Tensor, span: Span) -> Tensor:
        return (keys >= 0).expand(-1, queries.shape[1], -1)

    def hides_nothing(self, span: Span) -> bool:
        return True


@dataclass(frozen=True)
class BidirectionalWindow(Mask):
    """A token sees those at most ``distance`` positions away, before and after it (Beltagy et al., 2020)."""

    distance: int

    def __post_init__(self) -> None:
        require(self.distance >= 1, f"distance is {self.distance}, but it must be at least 1")

    def sees(self, queries: Tensor, keys: Tensor, span: Span) -> Tensor:
        return (keys - queries).abs() <= self.distance

    def hides_nothing(self, span: Span) -> bool:
        return span.columns <= self.distance + 1


@dataclass(frozen=True)
class Causal(Mask):
    """A token sees itself and those before it (Vaswani et al., 2017, section 3.2.3)."""

    def sees(self, queries: Tensor, keys: Tensor, span: Span) -> Tensor:
        return keys <= queries

    def hides_nothing(self, span: Span) -> bool:
        return span.new == 1

    def is_plain_causal(self, span: Span) -> bool:
        return span.start == 0 and span.new == span.columns


@dataclass(frozen=True)
class SlidingWindow(Mask):
    """Causal, and only the last ``window`` tokens, oneself among them (Beltagy et al., 2020; Jiang et al., 2023).

    The first ``sinks`` tokens stay in sight (Xiao et al., 2023).
    """

    window: int
    sinks: int = 0

    def __post_init__(self) -> None:
        require(self.window >= 1, f"window is {self.window}, but it must be at least 1")
        require(self.sinks >= 0, f"sinks is {self.sinks}, but it must be at least 0")

    def sees(self, queries: Tensor, keys: Tensor, span: Span) -> Tensor:
        near = keys > queries - self.window
        return (keys <= queries) & (near | (keys < self.sinks) if self.sinks else near)

    def hides_nothing(self, span: Span) -> bool:
        return span.new == 1 and span.columns <= self.window

    def is_plain_causal(self, span: Span) -> bool:
        return span.start == 0 and span.new == span.columns <= self.window

    @property
    def reach(self) -> tuple[int, int] | None:
        return self.window, self.sinks


@dataclass(frozen=True)
class BlockLocal(Mask):
    """Causal inside blocks of ``block`` tokens: a token sees those of its own block before it (chunked attention)."""

    block: int

    def __post_init__(self) -> None:
        require(self.block >= 1, f"block is {self.block}, but it must be at least 1")

    def sees(self, queries: Tensor, keys: Tensor, span: Span) -> Tensor:
        return (keys <= queries) & (keys.div(self.block, rounding_mode="floor") == queries // self.block)

    def hides_nothing(self, span: Span) -> bool:
        return span.new == 1 and span.start is not None and span.start < self.block

    def is_plain_causal(self, span: Span) -> bool:
        return span.start == 0 and span.new == span.columns <= self.block

    @property
    def reach(self) -> tuple[int, int] | None:
        return self.block, 0


@dataclass(frozen=True)
class PrefixCausal(Mask):
    """Prefix-LM: the first ``prefix_lengths[row]`` tokens see one another both ways, the rest is causal (Raffel et
    al., 2020, figure 3).

    The lengths come with the call. A cached prefix must be fed in one piece, since its first token looks at its last.
    """

    def sees(self, queries: Tensor, keys: Tensor, span: Span) -> Tensor:
        seen = keys <= queries
        if span.prefix_lengths is None:
            return seen
        return seen | ((keys >= 0) & (keys < span.prefix_lengths[:, None, None]))

    def hides_nothing(self, span: Span) -> bool:
        return span.new == 1 and span.prefix_lengths is None

    def is_plain_causal(self, span: Span) -> bool:
        return span.prefix_lengths is None and span.start == 0 and span.new == span.columns
