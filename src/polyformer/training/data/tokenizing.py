"""Texts to token ids, millions a second: what a tokenizer makes of a word is asked once and remembered.

Most tokenizers cut a text before spaces first and never look across such a cut. Where that is so by construction
(`cuts_before`), a text's tokens are its words' tokens one after another, and a table of the words seen so far gives the
same ids as the tokenizer itself. Other tokenizers encode whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from polyformer.errors import TokenizerError
from polyformer.tokenizers.text import TextTokenizer

_SECTION = 1 << 20  # characters worked on at once, so that a text of any length takes little memory
_LONGEST_RUN = 1 << 20  # a longer run without a cut is cut all the same
_MOST_WORDS = 1 << 18  # the table is emptied when it has grown to this many words, or to as many ids:
_MOST_IDS = 1 << 21
_TOGETHER = 100  # new words are tokenized so many at once

_ODD_SPACES = re.compile(r"[\x0b\x1c-\x1f]")  # white space to Python, but not to every tokenizer

_LOCAL_NORMALIZERS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
_DELETING_NORMALIZERS = {"BertNormalizer", "StripAccents"}  # may leave white space where there was a letter
_SPACE_DROPPING = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_SPACE_KEEPING = {"Digits", "Punctuation"}  # cut further, at places that lie inside words

# English words, runs of punctuation (but no apostrophe, which may begin a contraction) and white space before the space
# or newline that precedes them. Each ends where nothing but ASCII of another kind follows.
_MARKS = r"!-&(-/:-@\[-`{-~"
_ENGLISH_PIECES = (
    rf" ?[A-Za-z]+(?=[ \n{_MARKS}]|\Z)| ?[{_MARKS}]+(?=[ \nA-Za-z]|\Z)|[ \n]+(?=[ \n][!-/:-~])|\n(?=[!-/:-~])|"
)

# Patterns of `Split` that cut before the spaces between two words: those of GPT-2, GPT-4, Llama 3 and Qwen.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_KNOWN_SPLITS = {
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST,
    _CONTRACTIONS + r"\p{N}" + _REST,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}


class Ids(NamedTuple):
    """Token ids of several texts: all of them one after another, uint32, and how many each text has, int64."""

    all: np.ndarray
    lengths: np.ndarray


class TextEncoder:
    """The ids of texts as `TextTokenizer.encode_batch` gives them, as arrays.

    One difference: a run of more than a million characters without a space may be cut after each million.

    Args:
        add_special_tokens: add what the model expects around a text.
        parse_special: text such as "<|im_end|>" becomes that token; False takes it as the plain text that it is.
        end: a token put at the end of each text that does not end with it.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        add_special_tokens: bool = False,
        parse_special: bool = False,
        end: int | None = None,
    ):
        self._tokenizer = tokenizer
        self._parse_special = parse_special
        self._end = end
        self._before, self._after = special_tokens_around(tokenizer) if add_special_tokens else ([], [])
        description = json.loads(tokenizer.backend.to_str())
        blanks = cuts_before(description)
        finely = cuts_at_marks(description)
        self._begins_word = _beginnings_of_words(tokenizer) if _levels_spaces(description) else None
        encode = self._encode_plainly if self._begins_word is None else self._encode_together
        self._words = _WordTable(encode, blanks, finely, levels=self._begins_word is not None) if blanks else None
        self._needs_whole = _seen_in_whole_texts_only(description, parse_special, finely)

    def encode_batch(self, texts: Sequence[str]) -> Ids:
        """
        Raises:
            TokenizerError: a text is not valid Unicode.
        """
        return self._finish(self._encode(texts))

    def encode_words(self, texts: Sequence[Sequence[str]]) -> tuple[Ids, list[np.ndarray]]:
        """Texts that come as words, with spaces between them.

        Returns:
            The ids, and for each text where its words begin among its own ids; -1 for a word of no tokens.

        Raises:
            TokenizerError: a word is not valid Unicode.
        """
        counts = np.fromiter(map(len, texts), np.int64, len(texts))
        words = self._encode([word if not place else f" {word}" for text in texts for place, word in enumerate(text)])
        begins = np.cumsum(words.lengths) - words.lengths
        ends = np.cumsum(counts)
        lengths = np.diff(np.concatenate([[0], np.cumsum(words.lengths)])[np.concatenate([[0], ends])])
        text_begins = np.repeat(np.cumsum(lengths) - lengths, counts)
        places = np.where(words.lengths > 0, begins - text_begins + len(self._before), -1)
        return self._finish(Ids(words.all, lengths)), np.split(places, ends[:-1])

    def _finish(self, ids: Ids) -> Ids:
        """With special tokens around each text, and the end token."""
        ids = _surround(ids, self._before, self._after)
        return ids if self._end is None else _append(ids, self._end)

    def _encode(self, texts: Sequence[str]) -> Ids:
        if not texts:
            return Ids(np.empty(0, np.uint32), np.empty(0, np.int64))
        if self._words is None:
            return _join(self._encode_plainly(texts))
        whole = [self._is_seen_whole(text) for text in texts]
        if not any(whole):
            return self._words.encode(texts)
        parts = [
            _join(self._encode_plainly([text])) if alone else self._words.encode([text])
            for text, alone in zip(texts, whole)
        ]
        return Ids(np.concatenate([part.all for part in parts]), np.concatenate([part.lengths for part in parts]))

    def _is_seen_whole(self, text: str) -> bool:
        """Whether something in the text would not be found in its words."""
        return any(content in text for content in self._needs_whole)

    def _encode_plainly(self, texts: Sequence[str]) -> list[list[int]]:
        return self._tokenizer.encode_batch(texts, add_special_tokens=False, parse_special=self._parse_special)

    def _encode_together(self, words: Sequence[str]) -> list[list[int]]:
        """As `_encode_plainly`, faster, for tokenizers that level spaces: many words are one text for them, and a token
        that begins with the mark of a space begins a word."""
        assert self._begins_word is not None
        found: dict[int, list[int]] = {}
        # Others may be normalized to no word, or to several.
        plain = [place for place, word in enumerate(words) if word.isascii() and word.isprintable() and word.strip()]
        groups = [plain[start : start + _TOGETHER] for start in range(0, len(plain), _TOGETHER)]
        joined = [(group, " ".join([words[place] for place in group])) for group in groups]
        # Words that stand side by side only here may spell an added token between them.
        joined = [(group, text) for group, text in joined if not self._is_seen_whole(text)]
        for (group, _), ids in zip(joined, self._encode_plainly([text for _, text in joined]), strict=True):
            begins = [place for place, token in enumerate(ids) if self._begins_word[token]]
            if len(begins) == len(group) and begins[0] == 0:
                found.update(zip(group, (ids[begin:end] for begin, end in zip(begins, [*begins[1:], len(ids)]))))
        rest = [place for place in range(len(words)) if place not in found]
        found.update(zip(rest, self._encode_plainly([words[place] for place in rest]), strict=True))
        return [found[place] for place in range(len(words))]


class _WordTable(dict[str, int]):
    """The number of every word seen so far, and where its ids are."""

    def __init__(
        self, encode: Callable[[Sequence[str]], list[list[int]]], blanks: str, finely: bool, *, levels: bool = False
    ):
        super().__init__()
        self._encode = encode
        self._levels = levels
        # A piece begins with a blank that follows something else than white space. Other white space, about which
        # Python and the tokenizers' Rust may differ, begins none.
        inside = rf"(?:[^\S{blanks}]\s*\S+)*(?:[^\S{blanks}]\s*\Z)?"
        self._pieces = re.compile(rf"{_ENGLISH_PIECES if finely else ''}\s*\S+{inside}|\s+\Z")
        self._cut = re.compile(rf"(?<=\S)[{blanks}]")
        self._forget()

    def _forget(self) -> None:
        self.clear()
        self._new: list[str] = []
        self._ids = np.empty(0, np.uint32)
        self._starts = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        self._new.append(word)
        return number

    def encode(self, texts: Sequence[str]) -> Ids:
        """The ids of texts of any length."""
        parts: list[np.ndarray] = []
        lengths = np.zeros(len(texts), np.int64)
        words: list[str] = []
        counts: list[tuple[int, int]] = []  # number of a text, how many words of it
        characters = 0
        for number, text in enumerate(texts):
            for section in self._sections(text):
                if self._levels and not _ODD_SPACES.search(section):
                    found = section.split()  # whatever stands between two words
                else:
                    found = self._pieces.findall(section)
                words += found
                counts.append((number, len(found)))
                characters += len(section)
                if characters >= _SECTION:
                    parts.append(self._look_up(words, counts, lengths))
                    words, counts, characters = [], [], 0
        parts.append(self._look_up(words, counts, lengths))
        return Ids(np.concatenate(parts), lengths)

    def _sections(self, text: str) -> Iterator[str]:
        """The text in parts that can be encoded one after another."""
        start = 0
        while len(text) - start > _SECTION:
            cut = self._cut.search(text, start + _SECTION, start + _SECTION + _LONGEST_RUN)
            end = cut.start() if cut else start + _SECTION + _LONGEST_RUN
            yield text[start:end]
            start = end
        yield text[start:]

    def _look_up(self, words: list[str], counts: list[tuple[int, int]], lengths: np.ndarray) -> np.ndarray:
        """The ids of these words; adds to each text's length how many of them are its own."""
        if len(self) > _MOST_WORDS or len(self._ids) > _MOST_IDS:
            self._forget()
        numbers = np.fromiter(map(self.__getitem__, words), np.int64, len(words))
        if self._new:
            self._learn()
        found = self._lengths[numbers]
        texts = np.repeat([number for number, _ in counts], [count for _, count in counts]).astype(np.int64)
        lengths += np.bincount(texts, weights=found, minlength=len(lengths)).astype(np.int64)
        ends = np.cumsum(found)
        places = np.repeat(self._starts[numbers] - ends + found, found)
        places += np.arange(len(places))
        return self._ids[places]

    def _learn(self) -> None:
        new, self._new = self._new, []
        try:
            found = _join(self._encode(new))
        except BaseException:
            self._forget()  # words that have no ids must not stay
            raise
        starts = len(self._ids) + np.cumsum(found.lengths) - found.lengths
        self._ids = np.concatenate([self._ids, found.all])
        self._starts = np.concatenate([self._starts, starts])
        self._lengths = np.concatenate([self._lengths, found.lengths])


def _join(lists: Sequence[Sequence[int]]) -> Ids:
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return Ids(np.fromiter(chain.from_iterable(lists), np.uint32, int(lengths.sum())), lengths)


def _surround(ids: Ids, before: Sequence[int], after: Sequence[int]) -> Ids:
    """With these tokens before and after each text."""
    if not before and not after:
        return ids
    lengths = ids.lengths + len(before) + len(after)
    ends = np.cumsum(lengths)
    result = np.empty(int(lengths.sum()), np.uint32)
    own = np.ones(len(result), bool)
    for places, token in [
        *((ends - lengths + place, token) for place, token in enumerate(before)),
        *((ends - len(after) + place, token) for place, token in enumerate(after)),
    ]:
        result[places] = token
        own[places] = False
    result[own] = ids.all
    return Ids(result, lengths)


def _append(ids: Ids, token: int) -> Ids:
    """With this token at the end of each text that does not end with it."""
    ends = np.cumsum(ids.lengths)
    last = np.full(len(ends), -1, np.int64)
    last[ids.lengths > 0] = ids.all[ends[ids.lengths > 0] - 1]
    open_ended = last != token
    return Ids(np.insert(ids.all, ends[open_ended], token), ids.lengths + open_ended)


def cuts_before(description: Mapping[str, Any]) -> str:
    """The characters before which a tokenizer always cuts, if they follow anything but white space.

    Args:
        description: what is in a tokenizer.json.

    Returns:
        " \\n", " ", or "" where it cannot be told.
    """
    model = description["model"]
    if model.get("dropout"):
        return ""  # the same word is not always the same ids
    steps = _flat(description["pre_tokenizer"], "pretokenizers")
    blanks = [_cuts_of(step) for step in steps]
    if _takes_letters_one_by_one(model):
        blanks.append(" \n")
    if not any(blanks) or None in blanks:
        return ""
    if not _levels_spaces(description):
        drops_space = bool(steps) and steps[0]["type"] in _SPACE_DROPPING
        if not all(_is_local(step, drops_space) for step in _flat(description["normalizer"], "normalizers")):
            return ""
    if description["normalizer"] and any(
        token["normalized"] and _reaches_over_spaces(token) for token in description["added_tokens"]
    ):
        return ""  # such a token can be hidden in a text before it is normalized
    return " \n" if _levels_spaces(description) else min((found for found in blanks if found), key=len)


def cuts_at_marks(description: Mapping[str, Any]) -> bool:
    """Whether a tokenizer also cuts English text at `_ENGLISH_PIECES`, as GPT-2's and BERT's do.

    Args:
        description: what is in a tokenizer.json.
    """
    if cuts_before(description) != " \n":
        return False
    cut, *others = _flat(description["pre_tokenizer"], "pretokenizers") or [{"type": None}]
    if cut["type"] == "Digits" and others:
        cut, *others = others
    if cut["type"] not in ("ByteLevel", "BertPreTokenizer") or any(step["type"] != "Digits" for step in others):
        return False
    if cut["type"] == "ByteLevel" and not cut.get("use_regex", True):
        return False
    steps = {step["type"] for step in _flat(description["normalizer"], "normalizers")}
    hidden = steps and any(token["normalized"] for token in description["added_tokens"])
    return not hidden and steps <= _LOCAL_NORMALIZERS | _DELETING_NORMALIZERS


def _seen_in_whole_texts_only(description: Mapping[str, Any], parse_special: bool, finely: bool) -> list[str]:
    """Added tokens that are not found in pieces of a text, for a cut may go through them."""
    added = [token for token in description["added_tokens"] if parse_special or not token["special"]]
    if _levels_spaces(description):
        # Beside an added token no space is put in front of a word, nor before what is written like that space.
        return ["▁", *(token["content"] for token in added)]
    return [token["content"] for token in added if finely or _reaches_over_spaces(token)]


def _beginnings_of_words(tokenizer: TextTokenizer) -> list[bool]:
    """For each id, whether the token begins with SentencePiece's mark of a space."""
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    begins = [False] * (max(vocabulary.values(), default=-1) + 1)
    for token, number in vocabulary.items():
        begins[number] = token.startswith("▁")
    return begins


def _takes_letters_one_by_one(model: Mapping[str, Any]) -> bool:
    if model["type"] != "BPE" or model["merges"]:
        return False
    return not model.get("fuse_unk") and not model.get("ignore_merges")


def _levels_spaces(description: Mapping[str, Any]) -> bool:
    """Whether any white space is one space to the tokenizer, none at either end, and every word gets one in front: so
    does SentencePiece. Then no step before can make a difference by what it does to spaces.
    """
    steps = _flat(description["normalizer"], "normalizers")
    while steps and steps[-1]["type"] == "Lowercase":
        steps.pop()
    cut = _flat(description["pre_tokenizer"], "pretokenizers")[:1]
    if len(steps) < 2 or not cut or cut[0]["type"] != "Metaspace" or cut[0]["prepend_scheme"] != "always":
        return False
    *first, replace, strip = steps
    return (
        all(step["type"] in _LOCAL_NORMALIZERS | _DELETING_NORMALIZERS | {"Nmt"} for step in first)
        and replace == {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
        and strip == {"type": "Strip", "strip_left": True, "strip_right": True}
    )


def _cuts_of(step: Mapping[str, Any]) -> str | None:
    """The characters that a step of pre-tokenizing cuts before; "" if none, None if that cannot be told."""
    kind = step["type"]
    if kind in _SPACE_DROPPING:
        return " \n"
    if kind in _SPACE_KEEPING:
        return ""
    if kind == "ByteLevel":
        if not step.get("use_regex", True):
            return None if step["add_prefix_space"] else ""
        # A space is put before what does not begin with one, which a piece that begins with a newline does not.
        return " " if step["add_prefix_space"] else " \n"
    if kind == "Metaspace":
        return " " if step.get("split", True) else None
    if kind == "Split":
        known = step["pattern"].get("Regex") in _KNOWN_SPLITS and step["behavior"] == "Isolated" and not step["invert"]
        return " " if known else None
    return None


def _is_local(step: Mapping[str, Any], drops_space: bool) -> bool:
    """Whether normalizing the parts of a text that is cut before a space gives the parts of the normalized text."""
    kind = step["type"]
    if kind in _LOCAL_NORMALIZERS:
        return True
    if kind in _DELETING_NORMALIZERS:
        return drops_space
    if kind == "Replace":
        if step["pattern"].get("Regex") == " {2,}":
            return step["content"] in (" ", "▁")
        replaced = step["pattern"].get("String", " ")
        return bool(replaced.strip() and step["content"].strip()) and not re.search(r"\s", replaced + step["content"])
    return False


def _flat(step: Mapping[str, Any] | None, members: str) -> list[Mapping[str, Any]]:
    """The steps of a sequence, which may hold sequences."""
    if step is None:
        return []
    return [one for part in step[members] for one in _flat(part, members)] if step["type"] == "Sequence" else [step]


def _reaches_over_spaces(token: Mapping[str, Any]) -> bool:
    return token["lstrip"] or token["rstrip"] or bool(re.search(r"\s", token["content"]))


def special_tokens_around(tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after every text."""
    around = tokenizer.encode("")
    word = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    for place in range(len(around) + 1):
        if around[:place] + word + around[place:] == whole:
            return around[:place], around[place:]
    raise TokenizerError("this tokenizer does not put the same special tokens around every text")
