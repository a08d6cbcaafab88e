"""Cleaning documents as they stream by: parts by the hash of a document, exact and near duplicates left out.

Memory grows with the number of documents that are kept, never with their size. No pair is compared that does not share
a band of its signature (Broder, 1997, for MinHash; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
section 3.4, for banding).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from polyformer.errors import ConfigError, DataError

Document = dict[str, Any]
Unsigned = npt.NDArray[np.uint64]

_WORD = re.compile(r"\w+")
# How many earlier documents that share a band are compared: more would make runs of near duplicates quadratic.
_MOST_CANDIDATES = 8
_SHINGLES_AT_ONCE = 2048


# Parts of the data


def part_of(key: str | bytes, shares: Mapping[str, float], *, seed: int = 0) -> str:
    """The part ("train", …) that a document with this key is in: the same on every machine, in every order of reading.

    Args:
        key: what identifies the document, or the group that must stay together.
        shares: name of each part -> its share; they add up to 1.

    Raises:
        ConfigError: the shares do not add up to 1.
    """
    if not shares or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ConfigError(f"shares must be from 0 and add up to 1, but they are {dict(shares)}")
    data = key.encode() if isinstance(key, str) else key
    digest = hashlib.blake2b(data, digest_size=8, key=b"part", salt=_salt(seed)).digest()
    place = int.from_bytes(digest, "big") / 2**64
    names = [name for name, share in shares.items() if share > 0]
    for name in names[:-1]:
        place -= shares[name]
        if place < 0:
            return name
    return names[-1]


def _salt(seed: int) -> bytes:
    return hashlib.blake2b(str(seed).encode(), digest_size=16).digest()


def split_documents(
    documents: Iterable[Document],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    key: str | Sequence[str] | None = None,
) -> Iterator[Document]:
    """Gives each document its part in the field "split", by its hash; equal documents are in the same part.

    Args:
        shares: name of each part -> its share.
        key: the field or fields whose value decides, so that what belongs together (the verses of a chapter) stays
            together; None: all of them but "split".

    Raises:
        ConfigError: the shares do not add up to 1.
        DataError: a document has no such field.
    """
    names = [key] if isinstance(key, str) else key
    for document in documents:
        yield {**document, "split": part_of(document_hash(document, names), shares, seed=seed)}


# Exact duplicates


def normalized(text: str) -> str:
    """Text without what nobody sees: one form of each character (NFC), one space for all white space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def document_hash(document: Mapping[str, Any], fields: Sequence[str] | None = None) -> bytes:
    """Sixteen bytes that are equal for documents that read the same; text counts as `normalized` makes it.

    Raises:
        DataError: there is no such field, or its value cannot be hashed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(name for name in document if name != "split") if fields is None else fields:
        if name not in document:
            raise DataError(f"a document has no field {name!r}: it has {', '.join(document)}")
        _add(digest, name, name)
        _add(digest, document[name], name)
    return digest.digest()


def _add(digest: Any, value: Any, name: str) -> None:
    """Adds a value, its kind and its length, so that no two different values look alike."""
    if isinstance(value, Mapping):
        digest.update(b"d%d;" % len(value))
        for key in sorted(value):
            _add(digest, key, name)
            _add(digest, value[key], name)
        return
    if isinstance(value, (list, tuple)):
        digest.update(b"l%d;" % len(value))
        for each in value:
            _add(digest, each, name)
        return
    if isinstance(value, str):
        kind, data = b"s", normalized(value).encode()
    elif isinstance(value, (bytes, bytearray)):
        kind, data = b"b", bytes(value)
    elif isinstance(value, np.ndarray):
        kind, data = f"a{value.dtype.str}{value.shape}".encode(), value.tobytes()
    elif value is None or isinstance(value, (bool, int, float, np.generic)):
        kind, data = b"v", repr(value.item() if isinstance(value, np.generic) else value).encode()
    else:
        raise DataError(f"field {name!r} holds {type(value).__name__}, of which no hash can be made")
    digest.update(kind + b"%d;" % len(data))
    digest.update(data)


# Near duplicates


@dataclass(frozen=True)
class NearDuplicates:
    """What counts as nearly the same: shingles (runs of words) shared by two texts, out of all that either has.

    Attributes:
        threshold: the estimated share (Jaccard) from which two texts are near duplicates.
        unit: a shingle is a run of "words" or of "characters", which is right for languages without spaces.
        shingle: how many words or characters in a run.
        permutations: numbers in a signature. The share is estimated with an error of about half its inverse root.
        bands: the signature is cut into so many; two texts are compared if one band is equal. More bands find more
            pairs below the threshold, and take more memory.
        seed: of the hash functions.
    """

    threshold: float = 0.8
    unit: Literal["words", "characters"] = "words"
    shingle: int = 5
    permutations: int = 128
    bands: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold must be above 0 and at most 1, not {self.threshold}")
        if self.unit not in ("words", "characters"):
            raise ConfigError(f"unit must be words or characters, not {self.unit!r}")
        if self.shingle < 1 or self.permutations < 1 or self.bands < 1:
            raise ConfigError("shingle, permutations and bands must be whole numbers from 1")
        if self.permutations % self.bands:
            raise ConfigError(f"permutations ({self.permutations}) must be a multiple of bands ({self.bands})")

    def build(self) -> NearIndex:
        return NearIndex(self)


class NearIndex:
    """Signatures of the texts that were kept, found again by the bands of another."""

    def __init__(self, settings: NearDuplicates) -> None:
        self.settings = settings
        random = np.random.default_rng(settings.seed)
        # A product with an odd number is a permutation of 32 bits.
        self._multiply = random.integers(0, 2**32, (settings.permutations, 1), np.uint32) | np.uint32(1)
        self._shift = random.integers(0, 2**32, (settings.permutations, 1), np.uint32)
        self._signatures: list[npt.NDArray[np.uint32]] = []
        self._buckets: list[dict[int, list[int]]] = [{} for _ in range(settings.bands)]

    def __len__(self) -> int:
        return len(self._signatures)

    def add(self, text: str) -> int | None:
        """Keeps a text, or gives the number (from 0) of an earlier one that it nearly is. A text without a shingle,
        as one of signs only, is always kept."""
        signature = self.signature(text)
        if signature is None:
            self._signatures.append(np.zeros(0, np.uint32))
            return None
        data, width = signature.tobytes(), signature.nbytes // self.settings.bands
        # Only equal within one process, which is as long as the buckets live. Equal by chance, they cost a comparison.
        keys = [hash(data[start : start + width]) for start in range(0, len(data), width)]
        for candidate in self._candidates(keys):
            if float(np.mean(self._signatures[candidate] == signature)) >= self.settings.threshold:
                return candidate
        number = len(self._signatures)
        self._signatures.append(signature)
        for bucket, key in zip(self._buckets, keys):
            found = bucket.setdefault(key, [])
            if len(found) < _MOST_CANDIDATES:
                found.append(number)
        return None

    def _candidates(self, keys: Sequence[int]) -> list[int]:
        found = (number for bucket, key in zip(self._buckets, keys) for number in bucket.get(key, ()))
        return list(dict.fromkeys(found))

    def signature(self, text: str) -> npt.NDArray[np.uint32] | None:
        """[permutations] numbers; the share of equal ones estimates the share of shingles in common."""
        shingles = _shingles(text, self.settings.unit, self.settings.shingle)
        if not len(shingles):
            return None
        short = (shingles >> np.uint64(32)).astype(np.uint32)
        least = np.full(len(self._multiply), np.iinfo(np.uint32).max, np.uint32)
        for start in range(0, len(short), _SHINGLES_AT_ONCE):
            permuted = short[start : start + _SHINGLES_AT_ONCE] * self._multiply
            permuted += self._shift
            np.minimum(least, permuted.min(axis=1), out=least)
        return least


def _shingles(text: str, unit: str, length: int) -> Unsigned:
    """A hash of each run of ``length`` words or characters; of the whole text if it is shorter."""
    words = _WORD.findall(normalized(text).casefold())
    if unit == "words":
        units = _hash_words(words)
    else:
        units = _mixed(np.frombuffer(" ".join(words).encode("utf-32-le"), np.uint32).astype(np.uint64))
    length = min(length, len(units))
    if not length:
        return units
    runs = np.zeros(len(units) - length + 1, np.uint64)
    for place in range(length):
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + units[place : place + len(runs)]
    return _mixed(runs)


def _hash_words(words: Sequence[str]) -> Unsigned:
    """A number for each word, from its bytes and their places in it, without a step of Python for each."""
    if not words:
        return np.zeros(0, np.uint64)
    data = np.frombuffer((" ".join(words) + " ").encode(), np.uint8).astype(np.uint64)
    ends = np.flatnonzero(data == 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(data)) - np.repeat(starts, ends - starts + 1)
    return _mixed(np.add.reduceat(_mixed(data + (places.astype(np.uint64) << np.uint64(8))), starts))


def _mixed(numbers: Unsigned) -> Unsigned:
    """The mixing of splitmix64 (Steele, Lea and Flood, 2014): every bit of the input changes half of the output."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def groups_of_near_duplicates(
    texts: Iterable[tuple[str, str]], settings: NearDuplicates | None = None
) -> dict[str, str]:
    """Which names belong together because a text of one nearly is a text of another, directly or through others: so
    that they can be kept in one part of the data.

    Args:
        texts: name and text; a name may have several texts.

    Returns:
        Each name -> the first name of its group.
    """
    index = (settings or NearDuplicates()).build()
    owners: list[str] = []
    parents: dict[str, str] = {}

    def first_of(name: str) -> str:
        while parents[name] != name:
            parents[name] = name = parents[parents[name]]
        return name

    order: dict[str, int] = {}
    for name, text in texts:
        order.setdefault(name, len(order))
        parents.setdefault(name, name)
        found = index.add(text)
        if found is None:
            owners.append(name)
            continue
        first, second = sorted((first_of(name), first_of(owners[found])), key=order.__getitem__)
        parents[second] = first
    return {name: first_of(name) for name in parents}


# All together


@dataclass
class CleaningCounts:
    """What became of the documents, counted as they stream by.

    Attributes:
        read: documents that came.
        kept: documents that went on.
        exact_duplicates, near_duplicates: documents left out.
    """

    read: int = 0
    kept: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0


def deduplicate(
    documents: Iterable[Document],
    how: Literal["exact", "near"] | NearDuplicates = "exact",
    *,
    fields: Sequence[str] | None = None,
    counts: CleaningCounts | None = None,
    on_duplicate: Callable[[Document], None] | None = None,
) -> Iterator[Document]:
    """Leaves out documents that an earlier one equals, or nearly equals: the first stays.

    Args:
        how: "exact" (of `normalized` text), "near" (with the defaults of `NearDuplicates`), or settings for that.
            What is exactly equal is always left out.
        fields: those that are compared; None: all but "split". Near duplicates go by the fields that are text.
        counts: brought up to date as documents stream by.
        on_duplicate: called with each document that is left out.

    Raises:
        ConfigError: ``how`` is something else.
        DataError: a document has no such field, or (for near duplicates) none that is text.
    """
    if isinstance(how, str) and how not in ("exact", "near"):
        raise ConfigError(f"duplicates are found 'exact' or 'near', not {how!r}")
    settings = NearDuplicates() if how == "near" else how
    near = settings.build() if isinstance(settings, NearDuplicates) else None
    return _deduplicated(documents, near, fields, counts or CleaningCounts(), on_duplicate)


def _deduplicated(
    documents: Iterable[Document],
    near: NearIndex | None,
    fields: Sequence[str] | None,
    counts: CleaningCounts,
    on_duplicate: Callable[[Document], None] | None,
) -> Iterator[Document]:
    seen: set[bytes] = set()
    for document in documents:
        counts.read += 1
        digest = document_hash(document, fields)
        if digest in seen:
            counts.exact_duplicates += 1
        elif near is not None and near.add(_all_text(document, fields)) is not None:
            counts.near_duplicates += 1
        else:
            seen.add(digest)
            counts.kept += 1
            yield document
            continue
        if on_duplicate is not None:
            on_duplicate(document)


def _all_text(document: Mapping[str, Any], fields: Sequence[str] | None) -> str:
    names = sorted(name for name in document if name != "split") if fields is None else fields
    texts = [document[name] for name in names if isinstance(document[name], str)]
    if not texts:
        raise DataError(f"near duplicates are found by text, and there is none in {', '.join(names)}: use 'exact'")
    return "\n".join(texts)
