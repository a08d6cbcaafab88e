"""`polyformer models` and `polyformer pull` on a cache of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from polyformer.checkpoints.catalogue import ENTRIES
from polyformer.errors import DownloadError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "cache"


def test_the_table_shows_every_model(run: Callable) -> None:
    result = run("models")
    assert result.code == 0
    for entry in ENTRIES.values():
        line = next(line for line in result.out.splitlines() if line.split()[:1] == [entry.name])
        assert entry.licence in line and (" yes " if entry.packaged else " no ") in line


def test_json_says_whether_it_is_cached(
    run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_cache: Path
) -> None:
    from polyformer.checkpoints import pull

    rows = {row["name"]: row for row in json.loads(run("models", "--json").out)}
    assert rows.keys() == ENTRIES.keys()
    assert all((row["path"] is not None) == ENTRIES[name].packaged for name, row in rows.items())
    cached = pull.CachedModel("smollm2-135m-instruct", tmp_path / "x.gguf", 5)
    from_hub = pull.CachedModel("owner/name@abc", tmp_path / "y", 7)
    monkeypatch.setattr("polyformer.checkpoints.catalogue.list_models", lambda: [cached, from_hub])
    rows = {row["name"]: row for row in json.loads(run("models", "--json").out)}
    assert rows["smollm2-135m-instruct"]["path"] == str(tmp_path / "x.gguf")
    assert rows["owner/name@abc"] == {
        "name": "owner/name@abc",
        "bytes": 7,
        "description": "from a hub",
        "path": str(tmp_path / "y"),
    }
    assert "owner/name@abc" in run("models").out


def test_pull_shows_progress_on_standard_error_and_the_path_on_standard_output(
    run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fetch(name: str, *, progress: Callable, accept_license: bool) -> Path:
        progress("weights.gguf", 0, 2_000_000)
        progress("weights.gguf", 2_000_000, 2_000_000)
        return tmp_path / f"{name}-{accept_license}"

    monkeypatch.setattr("polyformer.checkpoints.pull.pull", fetch)
    assert run("pull", "x") == (0, f"{tmp_path}/x-False\n", "fetching weights.gguf (2.0 MB)\n")
    assert run("pull", "x", "--accept-license").out == f"{tmp_path}/x-True\n"


def test_a_licence_must_be_accepted(run: Callable) -> None:
    result = run("pull", "gemma3-270m")
    assert result.code == 2
    assert "Gemma Terms of Use" in result.err and "--accept-license" in result.err
    assert result.err.count("\n") == 1 and result.out == ""


def test_a_failed_download_is_one_line(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object, **__: object) -> Path:
        raise DownloadError("x could not be fetched; every source failed: hub (a/b): no answer")

    monkeypatch.setattr("polyformer.checkpoints.pull.pull", fetch)
    result = run("pull", "smollm2-135m-instruct")
    assert result == (2, "", "error: x could not be fetched; every source failed: hub (a/b): no answer\n")


def test_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    from polyformer.cli.models import list_sizes

    list_sizes(as_json=True)
    sizes = {size["name"]: size for size in json.loads(capsys.readouterr().out)}
    assert sizes["gpt2"]["family"] == "gpt2"
    assert sizes["palm-540b"]["published"]
