"""One vector for a text, so that texts of like meaning lie close together (Reimers and Gurevych, 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyformer.core import TEXT_POOLINGS, DecoderOnly, DualEncoder, Pooling, Span
from polyformer.core.transformer import read_tokens
from polyformer.errors import GenerationError
from polyformer.tasks.base import Progress, TaskModel, as_list, length_batches, read_texts
from polyformer.tokenizers.encodings import Encoding, pad_together

BATCH = 2048
"""Tokens that go through the network together unless said otherwise: what they become still fits into the caches."""


@torch.inference_mode()
def embed(
    model: TaskModel,
    texts: str | Sequence[str],
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    truncate: bool = False,
    batch_tokens: int = BATCH,
    progress: Progress = None,
) -> Any:
    """One vector for each text.

    Texts go through the network sorted by length, so that hardly anything is padding; the order of the result is that
    of the texts. A vector does not depend on the other texts.

    Args:
        texts: one text, or many.
        pooling: "mean" of all tokens, "class" (the first token's vector) or "last"; None takes what the model was made
            for (else "mean" of an encoder, "last" of a decoder).
        normalize: whether vectors get length 1; None takes what the model was made for (else no).
        prompt: the name of one of the model's prompts, or the words themselves, to stand before each text.
        truncate: texts longer than the model reads are cut; otherwise they are an error.
        batch_tokens: tokens that go through the network together.

    Returns:
        float32 numpy [size] for one text, [texts, size] for a list.

    Raises:
        TokenizerError: a text is longer than the model reads.
        GenerationError: an unknown pooling.
    """
    given, alone = as_list(texts)
    settings: Any = getattr(model, "embedding_settings", None)
    method = _method(model, pooling, settings)
    length_one = normalize if normalize is not None else bool(settings and settings.normalize)
    encodings = _read(model, given, prompt, settings, truncate)
    network = model.network.pack()
    pad = (model.tokenizer.pad_token_id if model.tokenizer else None) or 0
    # SigLIP looks at the last place of the full length, where padding stands as it did in training.
    full = model.context_length if _own_pooling(network) == "last" else None
    vectors: np.ndarray[Any, Any] | None = None
    done = 0
    for numbers in length_batches([len(encoding.ids) for encoding in encodings], batch_tokens):
        inputs = {name: part.to(model.device) for name, part in _inputs(encodings, numbers, pad, full).items()}
        pooled = _vectors(network, inputs, method)
        if length_one:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        if vectors is None:
            vectors = np.empty((len(given), pooled.shape[1]), dtype=np.float32)
        vectors[numbers] = pooled.float().cpu().numpy()
        done += len(numbers)
        if progress is not None:
            progress(done, len(given))
    if vectors is None:
        vectors = np.empty((0, _size(model)), dtype=np.float32)
    return vectors[0] if alone else vectors


def _size(model: TaskModel) -> int:
    config = model.network.config
    tower = config.text if isinstance(model.network, DualEncoder) else None
    size: int = config.hidden_size if tower is None else (tower.projection or tower.pooling.transform).out_features
    return size


def _own_pooling(network: Any) -> str | None:
    """The method of a network that pools by itself, alone or beside pictures (CLIP, SigLIP); None of another."""
    dual = isinstance(network, DualEncoder)
    part: Any = network.config.text if dual else network.config
    method: str | None = getattr(getattr(part, "pooling", None), "method", None)
    return method if dual or method in ("end", "largest_id", "last") else None


def _method(model: TaskModel, pooling: str | None, settings: Any) -> str | None:
    """The core's pooling method; None for a network that pools by itself."""
    if _own_pooling(model.network) is not None:
        if pooling is not None:
            raise GenerationError("this model makes its vectors in its own way: leave pooling out")
        return None
    usual = "last" if isinstance(model.network, DecoderOnly) else "mean"
    name = pooling or (settings.pooling if settings else usual)
    if name not in TEXT_POOLINGS:
        raise GenerationError(f"pooling {name!r} is not one of {', '.join(TEXT_POOLINGS)}")
    return TEXT_POOLINGS[name]


def _read(model: TaskModel, texts: list[str], prompt: str | None, settings: Any, truncate: bool) -> list[Encoding]:
    limit = model.context_length
    if settings is not None:
        limit = min((one for one in (settings.max_tokens, limit) if one is not None), default=None)
        name = prompt if prompt is not None else settings.default_prompt
        prompt = settings.prompts.get(name, prompt) if name is not None else None
        if settings.lower_case:
            texts = [text.lower() for text in texts]
    if prompt:
        texts = [prompt + text for text in texts]
    return read_texts(model, texts, truncate=truncate, limit=limit, what="embed texts")


def _inputs(encodings: Sequence[Encoding], numbers: list[int], pad: int, full: int | None) -> dict[str, Tensor]:
    if full is not None:
        rows = [encodings[number].ids for number in numbers]
        return {"input_ids": torch.tensor([[*ids, *[pad] * (full - len(ids))] for ids in rows])}
    inputs = pad_together([encodings[number] for number in numbers], pad)
    del inputs["token_type_ids"]
    if inputs["attention_mask"].all():
        del inputs["attention_mask"]
    return inputs


def _vectors(network: Any, inputs: dict[str, Tensor], method: str | None) -> Tensor:
    if method is None:
        output = network(**inputs)
        own: Tensor = output.text_embeds if isinstance(network, DualEncoder) else output.pooler_output
        return own
    if isinstance(network, DecoderOnly):
        mask = inputs.get("attention_mask")
        output = read_tokens(network.embedding, network.stack, inputs["input_ids"], attention_mask=mask)
    else:
        output = network.encoder(**inputs)
    hidden = output.last_hidden_state
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    span = Span.of(hidden.shape[1], inputs.get("attention_mask"), device=hidden.device)
    pooled: Tensor = Pooling.Config(method).build()(hidden, span, inputs["input_ids"])
    return pooled
