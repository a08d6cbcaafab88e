"""Decode token ids one at a time, without ever showing half a character.

The pieces that a stream gives, joined, equal the decoding of all the ids at once. What a token looks like as text may
depend on its neighbours, and on exactly three things about them: whether it is the first token (a leading space is
dropped), whether it is the last (a word end is not followed by a space), and whether it is one of several byte tokens
that make up one character. Each decoder kind below says which of these hold, so the state to keep is a few tokens and
the cost of a token does not grow with the length of the text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import Decoder

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SENTINEL = "x"

# Spaces that Hugging Face takes out of decoded text when clean_up_tokenization_spaces is set, in its order.
CLEANUP_RULES = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up_spaces(text: str) -> str:
    """Take out the spaces before punctuation and English contractions, as transformers' decode does when asked."""
    for written, cleaned in CLEANUP_RULES:
        text = text.replace(written, cleaned)
    return text


@cache
def byte_alphabet() -> dict[str, int]:
    """The 256 characters that byte-level BPE writes bytes with (GPT-2, Radford et al. 2019), as character -> byte.

    Bytes that are printable in Latin-1 stand for themselves; the others take the code points from 256 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    alphabet.update({chr(256 + position): byte for position, byte in enumerate(others)})
    return alphabet


class PieceDecoder(Protocol):
    """Turns tokens (strings of the vocabulary) into text, one after the other."""

    def push(self, token: str) -> str: ...

    def finish(self) -> str: ...


class BytePieces:
    """Byte-level BPE: every token is some bytes; the text is those bytes as UTF-8, with U+FFFD for what is none."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: str) -> str:
        alphabet = byte_alphabet()
        try:
            data = bytes([alphabet[character] for character in token])
        except KeyError:  # an added token, written as plain text
            data = token.encode("utf-8")
        return self._decoder.decode(data)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class NeighbourPieces:
    """Decoders where only being first, being last and runs of byte tokens matter: SentencePiece, WordPiece, word ends.

    The library's own decoder does the work on [sentinel, tokens, ...]: with a sentinel in front no token is the first.
    """

    def __init__(self, decode: Callable[[list[str]], str], *, byte_runs: bool = False, last_differs: bool = False):
        self._decode = decode
        self._byte_runs = byte_runs
        self._last_differs = last_differs
        self._at_start = True
        self._held: list[str] = []
        self._if_more = ""  # text owed in front of the next token
        self._if_last = ""  # text owed when there is no next token

    def push(self, token: str) -> str:
        self._held.append(token)
        if self._byte_runs and BYTE_TOKEN.fullmatch(token):
            return ""  # one wrong byte would turn its whole run into U+FFFD, so the run must be complete
        return self._take()

    def finish(self) -> str:
        piece = self._take() if self._held else ""
        return piece + self._if_last

    def _take(self) -> str:
        before = [] if self._at_start else [SENTINEL]
        last = self._decode([*before, *self._held])[len(before) :]
        inner = self._decode([*before, *self._held, SENTINEL])[len(before) : -1] if self._last_differs else last
        if self._at_start and not last:
            return ""  # nothing written yet: the next token may still be the one that loses its leading space
        certain = _common_start(last, inner)
        piece = self._if_more + certain
        self._if_more, self._if_last = inner[len(certain) :], last[len(certain) :]
        self._at_start, self._held = False, []
        return piece


def _common_start(first: str, second: str) -> str:
    length = 0
    for one, other in zip(first, second):
        if one != other:
            break
        length += 1
    return first[:length]


class WholePieces:
    """Any other decoder: its text is known only when all tokens are, so it comes with `finish`."""

    def __init__(self, decode: Callable[[list[str]], str]):
        self._decode = decode
        self._tokens: list[str] = []

    def push(self, token: str) -> str:
        self._tokens.append(token)
        return ""

    def finish(self) -> str:
        return self._decode(self._tokens)


def _steps(decoder: Decoder | None) -> list[dict[str, Any]]:
    """The decoder's own description, with sequences laid flat; the library gives no other way to look inside."""
    if decoder is None:
        return []
    description = json.loads(decoder.__getstate__())

    def flatten(step: dict[str, Any]) -> list[dict[str, Any]]:
        if step["type"] == "Sequence":
            return [inner for part in step["decoders"] for inner in flatten(part)]
        return [step]

    return flatten(description)


def _piece_decoder(backend: Tokenizer) -> PieceDecoder:
    decoder = backend.decoder
    steps = _steps(decoder)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return BytePieces()
    if decoder is None:
        return NeighbourPieces(" ".join)
    if kinds in (["WordPiece"], ["Metaspace"]):
        return NeighbourPieces(decoder.decode)
    if kinds == ["BPEDecoder"]:
        return NeighbourPieces(decoder.decode, last_differs=True)
    if _is_sentencepiece(steps):
        return NeighbourPieces(decoder.decode, byte_runs="ByteFallback" in kinds)
    return WholePieces(decoder.decode)


def _is_sentencepiece(steps: list[dict[str, Any]]) -> bool:
    """True for plain replacements, byte fallback, a fusion and taking spaces off the left, in this order."""
    order = {"Replace": 0, "ByteFallback": 1, "Fuse": 2, "Strip": 3}
    ranks = [order.get(step["type"], -1) for step in steps]
    plain = all("String" in step["pattern"] for step in steps if step["type"] == "Replace")
    left_only = all(step["stop"] == 0 for step in steps if step["type"] == "Strip")
    return bool(ranks) and min(ranks) >= 0 and ranks == sorted(ranks) and plain and left_only


class StreamDecoder:
    """Gives the text of token ids as they come.

    `push(token_id)` returns the text that is now certain (often "" in the middle of a character); `finish()` returns
    the rest. All pieces joined equal the decoding of all the ids. With byte fallback (SentencePiece) text of a run of
    byte tokens comes when the run ends, since one wrong byte spoils its whole run; with `clean_up`, a word comes when
    the next one starts. A decoder kind that is not known here gives all of its text at `finish()`.
    """

    def __init__(self, backend: Tokenizer, *, skipped_ids: frozenset[int], clean_up: bool = False):
        self._backend = backend
        self._skipped_ids = skipped_ids
        self._pieces: PieceDecoder = _piece_decoder(backend)
        self._clean_up = clean_up
        self._uncleaned = ""

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token id; ids outside the vocabulary and skipped ones have none."""
        if token_id in self._skipped_ids:
            return ""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return ""
        piece = self._pieces.push(token)
        return self._cleaned(piece) if self._clean_up else piece

    def finish(self) -> str:
        """The text that was held back. The decoder is used up after this."""
        rest = self._pieces.finish()
        if self._clean_up:
            rest = clean_up_spaces(self._uncleaned + rest)
            self._uncleaned = ""
        return rest

    def _cleaned(self, piece: str) -> str:
        # Every rule starts with a space and only " ' " holds a second one, so text may be cut in front of a space
        # unless an apostrophe standing alone comes before it: no rule can then reach across the cut.
        text = self._uncleaned + piece
        cut = text.rfind(" ")
        while cut > 0 and text[:cut].endswith(" '"):
            cut = text.rfind(" ", 0, cut)
        if cut <= 0:
            self._uncleaned = text
            return ""
        self._uncleaned = text[cut:]
        return clean_up_spaces(text[:cut])
