"""What a report counts, against counts made by hand."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from polyformer.errors import DataError, TokenizerError
from polyformer.tokenizers import report as module
from polyformer.tokenizers.report import Difference, readable, report
from polyformer.tokenizers.text import TextTokenizer
from polyformer.tokenizers.training import train_tokenizer

TEXTS = ["the cat sat on the mat.\n", "", "the naïve rat 👩 <|endoftext|>", "zzz"]


@pytest.fixture(scope="module")
def bpe() -> TextTokenizer:
    return train_tokenizer(["the cat sat on the mat. the rat ran"] * 5, "bpe", 270)


def test_counts_of_bpe(bpe: TextTokenizer) -> None:
    made = report(bpe, iter(TEXTS))
    ids = [number for text in TEXTS for number in bpe.encode(text, add_special_tokens=False, parse_special=False)]
    counts = Counter(ids)
    assert (made.documents, made.tokens, made.vocab_size) == (4, len(ids), 270)
    assert made.characters == sum(map(len, TEXTS)) and made.bytes == sum(len(text.encode()) for text in TEXTS)
    assert made.words == 6 + 5 + 1
    assert made.characters_per_token == made.characters / len(ids) and made.bytes_per_token == made.bytes / len(ids)
    assert made.fertility == len(ids) / 12
    assert (made.unknown, made.unknown_share, made.exact, made.first_difference) == (0, 0, 4, None)
    assert made.unused == 270 - len(counts) - 2  # the two special tokens aside
    assert 0 < len(made.unused_examples) <= 20
    assert all(entry.count == 0 and entry.id not in counts for entry in made.unused_examples)
    assert [(one.id, one.count) for one in made.most_frequent] == sorted(
        counts.items(), key=lambda item: (-item[1], item[0])
    )[:20]
    assert made.longest[0].text == max((readable(bpe, number) for number in range(2, 270)), key=len)
    assert " the" in [one.text for one in made.longest]
    assert json.loads(json.dumps(made.to_json()))["fertility"] == made.fertility
    assert made.fingerprint == bpe.fingerprint


def test_sections_and_batches_change_no_count(bpe: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [("the cat sat on the mat.\n" * 40).strip(), "zzz the rat"]
    whole = report(bpe, texts)
    monkeypatch.setattr(module, "SECTION", 50)
    monkeypatch.setattr(module, "AT_ONCE", 120)
    told: list[int] = []
    assert report(bpe, texts, progress=lambda what, done, total: told.append(done)) == whole
    assert len(told) > 5 and told[-1] == whole.characters


def test_what_is_unknown_and_what_does_not_come_back() -> None:
    letters = train_tokenizer(["abc abc"], "character", purpose="encoder")
    made = report(letters, ["abc", "xbcx", "cax", "abc"])
    assert (made.unknown, made.tokens) == (3, 13) and made.unknown_share == 3 / 13
    assert made.exact == 2
    assert made.first_difference == Difference(document=1, character=0, text="xbcx", decoded="[UNK]bc[UNK]")
    assert [one.token for one in made.most_frequent] == ["c", "[UNK]", "a", "b"]
    assert (made.unused, [one.token for one in made.unused_examples]) == (1, [" "])
    words = train_tokenizer(["the cat"] * 3, "wordpiece", 40, purpose="encoder")
    difference = report(words, ["the  cat"]).first_difference
    assert difference == Difference(document=0, character=4, text=" cat", decoded="cat")


def test_no_text_and_no_unicode(bpe: TextTokenizer) -> None:
    for texts in ([], [""]):
        with pytest.raises(DataError, match="empty"):
            report(bpe, texts)
    with pytest.raises(TokenizerError, match="lone surrogate"):
        report(bpe, ["\ud800"])
