"""Rules on what may be written next, as functions of logits (Radford et al., 2022, section 2.3; the reference
implementation's decoding)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polyformer.generation.outputs import Generation

LATEST_FIRST_TIMESTAMP = 50
"""In steps of 0.02 seconds: a window's first timestamp is at most one second in."""


@dataclass(frozen=True)
class FirstTokens:
    """What may not come first: the end, and a bare space.

    Args:
        forbidden: token ids.
    """

    forbidden: tuple[int, ...]

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        if tokens.shape[1]:
            return logits
        return logits.index_fill(1, torch.tensor(self.forbidden, device=logits.device), -math.inf)


@dataclass(frozen=True)
class TimestampRules:
    """Timestamps come in pairs around text, never go back, and come where their probability together is above that of
    the likeliest word.

    Args:
        end: <|endoftext|>, after the last text token.
        no_timestamps: never written here.
        latest_first: the latest first timestamp.
    """

    end: int
    no_timestamps: int
    latest_first: int | None = LATEST_FIRST_TIMESTAMP

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """logits [rows, vocab], tokens [rows, written]."""
        first = self.no_timestamps + 1
        logits = logits.clone()
        logits[:, self.no_timestamps] = -math.inf
        if tokens.shape[1] == 0:
            logits[:, :first] = -math.inf
            if self.latest_first is not None:
                logits[:, first + self.latest_first + 1 :] = -math.inf
            return logits
        stamped = tokens >= first
        after_stamp = stamped[:, -1:]
        after_pair = stamped[:, -2:-1] if tokens.shape[1] > 1 else torch.ones_like(after_stamp)
        # A pair is complete: text, or the end. One stamp closes a text: another opens the next, or the end.
        complete, closed = after_stamp & after_pair, after_stamp & ~after_pair
        # The stamp that closes a text may be the one that opens the next; any other must be later.
        latest = tokens.masked_fill(~stamped, first - 1).amax(-1, keepdim=True)
        too_early = torch.arange(first, logits.shape[1], device=logits.device) <= latest - closed.long()
        logits[:, first:].masked_fill_(complete | too_early, -math.inf)
        logits[:, : self.end].masked_fill_(closed, -math.inf)
        # In float32, like who trained with it.
        wide = logits.float()
        stamps, words = wide[:, first:].logsumexp(-1), wide[:, :first].amax(-1)
        logits[:, :first].masked_fill_((stamps > words)[:, None], -math.inf)
        return logits


class PlainScores:
    """Log-probabilities without the temperature, of texts that were drawn with one.

    A temperature below 1 makes what is likely likelier, so that a doubtful text would look sure: what the model holds
    of a text is judged without it (as in the reference implementation). It comes after all other processors, serves
    the samples of one prompt, and keeps for every beginning what the two distributions were divided by.

    Args:
        temperature: with which the tokens are drawn.
    """

    def __init__(self, temperature: float):
        self._temperature = temperature
        self._divisors: dict[tuple[int, ...], list[float]] = {}

    def __call__(self, logits: Tensor, tokens: Tensor) -> Tensor:
        wide = logits.float()
        plain, heated = wide.logsumexp(-1), (wide / self._temperature).logsumexp(-1)
        for written, *divisors in zip(tokens.tolist(), plain.tolist(), heated.tolist(), strict=True):
            self._divisors[tuple(written)] = divisors
        return logits

    def total(self, text: Generation) -> float:
        """The log-probability of a whole text, generated with ``logprobs``."""
        total = 0.0
        for place, token in enumerate(text.logprobs or ()):
            plain, heated = self._divisors[tuple(text.token_ids[:place])]
            total += self._temperature * (token.processed + heated) - plain
        return total
