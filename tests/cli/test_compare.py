"""`polyformer compare` as a person calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import write_run

from polyformer.baselines import ConvolutionLM, RecurrentLM


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    write_run(tmp_path / "lstm", RecurrentLM.Config(40, 8, 1, "lstm"))
    write_run(tmp_path / "cnn", ConvolutionLM.Config(40, 8, 2), losses=(2.0, 1.5))
    return [tmp_path / "lstm", tmp_path / "cnn"]


def test_a_table_comes_out(run: Callable[..., Any], folders: list[Path], tmp_path: Path) -> None:
    done = run("compare", *folders, "-o", tmp_path / "out")
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert len(lines) == 4 and "held-out loss" in lines[0] and "2.2500" in lines[2] and "1.5000" in lines[3]
    assert (tmp_path / "out" / "loss.png").is_file()
    assert (tmp_path / "out" / "comparison.md").read_text() == done.out


def test_probes_as_json(run: Callable[..., Any], folders: list[Path], tmp_path: Path) -> None:
    done = run(
        "compare", *folders, "--output", tmp_path / "out", "--probes", "throughput, recall", "--contexts", "16,8",
        "--recall-distances", "2", "--recall-steps", 2, "--device", "cpu", "--json",
    )  # fmt: skip
    assert done.code == 0
    assert done.err.splitlines() == [
        f"{probe} of {name}" for probe in ("throughput", "recall") for name in ("lstm", "cnn")
    ]
    found = json.loads(done.out)
    assert [one["name"] for one in found["runs"]] == ["lstm", "cnn"]
    assert set(found["probes"]["throughput"]["lstm"]) == {"16", "8"}
    assert set(found["probes"]["recall"]["cnn"]) == {"2"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probes", "recal"], "there is no probe 'recal'; there are recall, gradients, throughput"),
        (["--probes", "recall", "--recall-steps", "0"], "steps is 0, but it must be at least 1"),
        (["--contexts", "a"], "--contexts takes whole numbers of at least 1 with commas between, not 'a'"),
        (["--ngram", "0"], "--ngram"),
        (["--ngram", "2"], "recipe.yaml"),  # this run was made by hand: its recipe names no data
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_mistakes_are_one_line(
    run: Callable[..., Any], folders: list[Path], tmp_path: Path, options: list[str], message: str
) -> None:
    done = run("compare", *folders, "-o", tmp_path / "out", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err.splitlines()[-1]


def test_no_run_there(run: Callable[..., Any], tmp_path: Path) -> None:
    done = run("compare", tmp_path, "-o", tmp_path / "out")
    assert done.code == 2 and "holds no training run" in done.err
