"""Objectives of encoder-decoders: a target from its source, and a text from what was left of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from polyformer.core import EncoderDecoder
from polyformer.core.config import Config
from polyformer.errors import DataError
from polyformer.objectives.base import (
    Batch,
    Example,
    Loss,
    Objective,
    beside_tokens,
    check_ids,
    check_share,
    demand,
    described,
    ids_of,
    inputs_of,
    single_document,
    tokens_of,
)
from polyformer.objectives.tokens import arguments, check_factors, judge, next_tokens


@dataclass(frozen=True, kw_only=True)
class SequenceToSequence(Objective):
    """Each token of a target from its source and the tokens before it (Sutskever et al., 2014; Vaswani et al., 2017).

    The decoder reads the network's start token and then the target; it writes the target, whose end token, if it should
    learn to stop, belongs to the data.

    Args:
        label_smoothing: so much of the weight of the true token is spread over the whole vocabulary (Szegedy et al.,
            2016, section 7; 0.1 in Vaswani et al., 2017, section 5.4).
        z_loss: factor of log² Z (Chowdhery et al., 2022, section 5).
        rows_at_once: tokens that are scored at once; None takes as many as 128 MB hold.

    The loss is summed over the tokens of targets. Metrics: "cross_entropy" (neither smoothed nor with the z-loss),
    "predictions" (tokens of a target).
    """

    reads: ClassVar[str] = "pair"

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    rows_at_once: int | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_factors(name, self.z_loss, self.rows_at_once)
        demand(
            0 <= self.label_smoothing < 1,
            f"{name}: label_smoothing is {self.label_smoothing}, but it must be at least 0 and below 1",
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        """What the encoder reads (tokens of ``source_ids``, a picture or sound) and its masks; ``decoder_input_ids``,
        whose first column waits for the start token, and their mask; ``places`` and ``labels`` as in
        `CausalLM.collate`."""
        return self._batch(examples, "target_ids")

    def _batch(self, examples: Sequence[Example], target: str) -> Batch:
        source = tokens_of(examples, "source_ids") if "source_ids" in examples[0] else inputs_of(examples)
        # The start token is the network's to say; any id stands for it until then.
        moved = [{"ids": np.concatenate([[0], ids_of(example, target)])} for example in examples]
        whole = tokens_of(moved, "ids", "decoder_")
        masks = [np.arange(len(example["ids"])) < len(example["ids"]) - 1 for example in moved]
        predictions = next_tokens(whole["decoder_input_ids"], masks)
        # The last column of the longest target predicts nothing: it is not read.
        columns = whole["decoder_input_ids"].shape[1]
        rows = predictions["places"] // columns
        predictions["places"] = predictions["places"] - rows
        return {**source, **{name: part[:, :-1] for name, part in whole.items()}, **predictions}

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        start = network.config.decoder_start_token_id  # type: ignore[union-attr]
        targets = batch["decoder_input_ids"].clone()
        targets[:, 0] = start  # type: ignore[assignment]
        output = network(
            **arguments(batch),
            decoder_input_ids=targets,
            decoder_attention_mask=batch.get("decoder_attention_mask"),
            with_logits=False,
        )
        return judge(
            network,
            output.last_hidden_state,
            batch,
            z_loss=self.z_loss,
            label_smoothing=self.label_smoothing,
            rows_at_once=self.rows_at_once,
        )

    def check(self, config: Config) -> None:
        name = type(self).__name__
        owner = config.owner
        fits = isinstance(config, EncoderDecoder.Config) or hasattr(config, "decoder_start_token_id")
        demand(
            fits and hasattr(owner, "score"),
            f"{name} trains networks that read a source and write a target, such as EncoderDecoder, but this network "
            f"is {config.kind}",
        )
        demand(
            not isinstance(config, EncoderDecoder.Config) or config.head is not None,
            f"{name} needs a head over the vocabulary, but this EncoderDecoder has none",
        )
        demand(
            getattr(config, "decoder_start_token_id", None) is not None,
            f"{name} must know what a target begins with, but this network has no decoder_start_token_id",
        )


@dataclass(frozen=True, kw_only=True)
class Captioning(SequenceToSequence):
    """The caption of a picture (``pixel_values``, with ``input_ids`` for the caption), word for word (Vinyals et al.,
    2015). As `SequenceToSequence`."""

    reads: ClassVar[str] = "captions"

    def collate(self, examples: Sequence[Example]) -> Batch:
        return self._batch(examples, "input_ids")

    def check(self, config: Config) -> None:
        super().check(config)
        reads = getattr(getattr(config, "encoder", None), "input_name", None)
        demand(reads == "pixel_values", f"Captioning trains networks that read pictures, but this one reads {reads}")


# ---------------------------------------------------------------------------------------------------------------
# Texts to be restored


@dataclass(frozen=True, kw_only=True)
class SpanCorruption(SequenceToSequence):
    """Spans of a text were taken out, and the target is the spans (Raffel et al., 2020, T5, section 3.1.4 and 3.3.4).

    The source is the text in which each span became a sentinel, another for each; the target is the spans, each after
    its sentinel, and one more sentinel at the end. Both end with the end token. The number of tokens taken out and of
    spans is fixed by the length of the text; where they lie is drawn, all ways being equally likely.

    Args:
        sentinel_token_ids: as many as there may be spans, and one more (T5: <extra_id_0> to <extra_id_99>, whose ids
            fall).
        eos_token_id: ends source and target; where a text ends with it, it stays out of the game.
        rate: the share of tokens taken out (0.15 in the paper).
        mean_span_length: of the spans (3 in the paper).
        label_smoothing, z_loss, rows_at_once: as in `SequenceToSequence`.
    """

    reads: ClassVar[str] = "tokens"
    one_document: ClassVar[bool] = True

    sentinel_token_ids: tuple[int, ...]
    eos_token_id: int
    rate: float = 0.15
    mean_span_length: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("SpanCorruption", rate=self.rate)
        demand(self.mean_span_length >= 1, f"SpanCorruption: mean_span_length is {self.mean_span_length}, below 1")
        demand(
            len(set(self.sentinel_token_ids)) == len(self.sentinel_token_ids) >= 2,
            "SpanCorruption: sentinel_token_ids must be two or more different ids",
        )

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        text = _without_end(single_document(example, use="span corruption"), self.eos_token_id)
        taken = self.spans(len(text), random, described(example))
        end = np.array([self.eos_token_id])
        source: list[Any] = []
        target: list[Any] = []
        last = 0
        for sentinel, (start, stop) in zip(self.sentinel_token_ids, taken):
            source += [text[last:start], [sentinel]]
            target += [[sentinel], text[start:stop]]
            last = stop
        source += [text[last:], end]
        target += [[self.sentinel_token_ids[len(taken)]], end]
        return {
            "source_ids": np.concatenate(source).astype(np.int64),
            "target_ids": np.concatenate(target).astype(np.int64),
        }

    def spans(self, length: int, random: np.random.Generator, name: str = "a text") -> list[tuple[int, int]]:
        """Where the spans lie: (first, one past the last) of each, in order, with at least one token between two.

        Raises:
            DataError: the text, called ``name``, needs more sentinels than there are.
        """
        if length < 1:
            raise DataError(f"{name} has no token besides its end")
        noise = min(max(1, round(length * self.rate)), max(1, length - 1))
        kept = length - noise
        count = min(max(1, round(noise / self.mean_span_length)), noise, kept + 1)
        available = len(self.sentinel_token_ids)
        if count + 1 > available:
            raise DataError(
                f"{name} has {length} tokens and {count} spans, which need {count + 1} sentinel_token_ids, but there "
                f"are {available}: cut texts shorter, or take fewer or longer spans"
            )
        lengths = _parts(noise, count, random)
        # What stays is cut into one more piece; the first and the last may be empty.
        gaps = _parts(kept + 2, count + 1, random)
        gaps[0] -= 1
        starts = np.cumsum(gaps[:-1]) + np.concatenate([[0], np.cumsum(lengths)[:-1]])
        return [(int(start), int(start + size)) for start, size in zip(starts, lengths)]

    def check(self, config: Config) -> None:
        super().check(config)
        check_ids(
            "SpanCorruption",
            getattr(config, "vocab_size", None),
            sentinel_token_ids=self.sentinel_token_ids,
            eos_token_id=self.eos_token_id,
        )


@dataclass(frozen=True, kw_only=True)
class Denoising(SequenceToSequence):
    """The whole text from a damaged one (Lewis et al., 2020, BART, section 2.2).

    In this order: sentences are shuffled; spans, of lengths drawn from a Poisson distribution, become one mask token
    each, and where the length is 0 a mask is put in (text infilling); tokens are deleted; the text is turned so that it
    begins with another of its tokens (document rotation). The defaults are those of the published models: infilling of
    30% of the tokens and shuffled sentences (section 5.1 there).

    Args:
        mask_token_id: stands for a span.
        eos_token_id: ends source and target.
        bos_token_id: begins both, if given.
        infilling_rate: the share of tokens in spans that become masks.
        mean_span_length: of the Poisson distribution.
        deletion_rate: the share of tokens deleted.
        permute_sentences: the chance that the sentences of a text are shuffled.
        sentence_end_token_ids: with which a sentence ends ("." and its like). Examples may say instead where one begins
            (``starts_sentence``: true there).
        rotation_rate: the chance that a text is turned.
        label_smoothing, z_loss, rows_at_once: as in `SequenceToSequence`.
    """

    reads: ClassVar[str] = "tokens"
    one_document: ClassVar[bool] = True

    mask_token_id: int
    eos_token_id: int
    bos_token_id: int | None = None
    infilling_rate: float = 0.3
    mean_span_length: float = 3.0
    deletion_rate: float = 0.0
    permute_sentences: float = 1.0
    sentence_end_token_ids: tuple[int, ...] = ()
    rotation_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(
            "Denoising",
            infilling_rate=self.infilling_rate,
            deletion_rate=self.deletion_rate,
            permute_sentences=self.permute_sentences,
            rotation_rate=self.rotation_rate,
        )
        demand(self.mean_span_length >= 0, f"Denoising: mean_span_length is {self.mean_span_length}, below 0")
        demand(
            self.mean_span_length > 0 or not self.infilling_rate,
            "Denoising: with a mean_span_length of 0 no token is ever replaced: give infilling_rate 0 too",
        )

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        ids = single_document(example, use="denoising")
        text = _without_end(ids, self.eos_token_id)
        if len(text) and text[0] == self.bos_token_id:
            text = text[1:]
        noisy = text
        if self.permute_sentences and random.random() < self.permute_sentences:
            sentences = np.split(text, self._sentences(example, ids, text))
            noisy = np.concatenate([sentences[number] for number in random.permutation(len(sentences))])
        noisy = self.infilled(noisy, random)
        if self.deletion_rate:
            noisy = noisy[random.random(len(noisy)) >= self.deletion_rate]
        if self.rotation_rate and random.random() < self.rotation_rate and len(noisy):
            noisy = np.roll(noisy, -int(random.integers(len(noisy))))
        begin = [] if self.bos_token_id is None else [self.bos_token_id]
        return {
            name: np.concatenate([begin, part, [self.eos_token_id]]).astype(np.int64)
            for name, part in (("source_ids", noisy), ("target_ids", text))
        }

    def _sentences(self, example: Example, ids: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Where in ``text``, which is ``ids`` without its ends, a new sentence begins, but for the first."""
        starts = beside_tokens(example, "starts_sentence")
        if starts is not None:
            offset = int(len(ids) > 0 and ids[0] == self.bos_token_id)
            found = np.flatnonzero(starts[offset : offset + len(text)])
            return found[found > 0]
        if not self.sentence_end_token_ids:
            raise DataError(
                f"{described(example)}: to shuffle sentences, Denoising must know them: give sentence_end_token_ids or "
                "examples with starts_sentence, or set permute_sentences to 0"
            )
        ends = np.flatnonzero(np.isin(text[:-1], self.sentence_end_token_ids)) + 1
        # "?!" and "..." end one sentence, not several
        return ends[~np.isin(text[ends], self.sentence_end_token_ids)]

    def infilled(self, text: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """The text with spans replaced by one mask each, which do not touch, and masks put in."""
        wanted = round(self.infilling_rate * len(text))
        lengths: list[int] = []
        while sum(lengths) < wanted:
            lengths.append(min(int(random.poisson(self.mean_span_length)), wanted - sum(lengths)))
        inserted = sum(length == 0 for length in lengths)
        spans = [length for length in lengths if length]
        kept = len(text) - wanted
        if len(spans) > kept + 1:  # too little stays to stand between so many: they become fewer and longer
            spans = [int(part) for part in _parts(wanted, kept + 1, random)]
        if spans:
            gaps = _parts(kept + 2, len(spans) + 1, random)
            gaps[0] -= 1
            gaps[-1] -= 1
            pieces: list[Any] = []
            last = 0
            for gap, size in zip(gaps, [*spans, 0]):
                pieces += [text[last : last + gap], [self.mask_token_id] if size else []]
                last += int(gap) + size
            text = np.concatenate(pieces).astype(np.int64)
        places = random.integers(0, len(text) + 1, inserted)
        return np.insert(text, places, self.mask_token_id)

    def check(self, config: Config) -> None:
        super().check(config)
        check_ids(
            "Denoising",
            getattr(config, "vocab_size", None),
            mask_token_id=self.mask_token_id,
            eos_token_id=self.eos_token_id,
            bos_token_id=self.bos_token_id,
            sentence_end_token_ids=self.sentence_end_token_ids,
        )


def _without_end(ids: np.ndarray, end: int) -> np.ndarray:
    return ids[:-1] if ids[-1] == end else ids


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """``total`` as a sum of ``count`` numbers of at least 1, all sums being equally likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
