"""What the name of a model stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyformer.checkpoints import catalogue, entries
from polyformer.checkpoints.catalogue import resolve
from polyformer.errors import CheckpointError, DownloadError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    file = tmp_path / "m.gguf"
    file.touch()
    monkeypatch.chdir(tmp_path)
    for source in (folder, str(folder), "my-model", "./my-model"):
        found = resolve(source)
        assert (found.path.resolve(), found.origin, found.name) == (folder, "local", "my-model")
        assert not found.is_gguf
    assert resolve(file).is_gguf
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "x.gguf").touch()
    assert resolve("only").path.name == "x.gguf"
    with pytest.raises(CheckpointError, match="'my-model' is a local path: revision='main' only means"):
        resolve("my-model", revision="main")


def test_a_local_folder_comes_before_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = next(iter(entries.ENTRIES))
    (tmp_path / name).mkdir()
    assert resolve(name).origin == "local"


def test_catalogue_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "pull", lambda name, **options: tmp_path / f"{name}.gguf")
    found = resolve("smollm2-135m-instruct")
    assert (found.origin, found.path.name) == ("catalogue", "smollm2-135m-instruct.gguf")
    with pytest.raises(CheckpointError, match="pinned"):
        resolve("smollm2-135m-instruct", revision="main")


def test_hub_ids(hub: Any, tmp_path: Path) -> None:
    hub.repositories["owner/name"] = {"config.json": b"{}", "model.safetensors": b"x"}
    hub.repositories["owner/quants"] = {"a.Q4_0.gguf": b"x", "b.Q8_0.gguf": b"y"}
    found = resolve("owner/name")
    assert (found.origin, found.name, found.path.name) == ("hub", "owner/name", COMMIT)
    assert resolve(f"owner/name@{COMMIT}").path == found.path
    assert resolve("owner/name", revision="main").path == found.path
    assert resolve("owner/quants:*Q8_0.gguf").path.read_bytes() == b"y"
    with pytest.raises(CheckpointError, match="name two revisions"):
        resolve("owner/name@main", revision="dev")
    asked = len(hub.requests)
    resolve(f"owner/name@{COMMIT}")
    assert len(hub.requests) == asked  # a commit never changes, so nothing is asked
    names = {model.name: model.path for model in catalogue.list_models()}
    assert names[f"owner/name@{COMMIT}"] == found.path


def test_missing_paths(tmp_path: Path) -> None:
    (tmp_path / "smollm.gguf").touch()
    with pytest.raises(CheckpointError, match=r"smolm\.gguf does not exist: check the path; near it are smollm\.gguf"):
        resolve(tmp_path / "smolm.gguf")
    with pytest.raises(CheckpointError, match=r"\./nothing does not exist: check the path$"):
        resolve("./nothing")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"notes\.txt is no model"):
        resolve(str(tmp_path / "notes.txt"))


def test_misspelt_names(hub: Any) -> None:
    with pytest.raises(CheckpointError, match=r"'SmolLM2-135M'.* no hub id .*did you mean smollm2-135m-instruct\?"):
        resolve("SmolLM2-135M")
    with pytest.raises(CheckpointError, match=r"the catalogue has smollm2-135m-instruct, .*gemma3-270m"):
        resolve("qqqq")
    with pytest.raises(DownloadError, match="no folder or catalogue name 'owner/nothing', and as a hub id it failed: "):
        resolve("owner/nothing")
