"""`polyformer data`: list, pull, show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyformer.cli.data import printable
from polyformer.training.data import samples
from polyformer.training.data.samples.base import Sample
from polyformer.training.data.samples.storing import read_stored, store


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sample:
    """A sample set of four documents, the only one."""

    def fetch(folder: Path, progress: Any) -> dict[str, str]:
        documents = [{"text": f"text {number} " * 200, "label": number % 2} for number in range(4)]
        store(folder, ({**each, "split": "train" if number < 3 else "test"} for number, each in enumerate(documents)))
        return {"made": "1.0"}

    fields = {"text": "some words", "label": "0 or 1"}
    sample = Sample("made", "a set", "CC0", "here", fields, fetch, read_stored, ("train", "test"), ("no", "yes"))
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path))
    monkeypatch.setattr(samples, "samples", lambda: {"made": sample})
    return sample


def test_list_and_pull(run: Callable[..., Any], made: Sample, tmp_path: Path) -> None:
    code, out, _ = run("data", "list", "--json")
    (row,) = json.loads(out)
    assert code == 0
    assert (row["name"], row["licence"], row["here"], row["labels"]) == ("made", "CC0", False, ["no", "yes"])
    code, out, err = run("data", "pull", "made")
    assert code == 0 and out.strip() == str(tmp_path / "data" / "made") and "licence of made: CC0" in err
    code, out, _ = run("data", "list")
    assert code == 0 and "made" in out and "yes" in out
    code, out, _ = run("data", "pull", "made", "--json")
    assert json.loads(out)["versions"] == {"made": "1.0"} and Path(json.loads(out)["path"]).is_dir()
    code, _, err = run("data", "pull", "mode")
    assert code == 2 and err.strip() == "error: no sample set is called 'mode': did you mean made?"


def test_show_a_sample_set(run: Callable[..., Any], made: Sample) -> None:
    code, out, _ = run("data", "show", "made", "-n", "1")
    assert code == 0
    lines = out.splitlines()
    assert lines[:2] == ["made: a set", "documents: 4 (3 train, 1 test)"]
    assert "  text: some words; 5,600 characters" in lines and "labels: no, yes" in lines and "licence: CC0" in lines
    assert [line for line in lines if line.startswith("---")] == ["--- 1"]
    assert any(line.endswith("… (1,400 characters)") for line in lines)
    code, out, _ = run("data", "show", "made", "--split", "test", "--json")
    shown = json.loads(out)
    assert shown["documents"] == 1 and shown["documents_in"] == {"test": 1} and shown["first"][0]["label"] == 1


def test_show_a_file(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("one\ntwo\n")
    code, out, _ = run("data", "show", tmp_path / "x.txt", "--option", "unit=line", "--json")
    shown = json.loads(out)
    assert code == 0 and shown["documents"] == 2 and shown["characters"]["text"] == 6
    assert [document["text"] for document in shown["first"]] == ["one", "two"]
    code, out, _ = run("data", "show", tmp_path / "x.txt", "-n", "0")
    assert code == 0 and "documents: 1\n" in out and "---" not in out
    (tmp_path / "y").write_text('{"a": 1}\n')
    code, out, _ = run("data", "show", tmp_path / "y", "--format", "jsonl")
    assert code == 0 and "a: 1" in out


def test_mistakes(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a"}\n')
    for arguments, message in (
        ([tmp_path / "x.jsonl"], "x.jsonl, line 2 is not JSON"),
        ([tmp_path / "z.jsonl"], "near it are x.jsonl"),
        ([tmp_path / "x.jsonl", "--option", "unit"], "--option takes NAME=VALUE, not 'unit'"),
        ([tmp_path / "x.jsonl", "--option", "unit=word"], "unit must be one of file, line, blank-line, not 'word'"),
        ([tmp_path / "x.jsonl", "--option", "max_document_bytes=4"], "line 1 is longer than 4 bytes"),
    ):
        code, out, err = run("data", "show", *arguments)
        assert code == 2 and message in err and not out
        assert len(err.strip().splitlines()) == 1


def test_values_that_are_no_text() -> None:
    import numpy as np

    value = {"image": np.zeros((2, 3), np.uint8), "list": [b"abc", None], "path": Path("x")}
    assert printable(value) == {"image": "uint8 [2, 3]", "list": ["3 bytes", None], "path": "x"}
