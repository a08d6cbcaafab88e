"""From a picture to a text: what it shows, or what is written there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.base import Progress, require_capability
from polyformer.tasks.pictures import as_pictures, picture_batches
from polyformer.tasks.sequence_to_sequence import own_options, start_ids
from polyformer.tokenizers.image_files import Picture

BATCH_CAPTIONS = 8


@dataclass(frozen=True)
class Caption:
    """What a model writes about a picture.

    Attributes:
        text: the words; empty from a model without a tokenizer.
        token_ids: without the start token.
        finish_reason: "eos" where the model ended the text, "length" where it was cut.
    """

    text: str
    token_ids: list[int]
    finish_reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def caption(
    model: Any,
    images: Picture | Sequence[Picture],
    *,
    batch_size: int = BATCH_CAPTIONS,
    progress: Progress = None,
    **options: Any,
) -> Any:
    """What each picture shows, in words; from TrOCR, what is written on it.

    Args:
        images: one or many: paths, bytes, Pillow images or arrays.
        batch_size: pictures that go through the network together.
        options: of generation (``num_beams``, ``max_new_tokens``, ``temperature`` …); where they are left out, what the
            model's own files say counts.

    Returns:
        A `Caption` for one picture, a list of them for a list.

    Raises:
        TokenizerError: a picture cannot be read.
        GenerationError: an unknown or impossible option.
    """
    require_capability(model, "caption")
    settings = GenerationSettings.from_options({**own_options(model, options), **options})
    start = start_ids(model)
    limit = model.context_length
    if limit is not None and settings.max_new_tokens > limit - len(start) and "max_new_tokens" not in options:
        settings = settings.replace(max_new_tokens=limit - len(start))
    given, alone = as_pictures(images)
    network = model.network.pack()
    results: list[Caption] = []
    copies = max(settings.num_beams, settings.n)
    for _, pixel_values in picture_batches(
        model, given, batch_size=max(1, batch_size // copies) if batch_size > 0 else batch_size, progress=progress
    ):
        states = network.encode(pixel_values=pixel_values).last_hidden_state
        made = generate(
            network.with_source(states),
            [start] * len(states),
            settings,
            tokenizer=model.tokenizer,
            eos_token_ids=model.eos_token_ids,
        )
        for generations in made:
            best = generations[0]
            results.append(Caption((best.text or "").strip(), list(best.token_ids), best.finish_reason))
    return results[0] if alone else results
