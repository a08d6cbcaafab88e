"""Whether a code model writes a missing line as it was, or at least so that the file is Python."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from polyformer.errors import ConfigError, DataError
from polyformer.evaluation.base import Document, Evaluation, Progress, texts_of
from polyformer.tasks.infilling import infill

_MARKS_OF_A_LINE = 3


def evaluate_infilling(
    model: Any,
    documents: Sequence[Document],
    *,
    lines: int = 8,
    seed: int = 0,
    max_new_tokens: int = 48,
    suffix_first: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Lines taken out of the ``text`` of Python modules, to be filled in (single-line infilling: Bavarian et al., 2022,
    section 4; Fried et al., 2023).

    Of every module that parses, so many lines are drawn that hold at least three characters and follow a line that
    is not blank. The gap reaches from the end of the line before to the end of the line, so that the indentation is
    missing too. Of what the model writes, the first line that is not blank counts.

    Args:
        lines: of each module, drawn without repetition.
        seed: of the draw.
        suffix_first: how the model is asked; see `infill`.

    Returns:
        values "exact" (the very line, its indentation included), "valid" (the whole module parses with it);
        "left_to_right_exact" and "left_to_right_valid", where the model sees only what stands before; and
        "valid_without", where the line is simply left out.

    Raises:
        CapabilityError: the model does not fill in.
        DataError: no module has a line to take out.
    """
    if lines < 1:
        raise ConfigError(f"lines is {lines}, but at least one line of each module is taken out")
    gaps: list[tuple[str, str, str]] = []
    random = np.random.default_rng(seed)
    skipped = 0
    for text in texts_of(documents, "text"):
        found = _lines(text) if _parses(text) else []
        skipped += not found
        for place in sorted(random.choice(len(found), min(lines, len(found)), replace=False)) if found else ():
            start, end = found[place]
            gaps.append((text[:start], text[start:end], text[end:]))
    if not gaps:
        raise DataError("no document is Python with a line to take out")
    asked = dict(max_new_tokens=max_new_tokens, suffix_first=suffix_first, truncate=True, **options)
    total = 2 * len(gaps)

    def write(ask: list[tuple[str, str]], before: int) -> list[str]:
        step = None if progress is None else lambda done, _: progress(before + done, total)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that modules are longer than the model reads is no news here
            return [first_line(one.middle) for one in infill(model, ask, progress=step, **asked)]

    both = write([(prefix, suffix) for prefix, _, suffix in gaps], 0)
    alone = write([(prefix, "") for prefix, _, _ in gaps], len(gaps))
    values = {}
    for name, written in (("", both), ("left_to_right_", alone)):
        values[f"{name}exact"] = _share(one == line.strip("\n").rstrip() for one, (_, line, _) in zip(written, gaps))
        filled = (f"{prefix}\n{one}{suffix}" for one, (prefix, _, suffix) in zip(written, gaps))
        values[f"{name}valid"] = _share(map(_parses, filled))
    values["valid_without"] = _share(_parses(prefix + suffix) for prefix, _, suffix in gaps)
    values["lines"] = len(gaps)
    examples = [
        {"before": prefix[-120:], "line": line, "written": one, "after": suffix[:80]}
        for (prefix, line, suffix), one in zip(gaps[:8], both)
    ]
    notes = [f"{skipped} documents are no Python, or have no such line"] if skipped else []
    return Evaluation("infilling", len(documents) - skipped, values, examples, notes)


def first_line(text: str) -> str:
    """The first line that is not blank, without what follows it; "" if there is none."""
    return next((line.rstrip() for line in text.split("\n") if line.strip()), "")


def _lines(text: str) -> list[tuple[int, int]]:
    """Where lines begin (at the end of the line before) and end, of those that may be taken out."""
    found, start, last = [], 0, ""
    for line in text.split("\n"):
        end = start + len(line)
        if len(line.strip()) >= _MARKS_OF_A_LINE and last.strip() and start:
            found.append((start - 1, end))
        start, last = end + 1, line
    return found


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _share(found: Any) -> float:
    given = list(found)
    return sum(given) / len(given)
