"""Speech with its text: the voice prompts of the Asterisk telephone server, in three languages.

They come from Debian's packages asterisk-core-sounds-{en,es,fr}-wav (8 kHz) and asterisk-core-sounds-{en,es,fr} (the
text), under CC-BY-SA-3.0, and are unpacked into the cache; nothing is installed. It needs `apt-get` and `dpkg-deb`.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from polyformer.checkpoints.disk import cache_folder

LICENCE = "CC-BY-SA-3.0"
LANGUAGES = {"en": "en_US", "es": "es_MX", "fr": "fr_CA"}


@dataclass(frozen=True)
class Clip:
    """A recording and what is said in it."""

    path: Path
    text: str


def clips(language: str) -> list[Clip]:
    """All clips of a language whose text is known, in the order of their names. Tones and silence have an empty one.

    Raises:
        SystemExit: the packages cannot be fetched here.
    """
    folder = cache_folder() / "data" / f"asterisk-core-sounds-{language}"
    if not (folder / "complete").is_file():
        _fetch(language, folder)
    texts = _texts(folder)
    found = {
        path.relative_to(root).with_suffix("").as_posix(): path
        for root in _roots(folder)
        for path in root.rglob("*.wav")
    }
    return [Clip(found[name], texts[name]) for name in sorted(texts) if name in found]


def _fetch(language: str, folder: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit("the clips are in packages of Debian: this needs apt-get and dpkg-deb")
    print(f"fetching asterisk-core-sounds-{language} ({LICENCE})", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for package in (f"asterisk-core-sounds-{language}-wav", f"asterisk-core-sounds-{language}"):
        done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False)
        files = sorted(folder.glob(f"{package}_*.deb"))
        if done.returncode or not files:
            raise SystemExit(f"apt-get could not download {package}: {done.stderr.strip().splitlines()[-1:]}")
        subprocess.run(["dpkg-deb", "--extract", files[0].name, "."], cwd=folder, check=True)
        files[0].unlink()
    (folder / "complete").touch()


def _roots(folder: Path) -> list[Path]:
    """Folders of a language's clips ("digits/1.wav" lies below one)."""
    return [path for path in folder.glob("usr/share/asterisk/sounds/*") if path.is_dir()]


def _texts(folder: Path) -> dict[str, str]:
    """Name of a clip -> its text, from "name: text" lines."""
    texts = {}
    for path in sorted(folder.rglob("core-sounds-*.txt*")):
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")
        for line in text.splitlines():
            name, colon, said = line.partition(":")
            said = said.strip()
            if colon and said and not line.startswith(";"):
                # Descriptions of sounds stand in brackets: nothing is said there.
                texts[name.strip()] = "" if said[0] in "[(<" and said[-1] in "])>" else said
    return texts
