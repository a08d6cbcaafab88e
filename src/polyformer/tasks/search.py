"""Semantic search: passages by meaning, with an index that stays on disk.

The vectors lie in an HNSW graph (Malkov and Yashunin, 2018) of the usearch library; texts and their places lie beside
it, with a digest of every file, so that only what changed is embedded again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.errors import CheckpointError, GenerationError, TruncationWarning
from polyformer.tasks import embedding
from polyformer.tasks.base import Progress, TaskModel, require_tokenizer
from polyformer.tasks.embedding import embed

VECTORS_FILE, PASSAGES_FILE, SETTINGS_FILE = "vectors.usearch", "passages.jsonl", "index.json"
VERSION = 2

# Of the graph: neighbours of a vector, and candidates looked at while it is built and searched.
_NEIGHBOURS, _BUILD_CANDIDATES, _SEARCH_CANDIDATES = 16, 128, 96
# So many vectors are compared one by one, which is exact; more through the graph.
_EXACT = 50_000

_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]*[A-ZÀ-ÖØ-Þ0-9])")
_BLANK_LINES = re.compile(r"(\n\s*\n)")
# Where a passage that is too long for the model may be parted: best after a sentence, else between words. Chinese and
# Japanese have no spaces: there it is after their punctuation.
_BREAK = re.compile(r"(?P<sentence>(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])(?=\S))|\s+|(?<=[，、；：])(?=\S)")
# Texts whose tokens are counted together.
_COUNTED_AT_ONCE = 4096

# What a fingerprint embeds: words of several kinds, a number and punctuation, in few tokens.
_PROBE = "In 1843 she wrote the first program; was it about numbers?"
# Two vectors of the probe are of one model from this cosine on. bfloat16 beside float32 gives 0.999 and more.
_SAME = 0.995
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


def read_files(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The text of every text file below a folder, or of one file, by its name relative to the folder, sorted.

    Raises:
        GenerationError: there is no such folder, no text, or a file is binary, not UTF-8 or cannot be read.
    """
    root = Path(folder)
    if not root.exists():
        raise GenerationError(f"{root} does not exist: name a folder of texts, or one file")
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    files = paths if root.is_file() else [path for path in paths if path.suffix in TEXT_SUFFIXES]
    endings = ", ".join(TEXT_SUFFIXES)
    if not paths:
        raise GenerationError(f"{root} is empty: name a folder that holds text ({endings})")
    if not files:
        raise GenerationError(f"{root} holds no text: of its {len(paths)} files none ends in {endings}")
    texts = {}
    for path in files:
        try:
            data = path.read_bytes()
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            kind = "is a binary file, no text" if b"\0" in data[:8192] else "is not valid UTF-8"
            raise GenerationError(f"{path} {kind} (byte {error.start}): convert it to UTF-8, or leave it out") from None
        except OSError as error:
            raise GenerationError(f"{path} cannot be read: {error.strerror or error}") from None
        if "\0" in text:
            raise GenerationError(f"{path} is a binary file, no text (byte {data.index(0)}): leave it out")
        name = path.name if root.is_file() else path.relative_to(root).as_posix()
        texts[name] = text.replace("\r\n", "\n").replace("\r", "\n")
    if not any(text.strip() for text in texts.values()):
        raise GenerationError(f"{root} holds no text: {len(texts)} files are blank")
    return texts


def read_folder(folder: str | os.PathLike[str]) -> list[Passage]:
    """The sentences of every text file below a folder, or of one file.

    Raises:
        GenerationError: as `read_files`.
    """
    return [passage for name, text in read_files(folder).items() for passage in split_sentences(text, name)]


# --- what fits the model ---


class _Unlimited:
    """A model without its limit, to count the tokens of texts that are too long for it."""

    context_length = None

    def __init__(self, model: TaskModel) -> None:
        self.tokenizer = require_tokenizer(model, "embed texts")


def _count_tokens(model: TaskModel, texts: Sequence[str], prompt: str | None) -> list[int]:
    """Tokens of each text as `embed` reads it, special tokens and the prompt included."""
    settings: Any = getattr(model, "embedding_settings", None)
    free = replace(settings, max_tokens=None) if settings is not None else None
    reader: Any = _Unlimited(model)
    counts = []
    for first in range(0, len(texts), _COUNTED_AT_ONCE):
        part = list(texts[first : first + _COUNTED_AT_ONCE])
        counts += [len(encoding.ids) for encoding in embedding._read(reader, part, prompt, free, False)]
    return counts


def _limit(model: TaskModel) -> int | None:
    settings: Any = getattr(model, "embedding_settings", None)
    limits = (model.context_length, settings.max_tokens if settings is not None else None)
    return min((one for one in limits if one is not None), default=None)


def _halves(text: str) -> tuple[str, str] | None:
    """A text parted after the sentence nearest its middle, or between words; None if it is one word."""
    ends = [(one.end(), one["sentence"] is not None) for one in _BREAK.finditer(text) if 0 < one.end() < len(text)]
    # A sentence far from the middle would leave one long piece and one of a few words.
    after_sentences = [end for end, sentence in ends if sentence and len(text) <= 4 * end <= 3 * len(text)]
    if not ends:
        return None
    best = min(after_sentences or [end for end, _ in ends], key=lambda end: abs(2 * end - len(text)))
    return text[:best].rstrip(), text[best:].lstrip()


def _fitting(
    model: TaskModel, texts: Sequence[str], prompt: str | None, *, truncate: bool, what: str
) -> tuple[list[list[str]], int]:
    """Each text in pieces that the model reads whole, and how many pieces are too long all the same.

    Raises:
        GenerationError: a single word is longer than the model reads, and ``truncate`` is False.
    """
    limit = _limit(model)
    if limit is None:
        return [[text] for text in texts], 0
    cut = 0

    def pieces(text: str, tokens: int, number: int) -> list[str]:
        nonlocal cut
        if tokens <= limit:
            return [text]
        halves = _halves(text.strip())
        if halves is None:
            if not truncate:
                raise GenerationError(
                    f"{what} {number} has a word of {tokens} tokens ({text[:30]!r}…), which cannot be split, but the "
                    f"model reads at most {limit}: shorten it, or ask for truncation (truncate=True, --truncate)"
                )
            cut += 1
            return [text]
        both = zip(halves, _count_tokens(model, halves, prompt), strict=True)
        return [piece for half, count in both for piece in pieces(half, count, number)]

    counts = _count_tokens(model, texts, prompt)
    return [pieces(text, count, number) for number, (text, count) in enumerate(zip(texts, counts, strict=True))], cut


# --- which model it was ---


@dataclass(frozen=True)
class Fingerprint:
    """What tells whether two models make the same vectors, for the price of one short text.

    A digest of the weights' bytes would refuse the same model in another precision, and reading all of them is slow; a
    digest of a few would not see what was trained elsewhere; a digest of the config would change with every setting
    that a later version adds. The vector of a fixed sentence depends on every layer, the tokenizer and the pooling, and
    is compared by its cosine, which forgives rounding. The shapes of the parameters stand beside it.

    Attributes:
        shapes: sha256 of the names and shapes of the network's parameters.
        pooling: the core's method, "own" for a network that pools by itself.
        probe: the vector of a fixed sentence, of length 1, as base64 of little-endian float32.
    """

    shapes: str
    pooling: str
    probe: str

    @classmethod
    def of(cls, model: TaskModel, pooling: str | None) -> Fingerprint:
        settings: Any = getattr(model, "embedding_settings", None)
        method = embedding._method(model, pooling, settings)
        # No prompt: questions may have another than passages.
        vector = _embed_quietly(model, _PROBE, pooling=pooling, normalize=True, prompt="", truncate=True)
        digest = hashlib.sha256()
        for name, parameter in sorted(model.network.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
        probe = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        return cls(digest.hexdigest(), method or "own", probe)

    def difference(self, other: Fingerprint) -> str | None:
        """In what the other differs, in words; None if its vectors are the same."""
        if self.shapes != other.shapes:
            return "its weights have other shapes"
        if self.pooling != other.pooling:
            return f"its pooling is {other.pooling}, not {self.pooling}"
        mine, theirs = (np.frombuffer(base64.b64decode(one.probe), dtype="<f4") for one in (self, other))
        if len(mine) != len(theirs):
            return f"its vectors have {len(theirs)} numbers, not {len(mine)}"
        cosine = float(mine @ theirs)
        # Written so that a vector that is not a number differs too.
        return None if cosine >= _SAME else f"its vector of the same sentence has the cosine {cosine:.3f}"


@dataclass(frozen=True)
class Changes:
    """What an index was made from.

    Attributes:
        new, changed, unchanged, gone: numbers of files; only the first two were embedded.
        split: passages longer than the model reads that were parted.
        cut: pieces that could not be parted and lost their end.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0
    split: int = 0
    cut: int = 0


class Index:
    """Passages with their vectors.

    Attributes:
        passages: in the order in which they were added.
        size: numbers in a vector.
        model: what made the vectors, by name: another model's questions would find nonsense.
        fingerprint: what that model is known by, whatever it is called.
        options: of `embed`, as they were given: "pooling", "normalize", "prompt".
        files: the files that were read -> the sha256 of their text; empty for texts given by themselves.
        changes: what the last building embedded.
    """

    def __init__(
        self,
        passages: list[Passage],
        graph: Any,
        size: int,
        model: str,
        *,
        fingerprint: Fingerprint,
        options: Mapping[str, Any],
        files: Mapping[str, str] | None = None,
        changes: Changes | None = None,
    ) -> None:
        self.passages, self._graph, self.size, self.model = passages, graph, size, model
        self.fingerprint, self.options = fingerprint, dict(options)
        self.files, self.changes = dict(files or {}), changes or Changes()
        self._checked: tuple[Any, str | None] | None = None

    @classmethod
    def build(
        cls,
        model: TaskModel,
        passages: Iterable[Passage | str],
        *,
        name: str = "",
        truncate: bool = False,
        progress: Progress = None,
        **options: Any,
    ) -> Index:
        """Embed passages and connect them.

        A passage longer than the model reads is split, after a sentence or between words, into several passages.

        Args:
            name: what the model is called, to know it again.
            truncate: a single word longer than the model reads loses its end, with a warning; else it is an error.
            options: of `embed`.

        Raises:
            GenerationError: there is nothing to index, or a passage cannot be split.
        """
        given = [Passage(one) if isinstance(one, str) else one for one in passages]
        if not given:
            raise GenerationError("there is nothing to index")
        fitting, changes = _fitting_passages(model, given, options.get("prompt"), truncate)
        vectors = _embed_quietly(model, [one.text for one in fitting], progress=progress, truncate=truncate, **options)
        return cls._made(model, fitting, vectors, name=name, options=options, changes=changes)

    @classmethod
    def of_folder(
        cls,
        model: TaskModel,
        folder: str | os.PathLike[str],
        *,
        old: Index | None = None,
        name: str = "",
        truncate: bool = False,
        progress: Progress = None,
        **options: Any,
    ) -> Index:
        """The index of the sentences of a folder's text files (or of one file); see `build`.

        Args:
            old: an earlier index of the folder. Vectors of files whose text is the same are taken from it; a file is
                known by the sha256 of its text, because a copy or a checkout changes times but not texts.

        Returns:
            A new index; ``changes`` says how many files were new, changed, unchanged and gone.

        Raises:
            GenerationError: as `read_files` and `build`, or the old index is of another model or other options.
        """
        texts = read_files(folder)
        files = {source: hashlib.sha256(text.encode()).hexdigest() for source, text in texts.items()}
        if old is not None:
            options = old._options_with(options)
            old.require_same(model, name, options.get("pooling"))
        before = old.files if old is not None else {}
        same = {source for source, digest in files.items() if before.get(source) == digest}
        fresh = [one for source, text in texts.items() if source not in same for one in split_sentences(text, source)]
        fitting, changes = _fitting_passages(model, fresh, options.get("prompt"), truncate)
        changed = len((files.keys() & before.keys()) - same)
        changes = replace(
            changes,
            new=len(files.keys() - before.keys()),
            changed=changed,
            unchanged=len(same),
            gone=len(before.keys() - files.keys()),
        )
        if old is not None and not (changes.new or changes.changed or changes.gone):
            return cls(
                list(old.passages),
                old._graph,
                old.size,
                name,
                fingerprint=old.fingerprint,
                options=old.options,
                files=files,
                changes=changes,
            )
        vectors = _embed_quietly(model, [one.text for one in fitting], progress=progress, truncate=truncate, **options)
        if old is not None and same:
            kept = [number for number, one in enumerate(old.passages) if one.source in same]
            known = old._graph.get(np.array(kept, dtype=np.uint64)) if kept else vectors[:0]
            places = {source: number for number, source in enumerate(files)}
            joined = [old.passages[number] for number in kept] + fitting
            # As a building from nothing orders them; the sort is stable, so each file's passages stay in order.
            order = sorted(range(len(joined)), key=lambda number: places[joined[number].source])
            fitting, vectors = [joined[number] for number in order], np.concatenate([known, vectors])[order]
        return cls._made(model, fitting, vectors, name=name, options=options, files=files, changes=changes)

    @classmethod
    def _made(
        cls,
        model: TaskModel,
        passages: list[Passage],
        vectors: np.ndarray[Any, Any],
        *,
        name: str,
        options: Mapping[str, Any],
        changes: Changes,
        files: Mapping[str, str] | None = None,
    ) -> Index:
        graph = _new_graph(vectors.shape[1])
        graph.add(np.arange(len(passages)), vectors)
        kept = {option: options.get(option) for option in ("pooling", "normalize", "prompt")}
        fingerprint = Fingerprint.of(model, kept["pooling"])
        size = vectors.shape[1]
        return cls(passages, graph, size, name, fingerprint=fingerprint, options=kept, files=files, changes=changes)

    def _options_with(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The index's options; one that is given must be the same."""
        for option, value in options.items():
            if option in self.options and value is not None and value != self.options[option]:
                raise GenerationError(
                    f"the index was made with {option}={self.options[option]!r}, not {value!r}: make it anew "
                    "(--rebuild)"
                )
        return {**options, **self.options}

    def require_same(self, model: TaskModel, name: str = "", pooling: str | None = None) -> None:
        """Does the model make the vectors of this index?

        Args:
            name: what the model is called, for the message.

        Raises:
            GenerationError: it does not; says which model made the index and in what this one differs.
        """
        pooling = pooling or self.options.get("pooling")
        if self._checked is not None and self._checked[0]() is model and self._checked[1] == pooling:
            return
        difference = self.fingerprint.difference(Fingerprint.of(model, pooling))
        if difference is not None:
            mine, other = self.model or "a model without a name", name or "the model given now"
            raise GenerationError(
                f"the index was made with {mine}, and {other} is another model ({difference}), so it would find "
                f"nonsense: use {mine}, or make the index anew with {other} (polyformer search index --rebuild)"
            )
        self._checked = (weakref.ref(model), pooling)

    def __len__(self) -> int:
        return len(self.passages)

    def search(
        self,
        model: TaskModel,
        questions: str | Sequence[str],
        *,
        top_k: int = 5,
        name: str = "",
        truncate: bool = False,
        **options: Any,
    ) -> Any:
        """The passages nearest in meaning, nearest first: a list of `Hit` for one question, a list of these for many.

        A question longer than the model reads is split as passages are; what is near any of its pieces is found.

        Args:
            name: what the model is called, for messages.
            truncate: a single word longer than the model reads loses its end, with a warning; else it is an error.
            options: of `embed`. Left out, the pooling is that of the index.

        Raises:
            GenerationError: another model than the index's, a blank question, one that cannot be split, or ``top_k``
                below 1.
        """
        if top_k < 1:
            raise GenerationError(f"top_k is {top_k}, but it must be at least 1")
        alone = isinstance(questions, str)
        given = [questions] if isinstance(questions, str) else list(questions)
        for number, question in enumerate(given):
            if not question.strip():
                raise GenerationError(f"question {number} is blank: write what to look for")
        options["pooling"] = options.get("pooling") or self.options.get("pooling")
        self.require_same(model, name, options["pooling"])
        fitting, cut = _fitting(model, given, options.get("prompt"), truncate=truncate, what="question")
        _warn_of_cuts(cut, "questions")
        pieces = [piece for part in fitting for piece in part]
        vectors = iter(_embed_quietly(model, pieces, truncate=truncate, **options))
        wanted = min(top_k, len(self))
        self._graph.expansion_search = max(_SEARCH_CANDIDATES, 2 * wanted)
        results = [self._nearest([next(vectors) for _ in part], wanted) for part in fitting]
        return results[0] if alone else results

    def _nearest(self, vectors: Sequence[np.ndarray[Any, Any]], wanted: int) -> list[Hit]:
        """What is nearest to any of the vectors."""
        scores: dict[int, float] = {}
        for vector in vectors:
            found = self._graph.search(vector, wanted, exact=len(self) <= _EXACT)
            for key, distance in zip(found.keys.tolist(), found.distances.tolist(), strict=True):
                scores[key] = max(scores.get(key, -1.0), 1.0 - distance)
        best = sorted(scores, key=lambda key: -scores[key])[:wanted]
        return [Hit(**asdict(self.passages[key]), score=scores[key]) for key in best]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the index as a folder, whole or not at all; an index that is there is replaced.

        Raises:
            CheckpointError: the folder holds something else.
        """
        target = Path(folder)
        require_free(target)
        staging = target.with_name(f".{target.name}.{os.getpid()}.partial")
        old = target.with_name(f".{target.name}.{os.getpid()}.old")
        try:
            staging.mkdir(parents=True)
            self._graph.save(str(staging / VECTORS_FILE))
            with (staging / PASSAGES_FILE).open("w", encoding="utf-8") as file:
                for passage in self.passages:
                    file.write(json.dumps(asdict(passage), ensure_ascii=False) + "\n")
            settings = {
                "version": VERSION,
                "model": self.model,
                "size": self.size,
                "passages": len(self),
                "options": self.options,
                "fingerprint": asdict(self.fingerprint),
                "files": self.files,
            }
            (staging / SETTINGS_FILE).write_text(
                json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
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
            if target.exists():  # else the old index is all there is
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
            version = settings["version"]
            if version != VERSION:
                raise CheckpointError(
                    f"{root} is an index of version {version}, but this Polyformer reads version {VERSION}: make it "
                    "anew with `polyformer search index --rebuild`"
                )
            lines = (root / PASSAGES_FILE).read_text(encoding="utf-8").split("\n")
            passages = [Passage(**json.loads(line)) for line in lines if line]
            if settings["passages"] != len(passages):
                raise ValueError(f"{len(passages)} passages of {settings['passages']}")
            fingerprint = Fingerprint(**settings["fingerprint"])
            options, files = dict(settings["options"]), dict(settings["files"])
            graph = _new_graph(int(settings["size"]), path=root / VECTORS_FILE)
            if len(graph) != len(passages):
                raise ValueError(f"{len(graph)} vectors of {len(passages)} passages")
        except CheckpointError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{root} is damaged ({error}): make it anew with `polyformer search index --rebuild`"
            ) from None
        size, name = int(settings["size"]), str(settings["model"])
        return cls(passages, graph, size, name, fingerprint=fingerprint, options=options, files=files)


def require_free(target: Path) -> None:
    """
    Raises:
        CheckpointError: the folder holds something other than an index, which a new index must not replace.
    """
    if target.exists() and not (target / SETTINGS_FILE).is_file() and (target.is_file() or any(target.iterdir())):
        raise CheckpointError(f"{target} is no index and not empty: name another folder")


def _fitting_passages(
    model: TaskModel, passages: Sequence[Passage], prompt: str | None, truncate: bool
) -> tuple[list[Passage], Changes]:
    """Passages in pieces that the model reads whole. A piece has the line of its passage."""
    parts, cut = _fitting(model, [one.text for one in passages], prompt, truncate=truncate, what="passage")
    _warn_of_cuts(cut, "passages")
    pairs = zip(passages, parts, strict=True)
    fitting = [one if len(part) == 1 else replace(one, text=piece) for one, part in pairs for piece in part]
    return fitting, Changes(split=sum(len(part) > 1 for part in parts), cut=cut)


def _warn_of_cuts(cut: int, what: str) -> None:
    if cut:
        text = f"{cut} {what} are longer than the model reads and lost their end"
        warnings.warn(text, TruncationWarning, stacklevel=3)


def _embed_quietly(model: TaskModel, texts: Any, **options: Any) -> Any:
    """As `embed`, which would warn of cuts again, and of the cut probe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return embed(model, texts, **options)


def _new_graph(size: int, *, path: Path | None = None) -> Any:
    from usearch.index import Index as Graph

    graph = Graph(ndim=size, metric="cos", dtype="f32", connectivity=_NEIGHBOURS, expansion_add=_BUILD_CANDIDATES)
    if path is not None:
        graph.load(str(path))
    return graph
