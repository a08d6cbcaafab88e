"""The hub path, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from polyformer.checkpoints import transfer
from polyformer.checkpoints.disk import DiskFullError
from polyformer.checkpoints.hub import HubId, parse_hub_id, pull_repository
from polyformer.checkpoints.transfer import CorruptDownloadError, UnreachableError
from polyformer.errors import DownloadError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def model(hub: Any) -> dict[str, bytes]:
    files = {
        "README.md": b"# hello",
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": WEIGHTS,
        "pytorch_model.bin": b"a pickle that nobody needs",
        "onnx/model.onnx": b"nor this",
        "tf_model.h5": b"nor this",
    }
    hub.repositories["owner/name"] = files
    return files


def test_hub_ids() -> None:
    assert parse_hub_id("owner/name") == HubId("owner/name")
    assert parse_hub_id("owner/na.me-1@v2.0") == HubId("owner/na.me-1", "v2.0")
    assert parse_hub_id("owner/name:x.Q4.gguf") == HubId("owner/name", None, "x.Q4.gguf")
    assert parse_hub_id("owner/name@dev:*Q4*.gguf") == HubId("owner/name", "dev", "*Q4*.gguf")
    for text in ("name", "a/b/c", "/a/b", "a b/c", "owner/name@", ""):
        assert parse_hub_id(text) is None


def test_only_what_is_needed_is_fetched(hub: Any, model: dict[str, bytes], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    folder = pull_repository("owner/name", progress=lambda *step: seen.append(step))
    assert folder == tmp_path / "cache" / "hub" / "owner--name" / COMMIT
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
    assert found == {name: model[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert seen[-1] == ("model.safetensors", len(WEIGHTS), len(WEIGHTS))
    asked = len(hub.requests)
    assert pull_repository("owner/name") == folder
    assert len(hub.requests) == asked + 1  # only whether the branch has moved


def test_pickle_when_there_is_nothing_better(hub: Any, model: dict[str, bytes]) -> None:
    del model["model.safetensors"]
    names = {path.name for path in pull_repository("owner/name").iterdir()}
    assert "pytorch_model.bin" in names


def test_shards(hub: Any, model: dict[str, bytes]) -> None:
    del model["model.safetensors"]
    model["model.safetensors.index.json"] = b'{"weight_map": {}}'
    for number in (1, 2, 3):
        model[f"model-0000{number}-of-00003.safetensors"] = b"%d" % number * 100
    names = {path.name for path in pull_repository("owner/name").iterdir()}
    assert {f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)} < names
    assert "model.safetensors.index.json" in names
    assert "pytorch_model.bin" not in names


def test_gguf_repositories(hub: Any) -> None:
    hub.repositories["owner/quants"] = {"README.md": b"", "m.Q4_0.gguf": b"four", "m.Q8_0.gguf": b"eight"}
    with pytest.raises(DownloadError, match=r"several GGUF files: choose one, as owner/quants:m\.Q4_0\.gguf; there"):
        pull_repository("owner/quants")
    assert pull_repository("owner/quants", file="m.Q8_0.gguf").read_bytes() == b"eight"
    assert pull_repository("owner/quants", file="*Q4_0.gguf").read_bytes() == b"four"
    with pytest.raises(DownloadError, match=r"no file fits '\*Q5\*'; choose one of: m\.Q4_0\.gguf, m\.Q8_0\.gguf"):
        pull_repository("owner/quants", file="*Q5*")
    with pytest.raises(DownloadError, match="several files fit"):
        pull_repository("owner/quants", file="*.gguf")
    hub.repositories["owner/single"] = {"m.gguf": b"one"}
    assert pull_repository("owner/single").name == "m.gguf"
    hub.repositories["owner/empty"] = {"README.md": b"x"}
    with pytest.raises(DownloadError, match="holds no weights"):
        pull_repository("owner/empty")


def test_revisions(hub: Any, model: dict[str, bytes]) -> None:
    hub.branches["dev"] = "f" * 40
    hub.branches["f" * 40] = "f" * 40
    assert pull_repository("owner/name", revision="dev").name == "f" * 40
    assert pull_repository("owner/name", revision=COMMIT).name == COMMIT
    with pytest.raises(DownloadError, match="owner/name has no revision 'nope'"):
        pull_repository("owner/name", revision="nope")


def test_a_broken_transfer_is_resumed(hub: Any, model: dict[str, bytes]) -> None:
    hub.break_after = [300_000, 100_000]
    folder = pull_repository("owner/name")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    starts = [request.range for request in hub.transfers()]
    assert starts[0] is None
    assert starts[1] == "bytes=300000-"
    assert starts[2] == "bytes=400000-"
    assert len(starts) == 3


def test_a_later_pull_goes_on_where_an_earlier_one_died(
    hub: Any, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.break_after = [500_000, 0, 0, 0]
    with pytest.raises(UnreachableError, match="broke off at 500,000 of 1,024,000 bytes"):
        pull_repository("owner/name")
    hub.requests.clear()
    folder = pull_repository("owner/name")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in hub.transfers()] == ["bytes=500000-"]


def test_a_server_that_ignores_ranges(hub: Any, model: dict[str, bytes]) -> None:
    hub.ignore_range = True
    hub.break_after = [300_000]
    folder = pull_repository("owner/name")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_busy_servers_are_asked_again(hub: Any, model: dict[str, bytes]) -> None:
    hub.statuses = [503, 429]
    assert (pull_repository("owner/name") / "model.safetensors").read_bytes() == WEIGHTS
    model["config.json"] = b'{"other": 1}'
    hub.branches["main"] = "e" * 40
    hub.branches["e" * 40] = "e" * 40
    hub.statuses = [500] * transfer.FRUITLESS_ATTEMPTS
    with pytest.raises(UnreachableError, match=r"config\.json: 127.* answered 500"):
        pull_repository("owner/name")


def test_corruption_is_detected_deleted_and_mended(hub: Any, model: dict[str, bytes]) -> None:
    del model["tokenizer.json"]
    del model["config.json"]
    hub.corrupt = 1
    folder = pull_repository("owner/name")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in hub.transfers()] == [None, None]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_lasting_corruption_is_an_error(hub: Any, model: dict[str, bytes], tmp_path: Path, name: str) -> None:
    """Large files are checked by sha256, the others by git's sha1."""
    for other in [path for path in model if path != name and path != "model.safetensors"]:
        del model[other]
    hub.corrupt = 2
    with pytest.raises(CorruptDownloadError, match=rf"{name} has the (sha256|git sha1) \w+ and should have"):
        pull_repository("owner/name")
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
    assert name not in left
    assert f"{name}.partial" not in left


def test_missing_and_gated_models(hub: Any, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="has no model owner/nothing, or it is private"):
        pull_repository("owner/nothing")
    hub.gated.add("owner/name")
    with pytest.raises(DownloadError, match=r"owner/name is gated: accept its terms at http.*HF_TOKEN"):
        pull_repository("owner/name")
    monkeypatch.setenv("HF_TOKEN", "letmein")
    hub.requests.clear()
    assert (pull_repository("owner/name") / "model.safetensors").read_bytes() == WEIGHTS
    # The token goes to the hub, and not to the storage that it redirects to.
    assert {request.authorization for request in hub.requests if request not in hub.transfers()} == {"Bearer letmein"}
    assert {request.authorization for request in hub.transfers()} == {None}


def test_offline(hub: Any, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set"):
        pull_repository("owner/name")
    assert not hub.requests
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = pull_repository("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pull_repository("owner/name") == folder
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert pull_repository("owner/name") == folder  # the hub is gone, the files are not
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 cannot be reached"):
        pull_repository("owner/other")


def test_no_disk_space(hub: Any, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5, 5))
        with pytest.raises(DiskFullError, match=r"no disk space: owner/name needs .* where 5 bytes are free"):
            pull_repository("owner/name")
    assert not hub.transfers()


def test_the_disk_fills_up_on_the_way(
    hub: Any, model: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = Path.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *exception: object) -> None:
            self.file.close()

        def write(self, piece: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(self: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = real(self, mode, *args, **options)
        return Full(file) if self.name == "model.safetensors.partial" and mode != "r" else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DiskFullError, match=r"the disk was full while writing model\.safetensors"):
        pull_repository("owner/name")
    assert not list((tmp_path / "cache").rglob("model.safetensors*"))
