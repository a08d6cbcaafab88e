"""What a transcription gives, and the files that people make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Word:
    """A word as it is spoken.

    Attributes:
        text: the word, punctuation attached to it, and the space before it.
        start, end: seconds.
        probability: the mean of its tokens'.
    """

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Segment:
    """A stretch of speech.

    Attributes:
        start, end: seconds.
        text: what is said.
        token_ids: timestamps included.
        temperature: at which it was written; above 0, the first tries looked wrong.
        mean_logprob: of its window's tokens.
        compression_ratio: of its window's text by zlib; a high one means that it repeats itself.
        no_speech_probability: that its window holds no speech.
        words: where they were asked for.
    """

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]
    temperature: float
    mean_logprob: float
    compression_ratio: float
    no_speech_probability: float
    words: tuple[Word, ...] | None = None


@dataclass(frozen=True)
class Transcript:
    """A recording in words.

    Attributes:
        text: all that is said.
        language: its code, detected or given.
        language_probability: of the detected one; None where it was given.
        duration: of the recording, in seconds.
        segments: in order.
    """

    text: str
    language: str
    language_probability: float | None
    duration: float
    segments: tuple[Segment, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        values = asdict(self)
        for segment in values["segments"]:
            if segment["words"] is None:
                del segment["words"]
        return values

    def to(self, kind: str) -> str:
        """The transcript as the text of a file: "txt", "srt", "vtt", "tsv" or "json"."""
        return FORMATS[kind](self)


def _txt(transcript: Transcript) -> str:
    return "".join(f"{segment.text.strip()}\n" for segment in transcript.segments)


def _srt(transcript: Transcript) -> str:
    """SubRip: numbered, commas before the milliseconds."""
    blocks = [
        f"{number}\n{_clock(segment.start, ',', hours=True)} --> {_clock(segment.end, ',', hours=True)}\n"
        f"{_subtitle(segment)}\n"
        for number, segment in enumerate(transcript.segments, start=1)
    ]
    return "\n".join(blocks)


def _vtt(transcript: Transcript) -> str:
    """WebVTT (W3C)."""
    blocks = [
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{_subtitle(segment)}\n"
        for segment in transcript.segments
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _tsv(transcript: Transcript) -> str:
    rows = [
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{segment.text.strip()}\n".replace("\n\n", "\n")
        for segment in transcript.segments
    ]
    return "".join(["start\tend\ttext\n", *rows])


def _json(transcript: Transcript) -> str:
    return json.dumps(transcript.to_json(), ensure_ascii=False, indent=2) + "\n"


def _subtitle(segment: Segment) -> str:
    return segment.text.strip().replace("-->", "->")


def _clock(seconds: float, mark: str, *, hours: bool = False) -> str:
    milliseconds = round(1000 * max(0.0, seconds))
    rest, milliseconds = divmod(milliseconds, 1000)
    minutes, rest = divmod(rest, 60)
    full, minutes = divmod(minutes, 60)
    front = f"{full:02}:" if hours or full else ""
    return f"{front}{minutes:02}:{rest:02}{mark}{milliseconds:03}"


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": _txt, "srt": _srt, "vtt": _vtt, "tsv": _tsv, "json": _json}
"""Kind of file -> what makes it."""
