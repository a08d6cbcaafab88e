"""n-grams on the data of a training run: counted and judged on the very rows that its network learned from and is
judged on, and written as a run of their own, to stand beside it in a comparison."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.baselines import NGram
from polyformer.errors import ConfigError, TrainingError
from polyformer.training.data.loader import Dataset
from polyformer.training.recipe import read_recipe
from polyformer.training.run import prepare_parts
from polyformer.training.run_folder import Journal, RunFolder

COUNTED_MODEL = "ngram.npz"
"""The file in a run's model folder that holds n-grams."""


def count_run(
    run: str | os.PathLike[str],
    order: int,
    output: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Count the n-grams of a run's training data, once over all of it, and judge them on its held-out data.

    A piece of a document in a row stands for itself, as it does for the network: nothing is known of what stood in
    the row before, and its first token is not judged.

    Args:
        run: the folder of a run that learned language from plain texts.
        order: length of the longest n-grams.
        output: the folder of the new run.
        overwrite: replace a run there.
        progress: called with the tokens counted so far.

    Returns:
        The summary that was written.

    Raises:
        TrainingError: the folder holds no run, or the output holds one already.
        ConfigError: the run learned something else.
        DataError: its data are gone, or it has none held out.
    """
    folder = RunFolder(run)
    if not folder.has_run:
        raise TrainingError(f"{folder.path} holds no training run: give the folder that `polyformer train` wrote")
    recipe = read_recipe(folder.recipe)
    parts = prepare_parts(recipe, tokenizer_folder=folder.tokenizer)
    if parts.objective.reads != "tokens" or parts.tokenizer is None:
        raise ConfigError(f"n-grams count plain texts, but {folder.path} learned {recipe.objective.name}")
    begin = time.perf_counter()
    rows = parts.data.train
    model = NGram.train(_pieces(rows), parts.tokenizer.vocab_size, order, progress=progress)
    seconds = time.perf_counter() - begin
    evaluation = _judged(model, parts.data.validation)
    target = RunFolder(output)
    target.begin(recipe.to_yaml(), overwrite=overwrite)
    parts.tokenizer.save(target.tokenizer)
    model.save(target.model / COUNTED_MODEL)
    tokens = sum(len(piece) for piece in _pieces(rows))
    summary = {
        "folder": str(target.path),
        "architecture": f"{order}-gram",
        "parameters": model.num_parameters,
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "evaluation": evaluation,
    }
    journal = Journal(target.journal)
    journal.write("evaluation", step=0, **evaluation)
    journal.write("end", step=0, reason="done")
    journal.close()
    target.write_summary(summary)
    return summary


def _judged(model: NGram, rows: Dataset | None) -> dict[str, float]:
    """The mean loss of the tokens that have one before them in their piece; empty without rows."""
    if rows is None:
        return {}
    total, count = 0.0, 0
    for piece in _pieces(rows):
        scores = model.log_probabilities(piece)[1:]
        total, count = total - float(scores.sum()), count + len(scores)
    return {"loss": total / count} if count else {}


def _pieces(rows: Dataset) -> Iterator[np.ndarray]:
    """The documents, or pieces of them, in rows."""
    for number in range(len(rows)):
        row = rows[number]
        ids, documents = np.asarray(row["input_ids"]), row.get("document_ids")
        if documents is None:
            yield ids
            continue
        ends = np.flatnonzero(np.diff(documents)) + 1
        for first, last in zip([0, *ends], [*ends, len(ids)]):
            if documents[first] >= 0:  # else padding
                yield ids[first:last]


def counted_folder(output: Path, order: int) -> Path:
    """Where a comparison keeps its n-grams."""
    return output / f"{order}-gram"
