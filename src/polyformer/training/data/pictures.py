"""Pictures of a store as a network reads them."""

from __future__ import annotations

from polyformer.errors import DataError
from polyformer.tokenizers.images import ImageProcessor
from polyformer.training.data.loader import Dataset, Example


class Pictures:
    """A dataset whose ``image`` (uint8 [channels, height, width], see `ImageProcessor.frame`) becomes ``pixel_values``
    (float32, the same shape), prepared as the finished model will prepare its pictures.

    Raises:
        DataError: the rows have no picture.
    """

    def __init__(self, dataset: Dataset, processor: ImageProcessor, *, column: str = "image"):
        if column not in dataset[0]:
            raise DataError(f"the data has no pictures: rows have no {column!r}, but {', '.join(dataset[0])}")
        self._dataset = dataset
        self._processor = processor
        self._column = column

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Example:
        example = dict(self._dataset[index])
        example["pixel_values"] = self._processor.normalize(example.pop(self._column)).numpy()
        return example
