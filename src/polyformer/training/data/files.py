"""Files as streams of bytes and lines: gzip and zstd undone on the way, damage and bad text named with their line."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from polyformer.errors import ConfigError, DataError

COMPRESSED = (".gz", ".zst")
# The largest document that is held in memory, and so the longest line.
MAX_DOCUMENT_BYTES = 2**28
_PIECE_BYTES = 1 << 20
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def bare_suffix(path: Path) -> str:
    """The ending that tells the format, in lower case: ".jsonl" of "x.JSONL.gz"."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes as a stream, decompressed if its name ends in .gz or .zst.

    Raises:
        DataError: there is no such file, it may not be read, or (while reading) the compressed data are damaged.
        ConfigError: zstandard is not installed.
    """
    try:
        raw = path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    with raw, _damage_named(path):
        suffix = path.suffix.lower()
        if suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as file:
                yield io.BufferedReader(file, _PIECE_BYTES)
        elif suffix == ".zst":
            yield io.BufferedReader(_ZstdStream(raw, path), _PIECE_BYTES)
        else:
            yield raw


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is damaged gzip data ({error}): fetch or write it again") from error


class _ZstdStream(io.RawIOBase):
    """Decompressed zstd frames, one after the other. Unlike the library's reader it notices where the last one is
    cut off."""

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        self._raw = raw
        self._path = path
        self._library = require("zstandard", "zstd data")
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # any writable buffer
        while not self._ready:
            piece = self._raw.read(1 << 16)
            if not piece:
                if self._frame is not None:
                    raise DataError(f"{self._path} is zstd data that is cut off: fetch or write it again")
                return 0
            self._ready = memoryview(self._decompress(piece))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, piece: bytes) -> bytes:
        done = []
        try:
            while piece:
                if self._frame is None:
                    self._frame = self._library.ZstdDecompressor().decompressobj()
                done.append(self._frame.decompress(piece))
                if not self._frame.eof:
                    break
                piece, self._frame = self._frame.unused_data, None
        except self._library.ZstdError as error:
            raise DataError(f"{self._path} is damaged zstd data ({error}): fetch or write it again") from error
        return b"".join(done)


@contextlib.contextmanager
def seekable(path: Path) -> Iterator[Path]:
    """A file of the same contents that can be read from anywhere: itself, or a temporary decompressed copy."""
    if path.suffix.lower() not in COMPRESSED:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="polyformer-") as folder:
        copy = Path(folder) / path.stem
        with open_bytes(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, _PIECE_BYTES)
        yield copy


def read_lines(path: Path, most: int = MAX_DOCUMENT_BYTES) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line, its end included, however large the file is.

    Raises:
        DataError: as `open_bytes`; a line is longer than ``most`` bytes, not UTF-8, or holds a zero byte.
    """
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(most + 1):
            number += 1
            if len(line) > most:
                raise DataError(
                    f"{path}, line {number} is longer than {most:,} bytes: is it one document a line? "
                    "max_document_bytes allows more"
                )
            yield number, decode(line, path, number)


def read_whole(path: Path, most: int = MAX_DOCUMENT_BYTES) -> str:
    """A file's text, which becomes one document.

    Raises:
        DataError: as `open_bytes`; it is longer than ``most`` bytes, not UTF-8, or binary.
    """
    with open_bytes(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(
            f"{path} is longer than {most:,} bytes, too long for one document: read it with unit='line' or "
            "unit='blank-line', or allow more with max_document_bytes"
        )
    return decode(data, path, 1)


def decode(data: bytes, path: Path, first_line: int) -> str:
    """Text of bytes that begin in line ``first_line``; a mark of UTF-8 at the beginning of a file is dropped.

    Raises:
        DataError: it is not UTF-8, or holds a zero byte as only binary files do; the line is named.
    """
    if first_line == 1:
        if data.startswith(_UTF16_MARKS):
            raise DataError(f"{path} is UTF-16: convert it, with: iconv -f UTF-16 -t UTF-8 FILE > NEW")
        data = data.removeprefix(b"\xef\xbb\xbf")
    zero = data.find(b"\0")
    if zero >= 0:
        raise DataError(f"{path}, line {_line_of(data, zero, first_line)} holds a zero byte: this is no text file")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = _line_of(data, error.start, first_line)
        raise DataError(
            f"{path}, line {line} is not UTF-8 (byte 0x{data[error.start]:02x}): "
            "convert it with iconv, or is it no text?"
        ) from error


def _line_of(data: bytes, place: int, first_line: int) -> int:
    return first_line + data.count(b"\n", 0, place)


def require(module: str, what: str, *, extra: str = "train"):  # type: ignore[no-untyped-def]  # a module
    """Imports an optional package.

    Args:
        what: it is needed for.
        extra: of this package that brings it.

    Raises:
        ConfigError: it is not installed; the message says how to get it.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise ConfigError(f"{what}: this needs {package}: pip install 'polyformer[{extra}]'") from error
