"""How sample sets of text lie in the cache: one file of JSON lines, in the order in which they are read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from polyformer.checkpoints.disk import whole_file
from polyformer.training.data.formats import ReaderOptions, read_json_lines
from polyformer.training.data.samples.base import Document

DOCUMENTS = "documents.jsonl"
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
SPLITS = tuple(SHARES)


def store(folder: Path, documents: Iterable[Document]) -> int:
    """Writes documents; returns how many there are."""
    count = 0
    with whole_file(folder / DOCUMENTS) as path, path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_stored(folder: Path) -> Iterator[Document]:
    """What `store` wrote."""
    return (document for _, document in read_json_lines(folder / DOCUMENTS, ReaderOptions()))
