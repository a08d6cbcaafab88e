"""Documents from anything: a file, a folder, a pattern, a saved dataset or a sample set, as a stream of fields."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import glob as globbing
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyformer.errors import ConfigError, DataError
from polyformer.training.data import samples
from polyformer.training.data.files import bare_suffix
from polyformer.training.data.formats import FORMAT_OF_SUFFIX, FORMATS, Document, ReaderOptions, schema_labels

Source = str | os.PathLike[str]

# Files that stand beside data and are none.
_BESIDE = re.compile(
    r"(readme|licen[cs]e|copying|changelog|dataset_infos?|dataset_dict|state|about)\b.*", re.IGNORECASE
)
# As Hugging Face names the files of a part: "train-00000-of-00005.parquet", "data/dev.jsonl".
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def read_documents(
    source: Source | Sequence[Source],
    *,
    split: str | None = None,
    format: str | None = None,
    fields: Mapping[str, str] | Sequence[str] | None = None,
    limit: int | None = None,
    **options: Any,
) -> Iterator[Document]:
    """Streams documents, one at a time however large the source is, always in the same order.

    Args:
        source: the name of a sample set, a file, a folder, a pattern with ``*``, or a list of these. A file or folder
            that has the name of a sample set is meant by ``./name``.
        split: only this part ("train", "validation", "test"), of a source whose documents have one.
        format: "text", "python", "jsonl", "json", "csv", "parquet" or "arrow"; None goes by the names of the files.
        fields: name wanted -> name in the source ({"text": "content"}), or names to keep; None keeps every field. A
            field "split" is kept beside those.
        limit: only so many documents.
        options: for files, the fields of `ReaderOptions`; for a sample set, its own options.

    Raises:
        DataError: there is no such source; a file is empty, damaged or not of its format; a field is missing. File and
            line are named.
        ConfigError: an option does not exist or cannot be; an optional package is missing.
        DownloadError: a sample set cannot be fetched.
    """
    if isinstance(source, (str, os.PathLike)):
        documents = _read_one(source, split, format, fields, options)
    else:
        documents = itertools.chain.from_iterable(_read_one(one, split, format, fields, options) for one in source)
    return documents if limit is None else itertools.islice(documents, limit)


def beside(source: Source, value: Any) -> Any:
    """What a document says of a picture or a sound: a path that is relative is of the folder of the source, if there is
    such a file; anything else stays."""
    if not isinstance(value, str) or is_sample(source):
        return value
    folder = Path(source)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    with contextlib.suppress(OSError):  # a text that is too long to be a path
        if (folder / value).is_file():
            return str(folder / value)
    return value


def is_sample(source: Source) -> bool:
    """Whether a source is meant as the name of a sample set."""
    return isinstance(source, str) and source in samples.samples()


def _read_one(
    source: Source,
    split: str | None,
    format: str | None,
    fields: Mapping[str, str] | Sequence[str] | None,
    options: dict[str, Any],
) -> Iterator[Document]:
    if is_sample(source):
        if format is not None:
            raise ConfigError(f"{source} is a sample set, which has no format: leave format out, or write ./{source}")
        return _renamed(
            (
                (f"document {number}", document)
                for number, document in enumerate(samples.read(str(source), split=split, **options), 1)
            ),
            str(source),
            fields,
        )
    found = find_files(source, format=format, options=reader_options(options))
    return found.read(split=split, fields=fields)


def reader_options(options: Mapping[str, Any]) -> ReaderOptions:
    """Raises:
    ConfigError: there is no such option of files, or it cannot have that value.
    """
    known = [field.name for field in dataclasses.fields(ReaderOptions)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"files take {', '.join(known)}"
            raise ConfigError(f"there is no option {name!r} of files: {hint}")
    return ReaderOptions(**options)


@dataclass(frozen=True)
class FoundFile:
    """A file to read, and the part of the data that its name says."""

    path: Path
    split: str | None = None


@dataclass(frozen=True)
class FoundFiles:
    """The files of a source in the order in which they are read.

    Attributes:
        source: what was asked for.
        format: of all of them.
        files: in order.
        options: how they are read.
        many: whether they were found in a folder, where an empty text file is no mistake.
    """

    source: str
    format: str
    files: tuple[FoundFile, ...]
    options: ReaderOptions
    many: bool

    def read(
        self, *, split: str | None = None, fields: Mapping[str, str] | Sequence[str] | None = None
    ) -> Iterator[Document]:
        """See `read_documents`."""
        self._check_split(split)
        count = 0
        for file in self.files:
            if split is not None and file.split not in (None, split):
                continue
            for document in _renamed(self._file(file), str(file.path), fields):
                count += 1
                if split is None:
                    yield document
                elif "split" not in document:
                    raise DataError(
                        f"{file.path}: part {split!r} was asked for, but its documents have no field 'split'"
                    )
                elif document["split"] == split:
                    yield document
        if not count:
            raise DataError(f"{self.source} holds no document: its files are empty or blank")

    def label_names(self) -> dict[str, list[str]]:
        """Field -> names of its values, where Hugging Face datasets wrote them into Arrow or Parquet files."""
        return schema_labels(self.files[0].path) if self.format in ("parquet", "arrow") else {}

    def _check_split(self, split: str | None) -> None:
        known = list(dict.fromkeys(file.split for file in self.files if file.split is not None))
        if split is not None and len(known) and split not in known and all(file.split for file in self.files):
            raise DataError(f"{self.source} has no part {split!r}: it has {', '.join(known)}")

    def _file(self, file: FoundFile) -> Iterator[tuple[str, Document]]:
        kind = FORMATS[self.format]
        empty = True
        for where, document in kind.read(file.path, self.options):
            empty = False
            if file.split is not None:
                document.setdefault("split", file.split)
            yield where, document
        if empty and not (self.many and kind.may_be_empty):
            raise DataError(f"{file.path} is empty: it holds no document")


def _renamed(
    documents: Iterator[tuple[str, Document]], source: str, fields: Mapping[str, str] | Sequence[str] | None
) -> Iterator[Document]:
    """Documents with the fields that were asked for, by the names that were asked for."""
    if not fields:
        yield from (document for _, document in documents)
        return
    if isinstance(fields, str):
        raise ConfigError(f"fields must be names or a mapping of names, not the text {fields!r}")
    pairs = list(fields.items()) if isinstance(fields, Mapping) else [(name, name) for name in fields]
    for where, document in documents:
        try:
            chosen = {wanted: document[given] for wanted, given in pairs}
        except KeyError as error:
            place = f"{source}, {where}" if where else source
            raise DataError(f"{place} has no field {error.args[0]!r}: {_nearest(error.args[0], document)}") from None
        if "split" in document:
            chosen.setdefault("split", document["split"])
        yield chosen


def with_names(document: Mapping[str, Any], names: Mapping[str, str], where: str) -> Document:
    """The document with more names for what it holds.

    Args:
        names: new name -> the name in the document.
        where: what to call the document in messages.

    Raises:
        DataError: the document lacks a field.
    """
    result = dict(document)
    for wanted, given in names.items():
        if given not in document:
            raise DataError(f"{where} has no field {given!r}: {_nearest(given, document)}")
        result[wanted] = document[given]
    return result


def _nearest(name: str, document: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, map(str, document), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(map(str, document))}"


def find_files(source: Source, *, format: str | None = None, options: ReaderOptions | None = None) -> FoundFiles:
    """The files that a path or a pattern means.

    Raises:
        DataError: there are none, they are of several formats, or of none that is known.
        ConfigError: there is no such format.
    """
    options = options or ReaderOptions()
    if format is not None and format not in FORMATS:
        near = difflib.get_close_matches(format, list(FORMATS), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(FORMATS)}"
        raise ConfigError(f"there is no format {format!r}: {hint}")
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_folder(path, format, options)
    if path.exists():
        if options.glob is not None:
            raise ConfigError(f"glob chooses files of a folder, and {path} is a file")
        return FoundFiles(str(source), format or _format_of(path), (FoundFile(path),), options, many=False)
    if globbing.has_magic(str(source)):
        paths = sorted(Path(name) for name in globbing.glob(str(path), recursive=True) if Path(name).is_file())
        if not paths:
            raise DataError(f"no file fits the pattern {source}")
        chosen = _one_format(paths, format, str(source), named=True)
        return FoundFiles(str(source), chosen, tuple(map(FoundFile, paths)), options, many=True)
    raise DataError(_not_there(source, path))


def _not_there(source: Source, path: Path) -> str:
    names = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*names, *samples.samples()], n=3, cutoff=0.6)
    hint = f"; near it are {', '.join(near)}" if near else "; `polyformer data list` shows the sample sets"
    return f"there is no file, folder or sample set {str(source)!r}{hint}"


def _format_of(path: Path) -> str:
    suffix = bare_suffix(path)
    if suffix not in FORMAT_OF_SUFFIX:
        what = f"ends in {suffix}" if suffix else "has no ending"
        raise DataError(f"{path} {what}, which tells no format: say which, with format; there are {', '.join(FORMATS)}")
    return FORMAT_OF_SUFFIX[suffix]


def _of_folder(folder: Path, format: str | None, options: ReaderOptions) -> FoundFiles:
    saved = _saved_dataset(folder) if format in (None, "arrow") and options.glob is None else None
    if saved is not None:
        return FoundFiles(str(folder), "arrow", saved, options, many=True)
    try:
        below = sorted(path for path in folder.glob(options.glob or "**/*") if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"{options.glob!r} is no pattern within a folder: {error}") from error
    paths = [path for path in below if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if format is None and options.glob is None:
        paths = [path for path in paths if bare_suffix(path) in FORMAT_OF_SUFFIX and not _BESIDE.fullmatch(path.name)]
    elif format is not None and options.glob is None:
        paths = [path for path in paths if bare_suffix(path) in FORMATS[format].suffixes]
    if not paths:
        what = f"that fits {options.glob}" if options.glob else f"of format {format}" if format else "of a known format"
        raise DataError(f"{folder} holds no file {what}: known endings are {' '.join(FORMAT_OF_SUFFIX)}")
    chosen = _one_format(paths, format, str(folder), named=options.glob is not None)
    splits = {path: _split_of_name(path.relative_to(folder)) if chosen != "python" else None for path in paths}
    return FoundFiles(str(folder), chosen, tuple(FoundFile(path, splits[path]) for path in paths), options, many=True)


def _one_format(paths: Sequence[Path], format: str | None, source: str, *, named: bool) -> str:
    if format is not None:
        return format
    counts: dict[str, int] = {}
    for path in paths:
        kind = _format_of(path)
        counts[kind] = counts.get(kind, 0) + 1
    if len(counts) > 1:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        advice = "choose fewer files" if named else "choose with format or glob"
        raise DataError(f"{source} holds files of several formats ({listed}): {advice}")
    return next(iter(counts))


def _split_of_name(relative: Path) -> str | None:
    """The part of the data that a file is in, from its own name or the outermost folder that says it."""
    stem = relative.name.split(".")[0]
    for name in (re.split(r"[-_\d]", stem)[0], *relative.parts[:-1]):
        if (word := name.lower()) in _SPLIT_WORDS:
            return _SPLIT_WORDS[word]
    return None


def _saved_dataset(folder: Path) -> tuple[FoundFile, ...] | None:
    """The files of what `datasets.Dataset.save_to_disk` (or of a DatasetDict) wrote; None if it is no such folder."""
    parts = folder / "dataset_dict.json"
    if parts.is_file():
        names = _json_file(parts).get("splits", [])
        return tuple(file for name in names for file in _one_saved(folder / name, name))
    return _one_saved(folder, None) if (folder / "state.json").is_file() else None


def _one_saved(folder: Path, split: str | None) -> tuple[FoundFile, ...]:
    state = _json_file(folder / "state.json")
    if state.get("_indices_files"):
        raise DataError(f"{folder} is a selection of a dataset: write it with flatten_indices() before save_to_disk")
    files = tuple(FoundFile(folder / item["filename"], split) for item in state.get("_data_files", []))
    if not files:
        raise DataError(f"{folder} is a saved dataset without data files")
    return files


def _json_file(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged: is the dataset whole?") from error
