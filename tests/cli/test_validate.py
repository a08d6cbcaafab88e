"""`polyformer validate` prints the report, and leaves with 2 if the checkpoint cannot be loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKS = ["files", "config", "tokenizer", "weights", "memory"]


def test_a_whole_model_passes(run: Callable, tiny_llama: Path) -> None:
    result = run("validate", tiny_llama)
    assert result.code == 0 and result.err == ""
    rows = [line.split()[:2] for line in result.out.splitlines() if line.split()[:1] and line.split()[0] in CHECKS]
    assert [name for name, _ in rows] == CHECKS
    assert all(status in ("ok", "note") for _, status in rows)


def test_json_holds_the_same(run: Callable, tiny_llama: Path) -> None:
    result = run("validate", tiny_llama, "--json")
    report = json.loads(result.out)
    assert result.code == 0 and report["ok"] is True
    assert [check["name"] for check in report["checks"]] == CHECKS


def test_what_is_broken_is_said(run: Callable, tiny_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 56}))
    result = run("validate", tiny_copy)
    assert result.code == 2
    assert "mlp.down_proj.weight" in result.out
    assert result.err == f"error: {tiny_copy} cannot be loaded: weights failed\n"
    report = json.loads(run("validate", tiny_copy, "--json").out)
    assert report["ok"] is False
    assert {check["name"]: check["status"] for check in report["checks"]}["weights"] == "failed"


@pytest.mark.parametrize(
    ("name", "message"), [("./nowhere", "does not exist"), ("smollm2-135m-instuct", "did you mean")]
)
def test_a_wrong_name_is_one_line(run: Callable, name: str, message: str) -> None:
    result = run("validate", name)
    assert result.code == 2 and result.out == ""
    assert message in result.err and result.err.count("\n") == 1


@pytest.mark.real
def test_smollm2_is_whole(run: Callable, smollm2: Path) -> None:
    result = run("validate", "smollm2-135m-instruct", "--json")
    assert result.code == 0 and json.loads(result.out)["ok"] is True
