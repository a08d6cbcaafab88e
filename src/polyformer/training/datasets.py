"""From a recipe's sources to rows: read, cleaned, split, tokenized once, cut."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyformer.checkpoints.disk import cache_folder
from polyformer.errors import ConfigError, DataError, TokenizerError
from polyformer.tokenizers.images import ImageProcessor
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.data import samples
from polyformer.training.data.cleaning import deduplicate, document_hash, part_of
from polyformer.training.data.loader import Dataset
from polyformer.training.data.packing import BestFit, Examples, Mixture, PackedTokens, Windows
from polyformer.training.data.pictures import Pictures
from polyformer.training.data.reading import beside, find_files, is_sample, read_documents, reader_options, with_names
from polyformer.training.data.store import TokenStore, cached_store
from polyformer.training.recipe import DataSection, SourceSection

Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Kind:
    """What an objective reads: names of fields of a document.

    Attributes:
        texts: become token ids.
        kept: stay as they are.
        optional: texts that documents may have: all of them, or none.
        rows: texts may be cut into rows, for nothing belongs to a whole document.
        special: tokens are put around each text ([CLS] … [SEP]), as the finished model will read it.
    """

    texts: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    rows: bool = False
    special: bool = False


KINDS: Mapping[str, Kind] = {
    "tokens": Kind(("text",), rows=True),
    "pair": Kind(("source", "target"), special=True),
    "labels": Kind(("text",), ("label",), special=True),
    "tags": Kind(("text",), ("tags",), special=True),
    "texts": Kind(("first", "second"), optional=("negative",), special=True),
    "images": Kind((), ("image", "label")),
    "captions": Kind(("text",), ("image",), special=True),
}
"""What `Objective.reads` may be."""


@dataclass(frozen=True)
class Prepared:
    """Data ready to be read.

    Attributes:
        train: rows.
        validation: rows that are never trained on; None without.
        facts: for people: documents, tokens, rows.
    """

    train: Dataset
    validation: Dataset | None
    facts: dict[str, Any]


def training_texts(section: DataSection, kind: Kind) -> Iterator[str]:
    """The texts that are trained on, for a tokenizer to be trained."""
    for source in section.train:
        for document in documents_of(section, source, "train", kind):
            for name in kind.texts + kind.optional:
                text = document.get(name)
                if text is not None:
                    yield " ".join(map(str, text)) if isinstance(text, list) else text


def prepare(
    section: DataSection,
    kind: Kind,
    tokenizer: TextTokenizer | None,
    *,
    ends: bool = True,
    labels: list[str] | None = None,
    image_processor: ImageProcessor | None = None,
    check_label: Callable[[dict[str, Any]], object] | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """
    Args:
        section: of the recipe.
        kind: what the objective reads.
        tokenizer: for what has texts.
        ends: whether documents that are cut into rows end with the tokenizer's end token, if the recipe wants it.
        labels: names of the labels, where documents have names and not numbers.
        image_processor: for what has pictures.
        check_label: looks at the label of every document, so that what is wrong is found before anything starts.

    Raises:
        DataError: a source is missing, empty or damaged, or holds something else.
        ConfigError: an option that this kind of data does not have.
    """
    _check(section, kind)
    kind = _with_optional(kind, section)
    section = section.model_copy(update={"append_end": section.append_end and ends})
    stores = [
        _store(section, source, "train", kind, tokenizer, labels, image_processor, progress) for source in section.train
    ]
    rows = [_rows(section, kind, store, image_processor) for store in stores]
    train: Dataset = rows[0] if len(rows) == 1 else Mixture(rows, [source.weight for source in section.train])
    held_out: list[TokenStore] = []
    if section.validation:
        held_out = [
            _store(section, source, "held out", kind, tokenizer, labels, image_processor, progress)
            for source in section.validation
        ]
    elif section.validation_share:
        held_out = [
            _store(section, source, "validation", kind, tokenizer, labels, image_processor, progress)
            for source in section.train
        ]
    validation = [_rows(section, kind, store, image_processor) for store in held_out]
    if check_label is not None:
        for store in (*stores, *held_out):
            column = store.column("label")
            for number in range(len(store)):
                check_label({"label": column[number], "index": number})
    facts = {
        "training_documents": sum(map(len, stores)),
        "training_tokens": sum(store.token_count for store in stores),
        "training_rows": len(train),
        "validation_documents": sum(map(len, held_out)),
        "validation_tokens": sum(store.token_count for store in held_out),
        "validation_rows": sum(map(len, validation)),
    }
    return Prepared(train, _Joined(validation) if validation else None, facts)


def documents_of(section: DataSection, source: SourceSection, part: str, kind: Kind) -> Iterator[dict[str, Any]]:
    """The documents of one source that belong to ``part``: "train", "validation" (a share of the training sources) or
    "held out" (a source of its own)."""
    options = dict(source.options)
    documents: Iterable[dict[str, Any]] = read_documents(
        source.source, split=source.split, format=source.format, limit=source.limit, **options
    )
    if source.fields:
        documents = (
            with_names(document, source.fields, f"{source.source}, document {number}")
            for number, document in enumerate(documents, 1)
        )
    names = kind.texts or None
    if section.deduplicate is not None:
        documents = deduplicate(documents, section.deduplicate, fields=names)
    share = section.validation_share
    if part == "held out" or not share:
        return iter(documents)
    shares = {"validation": share, "train": 1 - share}
    return (document for document in documents if part_of(document_hash(document, names), shares) == part)


def _with_optional(kind: Kind, section: DataSection) -> Kind:
    """With those optional texts that the first document has; the others must have them, too."""
    if not kind.optional:
        return kind
    first = next(documents_of(section, section.train[0], "train", kind), {})
    there = tuple(name for name in kind.optional if first.get(name) is not None)
    return replace(kind, texts=kind.texts + there, optional=())


def _check(section: DataSection, kind: Kind) -> None:
    if kind.rows and (section.source_length or section.target_length):
        raise ConfigError("data.source_length and target_length are for pairs, but this objective reads plain texts")
    if not kind.rows and section.packing != "documents" and section.packing != "none":
        raise ConfigError(f"data.packing {section.packing!r} is for plain texts: here every document is a row")


def _store(
    section: DataSection,
    source: SourceSection,
    part: str,
    kind: Kind,
    tokenizer: TextTokenizer | None,
    labels: list[str] | None,
    image_processor: ImageProcessor | None,
    progress: Progress | None,
) -> TokenStore:
    about = {
        "source": _identity(source),
        "fields": source.fields,
        "part": part,
        "share": section.validation_share if part != "held out" else None,
        "deduplicate": section.deduplicate,
        "labels": labels,
        "pictures": None if image_processor is None else dataclasses.asdict(image_processor),
    }

    def read() -> Iterator[dict[str, Any]]:
        number = 0
        for number, document in enumerate(documents_of(section, source, part, kind), 1):
            where = f"{source.source}, document {number}"
            changed: dict[str, Any] = {}
            if "label" in kind.kept and "label" in document:
                changed["label"] = _label(document["label"], labels, where)
            if "tags" in kind.kept and "tags" in document:
                changed["tags"] = _tags(document, labels, where)
            if image_processor is not None:
                changed["image"] = _picture(document, source.source, image_processor, where)
            yield {**document, **changed}
        if number == 0 and next(documents_of(section, source, "held out", kind), None) is not None:
            raise DataError(
                f"data.validation_share is {section.validation_share}, and all documents fell into the other part "
                "(each is drawn by itself): give another share or more documents, or name data.validation"
            )

    try:
        return cached_store(
            cache_folder() / "stores",
            about,
            read,
            tokenizer if kind.texts else None,
            fields=kind.texts,
            keep=kind.kept,
            append_eos=kind.rows and section.append_end and tokenizer is not None and not _is_encoders(tokenizer),
            add_special_tokens=kind.special or (kind.rows and tokenizer is not None and _is_encoders(tokenizer)),
            progress=progress,
        )
    except DataError as error:
        raise DataError(f"{source.source}{f' ({part})' if part != 'train' else ''}: {error}") from error


def _is_encoders(tokenizer: TextTokenizer) -> bool:
    """Whether texts stand between [CLS] and [SEP], and have no other end."""
    return tokenizer.cls_token_id is not None and tokenizer.eos_token_id is None


def _identity(source: SourceSection) -> Any:
    """What tells these documents from others: of a sample set what was fetched, of files their sizes and times."""
    rest = [source.split, source.format, source.options, source.limit]
    if is_sample(source.source):
        samples.pull(source.source)
        return [source.source, samples.about(source.source), *rest]
    found = find_files(source.source, format=source.format, options=reader_options(source.options))
    files = [(str(file.path.resolve()), file.path.stat()) for file in found.files]
    return [[(name, stat.st_size, stat.st_mtime_ns) for name, stat in files], *rest]


def _picture(document: Mapping[str, Any], source: str, processor: ImageProcessor, where: str) -> np.ndarray[Any, Any]:
    """The picture of a document as bytes, see `ImageProcessor.frame`.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if document.get("image") is None:
        raise DataError(f"{where} has no field 'image'; it has {', '.join(map(str, document))}")
    try:
        return processor.frame(beside(source, document["image"]))
    except TokenizerError as error:
        raise DataError(f"{where}: {error}") from error


def _label(value: Any, labels: list[str] | None, where: str) -> Any:
    """A label as numbers: a name becomes its own, and a list of names a zero or one for each label there is."""
    if isinstance(value, str):
        return _number(value, labels, where)
    if isinstance(value, list) and labels is not None and all(isinstance(name, str) for name in value):
        ones = {_number(name, labels, where) for name in value}
        return [int(number in ones) for number in range(len(labels))]
    return value


def _tags(document: Mapping[str, Any], labels: list[str] | None, where: str) -> Any:
    """The labels of words as numbers."""
    tags = document["tags"]
    if isinstance(document.get("text"), str):
        raise DataError(f"{where}: 'text' must be a list of words, for 'tags' are of words; it is a text")
    if not isinstance(tags, list):
        return tags
    return [_number(tag, labels, where) if isinstance(tag, str) else tag for tag in tags]


def _number(name: str, labels: list[str] | None, where: str) -> int:
    if labels is None:
        raise ConfigError(
            f"{where} has the label {name!r}: name all labels in model.labels, in the order of their numbers"
        )
    if name not in labels:
        near = difflib.get_close_matches(name, labels, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(labels)}"
        raise DataError(f"{where} has the label {name!r}, which is not among model.labels: {hint}")
    return labels.index(name)


def _rows(section: DataSection, kind: Kind, store: TokenStore, image_processor: ImageProcessor | None) -> Dataset:
    if kind.rows:
        if section.packing == "none":
            return Windows(store, section.length, stride=section.stride)
        if section.packing == "best":
            return BestFit(store, section.length)
        return PackedTokens(store, section.length, across=section.packing == "across")
    lengths = {name: section.length for name in store.columns if name.endswith("_ids")}
    if section.source_length is not None:
        lengths["source_ids"] = section.source_length
    if section.target_length is not None:
        lengths["target_ids"] = section.target_length
    examples = Examples(store, lengths, truncate=section.truncate)
    return Pictures(examples, image_processor) if image_processor is not None else examples


class _Joined:
    """Several datasets one after the other."""

    def __init__(self, parts: list[Dataset]):
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, index: int) -> Any:
        for part in self._parts:
            if index < len(part):
                return part[index]
            index -= len(part)
        raise IndexError(index)
