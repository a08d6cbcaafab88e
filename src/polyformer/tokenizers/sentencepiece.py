"""SentencePiece model files: a reader of their protobuf, and the same tokenizer built with the `tokenizers` library.

The file is one message, `ModelProto` of sentencepiece_model.proto (Kudo and Richardson 2018). Only the fields below
matter for encoding, so a reader of the wire format is enough and no protobuf or sentencepiece package is needed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers
from tokenizers.models import BPE, Unigram

from polyformer.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM_MODEL, BPE_MODEL = 1, 2
MODEL_NAMES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
SPACE = "▁"  # stands for a space in pieces
TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # Llama 3's original tokenizer.model is such a file


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the list."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


@dataclass(frozen=True)
class SentencePieceModel:
    """What a SentencePiece file says, with the format's defaults for what it leaves out."""

    pieces: Sequence[Piece]
    model_type: int = UNIGRAM_MODEL
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    treat_whitespace_as_suffix: bool = False

    def special_tokens(self) -> dict[str, str]:
        """Role -> text of the special tokens that the file names."""
        ids = {"unk": self.unk_id, "bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
        return {role: self.pieces[number].text for role, number in ids.items() if 0 <= number < len(self.pieces)}


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The (field number, value) pairs of a protobuf message: an integer, or the bytes of a fixed or delimited field."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if position + length > len(data):
            raise ValueError("the file ends in the middle of a field")
        yield number, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("the file ends in the middle of a number")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            # Negative numbers are written as 64-bit two's complement.
            return (result - (1 << 64) if result >> 63 else result), position
        shift += 7


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message should be")
    return value


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("a message where a number should be")
    return value


def _piece(data: memoryview) -> Piece:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = bytes(_message(value)).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", _message(value))
        elif number == 3:
            kind = _number(value)
    return Piece(text, score, kind)


TRAINER_FIELDS = {
    3: "model_type",
    24: "treat_whitespace_as_suffix",
    35: "byte_fallback",
    40: "unk_id",
    41: "bos_id",
    42: "eos_id",
    43: "pad_id",
}
NORMALIZER_FIELDS = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces", 5: "escape_whitespaces"}
FLAGS = {"treat_whitespace_as_suffix", "byte_fallback", *NORMALIZER_FIELDS.values()}


def parse_sentencepiece(data: bytes, where: str) -> SentencePieceModel:
    """Read a SentencePiece model.

    Args:
        data: the content of the file; where: its name, for error messages.

    Raises:
        TokenizerError: not a SentencePiece model, or a damaged one.
    """
    pieces: list[Piece] = []
    settings: dict[str, int | bool | bytes] = {}
    try:
        for number, value in _fields(memoryview(data)):
            if number == 1:
                pieces.append(_piece(_message(value)))
            elif number in (2, 3):
                names = TRAINER_FIELDS if number == 2 else NORMALIZER_FIELDS
                for inner, setting in _fields(_message(value)):
                    if inner in names:
                        name = names[inner]
                        settings[name] = bool(_number(setting)) if name in FLAGS else _number(setting)
                    elif number == 3 and inner == 2:
                        settings["precompiled_charsmap"] = bytes(_message(setting))
    except (ValueError, struct.error) as error:
        raise TokenizerError(f"{where} is not a whole SentencePiece model ({error}): fetch the file again") from error
    if not pieces:
        raise TokenizerError(f"{where} holds no SentencePiece vocabulary: fetch the file again")
    return SentencePieceModel(pieces=pieces, **settings)  # type: ignore[arg-type]


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a SentencePiece model file; see `parse_sentencepiece`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from error
    if TIKTOKEN_LINE.match(data):
        raise TokenizerError(f"{path} is a tiktoken file, not a SentencePiece model: convert it to tokenizer.json")
    return parse_sentencepiece(data, str(path))


def bpe_merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """The merges that SentencePiece's BPE makes, best first.

    SentencePiece joins the two neighbours whose joined piece has the best score, so every cut of a piece into two
    pieces is a merge with that piece's score. Pieces of equal score keep the order of the vocabulary.
    """
    mergeable = {piece.text: number for number, piece in enumerate(pieces) if piece.kind in (NORMAL, USER_DEFINED)}
    ranked = sorted((-pieces[number].score, number, text) for text, number in mergeable.items())
    merges = []
    # A quarter of a million pieces have millions of cuts: the right part is made only where the left one is a piece.
    for _, _, text in ranked:
        lefts = [left for cut in range(1, len(text)) if (left := text[:cut]) in mergeable]
        known = [(left, right) for left in lefts if (right := text[len(left) :]) in mergeable]
        if len(known) > 1:
            known.sort(key=lambda pair: (mergeable[pair[0]], mergeable[pair[1]]))
        merges += known
    return merges


def build_sentencepiece(model: SentencePieceModel, where: str) -> Tokenizer:
    """A `tokenizers.Tokenizer` with the ids of the SentencePiece model; it adds no special tokens around a text.

    Control and user-defined pieces standing in a text are recognised, as transformers does; SentencePiece itself
    recognises user-defined ones only. A dummy prefix is put in front of each stretch of text between such pieces.

    Raises:
        TokenizerError: a model kind or setting that this library does not reproduce.
    """
    if model.model_type not in (UNIGRAM_MODEL, BPE_MODEL):
        kind = MODEL_NAMES.get(model.model_type, model.model_type)
        raise TokenizerError(f"{where} is a SentencePiece {kind} model; only bpe and unigram models can be used")
    if model.treat_whitespace_as_suffix or not model.escape_whitespaces:
        raise TokenizerError(f"{where} writes spaces in a way that is not supported: convert it to tokenizer.json")
    if not 0 <= model.unk_id < len(model.pieces):
        raise TokenizerError(f"{where} has no unknown token: convert it to tokenizer.json")
    tokenizer = Tokenizer(_bpe(model, where) if model.model_type == BPE_MODEL else _unigram(model))
    tokenizer.normalizer = _normalizer(model)
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " ")]
    if model.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    marks = [piece for piece in model.pieces if piece.kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(mark.text, normalized=False, special=mark.kind == CONTROL) for mark in marks])
    return tokenizer


def _bpe(model: SentencePieceModel, where: str) -> BPE:
    if any(piece.kind == UNUSED for piece in model.pieces):
        raise TokenizerError(f"{where} has pieces marked unused, which is not supported: convert it to tokenizer.json")
    return BPE(
        vocab={piece.text: number for number, piece in enumerate(model.pieces)},
        merges=bpe_merges(model.pieces),
        unk_token=model.pieces[model.unk_id].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _unigram(model: SentencePieceModel) -> Unigram:
    vocabulary = [(piece.text, piece.score) for piece in model.pieces]
    return Unigram(vocabulary, unk_id=model.unk_id, byte_fallback=model.byte_fallback)


def _normalizer(model: SentencePieceModel) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.precompiled_charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)
