"""Generating from prompts: all at once, or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from polyformer.core.encoder_decoder import SourceDecoder
from polyformer.core.transformer import DecoderOnly
from polyformer.errors import GenerationError
from polyformer.generation.beam import BeamDecoder
from polyformer.generation.contrastive import ContrastiveDecoder
from polyformer.generation.decoding import SampleDecoder
from polyformer.generation.outputs import Generation, StreamEvent
from polyformer.generation.requests import ReadText, Request, make_requests
from polyformer.generation.settings import GenerationSettings
from polyformer.generation.text import Tokenizer

PREFILL_CHUNK = 2048
"""Columns of the prompts that are read at once unless said otherwise."""


def generate(
    network: DecoderOnly | SourceDecoder,
    prompts: Sequence[Sequence[int]],
    settings: GenerationSettings | Sequence[GenerationSettings],
    *,
    tokenizer: Tokenizer | None = None,
    eos_token_ids: Sequence[int] | None = None,
    on_token: Callable[[StreamEvent], None] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    cache_kind: str = "dense",
) -> list[list[Generation]]:
    """Generate from every prompt.

    Prompts of any lengths share a batch: all that are sampled or greedy, whatever their settings; those of contrastive
    search with equal `top_k`; those of beam search with equal settings. A text does not depend on its neighbours.

    Args:
        network: a decoder-only network, in the mode (`eval()`) that it should run in; or a decoder with a source in
            place (`EncoderDecoder.with_source`), whose row i belongs to prompt i.
        prompts: token ids. An empty prompt starts from the tokenizer's beginning-of-text token.
        settings: for all prompts, or one for each.
        tokenizer: for texts and stop strings; None gives token ids only.
        eos_token_ids: tokens that end a text; None takes the tokenizer's.
        on_token: called with every new token (not with beam search, whose texts are known at the end only).
        prefill_chunk: columns of the prompts read at once; smaller takes less memory.
        cache_kind: "dense", or "int8" for keys and values in eight bits.

    Returns:
        For each prompt its `n` generations (beams: best first).

    Raises:
        GenerationError: for a prompt or setting that cannot be served; nothing has been generated then.
    """
    _check_call(prefill_chunk)
    if isinstance(network, SourceDecoder) and len(prompts) != len(network.source.states):
        raise GenerationError(f"{len(prompts)} prompts but a source of {len(network.source.states)} rows; give as many")
    requests = make_requests(network, prompts, settings, tokenizer=tokenizer, eos_token_ids=eos_token_ids)
    batches = _batches(requests)
    if on_token is not None and any(batch[0].settings.mode == "beam" for batch in batches):
        raise GenerationError(
            f"on_token cannot be served with num_beams={_most_beams(requests)}: beams change until the end"
        )
    results: list[list[Generation | None]] = [[None] * request.settings.n for request in requests]
    for batch in batches:
        reader = _with_rows(network, batch)
        if batch[0].settings.mode == "beam":
            beams = BeamDecoder(reader, batch, tokenizer=tokenizer, prefill_chunk=prefill_chunk, cache_kind=cache_kind)
            for request, generations in zip(batch, beams.run(), strict=True):
                results[request.index] = list(generations)
            continue
        decoder = _stepwise(batch)(
            reader,
            batch,
            tokenizer=tokenizer,
            follow_text=on_token is not None,
            prefill_chunk=prefill_chunk,
            cache_kind=cache_kind,
        )
        while decoder.running:
            for event in decoder.step():
                if event.generation is not None:
                    results[event.prompt_index][event.sample_index] = event.generation
                if on_token is not None:
                    on_token(event)
    return results  # type: ignore[return-value]


def stream_events(
    network: DecoderOnly | SourceDecoder,
    prompt: Sequence[int],
    settings: GenerationSettings,
    *,
    tokenizer: Tokenizer | None = None,
    eos_token_ids: Sequence[int] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    cache_kind: str = "dense",
    read_text: ReadText | None = None,
) -> Iterator[StreamEvent]:
    """Generate from one prompt, token by token; the last event holds the finished generation.

    The prompt and the settings are checked at the call, the network runs when the iterator is advanced. Closing the
    iterator, or an interrupt while it runs, ends the generation and frees its cache.

    Args:
        As `generate`. `n` must be 1, and beam search cannot be streamed.
        read_text: of the texts before, if this one may begin like the last of them: what they share is not read again.
            Not with contrastive search or guidance.

    Raises:
        GenerationError: for a prompt or setting that cannot be served.
    """
    _check_call(prefill_chunk)
    if settings.mode == "beam":
        raise GenerationError(
            f"num_beams={settings.num_beams} cannot be streamed: beams change until the end; use generate"
        )
    if settings.n > 1:
        raise GenerationError(f"n={settings.n} cannot be streamed as one text; use generate with on_token")
    batch = make_requests(network, [prompt], settings, tokenizer=tokenizer, eos_token_ids=eos_token_ids)
    if read_text is not None:
        if settings.mode == "contrastive" or settings.negative_prompt is not None:
            raise GenerationError("read_text cannot be used with contrastive search or guidance; leave it out")
        decoder: SampleDecoder | ContrastiveDecoder = SampleDecoder(
            network, batch, tokenizer=tokenizer, follow_text=True, prefill_chunk=prefill_chunk, read_text=read_text
        )
        return _run(decoder)
    decoder = _stepwise(batch)(
        network,
        batch,
        tokenizer=tokenizer,
        follow_text=True,
        prefill_chunk=prefill_chunk,
        cache_kind=cache_kind,
    )
    return _run(decoder)


def stream(
    network: DecoderOnly | SourceDecoder,
    prompt: Sequence[int],
    settings: GenerationSettings,
    *,
    tokenizer: Tokenizer | None,
    eos_token_ids: Sequence[int] | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    cache_kind: str = "dense",
    read_text: ReadText | None = None,
) -> Iterator[str]:
    """The text of one generation in pieces, none empty, that together are the text `generate` gives.

    A piece never holds half a character or a part of a stop string. Arguments and errors as `stream_events`, but the
    tokenizer must be there.
    """
    if tokenizer is None:
        raise GenerationError("text cannot be streamed without a tokenizer; stream_events gives token ids")
    events = stream_events(
        network,
        prompt,
        settings,
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids,
        prefill_chunk=prefill_chunk,
        cache_kind=cache_kind,
        read_text=read_text,
    )
    return (event.text for event in events if event.text)


def _with_rows(network: DecoderOnly | SourceDecoder, batch: Sequence[Request]) -> DecoderOnly | SourceDecoder:
    """The network with the rows of its source that belong to the requests, if it has a source."""
    if not isinstance(network, SourceDecoder):
        return network
    return network.select(torch.tensor([request.index for request in batch], device=network.device))


def _run(decoder: SampleDecoder | ContrastiveDecoder) -> Iterator[StreamEvent]:
    while decoder.running:
        yield from decoder.step()


def _stepwise(batch: Sequence[Request]) -> type[SampleDecoder] | type[ContrastiveDecoder]:
    return ContrastiveDecoder if batch[0].settings.mode == "contrastive" else SampleDecoder


def _batches(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests that can be decoded together."""
    batches: list[tuple[object, list[Request]]] = []
    for request in requests:
        settings = request.settings
        key: object = "sampling"
        if settings.mode == "beam":
            key = replace(settings, seed=None)
        elif settings.mode == "contrastive":
            key = ("contrastive", settings.top_k)
        for known, batch in batches:
            if known == key:
                batch.append(request)
                break
        else:
            batches.append((key, [request]))
    return [batch for _, batch in batches]


def _most_beams(requests: Sequence[Request]) -> int:
    return max(request.settings.num_beams for request in requests)


def _check_call(prefill_chunk: int) -> None:
    if isinstance(prefill_chunk, bool) or not isinstance(prefill_chunk, int) or prefill_chunk < 1:
        raise GenerationError(f"prefill_chunk must be a whole number >= 1, not {prefill_chunk!r}")
