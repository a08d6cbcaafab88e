"""Choosing the next token of each row: greedily, or by drawing from the filtered distribution.

A draw takes one uniform number from the request's own random stream and inverts the cumulative distribution, in the
order of token ids. The result depends on the row's logits and its stream only, never on the other rows of the batch:
a request with a seed gives the same text alone and among others, as far as the logits are the same (float32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from polyformer.errors import GenerationError
from polyformer.generation import processors
from polyformer.generation.settings import GenerationSettings, Processor

SHORT_LISTS = (128, 2048)
"""How many of the most likely tokens top-p looks at, the first that is enough, before it sorts the whole vocabulary."""

ROOM_FOR_TIES = 32
"""How many more than k tokens top-k looks at, since half precision gives many tokens equal logits."""


class RandomStream:
    """Uniform numbers in [0, 1) for one sample of one request.

    Args:
        seed: of the request; None takes one from torch's global generator (`torch.manual_seed` makes it repeatable).
        sample: which of the request's `n` samples; each has a stream of its own, and sample 0 has that of n=1.
    """

    def __init__(self, seed: int | None, sample: int = 0) -> None:
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        self._generator = torch.Generator().manual_seed(_mix(seed, sample))

    def next(self) -> float:
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))


def _mix(seed: int, sample: int) -> int:
    """Spread seed and sample over 64 bits (SplitMix64, Steele et al. 2014): torch's generator reads 32 of them."""
    mask = 2**64 - 1
    state = (seed + (sample + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One index for each row, distributed as softmax(logits), by inverting the cumulative distribution.

    Args:
        logits: [rows, tokens]; -inf is never drawn.
        uniforms: [rows] in [0, 1), float64.

    Raises:
        GenerationError: when a row has no finite logit, or a NaN or +inf.
    """
    cumulative = functional.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if not bool(torch.isfinite(total).all()):
        raise_for_bad_logits(logits)
    targets = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


def raise_for_bad_logits(logits: Tensor) -> None:
    """Say why no token can be chosen from these logits."""
    if bool(torch.isnan(logits).any()) or bool((logits == math.inf).any()):
        raise GenerationError("the network's logits hold NaN or infinity; load it in float32 or bfloat16 and try again")
    raise GenerationError("every token is forbidden; loosen bad_words_ids, logit_bias or min_new_tokens")


@dataclass(frozen=True)
class Filters:
    """The sampling filters of a request, applied in this order; the defaults keep every token."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0

    @classmethod
    def of(cls, settings: GenerationSettings) -> Filters:
        return cls(settings.top_k, settings.top_p, settings.min_p, settings.typical_p)

    def apply(self, logits: Tensor) -> Tensor:
        """Logits [rows, vocab] with the filtered tokens at -inf, by the definitions in `processors`."""
        if self.top_k:
            logits = processors.top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = processors.top_p(logits, self.top_p)
        return self._apply_last(logits)

    def _apply_last(self, logits: Tensor) -> Tensor:
        if self.min_p > 0:
            logits = processors.min_p(logits, self.min_p)
        if self.typical_p < 1:
            logits = processors.typical(logits, self.typical_p)
        return logits

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same selection without sorting the vocabulary, where a short list of the most likely tokens decides it.

        Returns:
            Logits [rows, m] and their token ids [rows, m] in ascending order; or, where no short list can be proven to
            hold the selection, `apply(logits)` and None.
        """
        short = self._short_list(logits)
        if short is None:
            return self.apply(logits), None
        values, ids = short
        ids, order = ids.sort(dim=-1)
        return self._apply_last(values.gather(-1, order)), ids

    def _short_list(self, logits: Tensor) -> tuple[Tensor, Tensor] | None:
        vocab_size = logits.shape[-1]
        if self.top_k:
            if self.top_k + ROOM_FOR_TIES > vocab_size:
                return None
            values, ids = torch.topk(logits, self.top_k + ROOM_FOR_TIES)
            kth_largest = values[:, self.top_k - 1 : self.top_k]
            # All that tie with the k-th are kept; when the last one still does, there may be more beyond the list.
            if bool((values[:, -1:] == kth_largest).any()):
                return None
            values = values.masked_fill(values < kth_largest, -math.inf)
            return (processors.top_p(values, self.top_p) if self.top_p < 1 else values), ids
        if self.top_p < 1:
            for size in SHORT_LISTS:
                if size < vocab_size and (short := self._nucleus(logits, size)) is not None:
                    return short
        return None

    def _nucleus(self, logits: Tensor, size: int) -> tuple[Tensor, Tensor] | None:
        """The nucleus out of the `size` most likely tokens; None when a row's may be larger."""
        values, ids = torch.topk(logits, size)
        probabilities = (values - logits.logsumexp(dim=-1, keepdim=True)).exp()
        outside = probabilities.cumsum(dim=-1) - probabilities >= self.top_p
        if not bool(outside[:, -1].all()):
            return None
        outside[:, 0] = False
        return values.masked_fill(outside, -math.inf), ids


class Sampler:
    """Chooses one token for each row, each with its own settings and random stream.

    Rows that share their filters are filtered together.

    Args:
        settings: of each row.
        streams: the random stream of each row; not used by greedy rows.
    """

    def __init__(self, settings: Sequence[GenerationSettings], streams: Sequence[RandomStream]) -> None:
        self.settings = list(settings)
        self.streams = list(streams)
        self._groups: dict[Filters, list[int]] = {}
        for row, each in enumerate(self.settings):
            if each.temperature > 0:
                self._groups.setdefault(Filters.of(each), []).append(row)
        self._all_sampled = sum(map(len, self._groups.values())) == len(self.settings)

    def select(self, rows: Sequence[int]) -> Sampler:
        """The sampler of some of the rows, in the order given."""
        return Sampler([self.settings[row] for row in rows], [self.streams[row] for row in rows])

    def choose(self, logits: Tensor) -> Tensor:
        """Token ids [rows] from processed logits [rows, vocab].

        Raises:
            GenerationError: when a row has no token to choose, or NaN logits.
        """
        if not self._all_sampled:
            # max is faster than argmax, takes the first of equals too, and shows NaN and -inf on the way.
            best, tokens = logits.max(dim=-1)
            if not bool(torch.isfinite(best).all()):
                raise_for_bad_logits(logits)
        else:
            tokens = torch.empty(len(self.settings), dtype=torch.long, device=logits.device)
        for filters, rows in self._groups.items():
            if len(rows) == len(self.settings):
                return self._sample(filters, rows, logits)
            tokens[rows] = self._sample(filters, rows, logits[rows])
        return tokens

    def _sample(self, filters: Filters, rows: Sequence[int], logits: Tensor) -> Tensor:
        values, ids = filters.candidates(self._heated(rows, logits))
        uniforms = torch.tensor([self.streams[row].next() for row in rows], dtype=torch.float64)
        chosen = draw(values, uniforms.to(logits.device))
        return chosen if ids is None else ids.gather(-1, chosen[:, None])[:, 0]

    def _heated(self, rows: Sequence[int], logits: Tensor) -> Tensor:
        temperatures = [self.settings[row].temperature for row in rows]
        if all(value == 1 for value in temperatures):
            return logits
        column = torch.tensor(temperatures, dtype=logits.dtype, device=logits.device)[:, None]
        return processors.temperature(logits, column)

    def log_probabilities(self, row: int, logits: Tensor) -> Tensor:
        """The distribution that the row chooses from, [vocab] in logarithms; a greedy row's is not filtered."""
        settings, logits = self.settings[row], logits[row : row + 1]
        if settings.temperature > 0:
            logits = Filters.of(settings).apply(self._heated([row], logits))
        return functional.log_softmax(logits, dim=-1)[0]


class RowProcessors:
    """The processors before the temperature, for rows with settings of their own.

    Args:
        settings: of each row.
        endings: the token ids that end each row's text (held back until its `min_new_tokens`).
        limits: the most new tokens of each row.
        vocab_size: columns of the logits.
        dtype, device: of the logits.
    """

    def __init__(
        self,
        settings: Sequence[GenerationSettings],
        endings: Sequence[frozenset[int]],
        limits: Sequence[int],
        *,
        vocab_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.settings, self.endings, self.limits = list(settings), list(endings), list(limits)
        self._vocab_size, self._dtype, self._device = vocab_size, dtype, device
        self._bias = self._stacked_bias()
        self._repetition = self._column("repetition_penalty", 1)
        self._frequency = self._column("frequency_penalty", 0)
        self._presence = self._column("presence_penalty", 0)
        self._bans = {
            row: processors.BannedWords(each.bad_words_ids)  # type: ignore[arg-type]
            for row, each in enumerate(self.settings)
            if each.bad_words_ids
        }
        self._forces = any(
            each.forced_bos_token_id is not None or each.forced_eos_token_id is not None for each in self.settings
        )
        self._ngrams = {row: each.no_repeat_ngram_size for row, each in enumerate(self.settings)}
        self._ngrams = {row: size for row, size in self._ngrams.items() if size}
        self._own = self._own_processors()
        self._longest_minimum = max((each.min_new_tokens for each in self.settings), default=0)

    @property
    def needs_history(self) -> bool:
        """Whether the tokens so far matter."""
        columns = (self._repetition, self._frequency, self._presence)
        return bool(self._bans or self._ngrams or self._own) or any(column is not None for column in columns)

    def select(self, rows: Sequence[int]) -> RowProcessors:
        """The processors of some of the rows, in the order given; repeats allowed."""
        return RowProcessors(
            [self.settings[row] for row in rows],
            [self.endings[row] for row in rows],
            [self.limits[row] for row in rows],
            vocab_size=self._vocab_size,
            dtype=self._dtype,
            device=self._device,
        )

    def __call__(self, logits: Tensor, history: Tensor | None, *, generated: int) -> Tensor:
        """Processed logits.

        Args:
            logits: [rows, vocab].
            history: [rows, length], prompt and new text, `processors.PADDING` on the left; None if not needed.
            generated: how many of the last columns are new text.
        """
        if self._bias is not None:
            logits = processors.logit_bias(logits, self._bias)
        if history is not None:
            new_text = history[:, history.shape[1] - generated :]
            if self._repetition is not None:
                logits = processors.repetition_penalty(logits, history, self._repetition)
            if self._frequency is not None:
                logits = processors.frequency_penalty(logits, new_text, self._frequency)
            if self._presence is not None:
                logits = processors.presence_penalty(logits, new_text, self._presence)
            if self._ngrams:
                logits = logits.clone()
                for row, size in self._ngrams.items():
                    logits[row, processors.repeated_endings(history[row].tolist(), size)] = -math.inf
            if self._bans:
                logits = logits.clone()
                for row, ban in self._bans.items():
                    logits[row] = ban(logits[row : row + 1], history[row : row + 1])[0]
        if generated < self._longest_minimum:
            logits = logits.clone()
            for row, each in enumerate(self.settings):
                if generated < each.min_new_tokens and self.endings[row]:
                    logits[row, list(self.endings[row])] = -math.inf
        if self._forces:
            logits = self._forced(logits, generated)
        for processor, rows in self._own:
            assert history is not None
            new_text = history[rows, history.shape[1] - generated :]
            processed = processor(logits[rows], new_text)
            logits = logits.index_copy(0, rows, processed)
        return logits

    def _forced(self, logits: Tensor, generated: int) -> Tensor:
        """Where a row must say a certain token now, every other is forbidden."""
        logits = logits.clone()
        for row, each in enumerate(self.settings):
            forced = each.forced_bos_token_id if generated == 0 else None
            if generated == self.limits[row] - 1 and each.forced_eos_token_id is not None:
                forced = each.forced_eos_token_id
            if forced is not None:
                logits[row] = -math.inf
                logits[row, forced] = 0
        return logits

    def _own_processors(self) -> list[tuple[Processor, Tensor]]:
        """Functions of the person's own with the rows they are for; rows with the same functions go together."""
        together: dict[tuple[Processor, ...], list[int]] = {}
        for row, each in enumerate(self.settings):
            together.setdefault(tuple(each.processors), []).append(row)
        return [
            (processor, torch.tensor(rows, device=self._device))
            for functions, rows in together.items()
            for processor in functions
        ]

    def _column(self, name: str, neutral: float) -> Tensor | None:
        values = [getattr(each, name) for each in self.settings]
        if all(value == neutral for value in values):
            return None
        return torch.tensor(values, dtype=self._dtype, device=self._device)[:, None]

    def _stacked_bias(self) -> Tensor | None:
        if not any(each.logit_bias for each in self.settings):
            return None
        vectors = [
            processors.bias_vector(each.logit_bias, self._vocab_size, dtype=self._dtype, device=self._device)
            for each in self.settings
        ]
        return torch.stack(vectors)
