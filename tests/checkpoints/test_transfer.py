"""Fetching one file: corners that the hub's tests do not reach."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from polyformer.checkpoints.transfer import CorruptDownloadError, Expected, UnreachableError, fetch, verify
from polyformer.errors import DownloadError

CONTENT = bytes(range(256)) * 100


@pytest.fixture
def url(hub: Any) -> str:
    hub.repositories["owner/name"] = {"x.bin": CONTENT}
    return f"{hub.url}/storage/owner/name/x.bin"


def test_a_file_of_unknown_size(url: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    fetch(url, tmp_path / "x", Expected(), progress=lambda *step: seen.append(step))
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert seen[-1] == ("x", len(CONTENT), len(CONTENT))


def test_an_earlier_part_that_is_too_long(hub: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "x.partial").write_bytes(CONTENT + b"more")
    fetch(url, tmp_path / "x", Expected(len(CONTENT)))
    assert (tmp_path / "x").read_bytes() == CONTENT
    # With no known size the server is asked, answers 416, and the file is fetched from its beginning.
    (tmp_path / "y.partial").write_bytes(CONTENT + b"more")
    hub.requests.clear()
    fetch(url, tmp_path / "y", Expected())
    assert (tmp_path / "y").read_bytes() == CONTENT
    assert [request.range for request in hub.requests] == [f"bytes={len(CONTENT) + 4}-", None]


def test_an_earlier_part_of_another_file(url: str, tmp_path: Path) -> None:
    (tmp_path / "x.partial").write_bytes(b"?" * 1000)
    fetch(url, tmp_path / "x", Expected(len(CONTENT), hashlib.sha256(CONTENT).hexdigest()))
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_whole_part_needs_no_request(hub: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "x.partial").write_bytes(CONTENT)
    hub.requests.clear()
    fetch(url, tmp_path / "x", Expected(len(CONTENT), hashlib.sha256(CONTENT).hexdigest()))
    assert not hub.requests
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_an_interruption_keeps_what_came(hub: Any, url: str, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(url, tmp_path / "x", Expected(len(CONTENT)), progress=stop)
    assert not (tmp_path / "x").exists()
    assert (tmp_path / "x.partial").stat().st_size > 0
    fetch(url, tmp_path / "x", Expected(len(CONTENT)))
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_refusals(hub: Any, url: str, tmp_path: Path) -> None:
    for status, message in ((404, "no such file"), (403, "access denied: accept the model's terms"), (418, "418")):
        hub.statuses = [status]
        with pytest.raises(DownloadError, match=message):
            fetch(url, tmp_path / "x", Expected())
        assert not list(tmp_path.iterdir()) or all(path.is_dir() for path in tmp_path.iterdir())
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 cannot be reached"):
        fetch("http://127.0.0.1:1/x", tmp_path / "x", Expected())


def test_verify(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    verify(path, Expected(), "x")
    verify(path, Expected(6, hashlib.sha256(b"hello\n").hexdigest(), "ce013625030ba8dba906f756967f9e9ca394464a"), "x")
    for wrong in (Expected(7), Expected(sha256="0" * 64), Expected(git_sha1="0" * 40)):
        with pytest.raises(CorruptDownloadError, match="it was corrupted"):
            verify(path, wrong, "x")
