"""Fetching one file over HTTP: resumed, verified, and in place only when whole."""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polyformer.checkpoints.disk import git_blob_sha1_of, sha256_of, told_when_disk_is_full
from polyformer.errors import DownloadError

# What a progress callback gets: the file, the bytes done and the bytes in all (None while unknown).
ProgressCallback = Callable[[str, int, "int | None"], None]

PIECE_BYTES = 1 << 18
CONNECT_SECONDS = 20.0
# A transfer that breaks off is taken up again this many times in a row without a single new byte.
FRUITLESS_ATTEMPTS = 3
FIRST_WAIT_SECONDS = 0.25


class CorruptDownloadError(DownloadError):
    """The bytes that came are not the bytes that were promised."""


class UnreachableError(DownloadError):
    """The source could not be reached, or broke off again and again: another time it may work."""


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it is fetched; None where nothing is."""

    nbytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


def verify(path: Path, expected: Expected, name: str) -> None:
    """Compares a file with what was promised.

    Raises:
        CorruptDownloadError: it differs.
    """
    size = path.stat().st_size
    if expected.nbytes is not None and size != expected.nbytes:
        raise CorruptDownloadError(f"{name} has {size:,} bytes and should have {expected.nbytes:,}: it was corrupted")
    for kind, wanted, compute in (
        ("sha256", expected.sha256, sha256_of),
        ("git sha1", expected.git_sha1, git_blob_sha1_of),
    ):
        if wanted is not None:
            found = compute(path)
            if found != wanted:
                raise CorruptDownloadError(f"{name} has the {kind} {found} and should have {wanted}: it was corrupted")


def fetch(
    url: str,
    target: Path,
    expected: Expected,
    *,
    headers: Mapping[str, str] | None = None,
    progress: ProgressCallback | None = None,
) -> None:
    """Fetches ``url`` into ``target``. Bytes of an earlier attempt (``target`` + ``.partial``) are not fetched again.

    A corrupted file is deleted and fetched once more from the beginning.

    Args:
        url: http or https.
        target: the file to write; its folder exists.
        expected: what the file must be.
        headers: sent to the first server, not to one that it redirects to (so a token does not leak).
        progress: called as bytes arrive.

    Raises:
        CorruptDownloadError: the second copy was wrong too.
        UnreachableError: the server did not answer, or broke off again and again.
        DownloadError: the server refused (missing, not allowed).
        DiskFullError: the disk was full.
    """
    partial = target.with_name(target.name + ".partial")
    for attempt in (1, 2):
        _fetch_all(url, partial, expected, dict(headers or {}), progress)
        try:
            verify(partial, expected, target.name)
        except CorruptDownloadError:
            partial.unlink()
            if attempt == 2:
                raise
            continue
        os.replace(partial, target)
        return


def _fetch_all(
    url: str, partial: Path, expected: Expected, headers: dict[str, str], progress: ProgressCallback | None
) -> None:
    """Appends to ``partial`` until the server says that it is whole."""
    fruitless = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        if expected.nbytes is not None and before > expected.nbytes:
            partial.unlink()
            before = 0
        if before and before == expected.nbytes:
            return
        try:
            _fetch_rest(url, partial, before, expected.nbytes, headers, progress)
            return
        except _TryAgain as error:
            gained = partial.exists() and partial.stat().st_size > before
            fruitless = 0 if gained else fruitless + 1
            if fruitless >= FRUITLESS_ATTEMPTS:
                raise UnreachableError(str(error)) from error
            time.sleep(FIRST_WAIT_SECONDS * 2**fruitless)


class _TryAgain(Exception):
    """A failure that may pass: a broken connection, a busy server."""


def _fetch_rest(
    url: str,
    partial: Path,
    start: int,
    total: int | None,
    headers: dict[str, str],
    progress: ProgressCallback | None,
) -> None:
    name = partial.name.removesuffix(".partial")
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    for key, value in headers.items():
        request.add_unredirected_header(key, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS) as response:
            if start and response.status == 206 and not _starts_at(response.headers.get("Content-Range"), start):
                partial.unlink()
                raise _TryAgain(f"{name}: the server sent another part than it was asked for")
            if response.status != 206:
                start = 0  # the server sends the file from its beginning
            length = response.headers.get("Content-Length")
            promised = start + int(length) if length is not None else total
            with told_when_disk_is_full(partial.parent, name):
                done = _append(response, partial, start, promised, name, progress)
        if promised is not None and done < promised:
            raise _TryAgain(f"{name}: the connection broke off at {done:,} of {promised:,} bytes")
    except urllib.error.HTTPError as error:
        _tell_refusal(error, url, name, partial)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise _TryAgain(f"{name}: {_host(url)} cannot be reached ({reason})") from error


def _append(
    response: http.client.HTTPResponse,
    partial: Path,
    start: int,
    promised: int | None,
    name: str,
    progress: ProgressCallback | None,
) -> int:
    done = start
    try:
        with partial.open("ab" if start else "wb") as file:
            while piece := response.read(PIECE_BYTES):
                file.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(name, done, promised)
    except OSError as error:
        # A broken connection keeps what came; a full disk needs the room.
        if not isinstance(error, (TimeoutError, ConnectionError)):
            partial.unlink(missing_ok=True)
        raise
    return done


def _tell_refusal(error: urllib.error.HTTPError, url: str, name: str, partial: Path) -> None:
    """Raises what an HTTP error status means for the user."""
    host = _host(url)
    if error.code == 416:  # the partial file is longer than the file
        partial.unlink(missing_ok=True)
        raise _TryAgain(f"{name}: {host} does not have the part that was asked for") from error
    if error.code in (408, 429) or error.code >= 500:
        raise _TryAgain(f"{name}: {host} answered {error.code} ({error.reason})") from error
    if error.code in (401, 403):
        raise DownloadError(
            f"{name}: {host} answered {error.code}, access denied: accept the model's terms on its page and log in "
            "(set HF_TOKEN, or run `hf auth login`)"
        ) from error
    if error.code == 404:
        raise DownloadError(f"{name}: {host} answered 404, no such file: check the name and the revision") from error
    raise DownloadError(f"{name}: {host} answered {error.code} ({error.reason})") from error


def _starts_at(content_range: str | None, start: int) -> bool:
    return content_range is not None and content_range.strip().startswith(f"bytes {start}-")


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc
