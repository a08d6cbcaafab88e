"""Rows hold the tokens of their documents, every one of them, and know where documents end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from polyformer.errors import ConfigError, DataError
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.data.columns import TokenReader
from polyformer.training.data.packing import BestFit, Examples, Mixture, PackedTokens, Windows, best_fit
from polyformer.training.data.store import TokenStore, build_store

Make = Callable[..., TokenStore]
END = 0


class Documents:
    """A store in memory."""

    def __init__(self, documents: list[list[int]]):
        self.folder = "memory"
        self.documents = documents
        numbers = np.array([one for document in documents for one in document], np.uint16)
        self._reader = TokenReader(numbers, np.cumsum([0, *map(len, documents)]))

    def tokens(self, name: str) -> TokenReader:
        assert name == "input_ids"
        return self._reader


def store_of(documents: list[list[int]]) -> Any:
    return Documents(documents)


documents_of_tokens = st.lists(st.lists(st.integers(1, 300), max_size=25), min_size=1, max_size=12)


@given(documents_of_tokens, st.integers(1, 20))
def test_packed_rows_are_the_documents_one_after_another(documents: list[list[int]], length: int) -> None:
    tokens = [token for document in documents for token in document]
    owners = [number for number, document in enumerate(documents) for _ in document]
    if len(tokens) < length:
        with pytest.raises(DataError, match="fewer than one row"):
            PackedTokens(store_of(documents), length)
        return
    packed = PackedTokens(store_of(documents), length)
    assert len(packed) == len(tokens) // length
    for index in range(len(packed)):
        row = packed[index]
        here = slice(index * length, (index + 1) * length)
        assert row["input_ids"].tolist() == tokens[here]
        first = {owner: place for place, owner in enumerate(dict.fromkeys(owners[here]))}
        assert row["document_ids"].tolist() == [first[owner] for owner in owners[here]]
        assert row["input_ids"].dtype == row["document_ids"].dtype == np.int64
        across = PackedTokens(store_of(documents), length, across=True)[index]
        assert set(across) == {"input_ids"} and across["input_ids"].tolist() == tokens[here]


@given(documents_of_tokens, st.integers(1, 20), st.data())
def test_windows_leave_out_nothing(documents: list[list[int]], length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    expected = []
    for document in documents:
        for start in range(0, len(document), stride):
            expected.append(document[start : start + length])
            if start + length >= len(document):
                break
    if not expected:
        with pytest.raises(DataError, match="no tokens"):
            Windows(store_of(documents), length, stride=stride)
        return
    windows = Windows(store_of(documents), length, stride=stride)
    assert [windows[index]["input_ids"].tolist() for index in range(len(windows))] == expected


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(0, 10))
def test_best_fit_fills_no_row_too_far_and_wastes_little(lengths: list[int], more: int) -> None:
    capacity = max(lengths, default=1) + more
    rows = best_fit(np.array(lengths, np.int64), capacity)
    filled = Counter[int]()
    for row, length in zip(rows.tolist(), lengths):
        filled[row] += length
    assert sorted(filled) == list(range(len(filled)))
    assert all(total <= capacity for total in filled.values())
    # Its rows are at most 11/9 of the fewest that there could be, and a little (Johnson, 1973; Dósa, 2007).
    assert len(filled) <= 11 / 9 * -(-sum(lengths) // capacity) + 6 / 9 or _pairs_are_too_large(lengths, capacity)


def _pairs_are_too_large(lengths: list[int], capacity: int) -> bool:
    """Whether pieces of more than a third alone make the simple bound on the fewest rows too low."""
    return any(3 * length > capacity for length in lengths)


@given(documents_of_tokens, st.integers(1, 20))
def test_best_fit_keeps_documents_whole(documents: list[list[int]], length: int) -> None:
    if not any(documents):
        with pytest.raises(DataError, match="no tokens"):
            BestFit(store_of(documents), length)
        return
    packed = BestFit(store_of(documents), length)
    found: Counter[tuple[int, ...]] = Counter()
    for index in range(len(packed)):
        row = packed[index]
        ids, numbers = row["input_ids"], row["document_ids"]
        assert 1 <= len(ids) == len(numbers) <= length
        assert numbers.tolist() == sorted(numbers) and set(numbers.tolist()) == set(range(numbers[-1] + 1))
        found.update(tuple(ids[numbers == number].tolist()) for number in range(numbers[-1] + 1))
    expected = Counter(
        tuple(document[start : start + length]) for document in documents for start in range(0, len(document), length)
    )
    assert found == expected
    assert packed.filled == pytest.approx(sum(map(len, documents)) / (len(packed) * length))


def test_best_fit_chooses_the_fullest_row() -> None:
    # 6 | 5: the 3 fits both, and best into the row of the 5 (which leaves 0 with 8); the 2 then fills the other.
    assert best_fit(np.array([6, 5, 3, 2]), 8).tolist() == [0, 1, 1, 0]


@settings(max_examples=20)
@given(texts=st.lists(st.text(min_size=1), min_size=3, max_size=8), length=st.integers(1, 9))
def test_rows_become_the_texts_again(
    texts: list[str], length: int, tokenizer: TextTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stores") / "one"
    store = build_store(({"text": text} for text in texts), tokenizer, folder)
    windows = Windows(store, length)
    ids = [token for index in range(len(windows)) for token in windows[index]["input_ids"].tolist()]
    assert tokenizer.decode(ids) == "".join(texts) and ids.count(END) == len(texts)
    if len(ids) < length:
        return
    packed = PackedTokens(store, length)
    rows = [packed[index]["input_ids"].tolist() for index in range(len(packed))]
    assert [token for row in rows for token in row] == ids[: len(ids) // length * length]
    for index, row in enumerate(rows):  # a new document begins just after an end
        steps = np.diff(packed[index]["document_ids"]).tolist()
        assert steps == [int(token == END) for token in row[:-1]]


# --- examples -------------------------------------------------------------------------------------------------------


def test_examples_are_documents(make_store: Make, tokenizer: TextTokenizer) -> None:
    documents = [{"text": "a man", "label": 2}, {"text": "fortune " * 20, "label": 0}]
    examples = Examples(make_store(documents, keep=("label",)))
    assert len(examples) == 2 and examples[0]["label"] == 2
    assert examples[0]["input_ids"].tolist() == [*tokenizer.encode("a man"), END]


def test_a_text_that_is_too_long_is_named_or_cut(make_store: Make, tokenizer: TextTokenizer) -> None:
    store = make_store(["a", "b", "fortune " * 20, "possession " * 90])
    with pytest.raises(DataError, match=r"input_ids of document 2 has \d+ tokens, more than 9 \(so have 2 documents"):
        Examples(store, 9)
    examples = Examples(store, 9, truncate=True)
    long = examples[2]["input_ids"].tolist()
    assert long == [*tokenizer.encode("fortune " * 20)[:8], END]
    assert examples[0]["input_ids"].tolist() == [*tokenizer.encode("a"), END]


def test_a_text_is_cut_inside_its_special_tokens(tokenizer: TextTokenizer, tmp_path: Any) -> None:
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_special_tokens(["[C]", "[S]"])
    start, end = backend.token_to_id("[C]"), backend.token_to_id("[S]")
    backend.post_processor = processors.TemplateProcessing("[C] $A [S]", special_tokens=[("[C]", start), ("[S]", end)])
    around = TextTokenizer(backend)
    store = build_store(
        [{"text": "fortune " * 20}], around, tmp_path / "one", append_eos=False, add_special_tokens=True
    )
    found = Examples(store, 6, truncate=True)[0]["input_ids"].tolist()
    assert found == [start, *tokenizer.encode("fortune " * 20)[:4], end]


def test_each_side_of_a_pair_has_its_own_length(make_store: Make) -> None:
    store = make_store([{"source": "fortune " * 9, "target": "a"}], fields=("source", "target"))
    with pytest.raises(DataError, match="source_ids of document 0"):
        Examples(store, {"source_ids": 4, "target_ids": 4})
    assert len(Examples(store, {"target_ids": 4})[0]["source_ids"]) > 4
    assert len(Examples(store, {"source_ids": 5, "target_ids": 4}, truncate=True)[0]["source_ids"]) == 5
    with pytest.raises(ConfigError, match="no token ids 'text_ids', but source_ids, target_ids"):
        Examples(store, {"text_ids": 4})
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        Examples(store, 0)
    with pytest.raises(ConfigError, match="no room for their 1 end tokens"):
        Examples(store, 1, truncate=True)


def test_tags_stand_at_the_beginnings_of_words(make_store: Make, tokenizer: TextTokenizer) -> None:
    words, tags = ["universally", "neighbourhood", "a"], [5, 6, 7]
    store = make_store([{"words": words, "tags": tags}], fields=("words",), keep=("tags",))
    example = Examples(store)[0]
    assert set(example) == {"input_ids", "labels"}
    labels = []
    for number, (word, tag) in enumerate(zip(words, tags)):
        labels += [tag] + [-100] * (len(tokenizer.encode(f" {word}" if number else word)) - 1)
    assert example["labels"].tolist() == [*labels, -100]
    short = Examples(store, 4, truncate=True)[0]
    assert short["labels"].tolist() == [*labels[:3], -100] and len(short["input_ids"]) == 4


def test_tags_that_do_not_fit_are_refused(make_store: Make) -> None:
    documents = [{"words": ["a"], "tags": [1]}, {"words": ["a", "b"], "tags": [1]}]
    with pytest.raises(DataError, match="document 1 has 2 words, but 1 tags"):
        Examples(make_store(documents, fields=("words",), keep=("tags",)))
    with pytest.raises(DataError, match="tags must be a list"):
        Examples(make_store([{"words": ["a"], "tags": "N"}], fields=("words",), keep=("tags",)))


# --- mixtures and mistakes ------------------------------------------------------------------------------------------


def test_a_mixture_has_all_rows() -> None:
    first, second = Windows(store_of([[1], [2], [3]]), 4), Windows(store_of([[4], [5]]), 4)
    mixture = Mixture([first, second], [1, 5])
    assert [mixture[index]["input_ids"].tolist() for index in range(len(mixture))] == [[1], [2], [3], [4], [5]]
    epochs, indices = mixture.order(3).rows(np.arange(600))
    assert 495 <= (indices >= 3).sum() <= 505 and epochs[indices < 3].max() in (32, 33, 34)
    nested = Mixture([mixture, first])
    assert len(nested) == 8 and nested[7]["input_ids"].tolist() == [3]
    assert 290 <= (nested.order(3).rows(np.arange(600))[1] < 5).sum() <= 310
    with pytest.raises(IndexError):
        mixture[5]


def test_datasets_of_a_mixture_have_orders_of_their_own() -> None:
    one = Windows(store_of([[number] for number in range(1, 50)]), 4)
    _, indices = Mixture([one, one]).order(1).rows(np.arange(98))
    assert indices[indices < 49].tolist() != (indices[indices >= 49] - 49).tolist()


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -2], [1, float("inf")], [1, float("nan")]])
def test_weights_that_cannot_be(weights: list[float]) -> None:
    one = Windows(store_of([[1]]), 4)
    with pytest.raises(ConfigError, match="weight"):
        Mixture([one, one], weights)


def test_lengths_that_cannot_be() -> None:
    store = store_of([[1, 2, 3]])
    for make in (PackedTokens, Windows, BestFit):
        for length in (0, True, 2.5):
            with pytest.raises(ConfigError, match="at least 1"):
                make(store, length)  # type: ignore[operator]
    for stride in (0, 4):
        with pytest.raises(ConfigError, match="stride must be from 1 to the length 3"):
            Windows(store, 3, stride=stride)
    with pytest.raises(IndexError):
        PackedTokens(store, 2)[1]
