"""Names of models, and what a name stands for: a local path, a model of the catalogue, or one of a hub."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from polyformer.checkpoints.entries import ENTRIES, CatalogueEntry
from polyformer.checkpoints.hub import HubId, find_cached, parse_hub_id, pull_repository
from polyformer.checkpoints.pull import CachedModel, find_entry, list_models, pull
from polyformer.checkpoints.transfer import ProgressCallback
from polyformer.errors import CheckpointError, DownloadError

__all__ = [
    "ENTRIES",
    "CachedModel",
    "CatalogueEntry",
    "ResolvedSource",
    "find_entry",
    "list_models",
    "resolve",
]


@dataclass(frozen=True)
class ResolvedSource:
    """What the name of a model stands for.

    Attributes:
        path: a folder in the Hugging Face layout, or one ``.gguf`` (or ``.safetensors``) file.
        origin: ``"local"``, ``"catalogue"`` or ``"hub"``.
        name: a short name to show: the catalogue name, the hub id, or the last part of the path.
        dtype: of the weights in memory where a person does not say; None keeps the file's own.
    """

    path: Path
    origin: str
    name: str
    dtype: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether it is one GGUF file."""
        return self.path.suffix == ".gguf"


def resolve(
    source: str | Path,
    *,
    revision: str | None = None,
    cache: str | Path | None = None,
    progress: ProgressCallback | None = None,
    accept_license: bool = False,
) -> ResolvedSource:
    """Finds the files of a model, pulling them into the cache if they are not on this machine.

    Args:
        source: a folder, a file, a name of the catalogue, or a hub id (``owner/name``, optionally ``@revision`` and
            ``:file.gguf``), in this order of precedence.
        revision: the branch, tag or commit of a hub id.
        cache: the cache folder; see ``disk.cache_folder``.
        progress: called as bytes arrive.
        accept_license: see ``pull``.

    Raises:
        CheckpointError: nothing fits the name; the message says what was tried and lists the nearest names. Or a
            revision was given for something that has none.
        DownloadError: it could not be fetched.
    """
    text = str(source)
    path = Path(source).expanduser()
    if path.exists() and (path.is_dir() or path.suffix in (".gguf", ".safetensors", ".bin", ".pt", ".pth")):
        _refuse_revision(revision, text, "a local path")
        return ResolvedSource(_single_gguf(path), "local", path.resolve().name)
    if text in ENTRIES:
        _refuse_revision(revision, text, "a name of the catalogue, which is pinned")
        fetched = pull(text, cache=cache, progress=progress, accept_license=accept_license)
        return ResolvedSource(fetched, "catalogue", text, ENTRIES[text].dtype)
    hub_id = None if _looks_like_path(text) else parse_hub_id(text)
    if hub_id is None:
        raise CheckpointError(_not_found(text, path))
    return _resolve_on_hub(hub_id, text, revision, cache, progress)


def _resolve_on_hub(
    hub_id: HubId, text: str, revision: str | None, cache: str | Path | None, progress: ProgressCallback | None
) -> ResolvedSource:
    if revision is not None and hub_id.revision not in (None, revision):
        raise CheckpointError(f"{text!r} and revision={revision!r} name two revisions: give one of them")
    revision = revision or hub_id.revision
    cached = find_cached(hub_id.repository, revision=revision, file=hub_id.file, cache=cache)
    if cached is not None and revision is not None and len(revision) == 40:
        return ResolvedSource(_single_gguf(cached), "hub", hub_id.repository)  # a commit never changes
    try:
        path = pull_repository(hub_id.repository, revision=revision, file=hub_id.file, cache=cache, progress=progress)
    except DownloadError as error:
        near = _nearest(text)
        hint = f"; the nearest names here are {', '.join(near)}" if near else ""
        message = f"there is no folder or catalogue name {text!r}, and as a hub id it failed: {error}{hint}"
        raise type(error)(message) from error
    return ResolvedSource(_single_gguf(path), "hub", hub_id.repository)


def _refuse_revision(revision: str | None, text: str, what: str) -> None:
    if revision is not None:
        raise CheckpointError(f"{text!r} is {what}: revision={revision!r} only means something for a hub id")


def _single_gguf(path: Path) -> Path:
    """A folder that holds one GGUF file and no config stands for that file."""
    if path.is_dir() and not (path / "config.json").exists():
        files = list(path.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
    return path


def _looks_like_path(text: str) -> bool:
    if text.startswith(("/", "./", "../", "~", ".\\", "\\")):
        return True
    return ":" not in text and text.endswith((".gguf", ".safetensors"))


def _not_found(text: str, path: Path) -> str:
    if path.exists():
        return f"{text} is no model: give a folder, a .gguf file or a .safetensors file"
    near = _nearest(text)
    if _looks_like_path(text):
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.5)
        hint = f"; near it are {', '.join(near)}" if near else ""
        return f"{text} does not exist: check the path{hint}"
    hint = f"did you mean {' or '.join(near)}?" if near else f"the catalogue has {', '.join(ENTRIES)}"
    return (
        f"no model is called {text!r}: it is no folder or file here, no name of the catalogue and no hub id "
        f"(owner/name); {hint}"
    )


def _nearest(text: str) -> list[str]:
    lowered = {name.lower(): name for name in ENTRIES}
    return [lowered[name] for name in difflib.get_close_matches(text.lower(), list(lowered), n=3, cutoff=0.5)]
