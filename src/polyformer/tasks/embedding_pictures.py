"""One vector for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyformer.core import DualEncoder, Pooling, Span
from polyformer.errors import GenerationError
from polyformer.tasks.base import Progress, require_capability
from polyformer.tasks.pictures import BATCH_PICTURES, as_pictures, picture_batches
from polyformer.tokenizers.image_files import Picture

POOLINGS = {"mean": "mean_patches", "class": "first"}
"""Name -> the core's method. "mean" of all patches, "class": the class token's vector."""


@torch.inference_mode()
def embed_images(
    model: Any,
    images: Picture | Sequence[Picture],
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    batch_size: int = BATCH_PICTURES,
    progress: Progress = None,
) -> Any:
    """One vector for each picture.

    Args:
        images: one or many: paths, bytes, Pillow images or arrays.
        pooling: "class" or "mean"; None takes what the model was made for: CLIP and SigLIP the space they share with
            texts, others the class token's vector.
        normalize: whether vectors get length 1; None does so in the space shared with texts only.
        batch_size: pictures that go through the network together.

    Returns:
        float32 numpy [size] for one picture, [pictures, size] for a list.

    Raises:
        GenerationError: an unknown pooling, or one that the model has no use for.
        TokenizerError: a picture cannot be read.
    """
    require_capability(model, "embed_images")
    network = model.network.pack()
    config = network.config
    dual = isinstance(network, DualEncoder)
    if pooling is not None and pooling not in POOLINGS:
        raise GenerationError(f"pooling {pooling!r} is not one of {', '.join(POOLINGS)}")
    encoder = network.image.encoder if dual else network.encoder
    if pooling == "class" and not encoder.config.embedding.class_token:
        raise GenerationError("this model has no class token: take pooling 'mean', or leave it out")
    usual = network.image.config.pooling if dual else config.pooling
    if pooling is None and not dual and (usual is None or getattr(usual, "transform", None) is not None):
        pooling = "class"  # ViT's pooler is untrained in many files, and made for labels in the others
    given, alone = as_pictures(images)
    vectors: list[Tensor] = []
    for _, pixel_values in picture_batches(model, given, batch_size=batch_size, progress=progress):
        if pooling is not None:
            hidden = encoder(pixel_values=pixel_values).last_hidden_state
            pool = Pooling.Config(POOLINGS[pooling], leading=encoder.config.embedding.leading).build()
            vector = pool(hidden.to(torch.promote_types(hidden.dtype, torch.float32)), Span.of(hidden.shape[1]))
        elif dual:
            vector, _ = network.image(pixel_values=pixel_values)
        else:
            vector = network(pixel_values=pixel_values).pooler_output
        vector = vector.to(torch.promote_types(vector.dtype, torch.float32))
        if normalize or (normalize is None and dual and pooling is None):
            vector = torch.nn.functional.normalize(vector, dim=-1)
        vectors.append(vector.float().cpu())
    if not vectors:
        return np.empty((0, 0), dtype=np.float32)
    made = torch.cat(vectors).numpy()
    return made[0] if alone else made
