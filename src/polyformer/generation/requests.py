"""Requests: prompts and settings checked against the network, and the first reading of the prompts."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyformer.core.encoder_decoder import SourceDecoder
from polyformer.core.transformer import DecoderOnly
from polyformer.errors import ConfigError, GenerationError
from polyformer.generation.settings import GenerationSettings
from polyformer.generation.text import Tokenizer


@dataclass(frozen=True)
class Request:
    """One prompt, ready to be generated from.

    Args:
        index: place among the prompts given.
        prompt: token ids, at least one.
        settings: checked against the vocabulary.
        eos_ids: end-of-text tokens that end it (none with `ignore_eos`).
        limit: at most so many new tokens (`max_new_tokens`, or what the context leaves).
    """

    index: int
    prompt: tuple[int, ...]
    settings: GenerationSettings
    eos_ids: frozenset[int]
    limit: int

    @property
    def endings(self) -> frozenset[int]:
        """Every token id that ends the text."""
        return self.eos_ids | frozenset(self.settings.stop_token_ids)

    @property
    def negative_prompt(self) -> tuple[int, ...] | None:
        """What guidance moves away from; None without guidance."""
        if self.settings.guidance_scale == 1:
            return None
        return tuple(self.settings.negative_prompt or self.prompt[-1:])


def make_requests(
    network: DecoderOnly | SourceDecoder,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings | Sequence[GenerationSettings],
    *,
    tokenizer: Tokenizer | None,
    eos_token_ids: Sequence[int] | None,
) -> list[Request]:
    """Check prompts and settings.

    Args:
        eos_token_ids: the end-of-text tokens; None takes the tokenizer's.

    Raises:
        GenerationError: for a prompt that is empty, longer than the context or holds an unknown id; for settings that
            are fewer or more than the prompts, name unknown ids, or need a tokenizer that is not there.
    """
    each_settings = [settings] * len(prompts) if isinstance(settings, GenerationSettings) else list(settings)
    if len(each_settings) != len(prompts):
        raise GenerationError(
            f"{len(prompts)} prompts but {len(each_settings)} settings; give one, or one for each prompt"
        )
    if eos_token_ids is None:
        eos_token_ids = () if tokenizer is None else tokenizer.eos_token_ids
    vocab_size = network.config.vocab_size
    requests = []
    for index, (prompt, wanted) in enumerate(zip(prompts, each_settings, strict=True)):
        wanted.check_vocabulary(vocab_size)
        if wanted.stop and tokenizer is None:
            raise GenerationError(f"stop={list(wanted.stop)!r} needs a tokenizer; without one use stop_token_ids")
        ids = _checked_prompt(index, prompt, vocab_size, tokenizer)
        request = Request(
            index=index,
            prompt=ids,
            settings=wanted,
            eos_ids=frozenset() if wanted.ignore_eos else frozenset(eos_token_ids),
            limit=wanted.max_new_tokens,
        )
        requests.append(_within_context(request, network.config.max_positions))
    return requests


def _checked_prompt(index: int, prompt: Sequence[int], vocab_size: int, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    try:
        ids = tuple(operator.index(token) for token in prompt)
    except TypeError:
        raise GenerationError(f"prompt {index} must be a list of token ids, not {prompt!r:.80}") from None
    if not ids:
        if tokenizer is None or tokenizer.bos_token_id is None:
            raise GenerationError(
                f"prompt {index} is empty and there is no beginning-of-text token; give at least one token"
            )
        ids = (tokenizer.bos_token_id,)
    for token in ids:
        if not 0 <= token < vocab_size:
            raise GenerationError(f"prompt {index} holds token {token}, but the ids are 0 to {vocab_size - 1}")
    return ids


def _within_context(request: Request, max_positions: int | None) -> Request:
    if max_positions is None:
        return request
    longest = max(len(request.prompt), len(request.negative_prompt or ()))
    if longest >= max_positions:
        name = "prompt" if longest == len(request.prompt) else "negative_prompt of prompt"
        raise GenerationError(
            f"{name} {request.index} has {longest} tokens, but the network's context is {max_positions} tokens and the "
            "new text needs at least one; shorten it"
        )
    limit = min(request.limit, max_positions - longest)
    return replace(request, limit=limit)


@dataclass
class Prefilled:
    """Prompts that the network has read.

    Args:
        cache: one row for each prompt, shorter ones padded on the left.
        logits: [prompts, vocab] after the last token, in float32 or float64.
        columns: length of the longest prompt.
        hidden: [prompts, columns, hidden_size] last hidden states when asked for, else None.
    """

    cache: Any
    logits: Tensor
    columns: int
    hidden: Tensor | None = None


def prefill(
    network: DecoderOnly | SourceDecoder,
    prompts: Sequence[Sequence[int]],
    *,
    chunk: int,
    cache_kind: str,
    keep_hidden: bool = False,
) -> Prefilled:
    """Read prompts of any length as one batch, `chunk` columns at a time."""
    device = network.device
    columns = max(map(len, prompts))
    padded = torch.tensor([[0] * (columns - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = None
    if any(len(prompt) < columns for prompt in prompts):
        mask = torch.arange(columns, device=device) >= (columns - lengths)[:, None]
    cache = network.new_cache(cache_kind)
    hidden = []
    for start in range(0, columns, chunk):
        part = slice(start, start + chunk)
        output = network(
            padded[:, part],
            attention_mask=None if mask is None else mask[:, part],
            cache=cache,
            logits_to_keep=1,
        )
        if keep_hidden:
            hidden.append(output.last_hidden_state)
    return Prefilled(cache, last_logits(output), columns, torch.cat(hidden, dim=1) if keep_hidden else None)


class ReadText:
    """What the network has read of one growing text, so that the next prompt is read only from where it differs.

    A conversation is such a text: each prompt is the last one, its answer, and something new.

    Args:
        cache_kind: "dense" or "int8".

    Attributes:
        tokens: what the cache holds.
    """

    def __init__(self, cache_kind: str = "dense") -> None:
        self.tokens: list[int] = []
        self._cache_kind = cache_kind
        self._cache: Any = None

    def read(self, network: DecoderOnly | SourceDecoder, prompt: Sequence[int], *, chunk: int) -> Prefilled:
        """The network after `prompt`; its last token at least is read again, for its logits."""
        shared = 0
        for old, new in zip(self.tokens, prompt[:-1], strict=False):
            if old != new:
                break
            shared += 1
        self._go_back(network, shared)
        shared = len(self.tokens)
        rest = torch.tensor([list(prompt[shared:])], device=network.device)
        for part in rest.split(chunk, dim=1):
            output = network(part, cache=self._cache, logits_to_keep=1)
            self.tokens += part[0].tolist()
        return Prefilled(self._cache, last_logits(output), len(prompt))

    def _go_back(self, network: DecoderOnly | SourceDecoder, length: int) -> None:
        """Forget all but the first `length` tokens; all, where a sliding window no longer has what came before them."""
        cache = self._cache
        if cache is not None and cache.length and int(cache.row_lengths()[0]) == len(self.tokens):
            try:
                cache.trim(len(self.tokens) - length)
            except ConfigError:
                cache = None
        else:
            cache = None  # nothing is read, or an interrupt came between the cache and the list
        self._cache = network.new_cache(self._cache_kind) if cache is None else cache
        self.tokens = [] if cache is None else self.tokens[:length]


def last_logits(output: Any) -> Tensor:
    """Logits of the last column, [rows, vocab], in float32 (float64 stays)."""
    logits = output.logits[:, -1]
    return logits if logits.dtype == torch.float64 else logits.float()
