"""How well a tokenizer fits texts: how short it makes them, what it does not know, what it never uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyformer.errors import DataError
from polyformer.tokenizers.text import TextTokenizer
from polyformer.tokenizers.training import sections

SECTION = 1 << 18  # characters that are encoded at once; longer texts are cut between words
AT_ONCE = 1 << 20  # characters of one batch
SHOWN = 20  # tokens of each list
CONTEXT = 20  # characters shown of texts that differ


@dataclass(frozen=True)
class TokenCount:
    """A token as the vocabulary writes it, its text, and how often it occurred."""

    id: int
    token: str
    text: str
    count: int


@dataclass(frozen=True)
class Difference:
    """Where decoding first gave something else than was encoded."""

    document: int
    character: int
    text: str
    decoded: str


@dataclass(frozen=True)
class TokenizerReport:
    """What `report` measured; special tokens around texts are not counted, words are what stands between white space.

    Attributes:
        unknown: tokens that stand for text that is not known.
        unused: how many entries never occurred, special tokens aside; `unused_examples` are spread over all of them.
        longest: the entries with the longest texts, whether they occurred or not.
        most_frequent: the tokens that occurred most often.
        exact: documents that decode to themselves.
        first_difference: of the first that does not, with whitespace and special tokens as decoding writes them.
    """

    documents: int
    characters: int
    bytes: int
    words: int
    tokens: int
    unknown: int
    vocab_size: int
    unused: int
    unused_examples: tuple[TokenCount, ...]
    longest: tuple[TokenCount, ...]
    most_frequent: tuple[TokenCount, ...]
    exact: int
    first_difference: Difference | None
    fingerprint: str

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens if self.tokens else 0.0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens if self.tokens else 0.0

    @property
    def fertility(self) -> float:
        """Tokens for each word."""
        return self.tokens / self.words if self.words else 0.0

    @property
    def unknown_share(self) -> float:
        return self.unknown / self.tokens if self.tokens else 0.0

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        names = ("characters_per_token", "bytes_per_token", "fertility", "unknown_share")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def report(
    tokenizer: TextTokenizer,
    texts: Iterable[str],
    *,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> TokenizerReport:
    """Measure a tokenizer on texts, which are best others than it was trained on.

    Special tokens that a text spells out are taken as plain text.

    Args:
        texts: whole documents, read once, a few at a time.
        progress: called with "measuring", the characters done and None.

    Raises:
        DataError: there is no text.
        TokenizerError: a text is no valid Unicode.
    """
    sums = _Sums(tokenizer)
    for batch in _batches(texts):
        sums.add(batch)
        if progress is not None:
            progress("measuring", sums.characters, None)
    if not sums.characters:
        raise DataError("there is no text to measure a tokenizer on: the data is empty")
    return sums.report()


def _batches(texts: Iterable[str]) -> Iterator[list[tuple[int, str]]]:
    """(number of the document, section of its text), about as many as AT_ONCE characters have room for."""
    batch: list[tuple[int, str]] = []
    size = 0
    for number, text in enumerate(texts):
        for section in sections(text, SECTION) if text else ("",):
            batch.append((number, section))
            size += len(section)
            if size >= AT_ONCE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


class _Sums:
    """What has been measured so far."""

    def __init__(self, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer
        self.counts = np.zeros(max(tokenizer.backend.get_vocab().values(), default=0) + 1, dtype=np.int64)
        self.documents = self.characters = self.bytes = self.words = self.differing = 0
        self.first_difference: Difference | None = None
        self._last_differing = -1
        self._last_document = -1
        self._start = 0  # of the present section in its document

    def add(self, batch: Sequence[tuple[int, str]]) -> None:
        texts = [text for _, text in batch]
        encoded = self.tokenizer.encode_batch(texts, add_special_tokens=False, parse_special=False)
        for (document, text), ids in zip(batch, encoded):
            if document != self._last_document:
                self._last_document, self._start = document, 0
                self.documents += 1
            self.characters += len(text)
            self.bytes += len(text.encode())
            self.words += len(text.split())
            self.counts += np.bincount(np.array(ids, dtype=np.int64), minlength=len(self.counts))
            self._compare(document, text, self.tokenizer.decode(ids, skip_special_tokens=False))
            self._start += len(text)

    def _compare(self, document: int, text: str, decoded: str) -> None:
        if text == decoded:
            return
        if document != self._last_differing:
            self._last_differing = document
            self.differing += 1
        if self.first_difference is None:
            pairs = enumerate(zip(text, decoded))
            place = next((at for at, (one, other) in pairs if one != other), min(len(text), len(decoded)))
            shown = slice(place, place + CONTEXT)
            self.first_difference = Difference(document, self._start + place, text[shown], decoded[shown])

    def report(self) -> TokenizerReport:
        entries = [
            _counted(self.tokenizer, number, count)
            for number, count in enumerate(self.counts.tolist())
            if self.tokenizer.id_to_token(number) is not None
        ]
        plain = [entry for entry in entries if entry.id not in self.tokenizer.special_token_ids]
        used = [entry for entry in entries if entry.count]
        unused = [entry for entry in plain if not entry.count]
        unknown = self.tokenizer.unk_token_id
        return TokenizerReport(
            documents=self.documents,
            characters=self.characters,
            bytes=self.bytes,
            words=self.words,
            tokens=int(self.counts.sum()),
            unknown=int(self.counts[unknown]) if unknown is not None else 0,
            vocab_size=self.tokenizer.vocab_size,
            unused=len(unused),
            unused_examples=tuple(unused[:: max(-(-len(unused) // SHOWN), 1)]),
            longest=tuple(sorted(plain, key=lambda entry: (-len(entry.text), entry.id))[:SHOWN]),
            most_frequent=tuple(sorted(used, key=lambda entry: (-entry.count, entry.id))[:SHOWN]),
            exact=self.documents - self.differing,
            first_difference=self.first_difference,
            fingerprint=self.tokenizer.fingerprint,
        )


def _counted(tokenizer: TextTokenizer, number: int, count: int) -> TokenCount:
    token = str(tokenizer.id_to_token(number))
    return TokenCount(number, token, readable(tokenizer, number), count)


def readable(tokenizer: TextTokenizer, number: int) -> str:
    """The text of one token wherever it stands: with the space before it; U+FFFD for a part of a character."""
    if type(tokenizer.backend.decoder).__name__ == "ByteLevel":
        return tokenizer.decode([number], skip_special_tokens=False)
    return str(tokenizer.id_to_token(number)).replace("▁", " ")
