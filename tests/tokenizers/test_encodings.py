"""Texts as encoders read them, against transformers' own encoding of pairs, cuts and windows."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizer, RobertaTokenizer

from polyformer.errors import TokenizerError, TruncationWarning
from polyformer.tokenizers.encodings import encode_texts, encode_windows, pad_together
from polyformer.tokenizers.loading import load_tokenizer

FIRST = ["Who wrote the program?", "", "naïve café 😀  twice", "a"]
SECOND = ["Ada did, in 1843.", "something", "[MASK] of the day", ""]


@pytest.fixture(params=["bert", "roberta"])
def both(request: pytest.FixtureRequest, tmp_path: Path, corpus: list[str]) -> tuple[Any, Any]:
    """The same files as our tokenizer and as the reference's."""
    if request.param == "bert":
        letters = sorted({letter for line in corpus for letter in line.lower() if not letter.isspace()})
        pieces = [piece for letter in letters for piece in (letter, f"##{letter}")]
        words = ["the", "who", "wrote", "program", "day", "did", "##me", "##ing", "18"]
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *pieces]
        (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n", encoding="utf-8")
        theirs: Any = BertTokenizer.from_pretrained(tmp_path)
    else:
        from tokenizers import ByteLevelBPETokenizer

        trained = ByteLevelBPETokenizer()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained.train_from_iterator(corpus, vocab_size=500, special_tokens=special, show_progress=False)
        trained.save_model(str(tmp_path))
        theirs = RobertaTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    theirs.save_pretrained(tmp_path)
    return load_tokenizer(tmp_path), theirs


@pytest.mark.parametrize("pairs", [None, SECOND])
@pytest.mark.parametrize("limit", [None, 9])
def test_encodings_are_the_references(both: tuple[Any, Any], pairs: list[str] | None, limit: int | None) -> None:
    ours, theirs = both
    cut: dict[str, Any] = {} if limit is None else dict(truncation="longest_first", max_length=limit)
    expected = theirs(FIRST, pairs, return_offsets_mapping=True, return_token_type_ids=True, **cut)
    for number, one in enumerate(encode_texts(ours, FIRST, pairs, limit=limit, truncate=limit is not None)):
        assert one.ids == expected["input_ids"][number]
        assert one.type_ids == expected["token_type_ids"][number]
        assert one.offsets == expected["offset_mapping"][number]
        assert one.word_ids == expected.word_ids(number)
        assert one.sequence_ids == expected.sequence_ids(number)


def test_offsets_are_characters(both: tuple[Any, Any]) -> None:
    """Not bytes: the text at a word's place is the word."""
    text = "naïve 😀 café then done"
    (one,) = encode_texts(both[0], [text])
    places: dict[int, list[int]] = {}
    for word, (start, end) in zip(one.word_ids, one.offsets, strict=True):
        if word is not None:
            places.setdefault(word, []).extend((start, end))
    assert [text[min(place) : max(place)].strip() for place in places.values()] == text.split()


def test_windows_are_the_references(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    context = " ".join([*FIRST, *SECOND] * 5)
    options = dict(max_length=24, stride=5, return_overflowing_tokens=True, return_offsets_mapping=True)
    expected = theirs("Who did?", context, truncation="only_second", **options)
    windows = encode_windows(ours, "Who did?", context, limit=24, stride=5)
    assert len(windows) > 5
    assert [one.ids for one in windows] == expected["input_ids"]
    assert [one.offsets for one in windows] == expected["offset_mapping"]
    expected = theirs(context, truncation=True, **options)
    windows = encode_windows(ours, context, limit=24, stride=5)
    assert [one.ids for one in windows] == expected["input_ids"]
    # The same text without windows: nothing of that setting stays behind.
    assert len(encode_texts(ours, [context])[0].ids) > 60


def test_padding(both: tuple[Any, Any]) -> None:
    ours, theirs = both
    batch = pad_together(encode_texts(ours, FIRST, SECOND), ours.pad_token_id)
    expected = theirs(FIRST, SECOND, padding=True, return_tensors="pt", return_token_type_ids=True)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name


def test_cuts_are_warned_of(both: tuple[Any, Any]) -> None:
    ours, _ = both
    texts = ["a", "one two three four five six", "a b c d e f g"]
    with pytest.warns(TruncationWarning, match="2 of 3 texts were longer than the model reads and lost their end"):
        encode_texts(ours, texts, limit=6, truncate=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_texts(ours, texts[:1], limit=6, truncate=True)
        encode_texts(ours, texts, limit=60, truncate=True)


def test_errors(both: tuple[Any, Any]) -> None:
    ours, _ = both
    with pytest.raises(TokenizerError, match=r"text 1 has \d+ tokens, but the model reads at most 6: .*truncate=True"):
        encode_texts(ours, ["a", "one two three four five six"], limit=6)
    with pytest.raises(TokenizerError, match="text 1 is bytes, not str"):
        encode_texts(ours, ["a", b"b"])  # type: ignore[list-item]
    with pytest.raises(TokenizerError, match="lone surrogate"):
        encode_texts(ours, ["\ud800"])
    with pytest.raises(TokenizerError, match="the question takes"):
        encode_windows(ours, "many words " * 9, "context", limit=16, stride=4)
    with pytest.raises(TokenizerError, match="let them share fewer"):
        encode_windows(ours, "many words", limit=8, stride=7)
