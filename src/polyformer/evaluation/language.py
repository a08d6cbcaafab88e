"""How well a language model foresees a text: bits per character, per byte, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from polyformer.errors import ConfigError, DataError
from polyformer.evaluation.base import Document, Evaluation, Progress, texts_of
from polyformer.tasks.base import require_capability, require_tokenizer

DEFAULT_LENGTH = 1024
_TOKENS_AT_ONCE = 2048


def evaluate_language(
    model: Any,
    documents: Sequence[Document],
    *,
    length: int | None = None,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Bits that a model needs for each character of ``text``.

    Every document is read in windows of ``length`` tokens that begin ``stride`` apart; in each, only tokens that no
    earlier window has scored are. So every token but those of the first window has at least ``length - stride`` before
    it. The first token of a document, which nothing stands before, is counted as one of all equally likely tokens,
    unless the tokenizer itself puts one before it. Since characters are counted, and not tokens, models with different
    tokenizers can be compared.

    Args:
        length: None takes what the model was made for, at most 1,024.
        stride: None takes half of ``length``.

    Returns:
        values "bits_per_character", "bits_per_byte" (of UTF-8), "perplexity" (per token), "nats_per_token", "tokens",
        "characters".

    Raises:
        CapabilityError: the model does not continue texts, or has no tokenizer.
        ConfigError: a length that cannot be.
        DataError: no text, or an empty one.
    """
    require_capability(model, "score")
    tokenizer = require_tokenizer(model, "be measured on texts")
    length, stride = _sizes(model.context_length, length, stride)
    texts = texts_of(documents, "text")
    nats, tokens, done = 0.0, 0, 0
    rows = []
    for number, text in enumerate(texts, 1):
        ids = tokenizer.encode(text)
        if not ids or not text:
            raise DataError(f"document {number} is empty: there is nothing to foresee")
        if ids[0] not in tokenizer.special_token_ids:
            nats += math.log(model.network.config.vocab_size)
            tokens += 1
        rows.append(ids)
    total = sum(map(len, rows))
    for ids in rows:
        for found in _scored(model, ids, length, stride):
            nats -= sum(found)
            tokens += len(found)
            done += len(found)
            if progress is not None:
                progress(done, total)
    bits, characters = nats / math.log(2), sum(map(len, texts))
    return Evaluation(
        "language",
        len(texts),
        {
            "bits_per_character": bits / characters,
            "bits_per_byte": bits / sum(len(text.encode()) for text in texts),
            "perplexity": math.exp(nats / tokens),
            "nats_per_token": nats / tokens,
            "tokens": tokens,
            "characters": characters,
        },
        notes=[f"windows of {length} tokens, {stride} apart"],
    )


def _sizes(limit: int | None, length: int | None, stride: int | None) -> tuple[int, int]:
    if length is None:
        length = min(limit or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if length < 2 or (limit is not None and length > limit):
        most = "" if limit is None else f", and at most {limit}, the model's context"
        raise ConfigError(f"length is {length}, but a window has at least 2 tokens{most}")
    if stride is None:
        stride = length // 2
    if not 1 <= stride < length:
        raise ConfigError(f"stride is {stride}, but it must be from 1 to {length - 1}, less than the window's length")
    return length, stride


@torch.inference_mode()
def _scored(model: Any, ids: list[int], length: int, stride: int) -> Iterator[list[float]]:
    """The log-probabilities of all tokens but the first, some at a time, in order."""
    starts = [0]
    while starts[-1] + length < len(ids):
        starts.append(starts[-1] + stride)
    at_once = max(1, _TOKENS_AT_ONCE // length)
    network = model.network
    for first in range(0, len(starts), at_once):
        chosen = starts[first : first + at_once]
        windows = [ids[start : start + length] for start in chosen]
        if len(windows[-1]) < length and len(windows) > 1:  # the last one of all, which is short, goes alone
            groups = [(chosen[:-1], windows[:-1]), (chosen[-1:], windows[-1:])]
        else:
            groups = [(chosen, windows)]
        for begins, group in groups:
            rows = torch.tensor(group, device=model.device)
            states = network(rows, with_logits=False).last_hidden_state
            for start, row, state in zip(begins, rows, states, strict=True):
                new = 1 if start == 0 else length - stride  # the first token that no earlier window has scored
                logits = network.score(state[new - 1 : -1])
                logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
                yield logprobs.gather(1, row[new:, None])[:, 0].double().tolist()
