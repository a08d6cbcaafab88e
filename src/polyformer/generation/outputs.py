"""What generation gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class TokenLogprobs:
    """How likely one generated token was, in natural logarithms.

    Args:
        token_id: the chosen token.
        raw: its log-probability under the network (log-softmax of the logits as they came).
        processed: its log-probability after every processor and filter, from which it was chosen.
        top_raw: the most likely tokens under the network, most likely first, as (token id, log-probability).
        top_processed: the same after the processors; fewer when the filters left fewer.
    """

    token_id: int
    raw: float
    processed: float
    top_raw: tuple[tuple[int, float], ...] = ()
    top_processed: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """One finished text.

    Args:
        token_ids: every generated token, the one that ended it included.
        text: the decoded text without the ending token and cut before a stop string; None without a tokenizer.
        finish_reason: "eos" (an end-of-text token), "stop" (a stop string or stop token id) or "length"
            (`max_new_tokens` or the network's context).
        stopped_by: the stop string or the token id that ended it; None for "length".
        logprobs: one entry for each token, when asked for.
        score: of a beam: log-probability / length ** length_penalty; None without beam search.
    """

    token_ids: list[int]
    text: str | None
    finish_reason: FinishReason
    stopped_by: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    score: float | None = None


@dataclass(frozen=True)
class StreamEvent:
    """One token of a running generation.

    Args:
        prompt_index: which prompt, in the order given.
        sample_index: which of the prompt's `n` samples.
        token_id: the new token.
        text: text that is certain by now: "" while a character or a possible stop string is incomplete; None when the
            text is not followed (no tokenizer, or not streaming).
        generation: the finished generation with its last token, else None.
    """

    prompt_index: int
    sample_index: int
    token_id: int
    text: str | None
    generation: Generation | None = None
