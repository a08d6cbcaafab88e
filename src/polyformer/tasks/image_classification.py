"""Labels for pictures: those that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polyformer.errors import CapabilityError, GenerationError
from polyformer.tasks.base import Progress, require_capability
from polyformer.tasks.classification import probabilities, ranked
from polyformer.tasks.pictures import BATCH_PICTURES, as_pictures, picture_batches
from polyformer.tokenizers.image_files import Picture


@torch.inference_mode()
def classify_images(
    model: Any,
    images: Picture | Sequence[Picture],
    *,
    labels: Sequence[str] | None = None,
    multi_label: bool | None = None,
    top_k: int | None = None,
    template: str | None = None,
    batch_size: int = BATCH_PICTURES,
    progress: Progress = None,
) -> Any:
    """How well each label fits a picture.

    Args:
        images: one or many: paths, bytes, Pillow images or arrays.
        labels, template: not for this model: labels of one's own need one that compares pictures with texts (CLIP,
            SigLIP).
        multi_label: several labels may fit, so that each has a probability of its own; None takes what the model was
            trained for.
        top_k: only so many labels; None gives all.
        batch_size: pictures that go through the network together.

    Returns:
        For one picture a list of `Label`, best first; for a list a list of these.

    Raises:
        CapabilityError: the model has no labels, or labels of one's own or a template for them are given.
        TokenizerError: a picture cannot be read.
    """
    require_capability(model, "classify")
    for name, value in (("labels", labels), ("template", template)):
        if value is not None:
            raise CapabilityError(
                "labels of one's own need a model that compares pictures with texts (CLIP, SigLIP), but this one knows "
                f"{len(model.labels)} labels: leave {name} out"
            )
    if top_k is not None and top_k < 1:
        raise GenerationError(f"top_k is {top_k}, but it must be at least 1")
    given, alone = as_pictures(images)
    network = model.network.pack()
    results = []
    for _, pixel_values in picture_batches(model, given, batch_size=batch_size, progress=progress):
        logits = network(pixel_values=pixel_values).logits.double().cpu()
        results += [ranked(model.labels, row, top_k) for row in probabilities(model, logits, multi_label)]
    return results[0] if alone else results
