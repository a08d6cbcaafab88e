"""Tokenizer folders in every file format, loaded by transformers and by Polyformer: equal ids and equal text."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    OpenAIGPTTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    T5Tokenizer,
)

from polyformer.errors import TokenizerError
from polyformer.tokenizers.loading import load_tokenizer

BYTES = pre_tokenizers.ByteLevel.alphabet()


def write(folder: Path, **files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def train_bpe(corpus: list[str], special: list[str], *, split=None, suffix: str = "") -> dict:
    """A trained BPE model's description: {"vocab": ..., "merges": ...}."""
    words = dict(unk_token="<unk>", end_of_word_suffix=suffix) if suffix else {}
    tokenizer = Tokenizer(models.BPE(**words))
    tokenizer.pre_tokenizer = split or pre_tokenizers.ByteLevel(add_prefix_space=False)
    if suffix:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    options = dict(end_of_word_suffix=suffix) if suffix else dict(initial_alphabet=BYTES)
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False, **options)
    tokenizer.train_from_iterator(corpus, trainer)
    return json.loads(tokenizer.to_str())["model"]


def write_bpe(folder: Path, model: dict, **files) -> Path:
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"])
    return write(folder, vocab__json=model["vocab"], merges__txt=merges, **files)


@pytest.fixture(scope="module")
def byte_level(corpus: list[str]) -> dict:
    return train_bpe(corpus, ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>", "<|im_end|>"])


def agree(ours, theirs, texts: list[str], special: list[str] = ()) -> None:
    """Ids with and without special tokens, and decoded text, for hard texts and texts with special tokens inside."""
    around = [f"one {token}two{token} three" for token in special] + ["".join(special)]
    for text in [*texts, *around]:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text) == expected, repr(text)
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), repr(text)
        assert ours.decode(expected, skip_special_tokens=False) == theirs.decode(expected), repr(text)
        pieces = ours.stream()
        assert "".join(map(pieces.push, expected)) + pieces.finish() == ours.decode(expected), repr(text)
    assert ours.encode_batch(texts) == [theirs(text)["input_ids"] for text in texts]
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id"), role
        assert getattr(ours, f"{role}_token") == getattr(theirs, f"{role}_token"), role
    assert ours.vocab_size == len(theirs)


def saved_agrees(ours, folder: Path, texts: list[str], special: list[str] = ()) -> None:
    """What `save` writes is loaded by transformers and by Polyformer as the same tokenizer."""
    ours.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    write(folder, config__json={"model_type": "llama"})
    agree(ours, AutoTokenizer.from_pretrained(folder), texts, special)
    again = load_tokenizer(folder)
    assert [again.encode(text) for text in texts] == [ours.encode(text) for text in texts]
    assert again.settings == ours.settings


# --- vocab.json and merges.txt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [False, True])
def test_gpt2(tmp_path: Path, byte_level: dict, hard_texts: list[str], prefix: bool):
    folder = write_bpe(
        tmp_path / "a",
        byte_level,
        config__json={"model_type": "gpt2"},
        tokenizer_config__json={"add_prefix_space": prefix, "tokenizer_class": "GPT2Tokenizer"},
    )
    ours = load_tokenizer(folder)
    agree(ours, GPT2Tokenizer.from_pretrained(folder), hard_texts, ["<|endoftext|>"])
    saved_agrees(ours, tmp_path / "b", hard_texts, ["<|endoftext|>"])


def test_without_any_config_the_files_decide(tmp_path: Path, byte_level: dict, hard_texts: list[str]):
    folder = write_bpe(tmp_path, byte_level)
    agree(load_tokenizer(folder), GPT2Tokenizer.from_pretrained(folder), hard_texts, ["<|endoftext|>"])


@pytest.mark.parametrize("named_by", ["class", "model type"])
def test_qwen2(tmp_path: Path, byte_level: dict, hard_texts: list[str], named_by: str):
    config = {
        "added_tokens_decoder": {
            str(len(byte_level["vocab"])): {"content": "<|im_start|>", "special": True, "normalized": False},
            str(len(byte_level["vocab"]) + 1): {"content": "<tool>", "special": False, "normalized": False},
        },
        "additional_special_tokens": ["<|im_start|>"],
        "eos_token": "<|im_end|>",
        "pad_token": {"content": "<|endoftext|>", "__type": "AddedToken"},
        "add_bos_token": False,
    }
    if named_by == "class":
        config["tokenizer_class"] = "Qwen2Tokenizer"
    folder = write_bpe(tmp_path / "a", byte_level, config__json={"model_type": "qwen2"}, tokenizer_config__json=config)
    ours = load_tokenizer(folder)
    special = ["<|im_start|>", "<tool>", "<|im_end|>", "<|endoftext|>"]
    agree(ours, Qwen2Tokenizer.from_pretrained(folder), hard_texts, special)
    saved_agrees(ours, tmp_path / "b", hard_texts, special)


def test_roberta(tmp_path: Path, byte_level: dict, hard_texts: list[str]):
    folder = write_bpe(tmp_path / "a", byte_level, tokenizer_config__json={"tokenizer_class": "RobertaTokenizer"})
    ours = load_tokenizer(folder)
    special = ["<s>", "</s>", "<pad>"]
    agree(ours, RobertaTokenizer.from_pretrained(folder), hard_texts, special)
    saved_agrees(ours, tmp_path / "b", hard_texts, special)


def test_openai_gpt(tmp_path: Path, corpus: list[str], hard_texts: list[str]):
    model = train_bpe(corpus, ["<unk>"], split=pre_tokenizers.BertPreTokenizer(), suffix="</w>")
    folder = write_bpe(tmp_path / "a", model, config__json={"model_type": "openai-gpt"})
    ours = load_tokenizer(folder)
    assert any(token.endswith("</w>") for token in model["vocab"])
    agree(ours, OpenAIGPTTokenizer.from_pretrained(folder), hard_texts, ["<unk>"])
    saved_agrees(ours, tmp_path / "b", hard_texts, ["<unk>"])


# --- vocab.txt --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
        {"clean_up_tokenization_spaces": True},
    ],
    ids=str,
)
def test_bert(tmp_path: Path, corpus: list[str], hard_texts: list[str], options: dict):
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=options.get("do_lower_case", True))
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    trained.train_from_iterator(corpus, trainer)
    vocabulary = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    folder = write(
        tmp_path / "a",
        vocab__txt="\n".join(vocabulary) + "\n",
        tokenizer_config__json={"tokenizer_class": "BertTokenizer", **options},
    )
    ours = load_tokenizer(folder)
    agree(ours, BertTokenizer.from_pretrained(folder), hard_texts, special)
    saved_agrees(ours, tmp_path / "b", hard_texts, special)


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def sentencepiece_file(folder: Path, corpus: list[str], name: str, **options) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    options = dict(dict(vocab_size=600, hard_vocab_limit=False, minloglevel=2), **options)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **options)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(model.getvalue())
    return folder


LLAMA = dict(
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
)


def test_llama(tmp_path: Path, corpus: list[str], hard_texts: list[str]):
    folder = sentencepiece_file(tmp_path / "a", corpus, "tokenizer.model", **LLAMA)
    config = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False}
    write(folder, tokenizer_config__json=config)
    ours = load_tokenizer(folder)
    special = ["<s>", "</s>", "<unk>"]
    agree(ours, LlamaTokenizer.from_pretrained(folder), hard_texts, special)
    assert ours.encode("x")[0] == ours.bos_token_id == 1
    saved_agrees(ours, tmp_path / "b", hard_texts, special)


def test_llama_legacy_is_sentencepiece_itself(tmp_path: Path, corpus: list[str], hard_texts: list[str]):
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = sentencepiece_file(tmp_path, corpus, "tokenizer.model", **LLAMA)
    write(folder, config__json={"model_type": "llama"}, tokenizer_config__json={"add_eos_token": True})
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    ours = load_tokenizer(folder)
    for text in hard_texts:
        assert ours.encode(text) == [1, *reference.encode(text), 2], repr(text)
    # legacy: a prefix space after special tokens as well
    assert ours.encode("<s>is", add_special_tokens=False) == [1, *reference.encode("is")]


def test_gemma(tmp_path: Path, corpus: list[str], hard_texts: list[str]):
    options = dict(
        LLAMA,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<mask>", "<start_of_turn>", "<end_of_turn>"],
    )
    folder = sentencepiece_file(tmp_path / "a", corpus, "tokenizer.model", **options)
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "mask_token": "<mask>",
        "additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"],
    }
    write(folder, tokenizer_config__json=config)
    ours = load_tokenizer(folder)
    special = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<mask>"]
    agree(ours, GemmaTokenizer.from_pretrained(folder), hard_texts, special)
    saved_agrees(ours, tmp_path / "b", hard_texts, special)


def test_the_config_may_rename_pieces(tmp_path: Path, corpus: list[str]):
    folder = sentencepiece_file(
        tmp_path, corpus, "tokenizer.model", **LLAMA, user_defined_symbols=["<free_0>", "<free_1>"]
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {"4": {"content": "<call>", "special": True, "normalized": False}},
    }
    write(folder, tokenizer_config__json=config)
    ours = load_tokenizer(folder)
    assert ours.id_to_token(3) == "<free_0>" and ours.id_to_token(4) == "<call>"
    assert 4 in ours.encode("x<call>y") and 4 not in ours.encode("x<free_1>y")
    assert 4 in ours.special_token_ids and 3 not in ours.special_token_ids


def test_t5(tmp_path: Path, corpus: list[str], hard_texts: list[str]):
    options = dict(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    folder = sentencepiece_file(tmp_path / "a", corpus, "spiece.model", **options)
    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    write(folder, tokenizer_config__json={"tokenizer_class": "T5Tokenizer", "additional_special_tokens": sentinels})
    ours = load_tokenizer(folder)
    reference = T5Tokenizer.from_pretrained(folder)
    for text in hard_texts:
        assert ours.encode(text) == reference(text)["input_ids"], repr(text)
    assert 1 in ours.encode("a</s>b", add_special_tokens=False)
    plain = ours.encode("a</s> <extra_id_5> b", add_special_tokens=False, parse_special=False)
    assert not set(plain) & (ours.special_token_ids - {ours.unk_token_id})
    assert ours.encode("word one", parse_special=False) == ours.encode("word one")
    masked = "The <extra_id_0> walks in <extra_id_1> park"
    assert ours.decode(ours.encode(masked), skip_special_tokens=False) == reference.decode(reference(masked).input_ids)
    saved_agrees(ours, tmp_path / "b", hard_texts)


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path: Path, byte_level: dict) -> Path:
    """A folder with a tokenizer.json that adds a beginning of sequence and would cut and fill up texts."""
    merges = [tuple(merge) for merge in byte_level["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=byte_level["vocab"], merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=7, pad_id=1, pad_token="<pad>")
    folder = write(tmp_path / "whole")
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "__type": "AddedToken", "lstrip": False},
    "pad_token": "[PAD]",
    "additional_special_tokens": ["<|im_end|>", "<|new|>"],
    "model_max_length": 99,
}


def test_tokenizer_json(whole: Path, tmp_path: Path, hard_texts: list[str]):
    write(whole, tokenizer_config__json=CONFIG)
    ours = load_tokenizer(whole)
    special = ["<s>", "</s>", "<|im_end|>", "[PAD]", "<|new|>"]
    theirs = PreTrainedTokenizerFast.from_pretrained(whole)
    agree(ours, theirs, hard_texts, special)
    assert ours.pad_token_id == theirs.pad_token_id == len(theirs) - 2  # added, since the file had none
    saved_agrees(ours, tmp_path / "b", hard_texts, special)
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["model_max_length"] == 99


def test_tokenizer_json_comes_before_other_files(whole: Path, byte_level: dict):
    write_bpe(whole, {"vocab": {"a": 0}, "merges": []})
    assert load_tokenizer(whole).vocab_size == len(byte_level["vocab"])


def test_special_tokens_map_speaks_where_the_config_is_silent(whole: Path):
    write(
        whole,
        tokenizer_config__json={"eos_token": "<|im_end|>"},
        special_tokens_map__json={"eos_token": "</s>", "bos_token": {"content": "<s>"}},
    )
    ours = load_tokenizer(whole)
    assert (ours.bos_token, ours.eos_token) == ("<s>", "<|im_end|>")


def test_ends_of_text_of_the_generation_config(whole: Path):
    write(whole, tokenizer_config__json={"eos_token": "</s>"}, generation_config__json={"eos_token_id": [6, 2]})
    ours = load_tokenizer(whole)
    assert ours.eos_token_ids == (2, 6)
    ours.save(whole.parent / "saved")
    assert load_tokenizer(whole.parent / "saved").eos_token_ids == (2, 6)


@pytest.mark.parametrize("form", ["string", "named", "file", "files"])
def test_chat_templates(whole: Path, form: str):
    one, two = "one {{ messages[0]['content'] }}", "two {{ messages[0]['content'] }}"
    named = [{"name": "default", "template": one}, {"name": "tool_use", "template": two}]
    config = {"string": one, "named": named, "file": "not this", "files": None}[form]
    write(whole, tokenizer_config__json={"chat_template": config})
    if form in ("file", "files"):
        write(whole, chat_template__jinja=one)
    if form == "files":
        write(whole / "additional_chat_templates", tool_use__jinja=two)
    ours, theirs = load_tokenizer(whole), PreTrainedTokenizerFast.from_pretrained(whole)
    messages = [{"role": "user", "content": "hi"}]
    assert ours.chat_template == one
    tools = [{"name": "f"}]
    expected = theirs.apply_chat_template(messages, tokenize=False, tools=tools)
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages, tokenize=False) == "one hi"
    assert ours.apply_chat_template(messages, tools=tools) == expected
    ours.save(whole.parent / "saved")
    assert load_tokenizer(whole.parent / "saved").chat_templates == ours.chat_templates
    again = PreTrainedTokenizerFast.from_pretrained(whole.parent / "saved")
    assert again.apply_chat_template(messages, tokenize=False, tools=tools) == expected


# --- nothing, and damage ----------------------------------------------------------------------------------------------


def test_a_folder_without_tokenizer_files_gives_none(tmp_path: Path):
    write(tmp_path, config__json={"model_type": "gpt2"}, tokenizer_config__json={})
    assert load_tokenizer(tmp_path) is None
    with pytest.raises(TokenizerError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")


BERT_VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer__json": '{"version": "1.0", "model": {"ty'}, r"tokenizer\.json is not a whole tokenizer"),
        ({"tokenizer__json": "{}", "tokenizer_config__json": "["}, r"tokenizer_config\.json is not valid JSON"),
        ({"tokenizer__json": "{}", "tokenizer_config__json": "[]"}, r"tokenizer_config\.json holds a JSON list"),
        ({"vocab__json": {"a": 0}}, r"merges\.txt is missing"),
        ({"vocab__json": '{"a": 0', "merges__txt": ""}, r"vocab\.json is not valid JSON"),
        ({"vocab__json": {"a": "0"}, "merges__txt": ""}, r"vocab\.json gives 'a' the id '0'"),
        ({"vocab__json": {}, "merges__txt": ""}, r"vocab\.json is empty"),
        ({"vocab__json": {"a": 0}, "merges__txt": "#version\na\n"}, r"merges\.txt line 2 is not two tokens"),
        ({"vocab__json": {"a": 0}, "merges__txt": "a b\n"}, r"merges\.txt does not make a tokenizer"),
        ({"vocab__txt": "hello\n"}, r"vocab\.txt: the vocabulary has no \[CLS\]"),
        (
            {"vocab__txt": BERT_VOCABULARY, "tokenizer_config__json": {"do_basic_tokenize": False}},
            "do_basic_tokenize",
        ),
        ({"tekken__json": "{}"}, r"tekken\.json is a tokenizer file of a kind that cannot be read: convert it"),
        ({"tokenizer__model": "aGVsbG8= 0\nd29ybGQ= 1\n"}, r"tokenizer\.model is a tiktoken file"),
        ({"tokenizer__model": "hello"}, r"tokenizer\.model is not a whole SentencePiece model"),
        (
            {"vocab__json": {"a": 0}, "merges__txt": "", "config__json": {"model_type": "fsmt"}},
            r"merges\.txt: the tokenizer class of model type fsmt cannot be built from vocab\.json and merges\.txt",
        ),
        (
            {"vocab__txt": BERT_VOCABULARY, "tokenizer_config__json": {"tokenizer_class": "HerbertTokenizer"}},
            r"HerbertTokenizer cannot be built from vocab\.txt \(known: BertTokenizer.*tokenizer\.json",
        ),
        (
            {
                "vocab__txt": BERT_VOCABULARY,
                "tokenizer_config__json": {"added_tokens_decoder": {"9": {"content": "<new>"}}},
            },
            r"gives '<new>' the id 9, but the vocabulary files lead to 5",
        ),
        (
            {"vocab__txt": BERT_VOCABULARY, "tokenizer_config__json": {"added_tokens_decoder": {"x": 1}}},
            "lists an added token wrongly",
        ),
        ({"vocab__txt": BERT_VOCABULARY, "tokenizer_config__json": {"eos_token": 5}}, "eos_token is not a token"),
        (
            {"vocab__txt": BERT_VOCABULARY, "tokenizer_config__json": {"chat_template": [1]}},
            "chat_template is malformed",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:40],
)
def test_damage_is_named_with_its_remedy(tmp_path: Path, files: dict, message: str):
    write(tmp_path, **files)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_text_are_named(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not UTF-8 text \(byte 7\)"):
        load_tokenizer(tmp_path)
