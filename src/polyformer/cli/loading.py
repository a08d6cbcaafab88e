"""Loading a model for a command, with a sign of life on the terminal meanwhile."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from polyformer.cli.progress import download_bar

if TYPE_CHECKING:
    from polyformer.model import Model


def load(source: str, *, dtype: str | None = None, device: str | None = None, revision: str | None = None) -> Model:
    """Find the model, fetching it with a progress bar if it is not on this machine, and load it."""
    from polyformer.checkpoints.catalogue import resolve

    with download_bar() as progress:
        found = resolve(source, revision=revision, progress=progress)
    with _spinner(f"loading {found.name}"):
        import polyformer

        return polyformer.load(found.path, dtype=dtype or found.dtype, device=device)


def _spinner(text: str) -> AbstractContextManager[Any]:
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)
