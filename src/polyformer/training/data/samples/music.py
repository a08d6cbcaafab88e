"""Music as notes: the chorales of Johann Sebastian Bach in the corpus of music21, those that state no restriction."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyformer.checkpoints.transfer import ProgressCallback
from polyformer.errors import DataError
from polyformer.training.data.cleaning import part_of
from polyformer.training.data.files import require
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.storing import SHARES, SPLITS, read_stored, store

# What a file that says anything about rights holds, in the elements of MusicXML or in words.
_RESTRICTION = re.compile(rb"<rights|copyright|licen[cs]e|non-?commercial|all rights", re.IGNORECASE)
_VOICES = 4


def _fetch(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    music21 = require("music21", "the chorales come with music21")
    chorales = require("music21.corpus.chorales", "the chorales come with music21")
    names = list(chorales.Iterator(returnType="filename"))
    if not store(folder, _chorales(music21, names, progress)):
        raise DataError("this music21 was installed without its corpus: install it from PyPI")
    return {"music21": music21.__version__}


def _chorales(music21: Any, names: list[str], progress: ProgressCallback) -> Iterator[Document]:
    """Each chorale once, in the order of their numbers in Riemenschneider's edition."""
    for number, name in enumerate(dict.fromkeys(names)):
        progress("chorales", number, len(names))
        work = music21.corpus.getWork(name)  # several paths where a work has several movements
        path = Path(work[0] if isinstance(work, list) else work)
        if states_restriction(path):
            continue
        score = music21.converter.parse(path, forceSource=True, storePickle=False)
        if len(score.parts) != _VOICES:
            continue  # some have instruments of their own, or voices on two staves
        title = name.removeprefix("bach/")
        yield {
            "notes": notes_of(score),
            "title": title,
            "key": _key(score),
            "time_signature": _time_signature(score),
            "split": part_of(title, SHARES),
        }


def states_restriction(path: Path) -> bool:
    """Whether a file of MusicXML, compressed or not, says anything about rights."""
    if path.suffix != ".mxl":
        return _RESTRICTION.search(path.read_bytes()) is not None
    with zipfile.ZipFile(path) as archive:
        return any(_RESTRICTION.search(archive.read(name)) for name in archive.namelist() if name.endswith(".xml"))


def notes_of(score: Any) -> list[list[float]]:
    """[voice, start, length, pitch] of each note in the order of their starts, high voices first; tied ones as one."""
    notes = []
    for voice, part in enumerate(score.parts):
        for note in part.stripTies().flatten().notes:
            start, length = float(note.offset), float(note.quarterLength)
            notes += [[voice, start, length, pitch.midi] for pitch in note.pitches]
    return sorted(notes, key=lambda note: (note[1], note[0], -note[3]))


def _key(score: Any) -> str:
    """The signature: how many sharps, flats below zero; music does not say more in writing."""
    signatures = score.parts[0].flatten().getElementsByClass("KeySignature")
    return str(signatures[0].sharps) if signatures else "0"


def _time_signature(score: Any) -> str:
    signatures = score.parts[0].flatten().getElementsByClass("TimeSignature")
    return str(signatures[0].ratioString) if signatures else "4/4"


SAMPLES = (
    Sample(
        name="chorales",
        description="chorales of J. S. Bach for four voices, as notes",
        licence="public domain (music); encodings that state no restriction, distributed with music21 (BSD-3-Clause)",
        source="PyPI music21, as it is installed",
        fields={
            "notes": "lists [voice, start, length, pitch]: 0 soprano to 3 bass, in quarters, MIDI number",
            "title": "BWV number",
            "key": "sharps of the key signature, flats below zero",
            "time_signature": "as 4/4",
        },
        splits=SPLITS,
        fetch=_fetch,
        read=read_stored,
    ),
)
