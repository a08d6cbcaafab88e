"""Pictures of a store are prepared as the model prepares those it is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from polyformer.errors import DataError
from polyformer.tokenizers.images import ImageProcessor
from polyformer.training.data.packing import Examples
from polyformer.training.data.pictures import Pictures
from polyformer.training.data.store import build_store


@pytest.mark.parametrize("colours", [True, False])
def test_pictures_become_what_the_processor_makes_of_them(colours: bool, tmp_path: Path) -> None:
    shape = (3, 6, 5, 3) if colours else (3, 6, 5)
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    channels = 3 if colours else 1
    processor = ImageProcessor(8, crop=(8, 4), mean=(0.4,) * channels, std=(0.3,) * channels)
    documents = [
        {"image": processor.frame(Image.fromarray(picture)), "label": number} for number, picture in enumerate(pictures)
    ]
    store = build_store(documents, None, tmp_path / "one", fields=(), keep=("image", "label"))
    dataset = Pictures(Examples(store), processor)
    assert len(dataset) == 3
    example = dataset[2]
    assert set(example) == {"pixel_values", "label"} and example["label"] == 2
    assert example["pixel_values"].shape == (channels, 8, 4) and example["pixel_values"].dtype == np.float32
    assert torch.equal(torch.from_numpy(example["pixel_values"]), processor(Image.fromarray(pictures[2]))[0])


def test_rows_without_pictures_are_refused(tmp_path: Path) -> None:
    store = build_store([{"label": 1}], None, tmp_path / "one", fields=(), keep=("label",))
    with pytest.raises(DataError, match="no 'image', but label"):
        Pictures(Examples(store), ImageProcessor())
