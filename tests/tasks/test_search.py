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
import torch
import transformers
from sentences import SENTENCES

import polyformer
from polyformer.errors import CheckpointError, GenerationError, TokenizerError
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
    with pytest.raises(GenerationError, match="is empty"):
        read_folder(tmp_path / "empty")
    (tmp_path / "empty" / "blank.txt").write_text(" \n\n")
    with pytest.raises(GenerationError, match="1 files are blank"):
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
    assert index.changes.split > 0  # some are longer than the model's 48 tokens
    vectors = model.embed([one.text for one in index.passages], normalize=True)
    for question in SENTENCES:
        hits = opened.search(model, question, top_k=3)
        cosines = vectors @ model.embed(question, normalize=True)
        best = np.argsort(-cosines)[:3]
        assert [hit.text for hit in hits] == [index.passages[number].text for number in best]
        assert [hit.score for hit in hits] == pytest.approx(cosines[best].tolist(), abs=1e-4)
    many = opened.search(model, SENTENCES[:2], top_k=500)
    assert [len(hits) for hits in many] == [len(index), len(index)]


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


def test_long_passages_are_split_and_lose_nothing(load: Load) -> None:
    model, _ = load(transformers.BertModel)
    long = " ".join(SENTENCES)
    with pytest.raises(TokenizerError, match="reads at most 48"):
        model.embed(long)
    index = Index.build(model, [Passage(long, "a.txt", 7), "Short."])
    assert len(index) > 3 and (index.changes.split, index.changes.cut) == (1, 0)
    assert " ".join(one.text for one in index.passages) == long + " Short."
    assert {(one.source, one.line) for one in index.passages[:-1]} == {("a.txt", 7)}
    assert all(len(model.tokenizer.encode(one.text)) <= 48 for one in index.passages)
    assert index.passages[0].text.endswith((".", "!", ";")) or " " not in index.passages[0].text
    # A long question finds what is nearest to any of its pieces.
    best = index.search(model, long, top_k=3)
    assert [hit.score for hit in best] == pytest.approx([1.0] * 3, abs=1e-4)
    # Chinese is parted after its punctuation.
    assert search_module._halves("今天天气很好。我们去公园。") == ("今天天气很好。", "我们去公园。")
    assert search_module._halves("word") is None


def test_what_cannot_be_split_is_cut_only_if_asked(load: Load) -> None:
    model, _ = load(transformers.BertModel)
    texts = ["Short.", "!" * 90]
    with pytest.raises(GenerationError, match=r"passage 1 has a word of 9\d tokens .* reads at most 48"):
        Index.build(model, texts)
    with pytest.warns(UserWarning, match="1 passages are longer than the model reads and lost their end"):
        index = Index.build(model, texts, truncate=True)
    assert (len(index), index.changes.cut) == (2, 1)
    with pytest.raises(GenerationError, match="question 0 has a word of"):
        index.search(model, "!" * 90)
    with pytest.warns(UserWarning, match="1 questions are longer"):
        assert index.search(model, "!" * 90, top_k=1, truncate=True)[0].text == "!" * 90
    with pytest.raises(GenerationError, match="question 1 is blank"):
        index.search(model, ["a", " "])


def test_another_model_is_refused(load: Load, tmp_path: Path) -> None:
    model, folder = load(transformers.BertModel)
    Index.build(model, SENTENCES, name="first").save(tmp_path / "index")
    opened = Index.load(tmp_path / "index")
    again = polyformer.load(folder, device="cpu", dtype="bfloat16")  # the same model in another precision
    assert opened.search(again, SENTENCES[0], top_k=1)[0].text.split()[0] == "Ada"
    with torch.no_grad():
        changed = polyformer.load(folder, device="cpu")
        for parameter in changed.network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    with pytest.raises(GenerationError, match=r"was made with first, and second is another .*cosine.* --rebuild"):
        opened.search(changed, "a", name="second")
    other, _ = load(transformers.BertForMaskedLM)
    with pytest.raises(GenerationError, match="weights have other shapes"):
        opened.search(other, "a", name="second")
    with pytest.raises(GenerationError, match="its pooling is first, not mean"):
        opened.search(model, "a", pooling="class")
    by_class = Index.build(model, SENTENCES, pooling="class")
    by_class.save(tmp_path / "index")
    # Left out, the pooling is the index's.
    assert Index.load(tmp_path / "index").search(model, SENTENCES[1], top_k=1)[0].score == pytest.approx(1, abs=1e-4)


def test_only_what_changed_is_embedded(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load(transformers.BertModel)
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in zip("abc", SENTENCES):
        (folder / f"{name}.txt").write_text(text)
    Index.of_folder(model, folder, name="tiny").save(tmp_path / "index")
    old = Index.load(tmp_path / "index")
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text(SENTENCES[3])
    (folder / "aa.txt").write_text(SENTENCES[4])
    os.utime(folder / "c.txt", (0, 0))  # another time, the same text
    seen: list[str] = []
    real = search_module.embed

    def spy(model: Any, texts: Any, **options: Any) -> Any:
        seen.extend([] if isinstance(texts, str) else texts)
        return real(model, texts, **options)

    monkeypatch.setattr(search_module, "embed", spy)
    made = Index.of_folder(model, folder, old=old, name="tiny")
    changes = made.changes
    assert (changes.new, changes.changed, changes.unchanged, changes.gone) == (1, 1, 1, 1)
    assert (
        "".join(seen)
        and SENTENCES[2] not in seen
        and {one.source for one in made.passages if one.text in seen}
        == {
            "aa.txt",
            "b.txt",
        }
    )
    made.save(tmp_path / "index")
    opened, fresh = Index.load(tmp_path / "index"), Index.of_folder(model, folder, name="tiny")
    assert opened.passages == fresh.passages and opened.files == fresh.files
    for ours, theirs in zip(opened.search(model, SENTENCES), fresh.search(model, SENTENCES), strict=True):
        assert [hit.text for hit in ours] == [hit.text for hit in theirs]
        assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-4)
    seen.clear()
    same = Index.of_folder(model, folder, old=opened, name="tiny")
    assert not seen and same.changes.unchanged == 3 and same.passages == opened.passages
    with pytest.raises(GenerationError, match="made with pooling=None, not 'class'"):
        Index.of_folder(model, folder, old=opened, pooling="class")


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
