"""`polyformer report` makes the page of a run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    (made / "recipe.yaml").write_text("name: small\ntraining: {steps: 2}\n")
    (made / "metrics.jsonl").write_text(json.dumps({"event": "train", "step": 1, "loss": 2.5}) + "\n")
    return made


def test_it_writes_the_page_and_says_where(run: Callable, folder: Path) -> None:
    result = run("report", folder)
    assert (result.code, result.out, result.err) == (0, f"{folder / 'report.html'}\n", "")
    assert "small" in (folder / "report.html").read_text()


def test_it_writes_where_it_is_told(run: Callable, folder: Path) -> None:
    assert run("report", folder, "-o", folder / "other.html").code == 0
    assert (folder / "other.html").is_file() and not (folder / "report.html").exists()
    result = run("report", folder, "-o", folder)
    assert result.code == 2 and "is a folder: name a file" in result.err


def test_what_is_no_run_is_one_line(run: Callable, tmp_path: Path) -> None:
    result = run("report", tmp_path / "nowhere")
    assert result.code == 2 and "holds no run" in result.err and result.err.count("\n") == 1


def test_a_damaged_journal_is_named(run: Callable, folder: Path) -> None:
    (folder / "metrics.jsonl").write_text('{"event": "train"\n{"event": "train", "step": 1}\n')
    result = run("report", folder)
    assert result.code == 2 and "metrics.jsonl:1" in result.err
