"""One file -> its documents, a format each: text, Python, JSON lines, JSON, CSV, Parquet, Arrow. All of them stream."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyformer.errors import ConfigError, DataError
from polyformer.training.data.files import (
    MAX_DOCUMENT_BYTES,
    bare_suffix,
    decode,
    open_bytes,
    read_lines,
    read_whole,
    require,
    seekable,
)

Document = dict[str, Any]
UNITS = ("file", "line", "blank-line")
_TABLE_ROWS = 256
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True)
class ReaderOptions:
    """How files are read.

    Attributes:
        unit: of text: what one document is: a "file", a "line", or what stands between blank lines ("blank-line").
        glob: of folders: which files ("**/*.txt"); None takes all whose format is known.
        delimiter: of CSV: what stands between fields; None is a comma, and a tab in .tsv files.
        max_document_bytes: the longest document, and the longest line, that is held in memory.
    """

    unit: Literal["file", "line", "blank-line"] = "file"
    glob: str | None = None
    delimiter: str | None = None
    max_document_bytes: int = MAX_DOCUMENT_BYTES

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"unit must be one of {', '.join(UNITS)}, not {self.unit!r}")
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ConfigError(f"delimiter must be one character, not {self.delimiter!r}")
        if isinstance(self.max_document_bytes, bool) or self.max_document_bytes < 1:
            raise ConfigError(f"max_document_bytes must be a whole number from 1, not {self.max_document_bytes!r}")


@dataclass(frozen=True)
class Format:
    """How one kind of file is read.

    Attributes:
        name: what a person types.
        suffixes: endings of such files, in lower case, those of compression taken off.
        read: (file, options) -> where a document stands ("line 3"; "" if it is the whole file) and the document.
        may_be_empty: an empty file among others is skipped: it is no sign of damage.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, ReaderOptions], Iterator[tuple[str, Document]]]
    may_be_empty: bool = False


def read_text(path: Path, options: ReaderOptions) -> Iterator[tuple[str, Document]]:
    """Fields "text" and "path". Ends of lines become ``\\n``; documents of only spaces are left out."""
    if options.unit == "file":
        text = read_whole(path, options.max_document_bytes).replace("\r\n", "\n")
        if text.strip():
            yield "", {"text": text, "path": str(path)}
        return
    if options.unit == "line":
        for number, line in read_lines(path, options.max_document_bytes):
            if line.strip():
                yield f"line {number}", {"text": line.rstrip("\r\n"), "path": str(path)}
        return
    first, lines, nbytes = 1, list[str](), 0
    for number, line in read_lines(path, options.max_document_bytes):
        if line.strip():
            first = first if lines else number
            nbytes += len(line)
            lines.append(line.rstrip("\r\n"))
            if nbytes > options.max_document_bytes:
                raise DataError(
                    f"{path}, line {first}: no blank line in {options.max_document_bytes:,} bytes: read it with "
                    "unit='line', or allow more with max_document_bytes"
                )
        elif lines:
            yield f"line {first}", {"text": "\n".join(lines), "path": str(path)}
            lines, nbytes = [], 0
    if lines:
        yield f"line {first}", {"text": "\n".join(lines), "path": str(path)}


def read_python(path: Path, options: ReaderOptions) -> Iterator[tuple[str, Document]]:
    """Fields "text" and "path" of a Python source file, in the encoding that it declares (PEP 263)."""
    with open_bytes(path) as file:
        data = file.read(options.max_document_bytes + 1)
    if len(data) > options.max_document_bytes:
        raise DataError(f"{path} is longer than {options.max_document_bytes:,} bytes: max_document_bytes allows more")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = decode(data, path, 1) if encoding.startswith("utf-8") else data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not in the encoding that it declares: {error}") from error
    text = text.replace("\r\n", "\n")
    if text.strip():
        yield "", {"text": text, "path": str(path)}


def read_json_lines(path: Path, options: ReaderOptions) -> Iterator[tuple[str, Document]]:
    """A JSON object a line; blank lines are skipped."""
    for number, line in read_lines(path, options.max_document_bytes):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(f"{path}, line {number} is not JSON ({reason}): one JSON object a line") from error
        yield f"line {number}", _as_document(value, "\\u" in line, path, f"line {number}")


def read_json(path: Path, options: ReaderOptions) -> Iterator[tuple[str, Document]]:
    """The objects of a list, or objects one after the other; each is a document."""
    for number, value, piece in _json_values(path, options.max_document_bytes):
        yield f"line {number}", _as_document(value, "\\u" in piece, path, f"line {number}")


def _json_values(path: Path, most: int) -> Iterator[tuple[int, Any, str]]:
    """Line, value and text of each value of a list, or of each of several values, holding one at a time."""
    decoder = json.JSONDecoder()
    pieces = _text_pieces(path)
    text, line, in_list, wanted = next(pieces, ""), 1, False, _PIECE_BYTES
    ended = False
    if text.lstrip()[:1] == "[":
        line += text[: text.index("[")].count("\n")
        text, in_list = text[text.index("[") + 1 :], True
    while True:
        rest = text.lstrip(" \t\r\n,")
        line += text.count("\n", 0, len(text) - len(rest))
        if in_list and rest[:1] == "]":
            return
        try:
            value, end = decoder.raw_decode(rest)
            # A number or a word may go on in the next piece; what closes with a bracket or a quote may not.
            whole = ended or rest[end - 1] in ']}"'
        except RecursionError as error:
            raise DataError(f"{path}, line {line} is nested too deeply") from error
        except json.JSONDecodeError as error:
            whole = False
            if ended:
                if not rest and not in_list:
                    return
                reason = "the list has no end" if not rest else error.msg
                raise DataError(f"{path}, line {line + rest.count(chr(10), 0, error.pos)}: {reason}") from error
        if whole:
            yield line, value, rest[:end]
            line += rest.count("\n", 0, end)
            text, wanted = rest[end:], _PIECE_BYTES
            continue
        if len(rest) > most:
            raise DataError(f"{path}, line {line}: a value is longer than {most:,} bytes, or it is not JSON")
        # Each attempt begins anew, so that each reads twice as much as the one before.
        more, have = [rest], 0
        while have < wanted and not ended:
            piece = next(pieces, None)
            ended = piece is None
            more.append(piece or "")
            have += len(more[-1])
        text, wanted = "".join(more), 2 * wanted


def _text_pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces that never cut a character."""
    line, left = 1, b""
    with open_bytes(path) as file:
        while piece := file.read(_PIECE_BYTES):
            data = left + piece
            cut = len(data)
            while cut and data[cut - 1] & 0xC0 == 0x80 and len(data) - cut < 3:
                cut -= 1
            if cut and data[cut - 1] >= 0xC0:
                cut -= 1  # the character's first byte waits for the others
            else:
                cut = len(data)
            yield decode(data[:cut], path, line)
            line += data.count(b"\n", 0, cut)
            left = data[cut:]
    if left:
        yield decode(left, path, line)


def _as_document(value: Any, escaped: bool, path: Path, where: str) -> Document:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null", bool: "true or false"}.get(type(value), "a number")
        raise DataError(f"{path}, {where} is {kind}, not an object with fields")
    if escaped:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{path}, {where} holds half a character (an unpaired \\u surrogate)") from error
    return value


def read_csv(path: Path, options: ReaderOptions) -> Iterator[tuple[str, Document]]:
    """A row a document; the first row names the fields. Every value is a string."""
    delimiter = options.delimiter or ("\t" if bare_suffix(path) == ".tsv" else ",")
    # A limit of the whole process, 128 kB at first: it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), min(options.max_document_bytes, sys.maxsize)))
    rows = csv.reader(
        (line for _, line in read_lines(path, options.max_document_bytes)), delimiter=delimiter, strict=True
    )
    header: list[str] = []
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: {error}") from error
        if row is None:
            return
        if not row:
            continue
        where = f"line {rows.line_num}"
        if not header:
            header = row
            _check_header(header, path, delimiter)
        elif len(row) != len(header):
            raise DataError(
                f"{path}, {where} has {len(row)} fields, and the first row names {len(header)}: quote values that "
                f"hold {delimiter!r}, or give the right delimiter"
            )
        else:
            yield where, dict(zip(header, row))


def _check_header(header: list[str], path: Path, delimiter: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        what = f"names {twice[0]!r} twice" if twice and twice[0] else "has a field without a name"
        raise DataError(f"{path}, line 1 {what}: the first row must name the fields (delimiter {delimiter!r})")


def read_parquet(path: Path, options: ReaderOptions) -> Iterator[tuple[str, Document]]:
    """A row a document; pictures of Hugging Face datasets become arrays of bytes [height, width, 3]."""
    with _opened_parquet(path) as file:
        pictures = picture_fields(features_of(file.schema_arrow))
        yield from _rows(file.iter_batches(batch_size=_TABLE_ROWS), pictures, path)


def read_arrow(path: Path, options: ReaderOptions) -> Iterator[tuple[str, Document]]:
    """A row a document, of Arrow's stream format (as Hugging Face datasets are saved) or its file format."""
    with _opened_arrow(path) as (schema, batches):
        yield from _rows(_sliced(batches), picture_fields(features_of(schema)), path)


def schema_labels(path: Path) -> dict[str, list[str]]:
    """Field -> names of its values, as a Parquet or Arrow file says; empty where it does not.

    Raises:
        DataError: the file is damaged.
    """
    if bare_suffix(path) == ".arrow":
        with _opened_arrow(path) as (schema, _):
            return label_names(features_of(schema))
    with _opened_parquet(path) as file:
        return label_names(features_of(file.schema_arrow))


@contextlib.contextmanager
def _opened_parquet(path: Path) -> Iterator[Any]:
    arrow = require("pyarrow", f"{path} is Parquet")
    parquet = require("pyarrow.parquet", f"{path} is Parquet")
    with seekable(path) as plain:
        try:
            with parquet.ParquetFile(plain, pre_buffer=False, buffer_size=1 << 20) as file:
                yield file
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no Parquet file, or damaged ({_first_line(error)})") from error


@contextlib.contextmanager
def _opened_arrow(path: Path) -> Iterator[tuple[Any, Iterator[Any]]]:
    """The schema and the batches of a file."""
    arrow = require("pyarrow", f"{path} is Arrow")
    with seekable(path) as plain:
        try:
            with arrow.memory_map(str(plain)) as source:
                if source.read(6) == b"ARROW1":
                    opened = arrow.ipc.open_file(source)
                    yield opened.schema, (opened.get_batch(number) for number in range(opened.num_record_batches))
                else:
                    source.seek(0)
                    stream = arrow.ipc.open_stream(source)
                    yield stream.schema, iter(stream)
        except (arrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is no Arrow file, or damaged ({_first_line(error)})") from error


def _sliced(batches: Iterator[Any]) -> Iterator[Any]:
    """Large batches a few rows at a time."""
    for batch in batches:
        yield from (batch.slice(start, _TABLE_ROWS) for start in range(0, len(batch), _TABLE_ROWS))


def _rows(batches: Iterator[Any], pictures: Sequence[str], path: Path) -> Iterator[tuple[str, Document]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            for name in pictures:
                if row[name] is not None:
                    row[name] = _picture(row[name], path, f"row {number}")
            yield f"row {number}", row


def _picture(value: Mapping[str, Any], path: Path, where: str) -> Any:
    import numpy as np

    from polyformer.errors import TokenizerError
    from polyformer.tokenizers.image_files import read_picture

    try:
        return np.asarray(read_picture(value["bytes"] if value["bytes"] is not None else value["path"]))
    except TokenizerError as error:
        raise DataError(f"{path}, {where}: {error}") from error


def features_of(schema: Any) -> dict[str, Any]:
    """What Hugging Face datasets wrote into an Arrow schema about the fields; empty where they did not."""
    data = (schema.metadata or {}).get(b"huggingface")
    try:
        return dict(json.loads(data)["info"]["features"]) if data else {}
    except (ValueError, KeyError, TypeError):
        return {}


def picture_fields(features: Mapping[str, Any]) -> list[str]:
    return [name for name, kind in features.items() if isinstance(kind, Mapping) and kind.get("_type") == "Image"]


def label_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Field -> names of its values, for fields of labels."""
    return {
        name: list(kind["names"])
        for name, kind in features.items()
        if isinstance(kind, Mapping) and kind.get("_type") == "ClassLabel" and "names" in kind
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


FORMATS = {
    made.name: made
    for made in (
        Format("text", (".txt", ".md", ".rst", ".text"), read_text, may_be_empty=True),
        Format("python", (".py", ".pyi"), read_python, may_be_empty=True),
        Format("jsonl", (".jsonl", ".ndjson"), read_json_lines),
        Format("json", (".json",), read_json),
        Format("csv", (".csv", ".tsv"), read_csv),
        Format("parquet", (".parquet",), read_parquet),
        Format("arrow", (".arrow",), read_arrow),
    )
}
FORMAT_OF_SUFFIX = {suffix: made.name for made in FORMATS.values() for suffix in made.suffixes}
