"""Each benchmark runs on a tiny model and ends with a JSON object. How fast anything was is not tested."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SPREAD = {"median", "min", "max"}

pytestmark = pytest.mark.slow


def run(*arguments: object) -> tuple[list[str], dict[str, Any]]:
    """The lines that a benchmark prints before the last, and the object on the last."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=FOLDER.parent)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    result = json.loads(last)
    assert isinstance(result, dict)
    return lines, result


def benchmark(name: str, model: Path, *arguments: object) -> tuple[str, dict[str, Any]]:
    """What one script prints, and its result with what all results have checked."""
    lines, result = run(FOLDER / f"{name}.py", "--quick", "--model", model, *arguments)
    assert result["benchmark"] == name
    assert result["quick"] is True
    assert result["model"]["name"] == model.name
    assert str(model.parent) not in json.dumps(result), "a result names no folder of this machine"
    facts = ("processor", "cores", "threads", "instruction_sets", "torch", "transformers", "polyformer", "date")
    assert all(result["machine"][fact] is not None for fact in facts)
    return "\n".join(lines), result


def test_generation(tiny_llama: Path) -> None:
    text, result = benchmark("generation", tiny_llama)
    assert result["limits"]["read_bytes_per_second"] > 0
    assert result["limits"]["model_size_buffer_bytes"] == result["model"]["weight_bytes"]
    assert set(result["limits"]["matmul_flops"]) == {"bfloat16", "float32"}
    assert 0 <= result["agreement"]["kl_mean"] < 0.1
    # A greedy tie may fall either way in bfloat16, but not at once.
    assert result["agreement"]["greedy_tokens_equal"] >= 1
    names = [line["name"] for line in result["results"]]
    assert [name.split()[0] for name in names] == ["decode", "decode", "prefill", "beam"]
    assert all(name in text for name in names)
    for line in result["results"]:
        assert set(line["ratio"]) == set(line["tokens_per_second"]["ours"]) == SPREAD
        assert line["reached"] == (line["ratio"]["median"] >= line["target"])
        limit = {"matmul_peak"} if line["name"].startswith("prefill") else {"memory_reads", "model_size_reads"}
        assert set(line["of_limit"]["ours"]) == set(line["of_limit"]["peer"]) == limit


def test_loading(tiny_llama: Path) -> None:
    text, result = benchmark("loading", tiny_llama, "--dtype", "float32")
    names = [line["name"] for line in result["starting"]]
    assert names[-1] == "polyformer --help"
    assert all(name in text for name in names)
    assert all(set(line["seconds"]) == SPREAD for line in result["starting"])
    first = result["first_token"]
    assert first["same_token"] is True
    for side in first["sides"].values():
        assert side["process_seconds"]["median"] >= side["first_token_seconds"]["median"]
        assert side["peak_bytes"]["median"] > 2**20


def test_tokenizing() -> None:
    lines, result = run(FOLDER / "tokenizing.py", "--quick")
    (found,) = result["results"]
    assert any(found["name"] in line for line in lines)
    assert found["tokens"] > 1000 and 2**16 < found["build_peak_bytes"]["max"] < 2**28
    rates = ("tokens_per_second", "tokenizing", "packing", "wall_tokens_per_second", "peer_tokenizing", "ratio")
    assert all(set(found[rate]) == SPREAD and found[rate]["min"] > 0 for rate in rates)


def test_memory(tiny_llama: Path) -> None:
    text, result = benchmark("memory", tiny_llama)
    assert len(result["results"]) == 2
    for line in result["results"]:
        assert line["name"] in text
        ours, peer = line["sides"]["ours"], line["sides"]["peer"]
        assert ours["weight_bytes"] == peer["weight_bytes"]
        assert set(ours["loading"]) == set(peer["first_token"]) == SPREAD
        assert ours["first_token"]["median"] >= ours["loading"]["median"]


def test_context(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "made" / "context.json"
    draws = importlib.util.find_spec("matplotlib") is not None
    _, result = benchmark("context", tiny_llama, "--output", file, *([] if draws else ["--no-plot"]))
    assert json.loads(file.read_text()) == result
    assert {path.name for path in file.parent.iterdir()} == ({"context.json", "context.png"} if draws else {file.name})
    assert [line["context"] for line in result["results"]] == [16, 32, 64]
    # Keys and values of two layers, two heads of eight numbers in 16 bits.
    assert [line["sides"]["transformers"]["cache_bytes"] for line in result["results"]] == [2048, 4096, 8192]
    for line in result["results"]:
        assert set(line["sides"]) == {"dense", "int8", "transformers"}
        assert line["sides"]["int8"]["cache_bytes"] < line["sides"]["dense"]["cache_bytes"]
        assert all(set(side["step_seconds"]) == SPREAD for side in line["sides"].values())


def test_the_context_must_be_long_enough(tiny_llama: Path) -> None:
    command = [sys.executable, FOLDER / "generation.py", "--model", tiny_llama, "--output", tiny_llama / "none.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0
    assert "needs 512 tokens, but the model's context is 128" in done.stderr
    assert not (tiny_llama / "none.json").exists()


def test_chosen_ones_together(tiny_llama: Path) -> None:
    lines, results = run("-m", "benchmarks", "--quick", "--model", tiny_llama, "context")
    assert list(results) == ["context"]
    assert results["context"]["benchmark"] == "context"
    assert "== context ==" in lines


def test_an_unknown_benchmark_is_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=FOLDER.parent)
    assert done.returncode == 2
    assert "there is no benchmark 'speed'; there are generation, loading, memory, context" in done.stderr


def test_a_failing_benchmark_fails_all(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--model", tmp_path / "absent", "context"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=FOLDER.parent)
    assert done.returncode != 0
    assert "the benchmark context failed" in done.stderr


def test_training_growth() -> None:
    """Two processes have the losses of one."""
    lines, result = run(FOLDER / "training_growth.py", "--quick")
    one, two = result["processes"]
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-5) and len(one["losses"]) == 4
    for found in (one, two):
        assert found["count"] == 20608 and any("20,608" in line for line in lines)
        assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["step_seconds"], rel=0.01)
        assert 2**26 < found["peak_memory_bytes"] < 2**31
