"""Speech with its text: the sample sets asterisk-sounds-en, -es and -fr, voice prompts of a telephone server."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from polyformer.errors import PolyformerError
from polyformer.training.data import samples

LICENCE = "CC-BY-SA-3.0"


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
    name = f"asterisk-sounds-{language}"
    if not samples.is_here(name):
        print(f"fetching {name} ({LICENCE})", file=sys.stderr)
    try:
        return [Clip(Path(document["audio"]), document["text"]) for document in samples.read(name)]
    except PolyformerError as error:
        raise SystemExit(str(error)) from None
