"""Tokenizers inside GGUF files: synthetic metadata of every kind, and a real file."""

from __future__ import annotations

import io
import json
import random
import string
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from polyformer.errors import TokenizerError
from polyformer.tokenizers.gguf import WORD_CUTS, tokenizer_from_gguf
from polyformer.tokenizers.text import TextTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def keys(**entries: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in entries.items()}


@pytest.fixture(scope="module")
def byte_level(corpus: list[str]) -> dict[str, Any]:
    """Metadata of a byte-level tokenizer with merges across almost anything, so that only the word cut limits it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=12,
    )
    generator = random.Random(3)
    mixed = ["".join(generator.choices(string.printable, k=30)) for _ in range(300)]
    numbers = [str(generator.randrange(10**9)) for _ in range(300)]
    tokenizer.train_from_iterator([*corpus, *mixed, *numbers, "½² ١٢٣ ⅷ 你好 12" * 40], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return keys(
        model="gpt2",
        tokens=tokens,
        token_type=[CONTROL if token in SPECIAL else NORMAL for token in tokens],
        merges=[" ".join(merge) for merge in model["merges"]],
        bos_token_id=0,
        eos_token_id=2,
        padding_token_id=0,
    )


def reference(metadata: dict[str, Any], cut: Any, **options: Any) -> Tokenizer:
    """The tokenizer.json of a model with this vocabulary, with the word cut that its publishers wrote down."""
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(tokens)}, merges=merges, **options))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def split(pattern: str) -> Any:
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
# As the models' own tokenizer.json files have them.
PUBLISHED = {
    "default": GPT2,
    "gpt-2": GPT2,
    "smollm": DIGITS,
    "starcoder": DIGITS,
    "refact": DIGITS,
    "command-r": DIGITS,
    "llama-bpe": split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": split(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "tekken": split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "falcon": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            GPT2,
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    ),
    "deepseek-coder": pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(Regex(pattern), "isolated")
                for pattern in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
            ),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_byte_level_word_cuts(byte_level: dict[str, Any], hard_texts: list[str], name: str):
    whole_words = name in ("llama-bpe", "tekken")
    expected = reference(byte_level, PUBLISHED[name], ignore_merges=whole_words)
    ours = tokenizer_from_gguf({**byte_level, **keys(pre=name)})
    numbers = ["1234567 12.5 x=100000", "١٢٣٤ ½²⅓ ⅷⅸ", "I'LL we'Ve 'tis", "a\n\n  b\r\n\tc/\n//"]
    special = [f"one {token}two{token} three" for token in SPECIAL]
    for text in [*hard_texts, *numbers, *special]:
        ids = expected.encode(text).ids
        assert ours.encode(text, add_special_tokens=False) == ids, repr(text)
        assert ours.decode(ids, skip_special_tokens=False) == expected.decode(ids, skip_special_tokens=False)
        # These add the beginning of sequence where the file does not say otherwise.
        assert ours.encode(text) == ([0, *ids] if whole_words else ids)


def test_word_cuts_differ_from_one_another(byte_level: dict[str, Any]):
    """Else the comparison above would prove little."""
    text = "x=1234567 ½² I'LL  you're\n\n /a/\nb, 你好 _x_(self): 'T eXtraWord"
    groups: dict[tuple[str, ...], set[str]] = {}
    for name in PUBLISHED:
        cut = tokenizer_from_gguf({**byte_level, **keys(pre=name)}).backend.pre_tokenizer
        words = tuple(word for word, _ in cut.pre_tokenize_str(text))
        groups.setdefault(words, set()).add(name)
    assert sorted(map(sorted, groups.values())) == [
        ["command-r", "refact", "smollm", "starcoder"],
        ["deepseek-coder"],
        ["default", "gpt-2"],
        ["falcon"],
        ["llama-bpe"],
        ["qwen2"],
        ["tekken"],
    ]


@pytest.mark.parametrize("name", sorted(WORD_CUTS))
def test_every_word_cut_keeps_the_text(byte_level: dict[str, Any], hard_texts: list[str], name: str):
    tokenizer = tokenizer_from_gguf({**byte_level, **keys(pre=name)})
    for text in hard_texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_deepseek_llm_cuts_letters_punctuation_and_ideographs(byte_level: dict[str, Any]):
    backend = tokenizer_from_gguf({**byte_level, **keys(pre="deepseek-llm")}).backend
    words = [text for text, _ in backend.pre_tokenizer.pre_tokenize_str("Hello, wörld 你好!? 123\nx  ")]
    # The published punctuation class holds the range ":-~", and with it the ASCII letters: "ö" stands alone.
    shown = [decoders.ByteLevel().decode([word]) for word in words]
    assert shown == ["Hello", ",", " w", "ö", "rld", " ", "你好", "!?", " ", "123", "\n", "x", "  "]


def test_llama3_takes_whole_words_before_merges(byte_level: dict[str, Any]):
    tokens = [*byte_level["tokenizer.ggml.tokens"], "Ġqxzjqx"]  # no merges lead to it
    metadata = {**byte_level, **keys(tokens=tokens, token_type=[*byte_level["tokenizer.ggml.token_type"], NORMAL])}
    whole = tokenizer_from_gguf({**metadata, **keys(pre="llama-bpe")}).encode("a qxzjqx", add_special_tokens=False)
    merged = tokenizer_from_gguf({**metadata, **keys(pre="qwen2")}).encode("a qxzjqx")
    assert whole[-1] == len(tokens) - 1 and len(tokens) - 1 not in merged


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_saved_for_transformers(byte_level: dict[str, Any], hard_texts: list[str], tmp_path: Path, name: str):
    metadata = {**byte_level, **keys(pre=name, add_bos_token=True), "tokenizer.chat_template": "{{ messages }}"}
    ours = tokenizer_from_gguf(metadata)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in hard_texts:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids, repr(text)
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids), repr(text)
    assert theirs.chat_template == "{{ messages }}" and theirs.eos_token_id == ours.eos_token_id == 2


def test_special_tokens_and_ends(byte_level: dict[str, Any]):
    tokenizer = tokenizer_from_gguf({**byte_level, **keys(eos_token_id=0, eot_token_id=2, unknown_token_id=999999)})
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (SPECIAL[0],) * 3
    assert tokenizer.unk_token is None and tokenizer.unk_token_id is None
    assert tokenizer.eos_token_ids == (0, 2)
    assert tokenizer.special_token_ids == {0, 1, 2}
    plain = tokenizer.encode("<|im_end|>", parse_special=False)
    assert 2 not in plain and tokenizer.decode(plain) == "<|im_end|>"
    assert tokenizer.encode("<|im_end|>") == [2]


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (False, True), (True, True)])
def test_added_beginning_and_end(byte_level: dict[str, Any], bos: bool, eos: bool):
    for name in ("gpt-2", "llama-bpe"):
        metadata = {**byte_level, **keys(pre=name, add_bos_token=bos, add_eos_token=eos)}
        ids = tokenizer_from_gguf(metadata).encode("a")
        assert (ids[0] == 0, ids[-1] == 2, len(ids)) == (bos, eos, 1 + bos + eos)


def test_user_defined_tokens_are_found_but_are_text(byte_level: dict[str, Any]):
    tokens = [*byte_level["tokenizer.ggml.tokens"], "<think>"]
    kinds = [*byte_level["tokenizer.ggml.token_type"], USER_DEFINED]
    tokenizer = tokenizer_from_gguf({**byte_level, **keys(tokens=tokens, token_type=kinds)})
    ids = tokenizer.encode("<think>x")
    assert ids[0] == len(tokens) - 1 and tokenizer.decode(ids) == "<think>x"


def test_chat_templates(byte_level: dict[str, Any]):
    templates = {"tokenizer.chat_template": "one", "tokenizer.chat_template.tool_use": "two"}
    names = {"tokenizer.chat_templates": ["tool_use"]}
    tokenizer = tokenizer_from_gguf({**byte_level, **templates, **names})
    assert tokenizer.chat_templates == {"default": "one", "tool_use": "two"}


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def sentencepiece_metadata(corpus: list[str], **options: Any) -> tuple[Any, dict[str, Any]]:
    sentencepiece = pytest.importorskip("sentencepiece")
    from sentencepiece import sentencepiece_model_pb2

    model = io.BytesIO()
    options = dict(dict(vocab_size=600, hard_vocab_limit=False, minloglevel=2), **options)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **options)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    metadata = keys(
        tokens=[piece.piece for piece in proto.pieces],
        scores=[piece.score for piece in proto.pieces],
        token_type=[piece.type for piece in proto.pieces],
        unknown_token_id=proto.trainer_spec.unk_id,
    )
    charsmap = proto.normalizer_spec.precompiled_charsmap
    if charsmap:  # GGUF stores it as a list of signed bytes
        metadata["tokenizer.ggml.precompiled_charsmap"] = [byte - 256 if byte > 127 else byte for byte in charsmap]
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()), metadata


@pytest.mark.parametrize("prefix", [True, False])
def test_llama(corpus: list[str], hard_texts: list[str], tmp_path: Path, prefix: bool):
    expected, metadata = sentencepiece_metadata(
        corpus,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
    )
    if not prefix:
        metadata["tokenizer.ggml.add_space_prefix"] = False
    tokenizer = tokenizer_from_gguf({**metadata, "tokenizer.ggml.model": "llama"})
    for text in hard_texts:
        ids = expected.encode(text)
        assert tokenizer.encode(text) == [1, *ids], repr(text)
        assert tokenizer.decode(ids) == expected.decode(ids), repr(text)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in hard_texts:
        assert theirs(text)["input_ids"] == tokenizer.encode(text), repr(text)
    # as llama.cpp: a prefix space after every special token too
    assert tokenizer.encode("<s>is</s>is") == [1, 1, *expected.encode("is"), 2, *expected.encode("is")]


def test_entries_that_fill_up_the_vocabulary_never_come_out(corpus: list[str]):
    _, metadata = sentencepiece_metadata(corpus, model_type="bpe", byte_fallback=True)
    metadata["tokenizer.ggml.tokens"] += ["[PAD600]", "[PAD601]"]
    metadata["tokenizer.ggml.scores"] += [0.0, 0.0]
    metadata["tokenizer.ggml.token_type"] += [UNUSED, UNUSED]
    tokenizer = tokenizer_from_gguf({**metadata, "tokenizer.ggml.model": "llama"})
    assert tokenizer.vocab_size == len(metadata["tokenizer.ggml.tokens"])
    assert tokenizer.vocab_size - 2 not in tokenizer.encode("[PAD600]")


def test_t5(corpus: list[str], hard_texts: list[str]):
    expected, metadata = sentencepiece_metadata(corpus, model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    flags = keys(model="t5", add_space_prefix=True, remove_extra_whitespaces=True)
    tokenizer = tokenizer_from_gguf({**metadata, **flags})
    for text in hard_texts:
        ids = expected.encode(text)
        assert tokenizer.encode(text) == [*ids, 1], repr(text)
        if 2 not in ids:
            assert tokenizer.decode(ids) == expected.decode(ids), repr(text)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)


# --- WordPiece --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert(corpus: list[str], hard_texts: list[str], lowercase: bool):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    expected = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    expected.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    expected.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    expected.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    expected.train_from_iterator(corpus, trainer)
    pieces = sorted(expected.get_vocab(), key=expected.get_vocab().__getitem__)
    marked = [piece if piece in special else piece[2:] if piece.startswith("##") else f"▁{piece}" for piece in pieces]
    metadata = keys(
        model="bert",
        tokens=marked,
        token_type=[CONTROL if piece in special else NORMAL for piece in pieces],
        bos_token_id=2,
        unknown_token_id=1,
        seperator_token_id=3,
        padding_token_id=0,
        mask_token_id=4,
    )
    if not lowercase:
        metadata["tokenizer.ggml.normalizer.lowercase"] = False
    tokenizer = tokenizer_from_gguf(metadata)
    for text in [*hard_texts, "the [MASK] sat"]:
        ids = expected.encode(text).ids
        assert tokenizer.encode(text) == [2, *ids, 3], repr(text)
        assert tokenizer.decode(ids) == expected.decode(ids), repr(text)
    assert (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id) == (2, 3, 4)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "has no tokenizer inside"),
        ({"model": "rwkv"}, "unknown GGUF tokenizer model 'rwkv': the known ones are bert, gpt2, llama, t5"),
        ({"pre": "smolm"}, "unknown GGUF pre-tokenizer 'smolm': the known ones are .*command-r.*smollm.*tekken"),
        ({"tokens": None}, "holds no tokens"),
        ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens in the GGUF file is not a list"),
        ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens in the GGUF file holds something else than text"),
        ({"token_type": [1]}, r"token_type in the GGUF file has 1 entries for \d+ tokens"),
        ({"merges": None}, r"no tokenizer\.ggml\.merges"),
        ({"merges": ["ab"]}, r"tokenizer\.ggml\.merges in the GGUF file holds 'ab'"),
        ({"merges": ["nobody knows"]}, "does not fit together"),
        ({"model": "llama"}, r"no tokenizer\.ggml\.scores"),
        ({"model": "t5"}, r"no tokenizer\.ggml\.scores"),
        ({"model": "bert", "unknown_token_id": 10**6}, "bert tokenizer has no unk token"),
    ],
    ids=str,
)
def test_damage_is_named(byte_level: dict[str, Any], change: dict[str, Any], message: str):
    metadata = {**byte_level, **keys(**change)}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    with pytest.raises(TokenizerError, match=message) as caught:
        tokenizer_from_gguf(metadata)
    assert "\n" not in str(caught.value)


# --- a real file ------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_smollm2_equals_transformers(hard_texts: list[str]):
    catalogue = pytest.importorskip("polyformer.checkpoints.catalogue")
    from polyformer.checkpoints.gguf import GGUFFile

    path = catalogue.resolve("smollm2-135m-instruct").path
    ours: TextTokenizer = tokenizer_from_gguf(GGUFFile(path).metadata)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    special = [f"one {token}two{token} three" for token in SPECIAL]
    for text in [*hard_texts, *special]:
        expected = theirs(text)["input_ids"]
        if any(character.isnumeric() and not character.isascii() for character in text):
            # transformers does not know the word cut "smollm", so it joins the bytes of neighbouring digits.
            continue
        assert ours.encode(text) == expected, repr(text)
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), repr(text)
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 2)
