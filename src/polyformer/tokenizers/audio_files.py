"""Sound files as numbers: one channel, at the rate that is asked for."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from polyformer.errors import TokenizerError

Sound: TypeAlias = "str | os.PathLike[str] | bytes | tuple[np.ndarray[Any, Any], int]"
"""A file, the bytes of one, or (samples, rate): [samples] or [samples, channels], whole numbers or floating."""

FORMATS = "wav, flac, mp3, ogg, opus, aiff, au"

# The beginnings of files that people take for sound, and that hold pictures too.
_VIDEOS = {b"matroska": -1, b"webm": -1, b"AVI ": 8, b"0&\xb2u": 0}
_VIDEOS |= dict.fromkeys((b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"), 4)  # of QuickTime and MP4


def read_sound(sound: Sound, rate: int = 16000) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The samples of a sound [samples], float32 between -1 and 1; channels are averaged.

    Args:
        rate: samples a second that are wanted; another rate is resampled (soxr, high quality).

    Raises:
        TokenizerError: there is no such file, it is empty, damaged, a video or no sound at all.
    """
    if isinstance(sound, tuple):
        samples, given_rate = _checked(*sound)
    elif isinstance(sound, (bytes, bytearray)):
        samples, given_rate = _decode(bytes(sound), "the sound")
    elif isinstance(sound, (str, os.PathLike)):
        samples, given_rate = _decode(_read_file(Path(sound)), str(sound))
    else:
        raise TokenizerError(
            f"a sound must be a path, bytes, or (samples, rate), not {type(sound).__name__}: for an array give its "
            "rate too, as (array, 16000)"
        )
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if given_rate != rate:
        import soxr

        mono = soxr.resample(mono, given_rate, rate, quality="HQ")
    return np.ascontiguousarray(mono, dtype=np.float32)


def _read_file(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except IsADirectoryError:
        raise TokenizerError(f"{path} is a folder: name the files in it") from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from None


def _decode(data: bytes, name: str) -> tuple[np.ndarray[Any, Any], int]:
    import soundfile

    if not data:
        raise TokenizerError(f"{name} is empty: record or fetch it again")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            expected, rate = _stated_frames(data) or file.frames, file.samplerate
            samples = file.read(dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise TokenizerError(f"{name} {_why(data)} ({_reason(error)})") from None
    if len(samples) == 0:
        raise TokenizerError(f"{name} holds no sound, or it is damaged from the beginning: fetch it again")
    if 0 < expected < 2**62 and len(samples) < 0.99 * expected:
        raise TokenizerError(
            f"{name} is damaged: only {len(samples) / rate:.1f} of {expected / rate:.1f} seconds can be read; fetch it "
            "again"
        )
    if not np.isfinite(samples).all():
        raise TokenizerError(f"{name} holds infinity or NaN: mend the recording")
    return samples, rate


def _stated_frames(data: bytes) -> int | None:
    """How many frames the header of a wav says there are, of which the library tells only those that it found; None of
    other files, and where a program that wrote into a pipe could not know."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    place, frame = 12, 0
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name == b"fmt ":
            frame = int.from_bytes(data[place + 20 : place + 22], "little")  # bytes of all channels together
            known = int.from_bytes(data[place + 8 : place + 10], "little") in (1, 3, 6, 7, 0xFFFE)
            frame = frame if known else 0  # a compressed block is no frame
        if name == b"data":
            return size // frame if frame and size < 0x7FFF0000 else None
        place += 8 + size + size % 2  # chunks begin at even places
    return None


def _why(data: bytes) -> str:
    head = data[:64]
    for mark, place in _VIDEOS.items():
        if (mark in head) if place < 0 else head[place : place + len(mark)] == mark:
            return "is a video or a container that is not read: take the sound out first, with: ffmpeg -i FILE out.wav"
    if head[:4] in (b"RIFF", b"fLaC", b"OggS") or head[:3] == b"ID3" or head[:2] in (b"\xff\xfb", b"\xff\xf3"):
        return "is damaged: fetch it again"
    return f"is no sound that is read; known: {FORMATS}"


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".")


def _checked(samples: np.ndarray[Any, Any], rate: int) -> tuple[np.ndarray[Any, Any], int]:
    array = np.asarray(samples)
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not 1000 <= rate <= 768_000:
        raise TokenizerError(f"the rate is {rate!r}, but it must be samples a second, from 1,000 to 768,000")
    if array.ndim not in (1, 2) or array.size == 0:
        raise TokenizerError(f"samples must be [samples] or [samples, channels], but they are {list(array.shape)}")
    if array.ndim == 2 and array.shape[1] > 64:
        raise TokenizerError(f"samples have {array.shape[1]} channels: give [samples, channels], not the transpose")
    if np.issubdtype(array.dtype, np.integer):
        limits = np.iinfo(array.dtype)
        middle = 0 if limits.min < 0 else (limits.max + 1) / 2
        array = (array.astype(np.float64) - middle) / (limits.max + 1 - middle)
    if not np.issubdtype(array.dtype, np.floating):
        raise TokenizerError(f"samples are {array.dtype}, but they must be numbers")
    if not np.isfinite(array).all():
        raise TokenizerError("samples hold infinity or NaN: mend the recording")
    return array.astype(np.float32), int(rate)
