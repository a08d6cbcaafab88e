"""Search by meaning: passages, the index on disk, and what is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from sentences import SENTENCES

from polyformer.errors import CheckpointError, GenerationError
from polyformer.tasks import search as search_module
from polyformer.tasks.search import Index, Passage, read_folder, split_sentences

Load = Callable[..., Any]

TEXT = """It was a dark night. "Who is there?" asked the old man. Nobody
answered him, so he went back to bed.

Chapter 2
The next day Dr. Watson came. Yes. It rained.
"""


def test_sentences_and_their_lines() -> None:
    passages = split_sentences(TEXT, "a.txt", shortest=12)
    assert [(one.text, one.line) for one in passages] == [
        ("It was a dark night.", 1),
        ('"Who is there?" asked the old man.', 1),
        ("Nobody answered him, so he went back to bed.", 1),
        ("Chapter 2 The next day Dr.", 4),
        ("Watson came.", 5),
        ("Yes. It rained.", 5),
    ]
    assert {one.source for one in passages} == {"a.txt"}
    quoted = " \nThe first line is empty.\nHe said, “Go away.”\nThen he left\nfor good. Yes! Was (it) so?)\n"
    quoted += " \n\nThe end of it."
    assert [(one.text, one.line) for one in split_sentences(quoted, shortest=10)] == [
        ("The first line is empty.", 2),
        ("He said, “Go away.”", 3),
        ("Then he left for good.", 4),
        ("Yes! Was (it) so?)", 5),
        ("The end of it.", 8),
    ]
    long = split_sentences("word " * 100, longest=50)
    assert len(long) > 5 and all(len(one.text) <= 50 for one in long)
    assert " ".join(one.text for one in long).split() == ["word"] * 100
    assert split_sentences(" \n\n ") == []


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text("This is the first text of all. It is short and it is good.")
    (tmp_path / "inner" / "b.md").write_text("Second text, further down.")
    (tmp_path / "c.png").write_bytes(b"\x89PNG")
    assert [one.source for one in read_folder(tmp_path)] == ["a.txt", "a.txt", "inner/b.md"]
    assert [one.source for one in read_folder(tmp_path / "a.txt")] == ["a.txt", "a.txt"]
    (tmp_path / "d.txt").write_bytes(b"caf\xe9")
    with pytest.raises(GenerationError, match=r"d\.txt is not valid UTF-8 .byte 3."):
        read_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(GenerationError, match="holds no text"):
        read_folder(tmp_path / "empty")


@pytest.mark.parametrize("exact", [True, False])
def test_the_nearest_are_found(load: Load, tmp_path: Path, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_EXACT", 10_000 if exact else 0)
    model, _ = load(transformers.BertModel)
    texts = [f"{first} {second}" for first in SENTENCES[:5] for second in SENTENCES[1:]]
    index = Index.build(model, [Passage(text, "f.txt", number) for number, text in enumerate(texts)], name="tiny")
    index.save(tmp_path / "index")
    opened = Index.load(tmp_path / "index")
    assert opened.passages == index.passages and opened.model == "tiny"
    vectors = model.embed(texts, normalize=True, truncate=True)
    for question in SENTENCES:
        hits = opened.search(model, question, top_k=3)
        cosines = vectors @ model.embed(question, normalize=True)
        best = np.argsort(-cosines)[:3]
        assert [hit.line for hit in hits] == best.tolist()
        assert [hit.score for hit in hits] == pytest.approx(cosines[best].tolist(), abs=1e-4)
    many = opened.search(model, SENTENCES[:2], top_k=500)
    assert [len(hits) for hits in many] == [25, 25]


def test_replacing_and_damage(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load(transformers.BertModel)
    folder = tmp_path / "index"
    Index.build(model, SENTENCES).save(folder)
    Index.build(model, SENTENCES[:3]).save(folder)
    assert len(Index.load(folder)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]
    real_replace = os.replace

    def fails_once(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".partial") and Path(target) == folder:
            raise PermissionError(13, "no")
        real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(search_module.os, "replace", fails_once)
        with pytest.raises(PermissionError):
            Index.build(model, SENTENCES).save(folder)
    assert len(Index.load(folder)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]
    lines = (folder / "passages.jsonl").read_text()
    (folder / "passages.jsonl").write_text(lines.splitlines()[0] + "\n")
    with pytest.raises(CheckpointError, match=r"is damaged \(1 passages"):
        Index.load(folder)
    (folder / "passages.jsonl").write_text(lines)
    (folder / "vectors.usearch").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="is damaged"):
        Index.load(folder)
    with pytest.raises(CheckpointError, match="is no index"):
        Index.load(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(CheckpointError, match="no index and not empty"):
        Index.build(model, SENTENCES).save(tmp_path / "mine")
    with pytest.raises(GenerationError, match="nothing to index"):
        Index.build(model, [])
    with pytest.raises(GenerationError, match="top_k is 0"):
        Index.build(model, SENTENCES).search(model, "x", top_k=0)


@pytest.mark.real
@pytest.mark.slow
def test_real_questions(tmp_path: Path) -> None:
    """The command, on the project's own documentation."""
    docs = Path(__file__).parents[2] / "docs"

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "polyformer", "search", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)

    done = run("index", "all-minilm-l6-v2", docs / "core.md", tmp_path / "index")
    assert done.returncode == 0, done.stderr
    done = run("query", tmp_path / "index", "keys and values in fewer bits", "--json", "-k", "3")
    hits = json.loads(done.stdout)["hits"]
    assert any("eight bits" in hit["text"] for hit in hits) and hits[0]["score"] > 0.35
    done = run("query", tmp_path / "nowhere", "x")
    assert done.returncode == 2 and "is no index" in done.stderr
