"""The Bible in English and Spanish, verse by verse, out of two Debian packages of the SWORD project.

English is the World English Bible, Spanish the Reina-Valera of 1909. Their markup (OSIS) is undone here: notes, names
of speakers and what follows a chapter's end (a glossary, after the last one) are no part of a verse; titles of psalms
are, in both. Words in capitals at the beginning of a Spanish chapter ("EN el principio") are written as elsewhere. Ten
chapters or so, whose verses the two number differently, are left out.
"""

from __future__ import annotations

import html
import math
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.training.data.cleaning import part_of
from polyformer.training.data.files import require
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import debian_package
from polyformer.training.data.samples.storing import SPLITS, read_stored, store

_SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
_PACKAGES = {"source": ("sword-text-web", "engWEB2015eb"), "target": ("sword-text-sparv", "spaRV1909eb")}

_AFTER_CHAPTER = re.compile(r"<chapter eID=.*", re.DOTALL)
_LEFT_OUT = re.compile(r"<(note|speaker)\b[^>]*>.*?</\1>", re.DOTALL)
_WITHIN_LINE = re.compile(r"</?(?:w|q|seg|name|transChange)\b[^>]*>")
_MARK = re.compile(r"<[^>]*>")
_SPACE_BEFORE = re.compile(r"\s+([,.;:?!)”])")
_CAPITALS = re.compile(r"\b[A-ZÁÉÍÓÚÜÑ]+(?:,? [A-ZÁÉÍÓÚÜÑ]+)*\b")
_WORD = re.compile(r"\w+")
# The mean logarithm of how much longer one verse is than the other: below 0.22 in nearly every chapter, 0.25 to 0.53
# where one verse stands beside the next.
_MOST_DIFFERENT = 0.24

_Verses = dict[tuple[str, int, int], str]


def _fetch(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    modules = require("pysword.modules", "verses are in files of the SWORD project")
    unpacked = folder / "package"
    unpacked.mkdir()
    versions = {package: debian_package(package, unpacked, progress) for package, _ in _PACKAGES.values()}
    library = modules.SwordModules(str(unpacked / "usr/share/sword"))
    library.parse_modules()
    texts = {side: _verses(library.get_bible_from_module(module)) for side, (_, module) in _PACKAGES.items()}
    if not store(folder, aligned(texts["source"], texts["target"])):
        raise CorruptDownloadError("the packages hold no verse that both languages have")
    shutil.rmtree(unpacked)
    return versions


def _verses(bible: Any) -> _Verses:
    """(book, chapter, verse) -> text."""
    # Each verse unpacks the whole book that it is in: the last ones unpacked are kept.
    bible._decompress = lru_cache(maxsize=4)(bible._decompress)
    found = {}
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter in range(1, book.num_chapters + 1):
                for verse in range(1, book.chapter_lengths[chapter - 1] + 1):
                    marked = bible.get(books=[book.name], chapters=[chapter], verses=[verse], clean=False)
                    found[book.name, chapter, verse] = without_marks(marked)
    return found


def without_marks(verse: str) -> str:
    """The words of a verse in OSIS."""
    verse = _AFTER_CHAPTER.sub("", verse)
    verse = _LEFT_OUT.sub(" ", verse)
    verse = _MARK.sub(" ", _WITHIN_LINE.sub("", verse))
    return _SPACE_BEFORE.sub(r"\1", " ".join(html.unescape(verse).split()))


def aligned(source: _Verses, target: _Verses) -> Iterator[Document]:
    """Verses that both have, of chapters that both number alike; whole chapters are in one part."""
    usual = usual_forms(target.values())
    chapters: dict[tuple[str, int], list[int]] = {}
    for book, chapter, verse in target:
        if source.get((book, chapter, verse)) and target[book, chapter, verse]:
            chapters.setdefault((book, chapter), []).append(verse)
    for (book, chapter), verses in chapters.items():
        pairs = [(source[book, chapter, verse], target[book, chapter, verse]) for verse in verses]
        if not numbered_alike(pairs):
            continue
        name = f"{book} {chapter}"
        for verse, (first, second) in zip(verses, pairs):
            yield {
                "source": first,
                "target": without_capitals(second, usual) if verse == 1 else second,
                "reference": f"{name}:{verse}",
                "chapter": name,
                "split": part_of(name, _SHARES),
            }


def numbered_alike(pairs: list[tuple[str, str]]) -> bool:
    """Whether long verses stand beside long ones and short ones beside short ones."""
    return statistics.mean(abs(math.log(len(first) / len(second))) for first, second in pairs) < _MOST_DIFFERENT


def usual_forms(texts: Iterable[str]) -> dict[str, str]:
    """Word in lower case -> how it is mostly written, not counting words all in capitals."""
    forms: dict[str, Counter[str]] = {}
    for text in texts:
        for word in _WORD.findall(text):
            if len(word) == 1 or not word.isupper():
                forms.setdefault(word.lower(), Counter())[word] += 1
    return {word: counts.most_common(1)[0][0] for word, counts in forms.items()}


def without_capitals(text: str, usual: dict[str, str]) -> str:
    """Runs of words in capitals as they are usually written, the first of a run with a capital."""

    def written(match: re.Match[str]) -> str:
        run = match[0]
        if max(map(len, _WORD.findall(run))) < 2:
            return run
        words = _WORD.sub(lambda word: usual.get(word[0].lower(), word[0].lower()), run)
        return words[0].upper() + words[1:]

    return _CAPITALS.sub(written, text)


SAMPLES = (
    Sample(
        name="bible-en-es",
        description="verses of the Bible in English (World English Bible) and Spanish (Reina-Valera, 1909)",
        licence="public domain",
        source="Debian sword-text-web, sword-text-sparv",
        fields={
            "source": "English",
            "target": "Spanish",
            "reference": "book, chapter and verse",
            "chapter": "book and chapter; one chapter is in one part",
        },
        splits=SPLITS,
        fetch=_fetch,
        read=read_stored,
    ),
)
