"""One window of sound (30 seconds) in words: the likeliest text, or another try where that looks wrong."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyformer.generation.generate import generate
from polyformer.generation.outputs import Generation
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.transcription.rules import FirstTokens, TimestampRules
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
        if options.compression_ratio_limit is not None and self.compression_ratio > options.compression_ratio_limit:
            return True
        doubtful = options.logprob_limit is not None and self.mean_logprob < options.logprob_limit
        return doubtful and not self.is_silence(options)


@torch.inference_mode()
def decode_windows(
    model: Any,
    vocabulary: Vocabulary,
    states: Tensor,
    prompts: Sequence[Sequence[int]],
    options: DecodingOptions,
) -> list[Decoded]:
    """The text of every window.

    Args:
        states: [windows, columns, size] of the encoder.
        prompts: what each transcript begins with, up to the task or <|notimestamps|>.
    """
    silence = no_speech_probabilities(model, vocabulary, states, prompts)
    results: list[Decoded | None] = [None] * len(prompts)
    open_rows = list(range(len(prompts)))
    for temperature in options.temperatures:
        settings = _settings(model, vocabulary, options, temperature)
        rows = torch.tensor(open_rows, device=states.device)
        made = generate(
            model.network.with_source(states[rows]),
            [prompts[row] for row in open_rows],
            settings,
            eos_token_ids=[vocabulary.end],
        )
        for row, generations in zip(open_rows, made, strict=True):
            results[row] = _best(vocabulary, generations, settings, temperature, silence[row])
        open_rows = [row for row in open_rows if results[row].is_wrong(options)]  # type: ignore[union-attr]
        if not open_rows:
            break
    return results  # type: ignore[return-value]


def _settings(model: Any, vocabulary: Vocabulary, options: DecodingOptions, temperature: float) -> GenerationSettings:
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
    bias = dict.fromkeys(sorted((forbidden | special) - {vocabulary.end}), float("-inf"))
    common: dict[str, Any] = {
        "max_new_tokens": min(LONGEST, model.network.config.max_positions // 2),
        "logit_bias": bias,
        "processors": processors,
    }
    if temperature > 0:
        return GenerationSettings(temperature=temperature, n=options.best_of, seed=options.seed, logprobs=0, **common)
    if options.num_beams > 1:
        return GenerationSettings(num_beams=options.num_beams, length_penalty=options.length_penalty, **common)
    return GenerationSettings(temperature=0, logprobs=0, **common)


def _best(
    vocabulary: Vocabulary,
    generations: Sequence[Generation],
    settings: GenerationSettings,
    temperature: float,
    no_speech: float,
) -> Decoded:
    tried = [_decoded(vocabulary, one, settings, temperature, no_speech) for one in generations]
    return max(tried, key=lambda one: one.mean_logprob)


def _decoded(
    vocabulary: Vocabulary, one: Generation, settings: GenerationSettings, temperature: float, no_speech: float
) -> Decoded:
    count = len(one.token_ids)
    if one.score is not None:
        total = one.score * count**settings.length_penalty
    else:
        total = sum(each.processed for each in one.logprobs or ())
    ended = one.finish_reason == "eos"
    tokens = tuple(one.token_ids[:-1] if ended else one.token_ids)
    text = vocabulary.decode(tokens).strip()
    # The end counts as a token, whether it was written or the text was cut off.
    return Decoded(tokens, text, temperature, total / (len(tokens) + 1), compression_ratio(text), no_speech)


def compression_ratio(text: str) -> float:
    """Bytes of a text divided by what zlib makes of them."""
    data = text.encode("utf-8")
    return len(data) / len(zlib.compress(data)) if data else 0.0


@torch.inference_mode()
def no_speech_probabilities(
    model: Any, vocabulary: Vocabulary, states: Tensor, prompts: Sequence[Sequence[int]]
) -> list[float]:
    """The probability of <|nospeech|> right after <|startoftranscript|>, for each window."""
    begins = [list(prompt[: list(prompt).index(vocabulary.start) + 1]) for prompt in prompts]
    longest = max(map(len, begins))
    device = states.device
    ids = torch.tensor([[0] * (longest - len(begin)) + begin for begin in begins], device=device)
    mask = None
    if any(len(begin) < longest for begin in begins):
        lengths = torch.tensor([len(begin) for begin in begins], device=device)
        mask = torch.arange(longest, device=device) >= (longest - lengths)[:, None]
    logits = model.network.with_source(states)(ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
    probabilities: list[float] = logits.float().softmax(-1)[:, vocabulary.no_speech].tolist()
    return probabilities
