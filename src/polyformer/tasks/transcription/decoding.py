"""One window of sound (30 seconds) in words: the likeliest text, or another try where that looks wrong."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyformer.core import Cache, EncoderDecoder
from polyformer.core.encoder_decoder import SourceDecoder
from polyformer.core.transformer import Source
from polyformer.generation.generate import generate
from polyformer.generation.outputs import Generation
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.transcription.rules import FirstTokens, PlainScores, TimestampRules
from polyformer.tasks.transcription.vocabulary import Vocabulary

LONGEST = 224
"""Tokens of a window's text: half of the decoder's positions, the other half being for the text before."""


@dataclass(frozen=True)
class DecodingOptions:
    """How windows are decoded.

    Attributes:
        num_beams: of beam search at temperature 0; 1 is greedy.
        best_of: samples at a temperature above 0, of which the likeliest counts.
        temperatures: tried one after the other until a text looks right.
        compression_ratio_limit: above it a text repeats itself.
        logprob_limit: below it, on the mean of the tokens, a text is doubtful.
        no_speech_limit: a doubtful text of a window with a higher probability of silence is taken for silence.
        length_penalty: of beam search.
        timestamps: whether they are written.
        seed: of the samples.
    """

    num_beams: int = 1
    best_of: int = 5
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio_limit: float | None = 2.4
    logprob_limit: float | None = -1.0
    no_speech_limit: float | None = 0.6
    length_penalty: float = 1.0
    timestamps: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Decoded:
    """What one window says.

    Attributes:
        tokens: of the text, timestamps included, the end not.
        text: without timestamps.
        temperature, mean_logprob, compression_ratio, no_speech_probability: see `Segment`.
    """

    tokens: tuple[int, ...]
    text: str
    temperature: float
    mean_logprob: float
    compression_ratio: float
    no_speech_probability: float

    def is_silence(self, options: DecodingOptions) -> bool:
        limit = options.no_speech_limit
        if limit is None or self.no_speech_probability <= limit:
            return False
        return options.logprob_limit is None or self.mean_logprob < options.logprob_limit

    def is_wrong(self, options: DecodingOptions) -> bool:
        """Whether another try is worth it."""
        if self.is_silence(options):
            return False
        return self.repeats_itself(options) or (
            options.logprob_limit is not None and self.mean_logprob < options.logprob_limit
        )

    def repeats_itself(self, options: DecodingOptions) -> bool:
        limit = options.compression_ratio_limit
        return limit is not None and self.compression_ratio > limit


@torch.inference_mode()
def decode_windows(
    model: Any,
    vocabulary: Vocabulary,
    states: Tensor,
    prompts: Sequence[Sequence[int]],
    options: DecodingOptions,
) -> list[Decoded]:
    """The text of every window: the first try that looks right, or where none does the likeliest, those that repeat
    themselves left aside (as faster-whisper; the first implementation keeps the last try, which is the most random).

    Args:
        states: [windows, columns, size] of the encoder.
        prompts: what each transcript begins with, up to the task or <|notimestamps|>.
    """
    heard, silence = listen(model, vocabulary, states, prompts)
    tries: list[list[Decoded]] = [[] for _ in prompts]
    open_rows = list(range(len(prompts)))
    for temperature in options.temperatures:
        plain = [PlainScores(temperature) if temperature > 0 else None for _ in open_rows]
        settings = [_settings(model, vocabulary, options, temperature, scores) for scores in plain]
        made = generate(
            heard.select(torch.tensor(open_rows, device=states.device)),
            [prompts[row] for row in open_rows],
            settings,
            eos_token_ids=[vocabulary.end],
        )
        for row, own, scores, generations in zip(open_rows, settings, plain, made, strict=True):
            tried = [_decoded(vocabulary, one, own, scores, silence[row]) for one in generations]
            tries[row].append(max(tried, key=lambda one: one.mean_logprob))
        open_rows = [row for row in open_rows if tries[row][-1].is_wrong(options)]
        if not open_rows:
            break
    return [_chosen(of_window, options) for of_window in tries]


def _chosen(tries: Sequence[Decoded], options: DecodingOptions) -> Decoded:
    if not tries[-1].is_wrong(options):
        return tries[-1]
    varied = [one for one in tries if not one.repeats_itself(options)]
    return max(varied or tries, key=lambda one: one.mean_logprob)


def _settings(
    model: Any, vocabulary: Vocabulary, options: DecodingOptions, temperature: float, plain: PlainScores | None
) -> GenerationSettings:
    own = model.generation_defaults.others
    forbidden = {int(token) for token in own.get("suppress_tokens") or () if 0 <= int(token) < vocabulary.size}
    special = {vocabulary.start, vocabulary.previous, vocabulary.no_speech, vocabulary.task("transcribe")}
    special |= {vocabulary.task("translate"), *vocabulary.languages.values()}
    first = own.get("begin_suppress_tokens") or [vocabulary.end]
    processors: list[Any] = [FirstTokens(tuple(int(token) for token in first))]
    if options.timestamps:
        processors.append(TimestampRules(vocabulary.end, vocabulary.no_timestamps))
    else:
        special |= set(range(vocabulary.first_timestamp, vocabulary.size))
    if plain is not None:
        processors.append(plain)
    bias = dict.fromkeys(sorted((forbidden | special) - {vocabulary.end}), float("-inf"))
    common: dict[str, Any] = {
        "max_new_tokens": min(LONGEST, model.network.config.max_positions // 2),
        "logit_bias": bias,
        "processors": processors,
    }
    if temperature > 0:
        return GenerationSettings(temperature=temperature, n=options.best_of, seed=options.seed, logprobs=0, **common)
    if options.num_beams > 1:
        return GenerationSettings(
            temperature=0, num_beams=options.num_beams, length_penalty=options.length_penalty, **common
        )
    return GenerationSettings(temperature=0, logprobs=0, **common)


def _decoded(
    vocabulary: Vocabulary,
    one: Generation,
    settings: GenerationSettings,
    plain: PlainScores | None,
    no_speech: float,
) -> Decoded:
    count = len(one.token_ids)
    if plain is not None:
        total = plain.total(one)
    elif one.score is not None:
        total = one.score * count**settings.length_penalty
    else:
        total = sum(each.processed for each in one.logprobs or ())
    ended = one.finish_reason == "eos"
    tokens = tuple(one.token_ids[:-1] if ended else one.token_ids)
    text = vocabulary.decode(tokens).strip()
    # The end counts as a token, whether it was written or the text was cut off.
    mean = total / (len(tokens) + 1)
    return Decoded(tokens, text, settings.temperature, mean, compression_ratio(text), no_speech)


def compression_ratio(text: str) -> float:
    """Bytes of a text divided by what zlib makes of them."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data)) if data else 0.0


class Heard(SourceDecoder):
    """The decoder on windows that it has looked at once: what its cross-attention made of them serves every try.

    Args:
        network: of the model.
        source: the encoder's states of the windows.
        cache: in which the windows' keys and values are. It must not be changed any more.
    """

    def __init__(self, network: EncoderDecoder, source: Source, cache: Cache):
        super().__init__(network, source)
        self._cache = cache

    def new_cache(self, kind: str = "dense", *, capacity: int | None = None) -> Cache:
        return self._with_source_of(super().new_cache(kind, capacity=capacity))

    def select(self, rows: Tensor) -> Heard:
        if torch.equal(rows, torch.arange(len(self.source.states), device=rows.device)):
            return self
        cache = self._with_source_of(super().new_cache())
        cache.source.select(rows)
        return Heard(self.network, self.source.select(rows), cache)

    def _with_source_of(self, cache: Cache) -> Cache:
        cache.set_source(self.source.states.shape[1], self.device)
        for mine, new in zip(self._cache.cross_stores, cache.cross_stores, strict=True):
            if mine is not None and new is not None:
                new.buffers = list(mine.buffers)  # the tensors themselves: a cache never writes into those of a source
        return cache


@torch.inference_mode()
def listen(
    model: Any, vocabulary: Vocabulary, states: Tensor, prompts: Sequence[Sequence[int]]
) -> tuple[Heard, list[float]]:
    """The decoder with the windows in place, and for each of them the probability that it holds no speech: that of
    <|nospeech|> right after <|startoftranscript|>."""
    begins = [list(prompt[: list(prompt).index(vocabulary.start) + 1]) for prompt in prompts]
    longest = max(map(len, begins))
    device = states.device
    ids = torch.tensor([[0] * (longest - len(begin)) + begin for begin in begins], device=device)
    mask = None
    if any(len(begin) < longest for begin in begins):
        lengths = torch.tensor([len(begin) for begin in begins], device=device)
        mask = torch.arange(longest, device=device) >= (longest - lengths)[:, None]
    reader = model.network.with_source(states)
    cache = reader.new_cache()
    logits = reader(ids, attention_mask=mask, cache=cache, logits_to_keep=1).logits[:, -1]
    probabilities: list[float] = logits.float().softmax(-1)[:, vocabulary.no_speech].tolist()
    return Heard(model.network, reader.source, cache), probabilities
