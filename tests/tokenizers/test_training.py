"""Trained tokenizers: transformers gives the same ids, every run gives the same file, mistakes are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from polyformer.errors import ConfigError, DataError, PolyformerError, TokenizerError
from polyformer.tokenizers.loading import load_tokenizer
from polyformer.tokenizers.plan import KINDS, PURPOSES, TokenizerPlan
from polyformer.tokenizers.text import TextTokenizer
from polyformer.tokenizers.training import sections, train_tokenizer
from polyformer.tokenizers.unigram import _digamma, train_unigram

ROOT = Path(__file__).resolve().parents[2]
SIZES = {"bpe": 700, "wordpiece": 900, "unigram": 700, "byte": None, "character": None}
# Every kind, every purpose, and the options that change how texts are cut.
TRAININGS: dict[str, dict[str, Any]] = {
    **{
        f"{kind} for {purpose}": dict(kind=kind, purpose=purpose)
        for kind in KINDS
        for purpose in ("decoder", "encoder")
    },
    **{f"bpe for {purpose}": dict(kind="bpe", purpose=purpose) for purpose in PURPOSES},
    "unigram for encoder-decoder": dict(kind="unigram", purpose="encoder-decoder"),
    "unigram for translation": dict(kind="unigram", purpose="translation"),
    "character for denoising": dict(kind="character", purpose="denoising"),
    "byte for code": dict(kind="byte", purpose="code"),
    "byte for encoder-decoder": dict(kind="byte", purpose="encoder-decoder"),
    "wordpiece, uncased, digits": dict(kind="wordpiece", purpose="encoder", lowercase=True, split_digits=True),
    "bpe, lower case, digits, nfc": dict(kind="bpe", lowercase=True, split_digits=True, normalization="nfc"),
    "unigram, lower case, digits": dict(kind="unigram", lowercase=True, split_digits=True),
    "unigram, spaces kept": dict(kind="unigram", normalization="none"),
    "unigram, few characters": dict(kind="unigram", normalization="nfkc", limit_alphabet=60),
    "wordpiece, few characters": dict(kind="wordpiece", purpose="encoder", limit_alphabet=60),
    "character, few": dict(kind="character", min_frequency=50, limit_alphabet=40, vocab_size=50, lowercase=True),
    "bpe, own tokens": dict(
        kind="bpe", special_tokens={"eos": "<end>", "mask": "<m>"}, additional_special_tokens=("<tool>",), sentinels=3
    ),
    "bpe, bos": dict(kind="bpe", around="bos"),
}


@pytest.fixture(scope="module")
def small(corpus: list[str]) -> list[str]:
    return corpus[::4] + corpus[-280:]


def trained(texts: list[str], kind: str, **options: Any) -> TextTokenizer:
    return train_tokenizer(iter(texts), kind, options.pop("vocab_size", SIZES[kind]), **options)


@pytest.mark.parametrize("name", TRAININGS)
def test_transformers_gives_the_same_ids_and_text(
    name: str, small: list[str], hard_texts: list[str], tmp_path: Path
) -> None:
    ours = trained(small, **TRAININGS[name])
    ours.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded = load_tokenizer(tmp_path)
    assert loaded is not None and loaded.settings == ours.settings and loaded.fingerprint == ours.fingerprint
    special = sorted({str(ours.id_to_token(number)) for number in ours.special_token_ids})
    around = [f"one {token}two{token} three 12" for token in special] + ["".join(special)]
    texts = [*hard_texts[:40], *around]
    for theirs in (AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)):
        assert len(theirs) == ours.vocab_size == loaded.vocab_size
        for text in texts:
            ids = theirs(text)["input_ids"]
            assert ours.encode(text) == loaded.encode(text) == ids, text
            assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids), text
            assert ours.decode(ids) == loaded.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
            stream = ours.stream()
            assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids), text
            plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            if TRAININGS[name]["kind"] != "unigram":  # there transformers finds special tokens nevertheless
                assert ours.encode(text, add_special_tokens=False, parse_special=False) == plain, text
        pair = theirs("one", "two 2")["input_ids"]
        assert ours.backend.encode("one", "two 2").ids == pair
        for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
            assert getattr(theirs, f"{role}_token_id") == getattr(ours, f"{role}_token_id"), role
    for number in ours.special_token_ids:
        assert ours.encode(str(ours.id_to_token(number)), add_special_tokens=False) == [number]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_purpose_gives_its_tokens_in_order_and_its_template(kind: str, purpose: str, small: list[str]) -> None:
    tokenizer = trained(small[-280:], kind, purpose=purpose, vocab_size=SIZES[kind] and 400)
    wanted = PURPOSES[purpose]
    unknown = ["<unk>"] if kind in ("wordpiece", "unigram", "character") else []
    roles = [*wanted.special_tokens.values(), *([] if "unk" in wanted.special_tokens else unknown)]
    first = list(dict.fromkeys([*roles, *wanted.additional_special_tokens]))
    start = 256 if kind == "byte" else 0
    assert [tokenizer.token_to_id(token) for token in first] == list(range(start, start + len(first)))
    sentinels = tokenizer.sentinel_token_ids
    assert list(sentinels) == [tokenizer.vocab_size - 1 - number for number in range(wanted.sentinels)]
    ids = tokenizer.encode("sure")
    inside = tokenizer.encode("sure", add_special_tokens=False)
    around = {
        "nothing": ([], []),
        "cls-sep": ([tokenizer.cls_token_id], [tokenizer.sep_token_id]),
        "eos": ([], [tokenizer.eos_token_id]),
        "bos-eos": ([tokenizer.bos_token_id], [tokenizer.eos_token_id]),
    }[wanted.around]
    assert inside and ids == [*around[0], *inside, *around[1]]
    assert not set(inside) & tokenizer.special_token_ids


def test_fill_in_the_middle_and_chat(small: list[str], tmp_path: Path) -> None:
    code = trained(small, "bpe", purpose="code")
    assert list(code.fill_in_the_middle_ids) == ["prefix", "middle", "suffix", "pad"]
    assert code.id_to_token(code.fill_in_the_middle_ids["suffix"]) == "<|fim_suffix|>"
    assert trained(small, "bpe").fill_in_the_middle_ids == {} and trained(small, "bpe").sentinel_token_ids == ()
    chat = trained(small, "bpe", purpose="chat")
    messages = [{"role": "user", "content": "Hi!"}]
    written = "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    assert chat.apply_chat_template(messages) == written
    end = chat.token_to_id("<|im_end|>")
    assert chat.eos_token_ids == (chat.eos_token_id, end) and end in chat.encode_chat(messages)
    chat.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == written
    own = trained(small, "byte", chat_template="{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    assert own.apply_chat_template(messages) == "Hi!<|endoftext|>"
    assert trained(small, "wordpiece", chat_template="chatml").apply_chat_template(messages) == written
    with pytest.raises(TokenizerError):
        trained(small, "byte", chat_template="{% for m in messages %}")


# --- the same data gives the same file --------------------------------------------------------------------------------

PROGRAM = """
import hashlib, json, sys
from polyformer.tokenizers.training import train_tokenizer
texts = json.load(open(sys.argv[1]))
for kind, size in json.loads(sys.argv[2]):
    print(kind, hashlib.sha256(train_tokenizer(texts, kind, size).backend.to_str().encode()).hexdigest())
"""


def test_the_same_bits_on_any_number_of_threads(small: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(small))
    kinds = [(kind, SIZES[kind]) for kind in KINDS]
    outputs = set()
    for settings in (
        {"RAYON_NUM_THREADS": "5", "OMP_NUM_THREADS": "3", "PYTHONHASHSEED": "1"},
        {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "2"},
    ):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "texts.json"), json.dumps(kinds)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **settings},
            capture_output=True,
            check=True,
            text=True,
            timeout=120,
        )
        outputs.add(done.stdout)
    here = [(kind, trained(small, kind).backend.to_str()) for kind in KINDS]
    outputs.add("".join(f"{kind} {hashlib.sha256(text.encode()).hexdigest()}\n" for kind, text in here))
    assert len(outputs) == 1


def test_the_order_and_the_cutting_of_texts_do_not_matter(small: list[str]) -> None:
    small = small[::6] + small[-280:]
    for kind in KINDS:
        assert trained(small, kind).fingerprint == trained(small[::-1], kind).fingerprint, kind
    long = [" ".join(line for line in small if line.strip()) * 2]
    assert len(list(sections(long[0], 1000))) > 20
    for kind in ("bpe", "wordpiece", "unigram"):
        assert trained(long, kind).fingerprint == trained(list(sections(long[0], 1000)), kind).fingerprint, kind


def test_sections_join_to_the_text_and_are_bounded() -> None:
    for text in ("", "a b\n" * 999, "x" * 5000, " " * 3000 + "y" + "\n" * 3000, "ab " + "c" * 900 + " de"):
        parts = list(sections(text, 100))
        assert "".join(parts) == text
        assert all(0 < len(part) <= 200 for part in parts)


def test_a_fingerprint_tells_tokenizers_apart(small: list[str]) -> None:
    texts = small[::8] + small[-280:]
    prints = {trained(texts, **options).fingerprint for options in TRAININGS.values()}
    assert len(prints) == len(set(map(str, TRAININGS.values())))
    assert all(len(one) == 64 for one in prints)


# --- what the kinds learn ---------------------------------------------------------------------------------------------


def test_bpe_is_the_librarys_own(small: list[str]) -> None:
    peer = Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|padding|>"]
    peer.train_from_iterator(
        small, trainers.BpeTrainer(vocab_size=700, min_frequency=2, initial_alphabet=alphabet, special_tokens=special)
    )
    ours = trained(small, "bpe").backend
    assert json.loads(ours.to_str())["model"] == json.loads(peer.to_str())["model"]


def test_wordpiece_covers_its_data_and_joins_by_hand() -> None:
    words = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    texts = [" ".join([word] * count) for word, count in words.items()]
    tokenizer = train_tokenizer(texts, "wordpiece", 18, purpose="decoder")
    pieces = [str(tokenizer.id_to_token(number)) for number in range(tokenizer.vocab_size)]
    assert pieces[3:14] == ["b", "g", "h", "n", "p", "s", "u", "##g", "##n", "##s", "##u"]
    assert pieces[14:] == ["##ug", "##un", "hug", "pun"]  # joined 20, 16, 15 and 12 times
    assert tokenizer.decode(tokenizer.encode("hugs bun pug")) == "hugs bun pug"
    assert tokenizer.encode("hux") == [tokenizer.unk_token_id]


def test_unigram_is_no_worse_than_the_librarys(small: list[str]) -> None:
    held_out = small[::5]
    texts = [line for number, line in enumerate(small) if number % 5]
    ours = trained(texts, "unigram", normalization="none", vocab_size=600)
    peer = Tokenizer(models.Unigram())
    peer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    peer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=598, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    )
    sizes = [
        sum(len(one.ids) for one in backend.encode_batch(held_out, add_special_tokens=False))
        for backend in (ours.backend, peer)
    ]
    assert sizes[0] <= 1.02 * sizes[1]


def test_expectation_maximization_against_every_cut_written_out() -> None:
    """Counts expected by the lattice against a sum over all segmentations, and the best cut against the best of all."""
    from polyformer.tokenizers.unigram import _Lattice, _seeds, _Strings

    words = {"abab": 3, "abba": 2, "aabbabab": 1}
    strings = _Strings.of_words(words)
    pieces = _seeds(strings, 2)
    texts = pieces.texts()
    scores = np.log(np.arange(1, len(texts) + 1) / 40)
    lattice = _Lattice.of(strings, pieces.match(strings))

    def cuts(word: str) -> Iterator[tuple[int, ...]]:
        if not word:
            yield ()
        for number, text in enumerate(texts):
            if word.startswith(text):
                for rest in cuts(word[len(text) :]):
                    yield (number, *rest)

    expected, best = np.zeros(len(texts)), {}
    for word, count in words.items():
        found = [(sum(scores[number] for number in cut), cut) for cut in cuts(word)]
        total = np.logaddexp.reduce([score for score, _ in found])
        best[word] = max(found)
        for score, cut in found:
            for number in cut:
                expected[number] += count * np.exp(score - total)
    np.testing.assert_allclose(lattice.expected_counts(scores), expected, rtol=1e-12)
    values, owners, parts = lattice.best_cut(scores)
    for number, word in enumerate(sorted(words)):
        assert values[number] == pytest.approx(best[word][0], abs=1e-12)
        assert Counter(parts[owners == number].tolist()) == Counter(best[word][1])


def test_seeds_are_the_branching_substrings_of_two_occurrences() -> None:
    from polyformer.tokenizers.unigram import _seeds, _Strings

    words = {"banana": 2, "bandana": 1, "x": 5, "ana": 1}
    pieces = _seeds(_Strings.of_words(words), 2)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for start in range(len(word)):
            for end in range(start + 1, len(word) + 1):
                counts[word[start:end]] += count
    letters = set("".join(words))

    def branches(text: str) -> bool:
        return all(counts[text + letter] < counts[text] for letter in letters)

    wanted = {text: count for text, count in counts.items() if len(text) == 1 or (count >= 2 and branches(text))}
    assert dict(zip(pieces.texts(), pieces.counts.tolist())) == wanted


def test_digamma() -> None:
    scipy = pytest.importorskip("scipy.special")
    values = np.concatenate([np.linspace(0.01, 20, 999), [1e3, 1e9]])
    np.testing.assert_allclose(_digamma(values), scipy.digamma(values), rtol=1e-9, atol=1e-11)


def test_unigram_keeps_every_character_and_the_size() -> None:
    words = {"the": 50, "then": 20, "there": 20, "hen": 9, "zebra": 1}
    pieces = train_unigram(words, 12)
    assert len(pieces) == 12
    assert {text for text, _ in pieces if len(text) == 1} == set("".join(words))
    assert [score for _, score in pieces] == sorted((score for _, score in pieces), reverse=True)
    assert "the" in dict(pieces)
    told: list[tuple[int, int]] = []
    train_unigram(words, 9, progress=lambda done, total: told.append((done, total)))
    assert told and told[-1][0] <= told[-1][1]
    long = train_unigram({"ab" * 5000: 3, "c" * 70: 1}, 20)
    assert "abab" in dict(long)


def test_characters_and_bytes(small: list[str]) -> None:
    letters = trained(["abca\n", "aé"], "character")
    assert [letters.id_to_token(number) for number in range(3, 8)] == ["\n", "a", "b", "c", "é"]
    assert letters.decode(letters.encode("aé\nb")) == "aé\nb"
    assert letters.encode("axxa") == [4, letters.unk_token_id, letters.unk_token_id, 4]
    often = train_tokenizer(["aaabbc"], "character", min_frequency=2)
    assert often.encode("abc")[2] == often.unk_token_id and often.vocab_size == 5
    numbers = train_tokenizer((), "byte")
    assert numbers.encode("aé👩") == list("aé👩".encode())
    assert numbers.vocab_size == 258


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="wordpeice"), "'wordpeice' is no kind of tokenizer; did you mean 'wordpiece'?"),
        (dict(kind="tiktoken"), "there are bpe, wordpiece, unigram, byte, character"),
        (dict(purpose="encodr"), "did you mean 'encoder'?"),
        (dict(lower_case=True), "'lower_case' is no option of a tokenizer; did you mean 'lowercase'?"),
        (dict(vocab_size=257), "vocab_size is 257, but 256 bytes and 2 special tokens make 258: give at least that"),
        (dict(vocab_size=300, purpose="encoder-decoder"), "256 bytes and 103 special tokens make 359"),
        (dict(vocab_size=None), "a bpe tokenizer needs a vocab_size, for example 4096"),
        (dict(vocab_size=0), "vocab_size is 0: it is a whole number of at least 1"),
        (dict(vocab_size=True), "vocab_size is True"),
        (dict(min_frequency=1.5), "min_frequency is 1.5"),
        (dict(lowercase="yes"), "lowercase is 'yes': it is true or false"),
        (dict(limit_alphabet=9), "a bpe tokenizer has no use for limit_alphabet"),
        (dict(kind="byte", vocab_size=300), "256 bytes and 2 special tokens, 258 in all: leave it out"),
        (dict(kind="byte", vocab_size=None, min_frequency=2), "a byte tokenizer has no use for min_frequency"),
        (dict(kind="character", split_digits=True), "a character tokenizer has no use for split_digits"),
        (dict(kind="wordpiece", normalization="nfc"), "a wordpiece tokenizer has no use for normalization"),
        (dict(normalization="nfx"), "did you mean 'nfc'?"),
        (dict(around="cls_sep"), "did you mean 'cls-sep'?"),
        (dict(around="cls-sep"), "needs the special token 'cls'"),
        (dict(special_tokens={"end": "x"}), "'end' is no role of a special token"),
        (dict(special_tokens={"eos": " "}), "special_tokens.eos is ' '"),
        (dict(additional_special_tokens="<a>"), "additional_special_tokens is '<a>': it is a list of tokens"),
        (dict(additional_special_tokens=None), "additional_special_tokens is None: it is a list of tokens"),
        (dict(special_tokens=["<a>"]), "special_tokens is ['<a>']: it maps roles to tokens"),
        (dict(chat_template=3), "chat_template is 3: it is a Jinja source"),
        (dict(additional_special_tokens=[3]), "additional_special_tokens is 3"),
        (dict(additional_special_tokens=["hello"]), "'hello' occurs as a word in the data"),
        (dict(kind="wordpiece", vocab_size=8), "give at least that, or give a limit_alphabet"),
        (dict(kind="unigram", vocab_size=8), "characters and 3 special tokens make"),
        (dict(kind="character", vocab_size=5), "vocab_size is 5, but 8 characters and 3 special tokens make 11"),
        (dict(kind="character", vocab_size=None, min_frequency=99), "no character occurs 99 times"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PolyformerError) as error:
        train_tokenizer(["hello hello world"] * 3, **{"vocab_size": 400, **options})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "byte"])
def test_data_that_is_none(kind: str) -> None:
    size = SIZES[kind]
    for texts in ([], ["", ""]):
        with pytest.raises(DataError, match="empty"):
            train_tokenizer(texts, kind, size)
    with pytest.raises(DataError, match="text 1 is bytes, not str"):
        train_tokenizer(["a", b"b"], kind, size)  # type: ignore[list-item]
    with pytest.raises(DataError, match="text 0 is not valid Unicode"):
        train_tokenizer(["a\ud800"], kind, size)
    with pytest.raises(DataError, match="put it in a list"):
        train_tokenizer("a text", kind, size)

    def broken() -> Iterator[str]:
        yield "a b c"
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="the disk went away"):
        train_tokenizer(broken(), kind, size)


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_blank_data(kind: str) -> None:
    with pytest.raises(DataError, match="blank"):
        train_tokenizer(["  \n ", "\t"], kind, 300)


def test_a_plan_is_checked_before_data_is_read() -> None:
    def texts() -> Iterator[str]:
        raise AssertionError("read")
        yield ""

    with pytest.raises(ConfigError):
        train_tokenizer(texts(), "bpe", 10)
    assert TokenizerPlan.of(kind="unigram", vocab_size=500).reserved == 3


def test_progress_tells_what_was_read(small: list[str]) -> None:
    told: list[tuple[str, int, int | None]] = []
    train_tokenizer(small, "unigram", 700, progress=lambda *one: told.append(one))
    read = [done for what, done, _ in told if what == "reading"]
    assert read == sorted(read) and read[-1] == sum(map(len, small))
    assert told[-1][0] == "pruning" and told[-1][1] <= told[-1][2]
