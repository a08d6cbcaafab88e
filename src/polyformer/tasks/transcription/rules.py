"""Rules on what may be written next, as functions of logits (Radford et al., 2022, section 2.3; the reference
implementation's decoding)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
        for row, written in enumerate(tokens.tolist()):
            self._restrict(logits[row], written, first)
        # In float32, like who trained with it.
        logprobs = logits.float().log_softmax(-1)
        stamps, words = logprobs[:, first:].logsumexp(-1), logprobs[:, :first].amax(-1)
        logits[:, :first].masked_fill_((stamps > words)[:, None], -math.inf)
        return logits

    def _restrict(self, logits: Tensor, written: list[int], first: int) -> None:
        after_stamp = written[-1] >= first
        after_pair = len(written) < 2 or written[-2] >= first
        if after_stamp and after_pair:
            logits[first:] = -math.inf  # a pair is complete: text, or the end
        elif after_stamp:
            logits[: self.end] = -math.inf  # text was closed: another stamp opens the next, or the end
        stamps = [token for token in written if token >= first]
        if stamps:
            # The stamp that closes a text may be the one that opens the next; any other must be later.
            least = stamps[-1] if after_stamp and not after_pair else stamps[-1] + 1
            logits[first:least] = -math.inf
