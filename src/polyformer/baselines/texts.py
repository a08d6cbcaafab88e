"""Which texts stand in the rows of a batch, and each of them as a row of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from polyformer.core.config import require
from polyformer.core.transformer import check_tokens


class Texts:
    """The texts in the rows of a batch.

    A network with a state must not carry it from one document into the next, nor change it at padding. So the texts of
    irregular rows are read as rows of their own, all beginning in the first column; what stands to the right of the
    shorter ones is never looked at.

    Attributes:
        whole: every row is one text without padding; then there is nothing to move, and the other attributes are None.
        rows: [texts], the row that each text stands in. A row of padding alone has none, one of documents several.
        lengths: [texts], tokens of each.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None = None, document_ids: Tensor | None = None):
        """
        Args:
            input_ids: [batch, columns].
            attention_mask: [batch, columns], true (or 1) where there is a token; padding may stand anywhere.
            document_ids: [batch, columns]; a document is a run of neighbours with the same id, and -1 is padding.

        Raises:
            ConfigError: the shapes differ.
        """
        check_tokens(input_ids, attention_mask)
        self._shape, self._device = input_ids.shape, input_ids.device
        require(
            document_ids is None or document_ids.shape == input_ids.shape,
            f"document_ids are {None if document_ids is None else list(document_ids.shape)}, but input_ids are "
            f"{list(input_ids.shape)}",
        )
        self.rows: Tensor | None = None
        self.lengths: Tensor | None = None
        real, begins = _places(input_ids, attention_mask, document_ids)
        self.whole = real is None
        if real is None or begins is None:
            return
        self._row, self._column = real.nonzero(as_tuple=True)
        first = begins[self._row, self._column].clone()
        first[:1] = True
        first[1:] |= self._row[1:] != self._row[:-1]
        self._text = first.cumsum(0) - 1
        starts = first.nonzero()[:, 0]
        self._place = torch.arange(len(first), device=first.device) - starts[self._text]
        self.rows = self._row[starts]
        self.lengths = torch.bincount(self._text, minlength=len(starts))

    def tokens(self) -> Tensor:
        """[batch]: the tokens in each row."""
        batch, columns = self._shape
        if self.rows is None:
            return torch.full((batch,), columns, device=self._device)
        return torch.bincount(self._row, minlength=batch)

    def gather(self, values: Tensor) -> Tensor:
        """[batch, columns, ...] -> [texts, longest, ...], zeros after the end of each text."""
        if self.whole:
            return values
        assert self.lengths is not None
        longest = int(self.lengths.max()) if len(self.lengths) else 0
        apart = values.new_zeros(len(self.lengths), longest, *values.shape[2:])
        return apart.index_put((self._text, self._place), values[self._row, self._column])

    def scatter(self, apart: Tensor) -> Tensor:
        """The way back from `gather`: zeros at padding."""
        if self.whole:
            return apart
        together = apart.new_zeros(*self._shape, *apart.shape[2:])
        return together.index_put((self._row, self._column), apart[self._text, self._place])

    def carry(self, before: Tensor | None, last: Tensor) -> Tensor:
        """The state of every row after its columns.

        Args:
            before: [batch, ...], the state before them; None is all zeros.
            last: [texts, ...], the state after each text.

        Returns:
            [batch, ...]: that of the row's last text; what it was where the row holds no token.
        """
        if self.rows is None:
            return last
        kept = last.new_zeros(self._shape[0], *last.shape[1:]) if before is None else before.to(last.dtype)
        ends = torch.ones_like(self.rows, dtype=torch.bool)
        ends[:-1] = self.rows[1:] != self.rows[:-1]
        return kept.index_put((self.rows[ends],), last[ends])


def _places(
    input_ids: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Where there are tokens, and where documents begin within a row, both [batch, columns]; None where every row is
    one text."""
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    begins = torch.zeros_like(real)
    if document_ids is not None:
        document_ids = document_ids.masked_fill(~real, -1)
        real = document_ids >= 0
        begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    return (None, None) if bool(real.all()) and not bool(begins.any()) else (real, begins)
