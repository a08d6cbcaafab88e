"""Semantic search: passages by meaning, with an index that stays on disk.

The vectors lie in an HNSW graph (Malkov and Yashunin, 2018) of the usearch library; texts and their places lie beside
it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.errors import CheckpointError, GenerationError
from polyformer.tasks.base import Progress, TaskModel
from polyformer.tasks.embedding import embed

VECTORS_FILE, PASSAGES_FILE, SETTINGS_FILE = "vectors.usearch", "passages.jsonl", "index.json"
VERSION = 1

# Of the graph: neighbours of a vector, and candidates looked at while it is built and searched.
_NEIGHBOURS, _BUILD_CANDIDATES, _SEARCH_CANDIDATES = 16, 128, 96
# So many vectors are compared one by one, which is exact; more through the graph.
_EXACT = 50_000

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-ZÀ-ÖØ-Þ0-9])")
_BLANK_LINES = re.compile(r"(\n\s*\n)")
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".text")


@dataclass(frozen=True)
class Passage:
    """A piece of text and where it stands.

    Attributes:
        text: the passage.
        source: the file, relative to the folder that was indexed; empty for texts given by themselves.
        line: where its first sentence begins, from 1.
    """

    text: str
    source: str = ""
    line: int = 1


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        text, source, line: see `Passage`.
        score: the cosine of its vector and that of the question.
    """

    text: str
    source: str
    line: int
    score: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def split_sentences(text: str, source: str = "", *, shortest: int = 20, longest: int = 600) -> list[Passage]:
    """The sentences of a text. Short ones join the next, long ones are cut between words.

    Args:
        shortest, longest: characters of a passage.
    """
    passages: list[Passage] = []
    offset = counted = 0
    line = 1  # of the character number `counted`
    for paragraph in _BLANK_LINES.split(text):
        ends = [end.end() for end in _SENTENCE_END.finditer(paragraph)]
        waiting = ""
        for start, end in zip([0, *ends], [*ends, len(paragraph)], strict=True):
            sentence = paragraph[start:end]
            words = " ".join(sentence.split())
            if not words:
                continue
            if not waiting:
                begin = offset + end - len(sentence.lstrip())
                line += text.count("\n", counted, begin)
                counted = begin
            waiting = f"{waiting} {words}".strip()
            if len(waiting) >= shortest:
                passages += [Passage(piece, source, line) for piece in _pieces(waiting, longest)]
                waiting = ""
        if waiting:
            passages.append(Passage(waiting, source, line))
        offset += len(paragraph)
    return passages


def _pieces(text: str, longest: int) -> list[str]:
    pieces = [""]
    for word in text.split(" "):
        if pieces[-1] and len(pieces[-1]) + 1 + len(word) > longest:
            pieces.append(word)
        else:
            pieces[-1] = f"{pieces[-1]} {word}".strip()
    return pieces


def read_folder(folder: str | os.PathLike[str]) -> list[Passage]:
    """The sentences of every text file below a folder, or of one file.

    Raises:
        GenerationError: there is no text, or a file is not UTF-8.
    """
    root = Path(folder)
    files = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.suffix in TEXT_SUFFIXES)
    passages: list[Passage] = []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise GenerationError(f"{path} is not valid UTF-8 (byte {error.start}): convert it first") from None
        except OSError as error:
            raise GenerationError(f"{path} cannot be read: {error.strerror or error}") from None
        passages += split_sentences(text, path.name if root.is_file() else path.relative_to(root).as_posix())
    if not passages:
        raise GenerationError(f"{root} holds no text: files that end in {', '.join(TEXT_SUFFIXES)} are read")
    return passages


class Index:
    """Passages with their vectors.

    Attributes:
        passages: in the order in which they were added.
        size: numbers in a vector.
        model: what made the vectors, by name: another model's questions would find nonsense.
    """

    def __init__(self, passages: list[Passage], graph: Any, size: int, model: str) -> None:
        self.passages, self._graph, self.size, self.model = passages, graph, size, model

    @classmethod
    def build(
        cls,
        model: TaskModel,
        passages: Iterable[Passage | str],
        *,
        name: str = "",
        progress: Progress = None,
        **options: Any,
    ) -> Index:
        """Embed passages and connect them.

        Args:
            name: what the model is called, to know it again.
            options: of `embed`.

        Raises:
            GenerationError: there is nothing to index.
        """
        given = [Passage(one) if isinstance(one, str) else one for one in passages]
        if not given:
            raise GenerationError("there is nothing to index")
        vectors = embed(model, [one.text for one in given], progress=progress, truncate=True, **options)
        index = cls([], _new_graph(vectors.shape[1]), vectors.shape[1], name)
        index._add(given, vectors)
        return index

    def _add(self, passages: list[Passage], vectors: np.ndarray[Any, Any]) -> None:
        first = len(self.passages)
        self._graph.add(np.arange(first, first + len(passages)), vectors)
        self.passages += passages

    def __len__(self) -> int:
        return len(self.passages)

    def search(self, model: TaskModel, questions: str | Sequence[str], *, top_k: int = 5, **options: Any) -> Any:
        """The passages nearest in meaning, nearest first: a list of `Hit` for one question, a list of these for many.

        Raises:
            GenerationError: vectors of another length than the index's, or ``top_k`` below 1.
        """
        if top_k < 1:
            raise GenerationError(f"top_k is {top_k}, but it must be at least 1")
        alone = isinstance(questions, str)
        vectors = embed(model, [questions] if isinstance(questions, str) else list(questions), truncate=True, **options)
        if vectors.shape[1] != self.size:
            raise GenerationError(
                f"the model makes vectors of {vectors.shape[1]} numbers, but the index holds vectors of {self.size}: "
                f"use the model that made it ({self.model or 'unnamed'})"
            )
        wanted = min(top_k, len(self))
        self._graph.expansion_search = max(_SEARCH_CANDIDATES, 2 * wanted)
        results = [self._nearest(vector, wanted) for vector in vectors]
        return results[0] if alone else results

    def _nearest(self, vector: np.ndarray[Any, Any], wanted: int) -> list[Hit]:
        found = self._graph.search(vector, wanted, exact=len(self) <= _EXACT)
        pairs = zip(found.keys.tolist(), found.distances.tolist(), strict=True)
        return [Hit(**asdict(self.passages[key]), score=1.0 - distance) for key, distance in pairs]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index as a folder, whole or not at all; an index that is there is replaced.

        Raises:
            CheckpointError: the folder holds something else.
        """
        target = Path(folder)
        if target.exists() and not (target / SETTINGS_FILE).is_file() and (target.is_file() or any(target.iterdir())):
            raise CheckpointError(f"{target} is no index and not empty: name another folder")
        staging = target.with_name(f".{target.name}.{os.getpid()}.partial")
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        try:
            staging.mkdir(parents=True)
            self._graph.save(str(staging / VECTORS_FILE))
            with (staging / PASSAGES_FILE).open("w", encoding="utf-8") as file:
                for passage in self.passages:
                    file.write(json.dumps(asdict(passage), ensure_ascii=False) + "\n")
            settings = {"version": VERSION, "model": self.model, "size": self.size, "passages": len(self)}
            (staging / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
            if target.exists():
                os.replace(target, old)
            try:
                os.replace(staging, target)
            except BaseException:
                if old.exists():
                    os.replace(old, target)
                raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Index:
        """Open an index.

        Raises:
            CheckpointError: the folder is none, or damaged.
        """
        root = Path(folder)
        if not (root / SETTINGS_FILE).is_file():
            raise CheckpointError(f"{root} is no index: make one with `polyformer search index`")
        try:
            settings = json.loads((root / SETTINGS_FILE).read_text(encoding="utf-8"))
            lines = (root / PASSAGES_FILE).read_text(encoding="utf-8").split("\n")
            passages = [Passage(**json.loads(line)) for line in lines if line]
            if settings["version"] != VERSION or settings["passages"] != len(passages):
                raise ValueError(f"{len(passages)} passages of version {settings['version']}")
            graph = _new_graph(int(settings["size"]), path=root / VECTORS_FILE)
            if len(graph) != len(passages):
                raise ValueError(f"{len(graph)} vectors of {len(passages)} passages")
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(f"{root} is damaged ({error}): make the index again") from None
        return cls(passages, graph, int(settings["size"]), str(settings["model"]))


def _new_graph(size: int, *, path: Path | None = None) -> Any:
    from usearch.index import Index as Graph

    graph = Graph(ndim=size, metric="cos", dtype="f32", connectivity=_NEIGHBOURS, expansion_add=_BUILD_CANDIDATES)
    if path is not None:
        graph.load(str(path))
    return graph
