"""The table of words gives exactly the ids that the tokenizer gives, whatever the text and the kind of tokenizer."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from polyformer.errors import TokenizerError
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.data import tokenizing
from polyformer.training.data.tokenizing import TextEncoder, cuts_at_marks, cuts_before

TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want
of a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this
truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some
one or other of their daughters."""
EXAMPLES = int(os.environ.get("POLYFORMER_EXAMPLES", "60"))  # of each kind; more for a longer search
SPECIAL = ["<s>", "</s>", "<mask>", "<unk>"]
GPT4 = next(pattern for pattern in sorted(tokenizing._KNOWN_SPLITS) if r"\p{N}{1,3}" in pattern)


def _bpe(pre_tokenizer: object, normalizer: object = None, byte_level: bool = True) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizer
    if byte_level:
        backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT.split("\n"), trainer)
    return backend


def _word_piece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(TEXT.split("\n"), trainer)
    return backend


def _unigram(prepend: str) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXT.split("\n"), trainer)
    return backend


def _sentencepiece() -> Tokenizer:
    backend = _unigram("always")
    steps = [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)
    return backend


def _letters(of_bytes: bool) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if of_bytes else sorted(set(TEXT))
    vocabulary = {letter: number for number, letter in enumerate([*SPECIAL, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", fuse_unk=False))
    backend.normalizer = normalizers.NFC()
    if of_bytes:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
    return backend


def _byte_level_after(*first: object) -> Tokenizer:
    return _bpe(pre_tokenizers.Sequence([*first, pre_tokenizers.ByteLevel(add_prefix_space=False)]))


def _split_then_bytes() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(GPT4), "isolated")
    return _bpe(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "GPT-2": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "RoBERTa": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "SmolLM": lambda: _byte_level_after(pre_tokenizers.Digits(individual_digits=True)),
    "NFC": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()),
    "NFKD": lambda: _bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFKD()),
    "Llama 3": _split_then_bytes,
    "BERT": _word_piece,
    "words": lambda: _bpe(pre_tokenizers.Whitespace(), normalizers.Lowercase(), byte_level=False),
    "unigram first": lambda: _unigram("first"),
    "unigram always": lambda: _unigram("always"),
    "unigram never": lambda: _unigram("never"),
    "SentencePiece": _sentencepiece,
    "bytes": lambda: _letters(True),
    "characters": lambda: _letters(False),
}
_MADE: dict[str, TextTokenizer] = {}


def _tokenizer(kind: str) -> TextTokenizer:
    if kind not in _MADE:
        backend = KINDS[kind]()
        backend.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])
        backend.add_tokens(
            [AddedToken("two words", normalized=False), AddedToken("<x>", single_word=True, normalized=False)]
        )
        _MADE[kind] = TextTokenizer(backend)
    return _MADE[kind]


FRAGMENTS = [
    *("truth", "man", "good", "a", "Fortune", "don't", "'s", "ﬁrst", "É", "e\u0301", "\u0301", "¨", "ﷺ", "日本", "İ"),
    *(" ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "\x0b", "\u200b"),
    *("1", "1234", ".", ",", "...", "!?", "-", "_", "▁", "Ġ", "🙂", "\x00", "\ufeff", "\u00ad"),
    *("<mask>", "<s>", "</s>", "two words", "two  words", "<x>"),
]
texts = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3)), max_size=14).map("".join)


def _split(ids: tokenizing.Ids) -> list[list[int]]:
    return [part.tolist() for part in np.split(ids.all, np.cumsum(ids.lengths)[:-1])]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parse_special", [False, True])
def test_ids_are_those_of_the_tokenizer(kind: str, parse_special: bool) -> None:
    tokenizer = _tokenizer(kind)
    encoder = TextEncoder(tokenizer, parse_special=parse_special)
    assert encoder._words is not None

    @settings(max_examples=EXAMPLES)
    @given(st.lists(texts, min_size=1, max_size=4))
    def check(some: list[str]) -> None:
        expected = tokenizer.encode_batch(some, add_special_tokens=False, parse_special=parse_special)
        assert _split(encoder.encode_batch(some)) == expected

    check()


def test_words_that_would_make_an_added_token_together_stay_apart() -> None:
    """New words are tokenized together with one space between them, which may not be what stood there."""
    tokenizer = _tokenizer("SentencePiece")
    for text in ("goodtwo  wordsgood", "two\nwords", "two  wordstwo  words"):
        expected = tokenizer.encode_batch([text], add_special_tokens=False)
        assert _split(TextEncoder(tokenizer).encode_batch([text])) == expected


@pytest.mark.parametrize("kind", ["GPT-2", "BERT", "unigram first", "SentencePiece"])
def test_a_text_longer_than_a_section_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _tokenizer(kind)
    expected = tokenizer.encode(TEXT * 3, add_special_tokens=False)
    monkeypatch.setattr(tokenizing, "_SECTION", 37)
    monkeypatch.setattr(tokenizing, "_MOST_WORDS", 20)  # the table is emptied now and then
    encoder = TextEncoder(tokenizer)
    assert _split(encoder.encode_batch([TEXT * 3, "", TEXT]))[0] == expected
    assert len(encoder._words or ()) < 60


def test_a_run_without_spaces_is_cut_only_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_SECTION", 100)
    monkeypatch.setattr(tokenizing, "_LONGEST_RUN", 100)
    tokenizer = _tokenizer("GPT-2")
    found = TextEncoder(tokenizer).encode_batch(["b" * 1000])
    assert tokenizer.decode(found.all.tolist()) == "b" * 1000


@pytest.mark.parametrize("change", ["dropout", "split", "normalizer", "no pre-tokenizer", "reaching token"])
def test_a_tokenizer_that_may_look_across_spaces_reads_whole_texts(change: str) -> None:
    description = json.loads(_tokenizer("NFC").backend.to_str())
    assert cuts_before(description)
    if change == "dropout":
        description["model"]["dropout"] = 0.1
    elif change == "split":
        description["pre_tokenizer"] = json.loads(
            pre_tokenizers.Split(Regex(r"\p{L}+ \p{L}+"), "isolated").__getstate__()
        )
    elif change == "normalizer":
        description["normalizer"] = {"type": "Prepend", "prepend": "▁"}
    elif change == "no pre-tokenizer":
        description["pre_tokenizer"] = None
    else:
        description["added_tokens"][0].update(lstrip=True, normalized=True)
    assert not cuts_before(description)


def test_whole_texts_have_the_tokenizers_ids() -> None:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.train_from_iterator(
        TEXT.split("\n"), trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer = TextTokenizer(backend)
    encoder = TextEncoder(tokenizer)
    assert encoder._words is None
    some = [TEXT, "", "a man  of\ngood fortune"]
    assert _split(encoder.encode_batch(some)) == tokenizer.encode_batch(some, add_special_tokens=False)


def test_no_letter_is_normalized_to_something_that_ends_in_white_space() -> None:
    """What lets a normalized text be cut where the text itself is; see `_is_local`."""
    for number in range(sys.maxunicode + 1):
        if unicodedata.decomposition(chr(number)) and not chr(number).isspace():
            for form in ("NFC", "NFD", "NFKC", "NFKD"):
                assert not unicodedata.normalize(form, chr(number))[-1].isspace()


def test_special_tokens_and_the_end_token_stand_around_texts() -> None:
    backend = KINDS["BERT"]()
    start, end = backend.token_to_id("<s>"), backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    tokenizer = TextTokenizer(backend)
    some = ["a man", "", "good fortune", ""]
    expected = tokenizer.encode_batch(some)
    assert _split(TextEncoder(tokenizer, add_special_tokens=True).encode_batch(some)) == expected
    assert _split(TextEncoder(tokenizer, add_special_tokens=True, end=end).encode_batch(some)) == expected
    other = tokenizer.token_to_id("<mask>")
    found = _split(TextEncoder(tokenizer, add_special_tokens=True, end=other).encode_batch(some))
    assert found == [[*ids, other] for ids in expected]
    assert _split(TextEncoder(tokenizer, end=other).encode_batch(["", "a"])) == [
        [other],
        [*tokenizer.encode("a", add_special_tokens=False), other],
    ]


@pytest.mark.parametrize("kind", ["GPT-2", "BERT", "unigram always"])
def test_words_know_where_their_tokens_begin(kind: str) -> None:
    tokenizer = _tokenizer(kind)
    sentences = [["truth", "universally", ".", ""], ["a"], [], ["wife", "neighbourhood"]]
    assert not len(TextEncoder(tokenizer).encode_words([[], []])[0].all)
    ids, starts = TextEncoder(tokenizer).encode_words(sentences)
    parts = _split(ids)
    joined = tokenizer.encode_batch([" ".join(words[:3]) for words in sentences], add_special_tokens=False)
    assert parts[1:] == joined[1:] and parts[0][: len(joined[0])] == joined[0]
    assert [len(places) for places in starts] == [len(words) for words in sentences]
    for words, part, places in zip(sentences, parts, starts):
        for number, (word, begin) in enumerate(zip(words, places)):
            expected = tokenizer.encode(f" {word}" if number else word, add_special_tokens=False)
            assert part[begin:][: len(expected)] == expected and (begin < 0) == (not expected)


def test_what_is_no_unicode_is_refused_and_forgotten() -> None:
    encoder = TextEncoder(_tokenizer("GPT-2"))
    with pytest.raises(TokenizerError, match="lone surrogate"):
        encoder.encode_batch(["a good \ud800 man"])
    expected = _tokenizer("GPT-2").encode("a good man", add_special_tokens=False)
    assert encoder.encode_batch(["a good man"]).all.tolist() == expected


def test_which_tokenizers_are_cut_finely() -> None:
    found = {kind for kind in KINDS if cuts_at_marks(json.loads(_tokenizer(kind).backend.to_str()))}
    assert found == {"GPT-2", "SmolLM", "NFC", "NFKD", "BERT"}
    description = json.loads(_tokenizer("NFC").backend.to_str())
    description["added_tokens"][-1]["normalized"] = True  # it may be hidden in a text before it is normalized
    assert not cuts_at_marks(description)
