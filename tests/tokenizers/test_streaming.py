"""Streaming equals decoding, for every decoder kind and any ids."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from polyformer.tokenizers.streaming import byte_alphabet
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings

BYTES = {byte: character for character, byte in byte_alphabet().items()}
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["▁", "▁▁", "▁the", "the", "▁你", "é", "a▁b", "<", "0x41>", "�", "x"]


def spelled(text: str) -> str:
    return "".join(BYTES[byte] for byte in text.encode("utf-8"))


def byte_level_tokens() -> list[str]:
    face, you = spelled("😀"), spelled("你")
    words = ["Ġthe", "ĊĊ", spelled("é"), spelled("你好"), face, face[:2], face[2:], you[:2], you[2:] + "a"]
    return sorted(BYTES.values()) + words


def sentencepiece_decoder(*, strip: int) -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", strip, 0)] if strip else steps)


WORD_PIECES = [
    "the",
    "##ing",
    "##",
    "don",
    "'",
    "s",
    "t",
    "n't",
    ".",
    ",",
    "?",
    "!",
    "##.",
    "ve",
    "re",
    "do",
    "not",
    "m",
]
WORD_ENDS = ["the</w>", "th", "e</w>", "</w>", "a</w>b", ".</w>", "é</w>", "</w", ">"]
KINDS: dict[str, tuple[list[str], decoders.Decoder | None]] = {
    "byte level": (byte_level_tokens(), decoders.ByteLevel()),
    "byte level in a sequence": (byte_level_tokens(), decoders.Sequence([decoders.ByteLevel()])),
    "sentencepiece": (BYTE_TOKENS + PIECES, sentencepiece_decoder(strip=1)),
    "sentencepiece strips two": (BYTE_TOKENS + PIECES, sentencepiece_decoder(strip=2)),
    "sentencepiece without prefix": (BYTE_TOKENS + PIECES, sentencepiece_decoder(strip=0)),
    "replace only": (PIECES, decoders.Sequence([decoders.Replace("▁", " ")])),
    "metaspace": (PIECES, decoders.Metaspace()),
    "metaspace never": (PIECES, decoders.Metaspace(prepend_scheme="never")),
    "wordpiece": (WORD_PIECES, decoders.WordPiece()),
    "wordpiece kept as it is": (WORD_PIECES, decoders.WordPiece(cleanup=False)),
    "word ends": (WORD_ENDS, decoders.BPEDecoder(suffix="</w>")),
    "none": (WORD_PIECES, None),
    "another": (["|", "h", "e", "l", "o", "<pad>"], decoders.CTC()),
    "a replacement after the fusion": (PIECES, decoders.Sequence([decoders.Fuse(), decoders.Replace("xx", "y")])),
}


@cache
def tokenizer(kind: str, *, clean_up: bool = False) -> TextTokenizer:
    tokens, decoder = KINDS[kind]
    backend = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token=tokens[0]))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_tokens([AddedToken("<ü tool>", normalized=False)])
    backend.add_special_tokens(["<s>", "</s>"])
    return TextTokenizer(backend, TokenizerSettings(clean_up_spaces=clean_up))


def ids_of(kind: str) -> st.SearchStrategy[list[int]]:
    """Ids of the vocabulary and a few beyond it; bytes often in a row."""
    size = len(KINDS[kind][0])
    return st.lists(st.one_of(st.integers(0, size + 4), st.integers(max(size - 12, 0), size + 2)), max_size=30)


def check(ours: TextTokenizer, ids: list[int], skip: bool) -> list[str]:
    stream = ours.stream(skip_special_tokens=skip)
    pieces = [stream.push(token_id) for token_id in ids]
    rest = stream.finish()
    assert "".join(pieces) + rest == ours.decode(ids, skip_special_tokens=skip)
    return [*pieces, rest]


@pytest.mark.parametrize("clean_up", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_ids_stream_as_they_decode(kind: str, clean_up: bool, data: st.DataObject):
    check(tokenizer(kind, clean_up=clean_up), data.draw(ids_of(kind)), data.draw(st.booleans()))


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_piece_holds_half_a_character(text: str):
    """Bytes of a real text one by one: each piece is whole characters, and none is late."""
    ours = tokenizer("byte level")
    ids = [ours.token_to_id(BYTES[byte]) for byte in text.encode("utf-8")]
    pieces = check(ours, ids, True)
    expected = [piece for character in text for piece in [""] * (len(character.encode("utf-8")) - 1) + [character]]
    assert pieces == [*expected, ""]


@settings(deadline=None, max_examples=200)
@given(data=st.binary(max_size=20))
def test_any_bytes_decode_as_the_library_decodes_them(data: bytes):
    """Wrong UTF-8 of every kind: Rust's replacement and Python's incremental one agree."""
    ours = tokenizer("byte level")
    check(ours, [ours.token_to_id(BYTES[byte]) for byte in data], True)


@pytest.mark.parametrize(
    ("kind", "tokens", "pieces"),
    [
        ("byte level", ["a", spelled("😀")[:2], spelled("😀")[2:], "b"], ["a", "", "😀", "b", ""]),
        ("sentencepiece", ["▁the", "▁the", "<0xC3>", "<0xA9>", "▁the"], ["the", " the", "", "", "é the", ""]),
        ("sentencepiece", ["▁", "▁the"], ["", " the", ""]),
        ("metaspace", ["▁the", "▁the"], ["the", " the", ""]),
        ("wordpiece", ["the", "do", "##ing", "."], ["the", " do", "ing", ".", ""]),
        ("word ends", ["the</w>", "th", "e</w>"], ["the", " th", "e", ""]),
        ("byte level", [spelled("你")[:2]], ["", "�"]),
        ("byte level", ["<s>", "a", "</s>"], ["", "a", "", ""]),
    ],
)
def test_pieces_come_as_soon_as_they_are_certain(kind: str, tokens: list[str], pieces: list[str]):
    ours = tokenizer(kind)
    ids = [ours.token_to_id(token) for token in tokens]
    assert None not in ids
    assert check(ours, ids, True) == pieces


def test_cleaning_up_waits_for_the_next_word_only():
    ours = tokenizer("wordpiece", clean_up=True)
    words = ["do", "##ing", "'", "s", "the", "##ing", "."]
    pieces = check(ours, [ours.token_to_id(word) for word in words], True)
    assert pieces == ["", "", "doing", "", "'s", "", "", " theing."]
    assert ours.decode([ours.token_to_id(word) for word in words]) == "doing's theing."


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece", "wordpiece", "word ends"])
def test_the_cost_of_a_token_does_not_grow(kind: str):
    """Work is counted, not timed: characters that the library decodes per token pushed."""
    ours = tokenizer(kind)
    ids = [n % len(KINDS[kind][0]) for n in range(5000)]
    stream = ours.stream()
    decoded = []
    pieces = stream._pieces
    if hasattr(pieces, "_decode"):
        inner = pieces._decode
        pieces._decode = lambda tokens: decoded.append(len(tokens)) or inner(tokens)
    text = "".join(map(stream.push, ids)) + stream.finish()
    assert text == ours.decode(ids)
    assert sum(decoded) <= 6 * len(ids)


def test_bytes_of_a_long_run_are_not_decoded_again_and_again():
    ours = tokenizer("sentencepiece")
    stream = ours.stream()
    calls = []
    inner = stream._pieces._decode
    stream._pieces._decode = lambda tokens: calls.append(len(tokens)) or inner(tokens)
    for _ in range(3000):
        assert stream.push(0xC3) == ""
    assert calls == []
    assert stream.finish() == ours.decode([0xC3] * 3000)


def test_byte_alphabet_is_the_librarys():
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(set(byte_alphabet().values())) == 256
    everything = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(sorted(byte_alphabet()))}, merges=[]))
    everything.decoder = decoders.ByteLevel()
    for character, byte in byte_alphabet().items():
        if byte < 128:
            assert everything.decode([everything.token_to_id(character)]) == chr(byte)
