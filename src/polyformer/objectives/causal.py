"""Objectives of networks that write from left to right: the next token, and the middle of a text given its ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from polyformer.core.config import Config
from polyformer.core.masks import Bidirectional, BidirectionalWindow, PrefixCausal
from polyformer.objectives.base import (
    Batch,
    Example,
    Loss,
    Objective,
    beside_tokens,
    check_ids,
    check_share,
    demand,
    ids_of,
    single_document,
    tokens_of,
)
from polyformer.objectives.tokens import (
    arguments,
    check_factors,
    check_writer,
    judge,
    masks_of,
    next_tokens,
    predicting,
)


@dataclass(frozen=True, kw_only=True)
class CausalLM(Objective):
    """Each token from those before it (Radford et al., 2018, equation 1).

    In rows that hold several documents (``document_ids``), nobody looks into another document, and the first token of
    a document is not predicted.

    Args:
        z_loss: factor of log² Z, which keeps the logits from drifting (Chowdhery et al., 2022, section 5: 1e-4).
        rows_at_once: tokens that are scored at once; None takes as many as 128 MB hold.

    The loss is summed over predicted tokens. Metrics: "cross_entropy" (without the z-loss), "predictions"
    (predicted tokens a row).
    """

    reads: ClassVar[str] = "tokens"

    z_loss: float = 0.0
    rows_at_once: int | None = None

    def __post_init__(self) -> None:
        check_factors(type(self).__name__, self.z_loss, self.rows_at_once)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``input_ids`` and what masks they need; ``places`` [predictions], the columns that predict, as indices into
        [rows * columns]; ``labels`` [predictions], what comes next."""
        batch = tokens_of(examples)
        ids = [ids_of(example) for example in examples]
        masks = [predicting(row, beside_tokens(example, "document_ids")) for row, example in zip(ids, examples)]
        return batch | next_tokens(batch["input_ids"], masks)

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        hidden = network(**arguments(batch), with_logits=False).last_hidden_state
        return judge(network, hidden, batch, z_loss=self.z_loss, rows_at_once=self.rows_at_once)

    def check(self, config: Config) -> None:
        check_writer(type(self).__name__, config)
        for path, mask in masks_of(config):
            demand(
                not isinstance(mask, (Bidirectional, BidirectionalWindow)),
                f"{type(self).__name__} trains networks that do not see what comes next, but {path} has the mask "
                f"{mask}: use Causal or SlidingWindow",
            )


_MARKS_OF_A_MIDDLE = 4
"""<PRE>, <SUF>, <MID> and <EOT>."""


@dataclass(frozen=True, kw_only=True)
class FillInTheMiddle(CausalLM):
    """Next tokens of texts whose middle was moved to their end (Bavarian et al., 2022, section 3).

    A document is cut at two places into prefix, middle and suffix, and becomes ``<PRE> prefix <SUF> suffix <MID> middle
    <EOT>`` (PSM), or ``<PRE> <SUF> suffix <MID> prefix middle <EOT>`` (SPM, in the variant that shares what is learned
    with PSM: appendix D there). All its tokens are then predicted as in `CausalLM`.

    Where the paper cuts between characters, this cuts between tokens: at a place that would fall within a token, a
    network trained so should be asked with the cut moved to the token's end. In a row of several documents each is
    treated by itself (the paper's context level). The new tokens need room: a document gives up as many at its end as
    the row may not grow by, so that every middle keeps its end.

    Args:
        prefix_token_id, suffix_token_id, middle_token_id: <PRE>, <SUF>, <MID>.
        eos_token_id: <EOT>; a document that ends with it is cut before it.
        rate: the share of documents treated.
        suffix_first_rate: the share of those in SPM form.
        mean_lines: the middle is whole lines that follow one another, so many in the mean (a geometric distribution;
            lines as the paper's section 4.4 has them, but few, as is asked of a model by those who write); a document
            without a whole line is cut anywhere. None cuts all documents anywhere, all ways being equally likely.
        newline_token_ids: the tokens that a line begins with: those that hold the end of the line before.
        max_length: rows may grow to it; None keeps each at the length it had.
    """

    prefix_token_id: int
    suffix_token_id: int
    middle_token_id: int
    eos_token_id: int
    rate: float = 0.5
    suffix_first_rate: float = 0.5
    mean_lines: float | None = None
    newline_token_ids: tuple[int, ...] = ()
    max_length: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("FillInTheMiddle", rate=self.rate, suffix_first_rate=self.suffix_first_rate)
        if self.mean_lines is not None:
            demand(self.mean_lines >= 1, f"FillInTheMiddle: mean_lines is {self.mean_lines}, below 1")
            demand(
                len(self.newline_token_ids) > 0,
                "FillInTheMiddle: mean_lines needs newline_token_ids, but no token ends a line",
            )

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        ids, documents = ids_of(example), beside_tokens(example, "document_ids")
        if documents is None:
            documents = np.zeros(len(ids), np.int64)
        cuts = np.flatnonzero(np.diff(documents)) + 1
        spare = max(0, (self.max_length or 0) - len(ids))
        pieces = []
        for piece, numbers in zip(np.split(ids, cuts), np.split(documents, cuts)):
            if numbers[0] >= 0 and random.random() < self.rate:
                moved = self._moved(piece, len(piece) + spare, random)
                spare -= len(moved) - len(piece)
                piece = moved
            pieces.append(piece)
        numbers = np.repeat(documents[np.concatenate([[0], cuts])], [len(piece) for piece in pieces])
        return {**example, "input_ids": np.concatenate(pieces), "document_ids": numbers}

    def _moved(self, document: np.ndarray, room: int, random: np.random.Generator) -> np.ndarray:
        """The document with its middle at its end, in at most ``room`` tokens; as it was where that is too little."""
        ended = document[-1] == self.eos_token_id
        text = document[:-1] if ended else document
        if room <= _MARKS_OF_A_MIDDLE:
            return document
        if len(text) > room - _MARKS_OF_A_MIDDLE:
            text, ended = text[: room - _MARKS_OF_A_MIDDLE], False
        first, second = self._cut(text, ended, random)
        prefix, middle, suffix = text[:first], text[first:second], text[second:]
        before, after, between, end = (
            np.array([number], document.dtype)
            for number in (self.prefix_token_id, self.suffix_token_id, self.middle_token_id, self.eos_token_id)
        )
        if random.random() < self.suffix_first_rate:
            return np.concatenate([before, after, suffix, between, prefix, middle, end])
        return np.concatenate([before, prefix, after, suffix, between, middle, end])

    def _cut(self, text: np.ndarray, ended: bool, random: np.random.Generator) -> tuple[int, int]:
        """Where the middle begins and ends."""
        if self.mean_lines is not None:
            ends = np.flatnonzero(np.isin(text, self.newline_token_ids))
            if ended:  # otherwise the last line goes on beyond the row
                ends = np.append(ends, len(text))
            if len(ends) > 1:
                count = min(int(random.geometric(1 / self.mean_lines)), len(ends) - 1)
                start = int(random.integers(0, len(ends) - count))
                return int(ends[start]), int(ends[start + count])
        first, second = np.sort(random.integers(0, len(text) + 1, 2))
        return int(first), int(second)

    def check(self, config: Config) -> None:
        super().check(config)
        check_ids(
            "FillInTheMiddle",
            getattr(config, "vocab_size", None),
            prefix_token_id=self.prefix_token_id,
            suffix_token_id=self.suffix_token_id,
            middle_token_id=self.middle_token_id,
            eos_token_id=self.eos_token_id,
        )
        longest = getattr(config, "max_positions", None)
        demand(
            longest is None or self.max_length is None or self.max_length <= longest,
            f"FillInTheMiddle: max_length is {self.max_length}, but the network reads {longest} tokens",
        )


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Objective):
    """The rest of a text from its beginning, which is read both ways (Raffel et al., 2020, sections 3.2.1 and 3.2.3;
    Liu et al., 2018).

    A text (``input_ids``) is cut at a place drawn evenly; a pair is not cut: its ``source_ids`` are the beginning and
    its ``target_ids`` the rest. Only the rest is predicted.

    Args:
        z_loss, rows_at_once: as in `CausalLM`.

    The loss is summed over predicted tokens. Metrics as in `CausalLM`.
    """

    reads: ClassVar[str] = "tokens"
    one_document: ClassVar[bool] = True

    z_loss: float = 0.0
    rows_at_once: int | None = None

    def __post_init__(self) -> None:
        check_factors(type(self).__name__, self.z_loss, self.rows_at_once)

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        if "source_ids" in example:
            source = ids_of(example, "source_ids")
            return {
                "input_ids": np.concatenate([source, ids_of(example, "target_ids")]),
                "prefix_length": len(source),
            }
        ids = single_document(example, use="a prefix language model")
        return {**example, "prefix_length": int(random.integers(1, len(ids))) if len(ids) > 1 else 1}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """As `CausalLM.collate`, and ``prefix_lengths`` [rows]."""
        examples = [{name: example[name] for name in ("input_ids", "prefix_length")} for example in examples]
        batch = tokens_of(examples)
        lengths = [example["prefix_length"] for example in examples]
        masks = [predicting(ids_of(example), None) for example in examples]
        for mask, length in zip(masks, lengths):
            mask[: length - 1] = False
        return {**batch, **next_tokens(batch["input_ids"], masks), "prefix_lengths": torch.tensor(lengths)}

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        inputs = {**arguments(batch), "prefix_lengths": batch["prefix_lengths"]}
        hidden = network(**inputs, with_logits=False).last_hidden_state
        return judge(network, hidden, batch, z_loss=self.z_loss, rows_at_once=self.rows_at_once)

    def check(self, config: Config) -> None:
        check_writer("PrefixLM", config)
        for path, mask in masks_of(config):
            demand(
                isinstance(mask, PrefixCausal),
                f"PrefixLM trains networks that read a beginning both ways, but {path} has the mask {mask}: use "
                "PrefixCausal in every layer",
            )
