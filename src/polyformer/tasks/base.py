"""What every task needs: a model as far as tasks know it, texts ready for its network, batches without waste."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from polyformer.errors import CapabilityError
from polyformer.tokenizers.encodings import Encoding, encode_texts, pad_together
from polyformer.tokenizers.text import TextTokenizer

Progress: TypeAlias = "Callable[[int, int], None] | None"
"""Called with how many inputs are done and how many there are."""

BATCH_TOKENS = 4096
"""Tokens, padding included, that go through a network together unless said otherwise."""

# Fewer tokens than this keep no machine busy: then some padding is cheaper than another pass.
_SMALL_BATCH = 512
# Padding a batch may hold, as a part of it.
_WASTE = 0.04


class TaskModel(Protocol):
    """A model as far as tasks know it; see `polyformer.model.Model`."""

    @property
    def network(self) -> Any: ...

    @property
    def tokenizer(self) -> TextTokenizer | None: ...

    @property
    def labels(self) -> tuple[str, ...] | None: ...

    @property
    def context_length(self) -> int | None: ...

    @property
    def capabilities(self) -> tuple[str, ...]: ...

    @property
    def device(self) -> torch.device: ...


def require_capability(model: TaskModel, what: str) -> None:
    """
    Raises:
        CapabilityError: the model cannot do it; the message says what it can.
    """
    if what not in model.capabilities:
        raise CapabilityError(
            f"this model cannot {what}; it can {', '.join(model.capabilities) or 'nothing by itself'}"
        )


def require_tokenizer(model: TaskModel, what: str) -> TextTokenizer:
    """The model's tokenizer.

    Raises:
        CapabilityError: it has none.
    """
    if model.tokenizer is None:
        raise CapabilityError(f"this model has no tokenizer, so it cannot {what}: load a folder that has one")
    return model.tokenizer


def read_texts(
    model: TaskModel,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    truncate: bool = False,
    limit: int | None = None,
    what: str = "read texts",
) -> list[Encoding]:
    """Texts (or pairs of them) as the model's tokenizer prepares them, none longer than the model can read.

    Args:
        limit: tokens allowed; None is the model's own limit.
        truncate: cut what is longer, from the end of the longer text; otherwise it is an error.
    """
    tokenizer = require_tokenizer(model, what)
    if limit is None:
        limit = model.context_length
    return encode_texts(tokenizer, texts, pairs, limit=limit, truncate=truncate)


def network_inputs(model: TaskModel, encodings: Sequence[Encoding]) -> dict[str, Tensor]:
    """What the network is called with for texts that go through it together."""
    tokenizer = require_tokenizer(model, "read texts")
    inputs = pad_together(encodings, tokenizer.pad_token_id or 0)
    types = getattr(model.network.config.encoder.embedding, "token_types", 0)
    if types < 2 or not inputs["token_type_ids"].any():
        del inputs["token_type_ids"]
    if inputs["attention_mask"].all():
        del inputs["attention_mask"]
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def length_batches(lengths: Sequence[int], batch_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Numbers of inputs that go together, the longest first: alike in length, so that little is padding.

    Args:
        lengths: tokens of each input.
        batch_tokens: the most tokens of a batch, padding included; one longer input goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches: list[list[int]] = []
    longest = real = 0
    for number in order:
        size = len(batches[-1]) + 1 if batches else 0
        full = size * longest > batch_tokens
        wasteful = real >= _SMALL_BATCH and size * longest - real - lengths[number] > _WASTE * size * longest
        if not batches or full or wasteful:
            batches.append([])
            longest, real = lengths[number], 0
        batches[-1].append(number)
        real += lengths[number]
    return batches


@torch.inference_mode()
def run_batches(
    model: TaskModel,
    encodings: Sequence[Encoding],
    *,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = None,
) -> Iterator[tuple[list[int], dict[str, Tensor], Any]]:
    """Every encoding through the network, in batches alike in length.

    Yields:
        The numbers of the encodings, what the network was called with, and its output.
    """
    network = model.network.pack()
    done = 0
    for numbers in length_batches([len(encoding.ids) for encoding in encodings], batch_tokens):
        inputs = network_inputs(model, [encodings[number] for number in numbers])
        yield numbers, inputs, network(**inputs)
        done += len(numbers)
        if progress is not None:
            progress(done, len(encodings))


def as_list(value: str | Sequence[str]) -> tuple[list[str], bool]:
    """A list of texts, and whether one text alone was given."""
    return ([value], True) if isinstance(value, str) else (list(value), False)
