"""What every task on pictures needs: pictures ready for the network, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from polyformer.errors import CapabilityError, GenerationError, TokenizerError
from polyformer.tasks.base import Progress
from polyformer.tokenizers.image_files import Picture
from polyformer.tokenizers.images import ImageProcessor, is_one_picture

BATCH_PICTURES = 16
"""Pictures that go through a network together unless said otherwise."""


def as_pictures(pictures: Picture | Sequence[Picture]) -> tuple[list[Any], bool]:
    """A list of pictures, and whether one picture alone was given."""
    if is_one_picture(pictures):
        return [pictures], True
    return list(pictures), False  # type: ignore[arg-type]


def require_image_processor(model: Any) -> ImageProcessor:
    """
    Raises:
        CapabilityError: the model's folder does not say what becomes of a picture.
    """
    processor: ImageProcessor | None = model.image_processor
    if processor is None:
        raise CapabilityError(
            "this model's folder has no preprocessor_config.json, which says how a picture is resized and normalized: "
            "fetch it, or set model.image_processor"
        )
    return processor


def picture_batches(
    model: Any, pictures: Sequence[Picture], *, batch_size: int = BATCH_PICTURES, progress: Progress = None
) -> Iterator[tuple[slice, Tensor]]:
    """Pictures as ``pixel_values``, read when their turn comes.

    Yields:
        Which of the pictures, and [some, channels, height, width] in the network's dtype and on its device.

    Raises:
        TokenizerError: a picture cannot be read; in a list, its number is named.
    """
    processor = require_image_processor(model)
    if batch_size < 1:
        raise GenerationError(f"batch_size is {batch_size}, but it must be at least 1")
    for start in range(0, len(pictures), batch_size):
        part = slice(start, min(start + batch_size, len(pictures)))
        values = []
        for number in range(part.start, part.stop):
            try:
                values.append(processor.pixels(pictures[number]))
            except TokenizerError as error:
                if len(pictures) == 1 or not isinstance(pictures[number], (bytes, bytearray)):
                    raise  # its name says which
                raise TokenizerError(f"picture {number}: {error}") from None
        if len({value.shape for value in values}) > 1:
            for place, value in enumerate(values, start=start):
                yield slice(place, place + 1), value[None].to(model.device, model.dtype)
        else:
            yield part, torch.stack(values).to(model.device, model.dtype)
        if progress is not None:
            progress(part.stop, len(pictures))
