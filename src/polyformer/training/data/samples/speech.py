"""Speech with its text: the voice prompts of the Asterisk telephone server, in three languages, out of Debian packages.

They come from asterisk-core-sounds-{en,es,fr}-wav (8 kHz) and asterisk-core-sounds-{en,es,fr} (the text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.training.data.cleaning import normalized, part_of
from polyformer.training.data.files import open_bytes
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import debian_package
from polyformer.training.data.samples.storing import SHARES, SPLITS, read_stored, store

LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French"}


def _fetch(folder: Path, progress: ProgressCallback, language: str) -> dict[str, str]:
    packages = (f"asterisk-core-sounds-{language}-wav", f"asterisk-core-sounds-{language}")
    versions = {package: debian_package(package, folder, progress) for package in packages}
    if not store(folder, clips(folder)):
        raise CorruptDownloadError(f"{packages[0]} holds no recording whose text is known")
    return versions


def clips(folder: Path) -> Iterator[Document]:
    """All recordings whose text is known, in the order of their names; their paths are within ``folder``."""
    found = {}
    for root in folder.glob("usr/share/asterisk/sounds/*"):  # "digits/1.wav" lies below one of these
        found.update({path.relative_to(root).with_suffix("").as_posix(): path for path in root.rglob("*.wav")})
    for name, text in sorted(_texts(folder).items()):
        if name in found:
            audio = found[name].relative_to(folder).as_posix()
            yield {"audio": audio, "text": text, "name": name, "split": part_of(normalized(text).lower(), SHARES)}


def _texts(folder: Path) -> dict[str, str]:
    """Name of a clip -> its text, from lines "name: text"."""
    texts = {}
    for path in sorted(folder.rglob("core-sounds-*.txt*")):
        with open_bytes(path) as file:
            lines = file.read().decode("utf-8", errors="replace").splitlines()
        for line in lines:
            name, colon, said = line.partition(":")
            said = said.strip()
            if colon and said and not line.startswith(";"):
                # Descriptions of sounds stand in brackets: nothing is said there.
                texts[name.strip()] = "" if said[0] in "[(<" and said[-1] in "])>" else said
    return texts


def _read(folder: Path) -> Iterator[Document]:
    for document in read_stored(folder):
        yield {**document, "audio": str(folder / document["audio"])}


def _sample(language: str) -> Sample:
    fetch: Callable[[Path, ProgressCallback], dict[str, str]] = partial(_fetch, language=language)
    return Sample(
        name=f"asterisk-sounds-{language}",
        description=f"voice prompts of a telephone server in {LANGUAGES[language]}, about half an hour at 8 kHz",
        licence="CC-BY-SA-3.0",
        source=f"Debian asterisk-core-sounds-{language}-wav, asterisk-core-sounds-{language}",
        fields={
            "audio": "the path of a .wav file",
            "text": "what is said; empty for tones and silence",
            "name": "of the prompt",
        },
        splits=SPLITS,
        fetch=fetch,
        read=_read,
    )


SAMPLES = tuple(map(_sample, LANGUAGES))
