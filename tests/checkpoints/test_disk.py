"""The cache folder, room on the disk, and files that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from polyformer.checkpoints.disk import (
    DiskFullError,
    cache_folder,
    git_blob_sha1_of,
    only_one_process,
    readable_size,
    require_room,
    sha256_of,
    told_when_disk_is_full,
    whole_file,
)
from polyformer.errors import CheckpointError, DownloadError


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(tmp_path) == tmp_path
    assert cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("POLYFORMER_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "polyformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().name == "polyformer"
    assert not cache_folder().is_relative_to(tmp_path)


def test_readable_size() -> None:
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 98_362_432: "98.4 MB", 13_500_000_000: "13.5 GB"}
    assert {number: readable_size(number) for number in sizes} == sizes
    assert readable_size(2.5e15) == "2500.0 TB"


def test_room(tmp_path: Path) -> None:
    require_room(tmp_path / "not" / "yet", 1, "a byte")
    with pytest.raises(DiskFullError, match=r"no disk space: the world needs 1000000\.0 TB"):
        require_room(tmp_path / "not" / "yet", 10**18, "the world")
    assert issubclass(DiskFullError, DownloadError) and issubclass(DiskFullError, CheckpointError)


def test_only_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="the disk was full while writing x"), told_when_disk_is_full(tmp_path, "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), told_when_disk_is_full(tmp_path, "x"):
        raise PermissionError(errno.EACCES, "no")


def test_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["x.json"]


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"hello\n")
    assert sha256_of(path) == hashlib.sha256(b"hello\n").hexdigest()
    assert git_blob_sha1_of(path) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_a_lock_keeps_another_process_out(tmp_path: Path) -> None:
    lock, order = tmp_path / "locks" / "a.lock", tmp_path / "order"
    code = (
        "import sys; from pathlib import Path; from polyformer.checkpoints.disk import only_one_process\n"
        "print('ready', flush=True)\n"
        "with only_one_process(Path(sys.argv[1])): Path(sys.argv[2]).open('a').write('second ')"
    )
    with only_one_process(lock):
        process = subprocess.Popen([sys.executable, "-c", code, lock, order], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline().strip() == b"ready"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
        order.open("a").write("first ")
    assert process.wait(timeout=30) == 0
    process.stdout.close()
    assert order.read_text() == "first second "
