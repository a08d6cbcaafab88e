"""`polyformer search`: making an index, bringing it up to date, asking it, and every mistake in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]

TEXTS = {
    "a.txt": "the cat sat on the mat.",
    "b.md": "the rat ran and the cat ran.",
    "c.rst": "a mat on a mat on a mat.",
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def index(run: Run, tiny_llama: Path, texts: Path, tmp_path: Path) -> Path:
    done = run("search", "index", tiny_llama, texts, tmp_path / "index", "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out == f"{tmp_path / 'index'}: 3 passages of 3 files (3 new, 0 changed, 0 unchanged, 0 gone)\n"
    return tmp_path / "index"


def test_questions_and_their_hits(run: Run, index: Path, tmp_path: Path) -> None:
    done = run("search", "query", index, TEXTS["b.md"], "-k", "1", "--device", "cpu")
    assert done == (0, f"1.000  b.md:1  {TEXTS['b.md']}\n", "")
    (tmp_path / "questions.txt").write_text(f"{TEXTS['c.rst']}\n\n{TEXTS['a.txt']}\n")
    done = run("search", "query", index, "--input-file", tmp_path / "questions.txt", "--json", "-k", "2")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["question"] for line in lines] == [TEXTS["c.rst"], TEXTS["a.txt"]]
    assert [line["hits"][0]["source"] for line in lines] == ["c.rst", "a.txt"]
    assert [len(line["hits"]) for line in lines] == [2, 2]
    assert set(lines[0]["hits"][0]) == {"text", "source", "line", "score"}


def test_only_changes_are_embedded(run: Run, tiny_llama: Path, texts: Path, index: Path) -> None:
    (texts / "a.txt").unlink()
    (texts / "b.md").write_text("the cat and the rat.")
    (texts / "d.txt").write_text("the rat sat on the cat.")
    done = run("search", "index", tiny_llama, texts, index)
    assert done.out == f"{index}: 3 passages of 3 files (1 new, 1 changed, 1 unchanged, 1 gone)\n"
    done = run("search", "index", tiny_llama, texts, index, "--json")
    report = json.loads(done.out)
    assert (report["new"], report["changed"], report["unchanged"], report["gone"]) == (0, 0, 3, 0)
    done = run("search", "index", tiny_llama, texts, index, "--rebuild")
    assert "(3 new, 0 changed, 0 unchanged, 0 gone)" in done.out
    assert run("search", "query", index, "the rat sat on the cat.", "-k", "1").out.startswith("1.000  d.txt:1")


def test_long_texts(run: Run, tiny_llama: Path, texts: Path, index: Path) -> None:
    """What can be split is split and said; what cannot is refused, or cut and said."""
    (texts / "a.txt").write_text("the cat ran " * 60)
    done = run("search", "index", tiny_llama, texts, index)
    assert done.code == 0 and done.err.startswith("note: ") and "longer than the model reads and were split" in done.err
    (texts / "a.txt").write_text("%" * 300)
    before = (index / "index.json").read_bytes()
    done = run("search", "index", tiny_llama, texts, index)
    assert done.code == 2 and "which cannot be split" in done.err and done.err.count("\n") == 1
    assert (index / "index.json").read_bytes() == before
    done = run("search", "index", tiny_llama, texts, index, "--truncate")
    assert done.code == 0 and "note: 1 passages are longer than the model reads and lost their end" in done.err
    assert run("search", "query", index, "%" * 300).code == 2
    done = run("search", "query", index, "%" * 300, "--truncate")
    assert done.code == 0 and "note: 1 questions are longer than the model reads" in done.err


def test_another_model_is_refused(run: Run, tiny_copy: Path, texts: Path, index: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_copy / "model.safetensors")
    shuffled = {name: weight.flip(-1).contiguous() for name, weight in weights.items()}
    save_file(shuffled, tiny_copy / "model.safetensors", metadata={"format": "pt"})
    assert not torch.equal(shuffled["lm_head.weight"], weights["lm_head.weight"])
    for call in (("query", index, "the cat", "--model", tiny_copy), ("index", tiny_copy, texts, index)):
        done = run("search", *call)
        assert (done.code, done.out) == (2, "")
        assert "the index was made with" in done.err and f"{tiny_copy} is another model" in done.err
        assert "--rebuild" in done.err and done.err.count("\n") == 1
    assert run("search", "index", tiny_copy, texts, index, "--rebuild").code == 0


def test_mistakes_are_one_line(run: Run, tiny_llama: Path, tmp_path: Path, index: Path) -> None:
    folders = {name: tmp_path / name for name in ("empty", "pictures", "blank", "binary", "latin")}
    for folder in folders.values():
        folder.mkdir()
    (folders["pictures"] / "a.png").write_bytes(b"\x89PNG")
    (folders["blank"] / "a.txt").write_text(" \n")
    (folders["binary"] / "a.txt").write_bytes(b"\x7fELF\0\0")
    (folders["latin"] / "a.txt").write_bytes(b"caf\xe9")
    expected = {
        "empty": "is empty: name a folder",
        "pictures": "of its 1 files none ends in .txt",
        "blank": "1 files are blank",
        "binary": "a.txt is a binary file, no text (byte 4)",
        "latin": "a.txt is not valid UTF-8 (byte 3)",
        "nowhere": "does not exist",
    }
    for name, words in expected.items():
        done = run("search", "index", tiny_llama, tmp_path / name, tmp_path / "new")
        assert (done.code, done.out) == (2, "") and words in done.err and done.err.count("\n") == 1, (name, done.err)
    assert not (tmp_path / "new").exists()
    done = run("search", "index", tiny_llama, tmp_path / "texts", folders["latin"])
    assert done.code == 2 and "is no index and not empty" in done.err
    done = run("search", "query", tmp_path / "nowhere", "a question")
    assert done.code == 2 and "is no index: make one with" in done.err
    assert run("search", "query", index, "the cat", "-k", "0").err.startswith("error: top_k is 0")
    assert "question 0 is blank" in run("search", "query", index, " ").err
    settings = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps({**settings, "version": 1}))
    done = run("search", "query", index, "the cat")
    assert done.code == 2 and "is an index of version 1" in done.err and "--rebuild" in done.err
