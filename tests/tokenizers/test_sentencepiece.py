"""SentencePiece models against the sentencepiece package: the same ids and the same text."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

sentencepiece = pytest.importorskip("sentencepiece")
from sentencepiece import sentencepiece_model_pb2  # noqa: E402

from polyformer.errors import TokenizerError  # noqa: E402
from polyformer.tokenizers.sentencepiece import (  # noqa: E402
    build_sentencepiece,
    parse_sentencepiece,
    read_sentencepiece,
)
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings  # noqa: E402

LLAMA = dict(
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    split_digits=True,
)
KINDS = {
    "llama": LLAMA,
    "bpe": dict(model_type="bpe"),
    "bpe without prefix": dict(model_type="bpe", add_dummy_prefix=False, byte_fallback=True),
    "gemma": dict(LLAMA, add_dummy_prefix=False, user_defined_symbols=["<mark>", "\n\n"]),
    "unigram": dict(model_type="unigram"),
    "unigram bytes": dict(model_type="unigram", byte_fallback=True, pad_id=3),
    "t5 ids": dict(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
}


def train(corpus: list[str], **options) -> bytes:
    model = io.BytesIO()
    options = dict(dict(vocab_size=600, hard_vocab_limit=False, minloglevel=2), **options)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **options)
    return model.getvalue()


@pytest.fixture(scope="module", params=sorted(KINDS))
def data(request, corpus: list[str]) -> bytes:
    return train(corpus, **KINDS[request.param])


def test_every_field_is_read_as_protobuf_reads_it(data: bytes):
    reference = sentencepiece_model_pb2.ModelProto()
    reference.ParseFromString(data)
    ours = parse_sentencepiece(data, "test")
    assert [(p.text, p.score, p.kind) for p in ours.pieces] == [(p.piece, p.score, p.type) for p in reference.pieces]
    for name in ("model_type", "byte_fallback", "unk_id", "bos_id", "eos_id", "pad_id", "treat_whitespace_as_suffix"):
        assert getattr(ours, name) == getattr(reference.trainer_spec, name), name
    for name in (
        "precompiled_charsmap",
        "add_dummy_prefix",
        "remove_extra_whitespaces",
        "escape_whitespaces",
    ):
        assert getattr(ours, name) == getattr(reference.normalizer_spec, name), name


def test_ids_and_text_equal_sentencepiece(data: bytes, hard_texts: list[str]):
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    model = parse_sentencepiece(data, "test")
    tokenizer = TextTokenizer(build_sentencepiece(model, "test"), TokenizerSettings(model.special_tokens()))
    compared = 0
    for text in hard_texts:
        ids, expected = tokenizer.encode(text), reference.encode(text)
        if ids != expected:
            # Two cuts of exactly equal probability: the libraries break the tie differently.
            scores = [sum(reference.get_score(token_id) for token_id in cut) for cut in (ids, expected)]
            assert model.model_type == 1 and scores[0] == pytest.approx(scores[1], abs=1e-3), repr(text)
            assert sorted(ids) == sorted(expected), repr(text)
        if reference.unk_id() not in expected:
            assert tokenizer.decode(ids) == reference.decode(expected), repr(text)
            compared += 1
    assert compared > 40


def test_lone_bytes_become_the_replacement_character(corpus: list[str]):
    data = train(corpus, **LLAMA)
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    tokenizer = TextTokenizer(build_sentencepiece(parse_sentencepiece(data, "test"), "test"))
    ids = [tokenizer.token_to_id(token) for token in ("▁a", "<0xE4>", "<0xBD>", "▁b")]
    assert None not in ids
    assert tokenizer.decode(ids) == reference.decode(ids) == "a�� b"


@pytest.mark.parametrize("kind", ["word", "char"])
def test_word_and_char_models_are_refused(kind: str, corpus: list[str]):
    model = parse_sentencepiece(train(corpus, model_type=kind), "x.model")
    with pytest.raises(TokenizerError, match=rf"x\.model is a SentencePiece {kind} model"):
        build_sentencepiece(model, "x.model")


def test_what_is_not_reproduced_is_refused(corpus: list[str]):
    suffix = parse_sentencepiece(train(corpus, model_type="unigram", treat_whitespace_as_suffix=True), "x.model")
    with pytest.raises(TokenizerError, match="writes spaces"):
        build_sentencepiece(suffix, "x.model")
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(train(corpus, model_type="bpe"))
    proto.pieces[100].type = sentencepiece_model_pb2.ModelProto.SentencePiece.UNUSED
    with pytest.raises(TokenizerError, match="unused"):
        build_sentencepiece(parse_sentencepiece(proto.SerializeToString(), "x.model"), "x.model")


def test_damaged_files_are_named(tmp_path: Path, corpus: list[str]):
    data = train(corpus, model_type="bpe")
    path = tmp_path / "tokenizer.model"
    for content in (data[: len(data) // 2 + 1], b"\xff" * 40, b"", b"not a model at all"):
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.model .*fetch the file again"):
            read_sentencepiece(path)
    with pytest.raises(TokenizerError, match="cannot read"):
        read_sentencepiece(tmp_path / "none.model")
