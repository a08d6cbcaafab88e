"""`polyformer scale` trains a grid and says what size is best."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import TORCHRUN

RECIPE = """
model:
  family: llama
  config: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 88}
tokenizer: {train: byte}
data: {train: {source: text.txt, options: {unit: line}}, validation_share: 0.1, length: 32}
objective: {name: causal-lm}
optimizer: {learning_rate: 0.01}
training: {epochs: 1, batch_size: 8}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = (f"{number}: {' '.join(str(number * step % 97) for step in range(20))}" for number in range(400))
    (tmp_path / "text.txt").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.slow
def test_a_small_grid_from_beginning_to_end(run: Callable, folder: Path) -> None:
    arguments = ("scale", "recipe.yaml", "--sizes", "8k,16k,32k", "--tokens", "2k,4k,8k")
    result = run(*arguments)
    assert result.code == 0, result.err
    assert "tokens" in result.out and "(root mean square)" in result.out and "run 9 of 9, 32k-8k" in result.err
    place = folder / "runs" / "recipe-scale"
    written = json.loads((place / "scaling.json").read_text())
    assert len(written["runs"]) == 9 and {one["depth"] for one in written["runs"]} >= {1, 2}
    for one in written["runs"]:
        summary = json.loads((place / one["name"] / "summary.json").read_text())
        assert one["loss"] == summary["evaluation"]["loss"] and one["tokens"] == summary["tokens"]
        assert one["tokens"] == pytest.approx(int(one["name"].split("-")[1][:-1]) * 1000, rel=0.1)
    assert (place / "loss.png").is_file() and (place / "8k-2k" / "report.html").is_file()
    before = (place / "32k-8k" / "metrics.jsonl").stat().st_mtime_ns
    again = run(*arguments, "--json")
    assert again.code == 0 and json.loads(again.out)["runs"] == written["runs"]
    assert (place / "32k-8k" / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sizes", "8k,16k", "--tokens", "2k,4k,8k"), "needs at least 6 runs, of 3 sizes"),
        (("--sizes", "8k,16k,lots", "--tokens", "2k,4k,8k"), "--sizes: 'lots' is no number"),
        (("--sizes", "8k,16k,32k", "--tokens", "2k,4k,8k", "data.validation_share=0"), "held-out"),
        (("--sizes", "8k,16k,32k", "--tokens", "2k,4k,8k", "--learning-rates", "1e-3"), "1 learning rates"),
        (("--sizes", "8k,16k,32k", "--tokens", "2k,4k,8k", "model.famly=x"), "did you mean family"),
    ],
)
def test_a_mistake_is_one_line(run: Callable, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("scale", "recipe.yaml", *arguments)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_two_processes_train_the_grid_together(run: Callable, folder: Path) -> None:
    arguments = ["scale", "recipe.yaml", "--sizes", "8k,16k,32k", "--tokens", "0.5k,1k,2k"]
    command = [*TORCHRUN, "--nproc-per-node", "2", "-m", "polyformer", *arguments, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)  # one process speaks
    assert done.stderr.count("run 9 of 9, 32k-2k") == 2  # begins; what came of it
    for one in written["runs"]:
        begin = json.loads((folder / "runs/recipe-scale" / one["name"] / "metrics.jsonl").read_text().splitlines()[0])
        assert begin["machine"]["processes"] == 2
    again = run(*arguments, "--json")  # one process goes on where two have been, and has nothing left to train
    assert again.code == 0 and json.loads(again.out)["runs"] == written["runs"]
    command[-1:] = ["model.famly=x"]
    wrong = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert wrong.returncode != 0 and wrong.stderr.count("did you mean family") == 1
