"""`polyformer tokenizer`: training, measuring and showing, and every mistake in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from polyformer.tokenizers.loading import load_tokenizer
from polyformer.tokenizers.training import train_tokenizer

Run = Callable[..., Any]
TEXT = "the cat sat on the mat. the rat ran and the cat ran."


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [
        {"text": TEXT, "title": "a cat", "split": "train"},
        {"text": TEXT * 2, "title": "a mat", "split": "train"},
        {"text": "the hat é", "title": "a hat", "split": "test"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_training_writes_what_the_library_makes(run: Run, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    done = run("tokenizer", "train", data, "--vocab-size", 272, "-o", folder)
    assert done == (0, f"{folder}: bpe, 272 tokens, from 2 documents of {3 * len(TEXT)} characters\n", "")
    wanted = train_tokenizer([TEXT, TEXT * 2], "bpe", 272)
    assert (folder / "tokenizer.json").read_text() == wanted.backend.to_str()
    assert AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"] == wanted.encode("the cat")
    again = run("tokenizer", "train", data, "--vocab-size", 270, "-o", folder, "--json")  # a tokenizer is replaced
    facts = json.loads(again.out)
    assert (facts["vocab_size"], facts["documents"], facts["characters"]) == (270, 2, 3 * len(TEXT))
    assert facts["fingerprint"] == load_tokenizer(folder).fingerprint  # type: ignore[union-attr]


def test_every_option_reaches_the_trainer(run: Run, data: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    options = ["--purpose", "encoder", "--min-frequency", "3", "--lowercase", "--split-digits", "--around", "eos"]
    options += ["--sentinels", "2", "--special-token", "eos=<end>", "--additional-token", "<tool>"]
    options += ["--chat-template", template]
    done = run(
        "tokenizer", "train", data, "--vocab-size", 290, *options, "--normalization", "nfc", "-o", tmp_path / "a"
    )
    assert done.code == 0, done.err
    wanted = train_tokenizer(
        [TEXT, TEXT * 2],
        "bpe",
        290,
        purpose="encoder",
        min_frequency=3,
        lowercase=True,
        split_digits=True,
        around="eos",
        sentinels=2,
        special_tokens={"eos": "<end>"},
        additional_special_tokens=("<tool>",),
        chat_template=template.read_text(),
        normalization="nfc",
    )
    made = load_tokenizer(tmp_path / "a")
    assert made is not None and made.fingerprint == wanted.fingerprint and made.settings == wanted.settings
    done = run("tokenizer", "train", data, "--kind", "character", "--limit-alphabet", 5, "-o", tmp_path / "b")
    assert done.code == 0 and load_tokenizer(tmp_path / "b").vocab_size == 8  # type: ignore[union-attr]


def test_parts_fields_and_limits(run: Run, data: Path, tmp_path: Path) -> None:
    def alphabet(*options: object) -> str:
        done = run("tokenizer", "train", data, "--kind", "character", *options, "-o", tmp_path / "out")
        assert done.code == 0, done.err
        vocabulary = load_tokenizer(tmp_path / "out").backend.get_vocab()  # type: ignore[union-attr]
        return "".join(sorted(token for token in vocabulary if len(token) == 1))

    assert "é" not in alphabet() and "é" in alphabet("--split", "test") and "é" in alphabet("--split", "all")
    assert alphabet("--field", "title", "--limit", 1) == " act"
    assert alphabet("--field", "title", "--field", "text", "--split", "test") == " aehté"


def test_a_report(run: Run, data: Path, tmp_path: Path) -> None:
    run("tokenizer", "train", data, "--kind", "character", "-o", tmp_path / "made")
    done = run("tokenizer", "report", tmp_path / "made", data)
    assert done.code == 0 and "documents                1\n" in done.out
    assert "unknown                  1 (11.1111%)" in done.out
    assert 'first difference: document 1, character 8: "é" became "<unk>"' in done.out
    everything = json.loads(run("tokenizer", "report", tmp_path / "made", data, "--split", "all", "--json").out)
    assert (everything["documents"], everything["exact"]) == (3, 2)
    assert everything["characters"] == 3 * len(TEXT) + 9
    assert everything["most_frequent"][0]["text"] == " "
    one = json.loads(
        run("tokenizer", "report", tmp_path / "made", data, "--split", "train", "--limit", 1, "--json").out
    )
    assert one["documents"] == 1


def test_showing(run: Run, data: Path, tmp_path: Path) -> None:
    run("tokenizer", "train", data, "--vocab-size", 280, "-o", tmp_path / "made")
    tokenizer = load_tokenizer(tmp_path / "made")
    assert tokenizer is not None
    done = run("tokenizer", "show", tmp_path / "made", "the cat<|endoftext|>")
    ids = tokenizer.encode("the cat<|endoftext|>")
    lines = done.out.splitlines()
    assert [int(line.split()[0]) for line in lines[:-1]] == ids
    assert lines[-2:] == ["  0  <|endoftext|>  special", f"{len(ids)} tokens, 20 characters"]
    plain = json.loads(
        run("tokenizer", "show", tmp_path / "made", "-", "--plain", "--json", stdin=b"<|endoftext|>").out
    )
    assert len(plain["tokens"]) > 3 and "".join(token["text"] for token in plain["tokens"]) == "<|endoftext|>"
    assert plain["decoded"] == "<|endoftext|>"


def test_fewer_tokens_than_asked_for_are_told(run: Run, data: Path, tmp_path: Path) -> None:
    done = run("tokenizer", "train", data, "--vocab-size", 4096, "-o", tmp_path / "made")
    assert done.code == 0 and done.err.startswith("note: the data gave ") and "of the 4,096 tokens" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "DATA", "--kind", "wordpeice", "-o", "OUT"], "did you mean 'wordpiece'?"),
        (["train", "DATA", "--vocab-size", "100", "-o", "OUT"], "256 bytes and 2 special tokens make 258"),
        (["train", "DATA", "-o", "OUT"], "needs a vocab_size"),
        (["train", "NOWHERE", "--vocab-size", "300", "-o", "OUT"], "there is no file, folder or sample set"),
        (["train", "DATA", "--vocab-size", "300", "-o", "DATA"], "is a file: name a folder"),
        (["train", "DATA", "--vocab-size", "300", "-o", "FULL"], "holds other files (config.json)"),
        (["train", "DATA", "--vocab-size", "300", "--field", "txt", "-o", "OUT"], "has no field 'txt'"),
        (["train", "DATA", "--vocab-size", "300", "--split", "dev", "-o", "OUT"], "no document in the part 'dev'"),
        (["train", "DATA", "--vocab-size", "300", "--special-token", "x", "-o", "OUT"], "write ROLE=TOKEN"),
        (["train", "DATA", "--vocab-size", "300", "--chat-template", "NOWHERE", "-o", "OUT"], "cannot be read"),
        (["train", "EMPTY", "--vocab-size", "300", "-o", "OUT"], "empty"),
        (["train", "BINARY", "--vocab-size", "300", "-o", "OUT"], "BINARY"),
        (["train", "DATA", "--vocab-size", "300"], "Missing option '--output'"),
        (["report", "FULL", "DATA"], "has no tokenizer"),
        (["show", "NOWHERE", "text"], "does not exist"),
    ],
)
def test_mistakes(run: Run, data: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "config.json").write_text("{}")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\0\0\xff\xfe")
    places = {
        "DATA": data,
        "OUT": tmp_path / "out",
        "FULL": full,
        "NOWHERE": tmp_path / "nowhere",
        "EMPTY": tmp_path / "empty.txt",
        "BINARY": tmp_path / "binary.txt",
    }
    done = run("tokenizer", *[places.get(word, word) for word in arguments])
    assert (done.code, done.out) == (2, ""), done
    assert message.replace("BINARY", "binary.txt") in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
