"""Real sentences: the six novels of Jane Austen, the sample set "austen"."""

from __future__ import annotations

import sys
from pathlib import Path

from polyformer.errors import PolyformerError
from polyformer.tasks.search import read_folder
from polyformer.training.data import samples


def novels() -> Path:
    """A folder with a text file for each novel.

    Raises:
        SystemExit: the package cannot be fetched or read here.
    """
    if not samples.is_here("austen"):
        print("fetching austen (public domain texts)", file=sys.stderr)
    try:
        return samples.pull("austen")
    except PolyformerError as error:
        raise SystemExit(str(error)) from None


def sentences(count: int | None = None) -> list[str]:
    """Sentences of the novels; ``count`` of them spread over all."""
    found = [passage.text for passage in read_folder(novels())]
    return found if count is None else found[:: max(1, len(found) // count)][:count]
