"""The disk: the cache folder, room for what is to come, and files that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from polyformer.errors import CheckpointError, DownloadError, PolyformerError

# Room that is left free beyond what is to be written.
SPARE_BYTES = 16 * 2**20


class DiskFullError(DownloadError, CheckpointError):
    """The disk has no room for what was to be written."""


def cache_folder(cache: str | Path | None = None) -> Path:
    """Where downloaded models are kept: ``cache``, else ``$POLYFORMER_CACHE``, else the platform's cache folder.

    The platform's is ``$XDG_CACHE_HOME`` or ``~/.cache`` (``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on
    Windows), with ``polyformer`` in it. The folder is not made here.
    """
    if cache is not None:
        return Path(cache).expanduser()
    if chosen := os.environ.get("POLYFORMER_CACHE"):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "polyformer"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "polyformer"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "polyformer"
    return Path.home() / ".cache" / "polyformer"


def readable_size(nbytes: float) -> str:
    """``93.8 MB``: decimal units, as shops and download pages count."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} bytes" if unit == "bytes" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def require_room(folder: Path, nbytes: int, what: str) -> None:
    """Checks that the disk under ``folder`` (which need not exist yet) can take ``nbytes`` more.

    Raises:
        DiskFullError: it cannot.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < nbytes + SPARE_BYTES:
        raise DiskFullError(
            f"no disk space: {what} needs {readable_size(nbytes + SPARE_BYTES)} in {folder}, where "
            f"{readable_size(free)} are free: make room, or choose another folder"
        )


@contextlib.contextmanager
def told_when_disk_is_full(folder: Path, what: str) -> Iterator[None]:
    """Turns "no space left on device" into a ``DiskFullError``; other errors pass."""
    try:
        yield
    except PolyformerError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(f"the disk was full while writing {what} to {folder}: make room and try again") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path``. After the block it takes the place of ``path``; on any error it goes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a small text file so that it is never seen half-written."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def git_blob_sha1_of(path: Path) -> str:
    """The name git gives to a file with these contents: what a hub states for files that are not in large storage."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def only_one_process(lock_path: Path) -> Iterator[None]:
    """Waits until no other process is inside a block with the same lock file, then keeps the others out."""
    from filelock import FileLock

    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(lock_path)):
        yield
