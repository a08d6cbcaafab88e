"""Documents as token ids in files that are mapped into memory: written once, read in any order, of any size."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.checkpoints.disk import only_one_process
from polyformer.errors import DataError, PolyformerError
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.data.columns import (
    ColumnReader,
    ColumnWriter,
    TokenReader,
    TokenWriter,
    open_column,
    writer_for,
)
from polyformer.training.data.tokenizing import Ids, TextEncoder, special_tokens_around

FORMAT = 1
_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 4096


class TokenStore:
    """Documents in a folder, by number: a dict of arrays, numbers and strings each.

    Whole columns are arrays too, mapped from their files: see `tokens` and `column`.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], columns: Mapping[str, ColumnReader]):
        self.folder = folder
        self.description = description
        self._columns = columns

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenStore:
        """The store in a folder.

        Raises:
            DataError: there is none, or a file of it is missing or has not the size it was written with.
        """
        path = Path(folder)
        description = _read_description(path)
        try:
            columns = {
                name: open_column(path, name, about, description["documents"])
                for name, about in description["columns"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"the store in {path} is damaged (meta.json): delete the folder and build it again") from (
                error
            )
        return cls(path, description, columns)

    def __len__(self) -> int:
        return int(self.description["documents"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return {name: column[index % len(self)] for name, column in self._columns.items()}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what a document holds."""
        return tuple(self._columns)

    @cached_property
    def token_columns(self) -> tuple[str, ...]:
        """Names of the columns of token ids."""
        return tuple(name for name, column in self._columns.items() if isinstance(column, TokenReader))

    def column(self, name: str) -> ColumnReader:
        """
        Raises:
            DataError: the store has no such column.
        """
        if name not in self._columns:
            raise DataError(f"the store in {self.folder} has no column {name!r}; it has {', '.join(self._columns)}")
        return self._columns[name]

    def tokens(self, name: str = "input_ids") -> TokenReader:
        """A column of token ids. Raises DataError: there is none of that name."""
        column = self.column(name)
        if not isinstance(column, TokenReader):
            raise DataError(f"the column {name!r} of the store in {self.folder} does not hold token ids")
        return column

    @property
    def fingerprint(self) -> str:
        """What the store was made of; see `fingerprint`."""
        return str(self.description["fingerprint"])

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the tokenizer that it was made with."""
        return int(self.description["vocab_size"])

    @property
    def ending(self) -> int:
        """How many tokens at the end of a document are not of its text ([SEP], the end of the sequence)."""
        return int(self.description["ending"])

    @cached_property
    def token_count(self) -> int:
        """Token ids in all columns."""
        return sum(len(self.tokens(name).numbers) for name in self.token_columns)


def ids_name(field: str) -> str:
    """The column of the token ids of a field: "input_ids" of "text", "words" and "caption", else "<field>_ids"."""
    return "input_ids" if field in ("text", "words", "caption") else f"{field}_ids"


def fingerprint(tokenizer: TextTokenizer | None, data: Any, **settings: Any) -> str:
    """A name for what a store is made of: data, tokenizer and settings.

    Args:
        data: what tells these documents from others, as JSON: a name and version, or names, sizes and times of files.
    """
    hashed = hashlib.sha256(json.dumps([FORMAT, data, settings], sort_keys=True, default=str).encode())
    if tokenizer is not None:
        hashed.update(tokenizer.backend.to_str().encode())
        hashed.update(json.dumps(sorted(tokenizer.settings.special_tokens.items())).encode())
    return hashed.hexdigest()[:32]


def cached_store(
    root: str | os.PathLike[str],
    data: Any,
    read: Callable[[], Iterable[Mapping[str, Any]]],
    tokenizer: TextTokenizer | None,
    **settings: Any,
) -> TokenStore:
    """The store of these documents below a folder: the one that is there, else a new one.

    Args:
        data: what tells these documents from others; see `fingerprint`.
        read: gives the documents; called only if they have not been tokenized yet.
        settings: as of `build_store`.

    Raises:
        DataError: see `build_store` and `TokenStore.open`.
    """
    made_by = {name: value for name, value in settings.items() if name not in ("workers", "progress")}
    name = fingerprint(tokenizer, data, **made_by)
    folder = Path(root) / name
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot keep stores in {root}: {error.strerror or error}; choose another folder"
            ) from error
        # All processes of a run come here at once: one tokenizes, the others wait for it.
        with only_one_process(folder.with_name(f".{name}.lock")):
            for leftover in folder.parent.glob(f".{name}.*.tmp"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            if not folder.exists():
                return build_store(read(), tokenizer, folder, made_of=name, **settings)
    store = TokenStore.open(folder)
    if store.fingerprint != name:
        raise DataError(f"the store in {folder} was made of something else: delete the folder")
    return store


def build_store(
    documents: Iterable[Mapping[str, Any]],
    tokenizer: TextTokenizer | None,
    folder: str | os.PathLike[str],
    *,
    fields: Sequence[str] = ("text",),
    keep: Sequence[str] = (),
    append_eos: bool = True,
    add_special_tokens: bool = False,
    parse_special: bool = False,
    workers: int = 1,
    made_of: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> TokenStore:
    """Tokenize documents and write them to a folder, which appears when all is there and not before.

    Memory does not grow with the number of documents.

    Args:
        documents: a dict each; read once.
        tokenizer: may be None where there are no fields to tokenize (pictures with labels).
        fields: texts that become token ids, in columns named by `ids_name`. A text may also come as a list of words;
            then the column "word_starts" says at which of its tokens each word begins (-1 for a word without any).
        keep: what is kept as it is: a number, a list of numbers, a string, or a picture (uint8 [height, width,
            channels], all of one size).
        append_eos: end each text with the tokenizer's end-of-sequence token, unless it ends so already.
        add_special_tokens: put around each text what the model expects ([CLS] ... [SEP]).
        parse_special: take "<|im_end|>" in a text for that token, and not for the characters that it is written with.
        workers: processes that tokenize; with more than one, the calling program must be importable (guarded by
            ``if __name__ == "__main__"``).
        made_of: the fingerprint to be kept; without it, of the tokenizer and settings only.
        progress: called with (documents done, None).

    Raises:
        DataError: no documents; a document lacks a field or holds the wrong kind of value; the folder is there already;
            the disk is full.
    """
    target = Path(folder)
    plan = _Plan(tuple(fields), tuple(keep), append_eos, add_special_tokens, parse_special)
    plan.check(tokenizer)
    if target.exists():
        raise DataError(f"{target} exists already: open it with TokenStore.open, or delete it to build it again")
    settings = {"fields": fields, "keep": keep, "append_eos": append_eos, "parse_special": parse_special}
    made_of = made_of or fingerprint(tokenizer, None, add_special_tokens=add_special_tokens, **settings)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    except OSError as error:
        raise DataError(f"cannot write a store to {target}: {error.strerror or error}") from error
    try:
        _write(temporary, documents, tokenizer, plan, workers, made_of, progress)
        os.chmod(temporary, 0o755)
        try:
            os.rename(temporary, target)
        except OSError as error:
            raise DataError(f"cannot move a store to {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return TokenStore.open(target)


@dataclass(frozen=True)
class _Plan:
    """What becomes of a document."""

    fields: tuple[str, ...]
    keep: tuple[str, ...]
    append_eos: bool
    add_special_tokens: bool
    parse_special: bool

    def encoder(self, tokenizer: TextTokenizer) -> TextEncoder:
        """What encodes texts as it says."""
        return TextEncoder(
            tokenizer,
            add_special_tokens=self.add_special_tokens,
            parse_special=self.parse_special,
            end=tokenizer.eos_token_id if self.append_eos else None,
        )

    def check(self, tokenizer: TextTokenizer | None) -> None:
        """
        Raises:
            DataError: nothing or the same thing twice is asked for, or the tokenizer cannot do it.
        """
        names = [ids_name(field) for field in self.fields] + list(self.keep)
        if not names:
            raise DataError("a store needs at least one field to tokenize or to keep")
        for name in names:
            if names.count(name) > 1:
                raise DataError(f"two columns of the store would be called {name!r}: rename a field of the documents")
        if not self.fields:
            return
        if tokenizer is None:
            raise DataError(f"the fields {', '.join(self.fields)} are to be tokenized, but there is no tokenizer")
        if self.append_eos and tokenizer.eos_token_id is None:
            raise DataError("the tokenizer has no end-of-sequence token: name one, or set append_eos to false")


@dataclass(frozen=True)
class _Piece:
    """Some documents, encoded: the ids of each field, where words begin, and what is kept, as it came."""

    count: int
    tokens: list[Ids]
    word_starts: list[np.ndarray] | None
    kept: list[list[Any]]


class _Encoder:
    """Makes arrays of documents, in this process or in a worker."""

    def __init__(self, tokenizer: TextTokenizer | None, plan: _Plan):
        self._plan = plan
        self._texts = None if tokenizer is None or not plan.fields else plan.encoder(tokenizer)

    def __call__(self, first: int, batch: Sequence[Mapping[str, Any]]) -> _Piece:
        tokens, word_starts = [], None
        for field in self._plan.fields:
            texts = [_text(first + place, one, field) for place, one in enumerate(batch)]
            if isinstance(texts[0], str):
                tokens.append(self._tokens(first, field, texts))
            else:
                ids, word_starts = self._tokens_of_words(first, field, texts)
                tokens.append(ids)
        kept = [[_field(first + place, one, name) for place, one in enumerate(batch)] for name in self._plan.keep]
        return _Piece(len(batch), tokens, word_starts, kept)

    def _tokens(self, first: int, field: str, texts: Sequence[Any]) -> Ids:
        assert self._texts is not None
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"{field!r} of document {first + place} is a list, but those before are texts")
        try:
            return self._texts.encode_batch(texts)
        except PolyformerError as error:
            raise DataError(f"{field!r} of document {first + self._guilty(texts)}: {error}") from error

    def _tokens_of_words(self, first: int, field: str, texts: Sequence[Any]) -> tuple[Ids, list[np.ndarray]]:
        assert self._texts is not None
        for place, words in enumerate(texts):
            if isinstance(words, str):
                raise DataError(f"{field!r} of document {first + place} is a text, but those before are lists of words")
        try:
            return self._texts.encode_words(texts)
        except PolyformerError as error:
            guilty = first + self._guilty([" ".join(words) for words in texts])
            raise DataError(f"{field!r} of document {guilty}: {error}") from error

    def _guilty(self, texts: Sequence[str]) -> int:
        """Which of these texts cannot be encoded."""
        assert self._texts is not None
        for place, text in enumerate(texts):
            try:
                self._texts.encode_batch([text])
            except PolyformerError:
                return place
        return 0


def ids_dtype(tokenizer: TextTokenizer) -> np.dtype[Any]:
    """The smallest type that holds the ids of a tokenizer."""
    return np.dtype(np.uint16 if _largest_id(tokenizer) < 1 << 16 else np.uint32)


def _largest_id(tokenizer: TextTokenizer) -> int:
    return max(tokenizer.backend.get_vocab(with_added_tokens=True).values(), default=0)


def _write(
    folder: Path,
    documents: Iterable[Mapping[str, Any]],
    tokenizer: TextTokenizer | None,
    plan: _Plan,
    workers: int,
    made_of: str,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    """Write all columns and, at the end, what describes them."""
    writers: dict[str, ColumnWriter] = {}
    count = 0
    try:
        tokens = [TokenWriter(folder, ids_name(field), ids_dtype(tokenizer)) for field in plan.fields if tokenizer]
        writers.update({ids_name(field): writer for field, writer in zip(plan.fields, tokens)})
        for piece in _encoded(documents, tokenizer, plan, workers):
            for writer, ids in zip(tokens, piece.tokens):
                writer.write_many(ids.all, ids.lengths)
            kept = dict(zip(plan.keep, piece.kept))
            if piece.word_starts is not None:
                kept["word_starts"] = list(piece.word_starts)
            for name, values in kept.items():
                if name not in writers:
                    writers[name] = writer_for(folder, name, values[0])
                for place, value in enumerate(values):
                    writers[name].write(value, f"{name!r} of document {count + place}")
            count += piece.count
            if progress is not None:
                progress(count, None)
        if not count:
            raise DataError("there are no documents: look at the paths, the split and the filters of the data")
        columns = {name: writer.finish() for name, writer in writers.items()}
    finally:
        for open_writer in writers.values():
            open_writer.close()
    description = {
        "format": FORMAT,
        "fingerprint": made_of,
        "documents": count,
        "columns": columns,
        "vocab_size": 0 if tokenizer is None else max(tokenizer.vocab_size, _largest_id(tokenizer) + 1),
        "ending": _ending(tokenizer, plan),
    }
    _write_json(folder / "meta.json", description)


def _write_json(path: Path, value: Any) -> None:
    try:
        with path.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder"
        ) from error


def _ending(tokenizer: TextTokenizer | None, plan: _Plan) -> int:
    """See `TokenStore.ending`."""
    if tokenizer is None or not plan.fields:
        return 0
    after = special_tokens_around(tokenizer)[1] if plan.add_special_tokens else []
    return len(after) + (plan.append_eos and tokenizer.eos_token_id not in after[-1:])


def _encoded(
    documents: Iterable[Mapping[str, Any]], tokenizer: TextTokenizer | None, plan: _Plan, workers: int
) -> Iterator[_Piece]:
    """The documents, encoded, in their order."""
    batches = _batches(documents, plan)
    if workers < 1:
        raise DataError(f"workers must be at least 1, not {workers}")
    if workers == 1:
        encode = _Encoder(tokenizer, plan)
        for first, batch in batches:
            yield encode(first, batch)
        return
    # Fresh processes: copies of one with running threads can hang.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (_pack(tokenizer), plan))
    waiting: deque[Future[_Piece]] = deque()
    try:
        for first, batch in batches:
            waiting.append(pool.submit(_encode_in_worker, first, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            'a process that tokenizes has died: guard the program with if __name__ == "__main__", or take fewer workers'
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(documents: Iterable[Mapping[str, Any]], plan: _Plan) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Documents in groups of about a million characters, each with the number of its first one."""
    first, batch, size = 0, [], 0
    for number, document in enumerate(documents):
        if not isinstance(document, Mapping):
            raise DataError(f"document {number} is {type(document).__name__}, not a dict of fields")
        batch.append({name: _field(number, document, name) for name in chain(plan.fields, plan.keep)})
        for text in (_text(number, document, field) for field in plan.fields):
            size += len(text) if isinstance(text, str) else sum(map(len, text))
        size += sum(getattr(batch[-1][name], "nbytes", 0) for name in plan.keep)
        if size >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield first, batch
            first, batch, size = number + 1, [], 0
    if batch:
        yield first, batch


def _field(number: int, document: Mapping[str, Any], name: str) -> Any:
    if document.get(name) is None:
        there = ", ".join(map(str, document)) or "nothing"
        raise DataError(f"document {number} has no field {name!r}; it has {there}")
    return document[name]


def _text(number: int, document: Mapping[str, Any], name: str) -> str | Sequence[str]:
    text = _field(number, document, name)
    if isinstance(text, str):
        return text
    if isinstance(text, (list, tuple)) and all(isinstance(word, str) for word in text):
        return text
    raise DataError(f"{name!r} of document {number} is {type(text).__name__}, not a text or a list of words")


# --- worker processes -----------------------------------------------------------------------------------------------

_worker: _Encoder | None = None


def _pack(tokenizer: TextTokenizer | None) -> tuple[str, Any] | None:
    return None if tokenizer is None else (tokenizer.backend.to_str(), tokenizer.settings)


def _start_worker(packed: tuple[str, Any] | None, plan: _Plan) -> None:
    from tokenizers import Tokenizer

    global _worker  # one encoder, whose table of words grows, serves all batches of this process
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = None if packed is None else TextTokenizer(Tokenizer.from_str(packed[0]), packed[1])
    _worker = _Encoder(tokenizer, plan)


def _encode_in_worker(first: int, batch: Sequence[Mapping[str, Any]]) -> _Piece:
    assert _worker is not None
    return _worker(first, batch)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / "meta.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "has no readable meta.json" if folder.is_dir() else "is no folder"
        raise DataError(f"{folder} {what}: it is not a store of tokens, or one to be built again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise DataError(f"{folder} is not a store of tokens of this version (format {FORMAT}): build it again")
    return description
