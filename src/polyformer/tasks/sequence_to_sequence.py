"""From a text to another text: the source is read once, and the target is generated looking at it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polyformer.errors import GenerationError, TruncationWarning
from polyformer.generation.generate import generate, stream, stream_events
from polyformer.generation.outputs import Generation
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.base import BATCH_TOKENS, Progress, TaskModel, length_batches, require_tokenizer

# What a model's own files may say, under the same name here.
_SAME_NAMES = ("no_repeat_ngram_size", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")
_BEAMS = ("num_beams", "length_penalty", "early_stopping")


def own_options(model: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the model's own files name for generation, where a call leaves them out.

    Beams are for calls that ask for nothing else; a length counts the target's first token in the files, and not here.
    Without a word from anyone the likeliest tokens are taken.
    """
    values: Mapping[str, Any] = model.generation_defaults.others
    found = {name: values[name] for name in _SAME_NAMES if values.get(name) is not None}
    if isinstance(found.get("forced_eos_token_id"), list):
        found["forced_eos_token_id"] = found["forced_eos_token_id"][0]
    samples = any(name in asked for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "penalty_alpha"))
    if not samples:
        found["temperature"] = 0.0
        if asked.get("num_beams", values.get("num_beams") or 1) > 1:
            found.pop("temperature")
            found.update({name: values[name] for name in _BEAMS if values.get(name) is not None})
            if not isinstance(found.get("early_stopping", False), bool) and found["early_stopping"] != "never":
                del found["early_stopping"]
    longest, shortest = values.get("max_length"), values.get("min_length")
    if isinstance(longest, int) and longest > 1 and "max_new_tokens" not in asked:
        found["max_new_tokens"] = longest - 1
    if isinstance(shortest, int) and shortest > 1 and "max_new_tokens" not in asked:
        found["min_new_tokens"] = shortest - 1
    return {name: value for name, value in found.items() if name not in asked}


def source_ids(model: TaskModel, text: str, *, truncate: bool = False, what: str = "read texts") -> list[int]:
    """A source as the model's tokenizer prepares it.

    Raises:
        GenerationError: it is longer than the model reads.
    """
    ids = require_tokenizer(model, what).encode(text)
    return fitting(model, ids, truncate=truncate)


def require_words(texts: Sequence[str], what: str) -> None:
    """
    Raises:
        GenerationError: a text is blank. A model would write something all the same, out of nothing.
    """
    for number, text in enumerate(texts):
        if isinstance(text, str) and not text.strip():
            raise GenerationError(f"text {number} is blank: there is nothing to {what}")


def fitting(model: TaskModel, ids: list[int], *, truncate: bool = False, limit: int | None = None) -> list[int]:
    """The ids of a source, if the model can read so many; cut if asked (the last token, which ends a source, stays).

    Args:
        limit: tokens allowed, where that is fewer than the model reads.

    Raises:
        GenerationError: there are none, or too many.
    """
    config = model.network.config
    limits = [one for one in (config.max_source_positions, limit) if one is not None]
    limit = min(limits, default=None)
    if not ids:
        raise GenerationError("a source is empty: there is nothing to read")
    if limit is not None and len(ids) > limit:
        if not truncate:
            raise GenerationError(
                f"a source has {len(ids)} tokens, but the model reads at most {limit}: shorten it, or ask for "
                "truncation (truncate=True, --truncate)"
            )
        ids = [*ids[: limit - 1], ids[-1]]
    vocab_size = config.encoder.vocab_size
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        raise GenerationError(f"a source holds token {wrong[0]}, but the ids are 0 to {vocab_size - 1}")
    return ids


@torch.inference_mode()
def read_sources(network: Any, sources: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor | None]:
    """The encoder's states of sources that go together [sources, longest, size], and where they hold something."""
    longest = max(map(len, sources))
    rows = [[*ids, *[pad] * (longest - len(ids))] for ids in sources]
    input_ids = torch.tensor(rows, device=network.device)
    mask = None
    if any(len(ids) < longest for ids in sources):
        lengths = torch.tensor([len(ids) for ids in sources], device=network.device)
        mask = torch.arange(longest, device=network.device) < lengths[:, None]
    return network.encode(input_ids, attention_mask=mask).last_hidden_state, mask


def start_ids(model: Any) -> list[int]:
    """What the target begins with.

    Raises:
        GenerationError: neither the network nor the model's files say it.
    """
    start = model.generation_defaults.others.get("decoder_start_token_id", model.network.config.decoder_start_token_id)
    if start is None:
        raise GenerationError("the model does not say what a target begins with (decoder_start_token_id)")
    return [int(start)]


def generate_from(
    model: Any,
    sources: Sequence[Sequence[int]],
    settings: GenerationSettings,
    *,
    starts: Sequence[Sequence[int]] | None = None,
    cache_kind: str = "dense",
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = None,
) -> list[list[Generation]]:
    """Generate a target for each source.

    Args:
        sources: token ids as `source_ids` gives them.
        starts: what each target begins with; None is the model's start token.
        cache_kind: "dense", or "int8" for the target's keys and values in eight bits.
        batch_tokens: tokens of sources, times beams or samples, that go together; they are sorted by length.

    Returns:
        For each source its ``n`` generations.
    """
    network = model.network.pack()
    pad = (model.tokenizer.pad_token_id if model.tokenizer is not None else None) or 0
    begins = [start_ids(model)] * len(sources) if starts is None else [list(start) for start in starts]
    results: list[list[Generation]] = [[] for _ in sources]
    copies = max(settings.num_beams, settings.n)
    done = 0
    for numbers in length_batches([len(ids) for ids in sources], max(1, batch_tokens // copies)):
        states, mask = read_sources(network, [sources[number] for number in numbers], pad)
        made = generate(
            network.with_source(states, mask),
            [begins[number] for number in numbers],
            settings,
            tokenizer=model.tokenizer,
            eos_token_ids=model.eos_token_ids,
            cache_kind=cache_kind,
        )
        for number, generations in zip(numbers, made, strict=True):
            results[number] = generations
        done += len(numbers)
        if progress is not None:
            progress(done, len(sources))
    return results


def warn_of_unfinished(made: Sequence[Sequence[Generation]], asked: int | None) -> None:
    """Says how many texts end because there was no more room for them.

    Args:
        made: of each source its generations.
        asked: how many tokens a person allowed; a text that ends there is as it was asked for. None where nobody did.
    """
    best = [generations[0] for generations in made]
    cut = sum(one.finish_reason == "length" and (asked is None or len(one.token_ids) < asked) for one in best)
    if cut:
        warnings.warn(
            f"{cut} of {len(best)} texts were not at their end when the room for them was: max_new_tokens "
            "(--max-new-tokens) gives more, as far as the model's positions go",
            TruncationWarning,
            stacklevel=3,
        )


def stream_from(
    model: Any, source: Sequence[int], settings: GenerationSettings, *, cache_kind: str = "dense"
) -> Iterator[Any]:
    """The target of one source piece by piece: texts, or ids from a model without a tokenizer."""
    network = model.network.pack()
    states, mask = read_sources(network, [source], 0)
    reader, ends = network.with_source(states, mask), model.eos_token_ids
    if model.tokenizer is None:
        events = stream_events(reader, start_ids(model), settings, eos_token_ids=ends, cache_kind=cache_kind)
        return (event.token_id for event in events)
    return stream(
        reader, start_ids(model), settings, tokenizer=model.tokenizer, eos_token_ids=ends, cache_kind=cache_kind
    )
