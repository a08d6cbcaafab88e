"""Parts by hash, exact and near duplicates."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from polyformer.errors import ConfigError, DataError
from polyformer.training.data.cleaning import (
    CleaningCounts,
    NearDuplicates,
    deduplicate,
    document_hash,
    groups_of_near_duplicates,
    normalized,
    part_of,
    split_documents,
)

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def words(seed: int, count: int) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices("abcdefgh", k=source.randint(2, 8))) for _ in range(count)]


# Parts


def test_shares_and_stability() -> None:
    keys = [f"document {number}" for number in range(20_000)]
    parts = [part_of(key, SHARES) for key in keys]
    counts = Counter(parts)
    assert {name: round(count / len(keys), 2) for name, count in counts.items()} == SHARES
    # Every process, whose hash() is seeded otherwise, and every later version must agree.
    assert [number for number in range(50) if parts[number] == "test"] == [11, 14, 19, 26, 33, 43, 48]
    other = [part_of(key, SHARES, seed=1) for key in keys]
    assert 0.30 < sum(first != second for first, second in zip(parts, other)) / len(keys) < 0.38


def test_another_share_moves_no_more_than_it_must() -> None:
    """What was in the training part stays there when it grows."""
    keys = [str(number) for number in range(2_000)]
    for key in keys:
        if part_of(key, {"train": 0.8, "test": 0.2}) == "train":
            assert part_of(key, {"train": 0.9, "test": 0.1}) == "train"
    assert {part_of(key, {"train": 0.0, "test": 1.0}) for key in keys} == {"test"}


@pytest.mark.parametrize("shares", [{}, {"train": 0.5}, {"train": 1.2, "test": -0.2}])
def test_shares_that_cannot_be(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="shares must be from 0 and add up to 1"):
        part_of("x", shares)


def test_documents_are_split_by_what_they_hold() -> None:
    documents = [{"text": f"verse {number}", "chapter": number // 10} for number in range(400)]
    forward = {each["text"]: each["split"] for each in split_documents(documents, SHARES)}
    backward = {each["text"]: each["split"] for each in split_documents(documents[::-1], SHARES)}
    assert forward == backward and set(forward.values()) == set(SHARES)
    spaced = [{"text": f" verse  {number}\n", "chapter": number // 10, "split": "?"} for number in range(400)]
    assert [each["split"] for each in split_documents(spaced, SHARES)] == list(forward.values())
    chapters: dict[int, set[str]] = {}
    for each in split_documents(documents, SHARES, key="chapter"):
        chapters.setdefault(each["chapter"], set()).add(each["split"])
    assert all(len(parts) == 1 for parts in chapters.values()) and len(set.union(*chapters.values())) == 3
    with pytest.raises(DataError, match="has no field 'book': it has text, chapter"):
        list(split_documents(documents, SHARES, key="book"))


# Exact duplicates


def test_normalized() -> None:
    assert normalized(" cafe\u0301\t\n au  lait\u00a0") == "café au lait"
    assert normalized("Café") != normalized("café")


def test_hashes_tell_values_apart() -> None:
    documents: list[dict[str, Any]] = [
        {"a": "x", "b": "y"},
        {"a": "xb", "b": "y"},
        {"a": "x", "by": ""},
        {"a": ["x", "y"]},
        {"a": ["xy"]},
        {"a": [["x"], "y"]},
        {"a": {"x": "y"}},
        {"a": 1},
        {"a": "1"},
        {"a": True},
        {"a": None},
        {"a": b"1"},
        {"a": np.zeros(4, np.uint8)},
        {"a": np.zeros((2, 2), np.uint8)},
        {"a": np.zeros(4, np.int8)},
    ]
    assert len({document_hash(document) for document in documents}) == len(documents)
    assert document_hash({"b": "y", "a": "x", "split": "test"}) == document_hash(documents[0])
    assert document_hash({"a": "x", "b": "z"}, ["a"]) == document_hash({"a": " x"}, ["a"])
    assert document_hash({"a": np.int64(1)}) == document_hash({"a": 1})
    with pytest.raises(DataError, match="field 'a' holds object, of which no hash can be made"):
        document_hash({"a": object()})


def test_exact_duplicates() -> None:
    documents = [{"text": text, "split": "train"} for text in ("a b", "c", "a  b", "A b", "c", "d")]
    counts, left_out = CleaningCounts(), list[dict[str, Any]]()
    kept = deduplicate(iter(documents), counts=counts, on_duplicate=left_out.append)
    assert next(kept) == documents[0] and counts == CleaningCounts(read=1, kept=1)
    assert [each["text"] for each in kept] == ["c", "A b", "d"]
    assert [each["text"] for each in left_out] == ["a  b", "c"]
    assert counts == CleaningCounts(read=6, kept=4, exact_duplicates=2)
    with pytest.raises(ConfigError, match="duplicates are found 'exact' or 'near', not 'fuzzy'"):
        deduplicate(documents, "fuzzy")  # type: ignore[arg-type]


# Near duplicates


def jaccard(first: list[str], second: list[str], length: int = 5) -> float:
    one, two = (
        {tuple(each[place : place + length]) for place in range(len(each) - length + 1)} for each in (first, second)
    )
    return len(one & two) / len(one | two)


def test_signatures_estimate_the_share_in_common() -> None:
    index = NearDuplicates(permutations=1024, bands=16).build()
    base = words(0, 400)
    for changed in (0, 3, 10, 30, 100, 400):
        other = base[: len(base) - changed] + words(changed, changed)
        first, second = index.signature(" ".join(base)), index.signature(" ".join(other))
        assert first is not None and second is not None and first.shape == (1024,)
        # Four standard deviations of the estimate at most.
        assert abs(float(np.mean(first == second)) - jaccard(base, other)) < 4 * 0.5 / 1024**0.5


def test_characters_do_for_languages_without_spaces() -> None:
    text = "".join(chr(0x4E00 + number) for number in np.random.default_rng(0).integers(0, 3000, 300))
    near = text[:200] + "人" + text[200:]
    for unit, found in (("characters", 0), ("words", None)):
        index = NearDuplicates(unit=unit).build()  # type: ignore[arg-type]
        assert index.add(text) is None and index.add(near) == found


def test_near_duplicates_are_left_out() -> None:
    """Of 200 texts with a copy each, in which two words of 100 are others: most copies share over 0.8."""
    originals = [words(number, 100) for number in range(200)]
    copies, alike = [], 0
    for number, original in enumerate(originals):
        copy = list(original)
        copy[random.Random(number).randrange(100)] = "changed"
        alike += jaccard(original, copy) >= 0.8
        copies.append(copy)
    documents = [{"text": " ".join(each)} for each in originals + copies]
    counts = CleaningCounts()
    kept = list(deduplicate(documents, "near", counts=counts))
    assert kept[:200] == documents[:200]
    assert alike == 200
    assert counts.near_duplicates >= 0.95 * alike and counts.exact_duplicates == 0
    assert counts.kept + counts.near_duplicates == counts.read == 400
    # The same again, and case, punctuation and layout do not matter.
    assert list(deduplicate(documents, "near")) == kept
    loud = [{"text": each["text"].upper().replace(" ", ",\n")} for each in documents[:200]]
    assert len(list(deduplicate(documents[:200] + loud, "near"))) == 200
    assert len(list(deduplicate(documents, NearDuplicates(threshold=1.0)))) == 400


def test_texts_with_little_in_them() -> None:
    texts = ["", "!?", "...", "one", "one", "One.", "two"]
    index = NearDuplicates().build()
    assert [index.add(text) for text in texts] == [None, None, None, None, 3, 3, None]
    assert len(index) == 5


def test_many_near_duplicates_are_not_compared_quadratically(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket with more and more texts below the threshold is compared with a few only."""
    from polyformer.training.data import cleaning

    compared = []
    real = cleaning.NearIndex._candidates
    monkeypatch.setattr(
        cleaning.NearIndex, "_candidates", lambda self, keys: compared.append(len(real(self, keys))) or real(self, keys)
    )
    shared = " ".join(words(1, 60))
    index = NearDuplicates(threshold=0.99).build()
    for number in range(300):
        index.add(shared + " " + " ".join(words(1000 + number, 6)))
    assert len(index) > 250 and max(compared) <= 8 * 16


def test_only_text_is_compared() -> None:
    documents = [{"text": " ".join(words(1, 50)), "label": label} for label in (0, 1)]
    assert len(list(deduplicate(documents, "exact"))) == 2
    assert len(list(deduplicate(documents, "near"))) == 1
    with pytest.raises(DataError, match="near duplicates are found by text, and there is none in label: use 'exact'"):
        list(deduplicate(documents, "near", fields=["label"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0}, "threshold must be above 0 and at most 1, not 0"),
        ({"unit": "bytes"}, "unit must be words or characters, not 'bytes'"),
        ({"shingle": 0}, "whole numbers from 1"),
        ({"permutations": 100}, r"permutations \(100\) must be a multiple of bands \(16\)"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NearDuplicates(**settings)


def test_groups_through_others() -> None:
    """Three letters, each nearly the one before, and one of its own; a name with two texts joins what each is near."""
    base = words(5, 300)
    chain = [" ".join([*base[10 * step : 290], *words(50 + step, 10 * step)]) for step in range(3)]
    texts = [("a", chain[0]), ("z", " ".join(words(9, 300))), ("b", chain[1]), ("c", chain[2])]
    settings = NearDuplicates(threshold=0.75)
    assert groups_of_near_duplicates(texts, settings) == {"a": "a", "z": "z", "b": "a", "c": "a"}
    joined = [*texts, ("m", texts[1][1]), ("m", chain[0])]
    assert groups_of_near_duplicates(joined, settings) == dict.fromkeys("azbcm", "a")
