"""What a text tokenizer promises beside equal ids: errors, special tokens, chat, saving."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from polyformer.errors import TokenizerError
from polyformer.tokenizers.loading import load_tokenizer
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{{ tools }}{{ extra }}"


@pytest.fixture
def backend() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


@pytest.fixture
def tokenizer(backend: Tokenizer) -> TextTokenizer:
    settings = TokenizerSettings(
        special_tokens={"bos": "<s>", "eos": "</s>"},
        additional_special_tokens=("<|im_end|>",),
        chat_templates={"default": TEMPLATE, "short": "{{ messages[0].content }}"},
        extra_eos_token_ids=(259, 258),
    )
    return TextTokenizer(backend, settings)


def test_named_tokens_become_special_tokens(tokenizer: TextTokenizer):
    assert tokenizer.vocab_size == 260
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.token_to_id("<|im_end|>")) == (257, 258, 259)
    assert tokenizer.special_token_ids == {257, 258, 259}
    assert tokenizer.eos_token_ids == (258, 259)
    assert tokenizer.pad_token is None and tokenizer.pad_token_id is None
    assert tokenizer.id_to_token(257) == "<s>" and tokenizer.id_to_token(9999) is None
    assert tokenizer.id_to_token(-1) is None and tokenizer.token_to_id("nothing") is None


def test_a_plain_added_token_that_is_named_becomes_special(backend: Tokenizer):
    tokenizer = TextTokenizer(backend, TokenizerSettings({"eos": "<think>"}))
    assert tokenizer.special_token_ids == {256}
    assert tokenizer.decode(tokenizer.encode("a<think>")) == "a"


def test_special_tokens_in_a_text(tokenizer: TextTokenizer):
    text = "a<|im_end|>b<think>"
    assert tokenizer.encode(text)[1] == 259
    plain = tokenizer.encode(text, parse_special=False)
    assert 259 not in plain and plain[-1] == 256  # a token that is not special stays one
    assert tokenizer.decode(plain) == text
    assert tokenizer.encode(text)[1] == 259  # the other calls are not changed
    assert tokenizer.decode(tokenizer.encode(text)) == "ab<think>"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text


def test_batches(tokenizer: TextTokenizer):
    texts = ["one", "", "three<s>"]
    batch = tokenizer.encode_batch(texts)
    assert batch == [tokenizer.encode(text) for text in texts]
    assert tokenizer.decode_batch(batch, skip_special_tokens=False) == texts
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode("a\ud800b"), "not valid Unicode"),
        (lambda t: t.encode(b"abc"), "text 0 is bytes, not str"),
        (lambda t: t.encode_batch(["a", None]), "text 1 is NoneType, not str"),
        (lambda t: t.encode_batch("abc"), "takes a list of texts"),
        (lambda t: t.decode([-1]), "integers from 0"),
        (lambda t: t.decode(["a"]), "integers from 0"),
    ],
)
def test_wrong_arguments_are_named(tokenizer: TextTokenizer, call, message: str):
    with pytest.raises(TokenizerError, match=message):
        call(tokenizer)


def test_ids_outside_the_vocabulary_have_no_text(tokenizer: TextTokenizer):
    assert tokenizer.decode([*tokenizer.encode("a"), 5000]) == "a"


def test_unknown_roles_are_refused(backend: Tokenizer):
    with pytest.raises(TokenizerError, match="unknown special-token role 'end'"):
        TextTokenizer(backend, TokenizerSettings({"end": "</s>"}))


def test_texts_are_never_cut_or_filled_up(backend: Tokenizer):
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    assert len(TextTokenizer(backend).encode("abcde")) == 5


def test_chat(tokenizer: TextTokenizer):
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, extra="!") == "<s>hi</s>None!"
    assert tokenizer.apply_chat_template(messages, tools=[{"a": 1}], extra="") == "<s>hi</s>[{'a': 1}]"
    assert tokenizer.apply_chat_template(messages, chat_template="short") == "hi"
    assert tokenizer.apply_chat_template(messages, chat_template="{{ messages[0].role }}") == "user"
    ids = tokenizer.encode_chat(messages, chat_template="{{ bos_token }}{{ messages[0].content }}")
    assert ids == [257, *tokenizer.encode("hi")]


def test_a_missing_chat_template_is_an_error(backend: Tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(TokenizerError, match="has no chat template"):
        TextTokenizer(backend).apply_chat_template(messages)
    named = TextTokenizer(backend, TokenizerSettings(chat_templates={"rag": "x", "tool_use": "y"}))
    with pytest.raises(TokenizerError, match="by name: rag, tool_use"):
        named.apply_chat_template(messages)
    assert named.apply_chat_template(messages, tools=[]) == "y"


def test_save_replaces_whole_files(tokenizer: TextTokenizer, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("old")
    tokenizer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert stat.S_IMODE((tmp_path / "tokenizer.json").stat().st_mode) == 0o644
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["eos_token"] == "</s>" and config["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = load_tokenizer(tmp_path)
    assert again.settings.chat_templates == tokenizer.settings.chat_templates
    assert again.encode("a<s>é😀") == tokenizer.encode("a<s>é😀")


def test_save_to_a_place_that_cannot_be_is_an_error(tokenizer: TextTokenizer, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenizerError, match="cannot write the tokenizer"):
        tokenizer.save(tmp_path / "file")
