"""What a request may ask of generation. Every value is checked when the settings are made; nothing is ignored."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from dataclasses import replace as dataclass_replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from polyformer.errors import GenerationError

if TYPE_CHECKING:
    from torch import Tensor

SEED_LIMIT = 2**64

Processor: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Logits [rows, vocab] and the new tokens so far [rows, generated] -> logits."""

_OTHER_NAMES = {
    "do_sample": "temperature (temperature=0 is greedy)",
    "num_return_sequences": "n",
    "best_of": "n",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "min_length": "min_new_tokens",
    "stop_strings": "stop",
    "eos_token_id": "stop_token_ids",
    "typical": "typical_p",
    "top_logprobs": "logprobs",
    "negative_prompt_ids": "negative_prompt",
    "banned_words": "bad_words_ids",
}


@dataclass(frozen=True)
class GenerationSettings:
    """How one request is generated. Frozen; a bad value or combination raises `GenerationError` on construction.

    Four ways to search, chosen by the values:

    - greedy: `temperature=0`;
    - sampling: `temperature > 0` (the default), with the filters `top_k`, `top_p`, `min_p`, `typical_p`;
    - beam search: `num_beams > 1`, diverse when `num_beam_groups > 1`; deterministic, so the temperature must be 0 or
      stay 1 (log-probabilities are not scaled) and the sampling filters are refused;
    - contrastive search: `penalty_alpha` with `top_k` candidates; deterministic as well.

    Logits are processed in this order (transformers' order for what both have): guidance, `logit_bias`,
    `repetition_penalty`, `frequency_penalty`, `presence_penalty`, `no_repeat_ngram_size`, `bad_words_ids`,
    `min_new_tokens`, `forced_bos_token_id`, `forced_eos_token_id`, `processors`, and when sampling `temperature`,
    `top_k`, `top_p`, `min_p`, `typical_p`.

    Args:
        max_new_tokens: at most so many new tokens, >= 1. The context length of the network is a second limit.
        min_new_tokens: no end (end-of-text, stop id or stop string) before so many new tokens.
        temperature: logits are divided by it; 0 takes the most likely token. In [0, 100].
        top_k: keep the k most likely tokens; 0 keeps all. With `penalty_alpha`: the number of candidates.
        top_p: keep the smallest set of tokens whose probability reaches p, in (0, 1]; 1 keeps all.
        min_p: drop tokens less likely than min_p times the most likely one, in [0, 1]; 0 keeps all.
        typical_p: keep the locally typical tokens of this mass, in (0, 1]; 1 keeps all.
        repetition_penalty: > 0; logits of tokens in the prompt or the new text are divided by it (multiplied when
            negative). 1 changes nothing.
        presence_penalty: subtracted once from the logit of every token already generated, in [-100, 100].
        frequency_penalty: subtracted for each time that a token was generated, in [-100, 100].
        logit_bias: token id -> number added to its logit; -inf forbids the token.
        bad_words_ids: token sequences that must not be generated (each a non-empty sequence of ids).
        no_repeat_ngram_size: no sequence of so many tokens comes twice, prompt included; 0 lets them.
        forced_bos_token_id: the first new token is this one (a language, in many translators).
        forced_eos_token_id: the last token that the limit allows is this one.
        processors: functions of one's own, called with logits [rows, vocab] and the new tokens [rows, generated] of the
            rows that have them, in this order; they return new logits.
        stop: strings that end the text; the text is cut before them. Needs a tokenizer.
        stop_token_ids: token ids that end the text, besides the end-of-text ids.
        ignore_eos: go on after an end-of-text token.
        seed: the request's own random stream, in [0, 2**64); None draws a fresh one.
        n: how many generations of the prompt: independent samples, or the n best beams.
        logprobs: None, or how many alternatives to report beside each chosen token (0: the chosen token only).
        num_beams: beams in all; 1 is no beam search.
        length_penalty: a beam's score is its log-probability / length ** length_penalty.
        early_stopping: True: stop at `num_beams` finished beams; False: stop when the best running beam, scored at its
            present length, cannot win; "never": the same at its best possible length.
        num_beam_groups: groups of diverse beam search; divides `num_beams`.
        diversity_penalty: Hamming penalty between groups, >= 0 (> 0 with more than one group).
        penalty_alpha: degeneration penalty of contrastive search, in (0, 1]; None is no contrastive search.
        guidance_scale: classifier-free guidance: log-probabilities move away from the negative prompt's; 1 is off.
        negative_prompt: ids of the text to move away from; None takes the last token of the prompt.
        skip_special_tokens: leave special tokens out of the decoded text.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    bad_words_ids: Sequence[Sequence[int]] = ()
    no_repeat_ngram_size: int = 0
    forced_bos_token_id: int | None = None
    forced_eos_token_id: int | None = None
    processors: Sequence[Processor] = ()
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    logprobs: int | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    penalty_alpha: float | None = None
    guidance_scale: float = 1.0
    negative_prompt: Sequence[int] | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        self._normalize()
        self._check_numbers()
        self._check_sequences()
        if self.num_beams > 1:
            self._check_beams()
        elif self.penalty_alpha is not None:
            self._check_contrastive()
        else:
            self._check_sampling()

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None = None, /, **more: Any) -> GenerationSettings:
        """Settings from names and values, as a person or a program wrote them.

        Raises:
            GenerationError: for a name that does not exist (with the nearest that does) or a bad value.
        """
        together = {**(options or {}), **more}
        _refuse_unknown(together)
        return cls(**together)

    def replace(self, **changes: Any) -> GenerationSettings:
        """A copy with some values changed; raises `GenerationError` like `from_options`."""
        _refuse_unknown(changes)
        return dataclass_replace(self, **changes)

    @property
    def mode(self) -> Literal["greedy", "sampling", "beam", "contrastive"]:
        """The way of searching that the values ask for."""
        if self.num_beams > 1:
            return "beam"
        if self.penalty_alpha is not None:
            return "contrastive"
        return "greedy" if self.temperature == 0 else "sampling"

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `GenerationError` when a token id named here is outside [0, vocab_size)."""
        named = {
            "logit_bias": self.logit_bias,
            "stop_token_ids": self.stop_token_ids,
            "bad_words_ids": [token for word in self.bad_words_ids for token in word],
            "negative_prompt": self.negative_prompt or (),
            "forced_bos_token_id": () if self.forced_bos_token_id is None else (self.forced_bos_token_id,),
            "forced_eos_token_id": () if self.forced_eos_token_id is None else (self.forced_eos_token_id,),
        }
        for name, tokens in named.items():
            for token in tokens:
                if not 0 <= token < vocab_size:
                    raise GenerationError(
                        f"{name} names token {token}, but the vocabulary has the ids 0 to {vocab_size - 1}"
                    )

    def _normalize(self) -> None:
        """Store sequences as tuples, so that the settings are hashable and nobody can change them from outside."""
        if isinstance(self.stop, str):
            self._store("stop", (self.stop,))
        for name in ("stop", "stop_token_ids", "bad_words_ids", "negative_prompt", "processors"):
            value = getattr(self, name)
            if value is None and name == "negative_prompt":
                continue
            if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
                raise GenerationError(f"{name} must be a list, not {value!r}")
            self._store(name, tuple(value))
        words = []
        for word in self.bad_words_ids:
            if isinstance(word, (str, bytes)) or not isinstance(word, Sequence) or not word:
                raise GenerationError(f"bad_words_ids must hold non-empty lists of token ids, not {word!r}")
            words.append(tuple(word))
        self._store("bad_words_ids", tuple(words))
        if not isinstance(self.logit_bias, Mapping):
            raise GenerationError(f"logit_bias must map token ids to numbers, not {self.logit_bias!r}")
        self._store("logit_bias", dict(self.logit_bias))

    def _store(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_numbers(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1)
        _whole("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise GenerationError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}; lower one"
            )
        _number("temperature", self.temperature, "in [0, 100]; 0 is greedy", 0, 100)
        _whole("top_k", self.top_k, 0, note="; 0 keeps every token")
        _number("top_p", self.top_p, "in (0, 1]", 0, 1, open_low=True)
        _number("min_p", self.min_p, "in [0, 1]", 0, 1)
        _number("typical_p", self.typical_p, "in (0, 1]", 0, 1, open_low=True)
        _number("repetition_penalty", self.repetition_penalty, "in (0, 100]; 1 is none", 0, 100, open_low=True)
        _number("presence_penalty", self.presence_penalty, "in [-100, 100]", -100, 100)
        _number("frequency_penalty", self.frequency_penalty, "in [-100, 100]", -100, 100)
        _whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, note="; 0 lets everything repeat")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 0)
        for processor in self.processors:
            if not callable(processor):
                raise GenerationError(f"processors must hold functions of logits and tokens, not {processor!r}")
        _truth("ignore_eos", self.ignore_eos)
        _truth("skip_special_tokens", self.skip_special_tokens)
        if self.seed is not None:
            _whole("seed", self.seed, 0, SEED_LIMIT - 1)
        _whole("n", self.n, 1)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0)
        _whole("num_beams", self.num_beams, 1)
        _number("length_penalty", self.length_penalty, "in [-100, 100]", -100, 100)
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            raise GenerationError(f'early_stopping must be True, False or "never", not {self.early_stopping!r}')
        _whole("num_beam_groups", self.num_beam_groups, 1)
        _number("diversity_penalty", self.diversity_penalty, "in [0, 1000]", 0, 1000)
        if self.penalty_alpha is not None:
            _number("penalty_alpha", self.penalty_alpha, "in (0, 1]", 0, 1, open_low=True)
        _number("guidance_scale", self.guidance_scale, "in [0, 1000]; 1 is none", 0, 1000)

    def _check_sequences(self) -> None:
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise GenerationError(f"stop must hold non-empty strings, not {text!r}")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0)
        for word in self.bad_words_ids:
            for token in word:
                _whole("bad_words_ids", token, 0)
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0)
            is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
            if not is_number or math.isnan(bias) or bias == math.inf:
                raise GenerationError(f"logit_bias of token {token} must be a number below infinity, not {bias!r}")
        if self.negative_prompt is not None:
            for token in self.negative_prompt:
                _whole("negative_prompt", token, 0)
            if not self.negative_prompt:
                raise GenerationError(
                    "negative_prompt is empty; leave it out to move away from the prompt's last token"
                )
            if self.guidance_scale == 1:
                raise GenerationError("negative_prompt needs a guidance_scale other than 1, for example 1.5")

    def _check_sampling(self) -> None:
        self._refuse_beam_settings()
        if self.n > 1 and self.temperature == 0:
            raise GenerationError(
                f"n={self.n} with temperature=0 would give {self.n} equal texts; raise the temperature or use num_beams"
            )

    def _check_beams(self) -> None:
        if self.penalty_alpha is not None:
            raise GenerationError(
                f"penalty_alpha={self.penalty_alpha} (contrastive search) cannot go with num_beams={self.num_beams}; "
                "choose one"
            )
        if self.n > self.num_beams:
            raise GenerationError(f"n={self.n} is more than num_beams={self.num_beams}; raise num_beams or lower n")
        if self.num_beams % self.num_beam_groups:
            raise GenerationError(
                f"num_beam_groups={self.num_beam_groups} does not divide num_beams={self.num_beams}; "
                "every group needs as many beams"
            )
        if (self.num_beam_groups > 1) != (self.diversity_penalty > 0):
            raise GenerationError(
                f"num_beam_groups={self.num_beam_groups} with diversity_penalty={self.diversity_penalty}: "
                "diverse beam search needs more than one group and a penalty above 0"
            )
        self._refuse_for_search("beam search", ("top_k", "top_p", "min_p", "typical_p"))

    def _check_contrastive(self) -> None:
        self._refuse_beam_settings()
        if self.top_k < 2:
            raise GenerationError(
                f"penalty_alpha={self.penalty_alpha} needs top_k >= 2 candidates (4 to 8 are usual), not {self.top_k}"
            )
        if self.n > 1:
            raise GenerationError(f"n={self.n} with penalty_alpha: contrastive search finds one text; use n=1")
        self._refuse_for_search("contrastive search", ("top_p", "min_p", "typical_p"))

    def _refuse_for_search(self, search: str, filters: tuple[str, ...]) -> None:
        for name in filters:
            if getattr(self, name) != _DEFAULTS[name]:
                raise GenerationError(f"{name}={getattr(self, name)} is for sampling; {search} does not sample")
        if self.temperature not in (0, 1):
            raise GenerationError(
                f"temperature={self.temperature} is for sampling; {search} does not sample: use 0, or leave it at 1"
            )
        if self.guidance_scale != 1:
            raise GenerationError(f"guidance_scale={self.guidance_scale} is not supported with {search}; use sampling")
        if self.logprobs is not None and search == "beam search":
            raise GenerationError(f"logprobs={self.logprobs} is not supported with beam search; read the beams' .score")

    def _refuse_beam_settings(self) -> None:
        for name in ("length_penalty", "early_stopping", "num_beam_groups", "diversity_penalty"):
            if getattr(self, name) != _DEFAULTS[name]:
                raise GenerationError(f"{name}={getattr(self, name)} is for beam search; set num_beams above 1")


_DEFAULTS: dict[str, Any] = {f.name: f.default for f in fields(GenerationSettings)}


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name in _DEFAULTS:
            continue
        nearest = difflib.get_close_matches(name, _DEFAULTS, n=1, cutoff=0.5)
        meant = _OTHER_NAMES.get(name) or (nearest[0] if nearest else None)
        help_text = f"did you mean {meant}?" if meant else f"the settings are {', '.join(_DEFAULTS)}"
        raise GenerationError(f"unknown generation setting {name!r}; {help_text}")


def _whole(name: str, value: Any, low: int, high: int | None = None, *, note: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        limits = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise GenerationError(f"{name} must be a whole number {limits}{note}, not {value!r}")


def _number(name: str, value: Any, words: str, low: float, high: float, *, open_low: bool = False) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    good = good and low <= value <= high and not (open_low and value == low)
    if not good:
        raise GenerationError(f"{name} must be a number {words}, not {value!r}")


def _truth(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise GenerationError(f"{name} must be True or False, not {value!r}")
