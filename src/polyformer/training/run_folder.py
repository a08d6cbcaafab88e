"""The folder of a run: its recipe, its journal of every step, its states, its model.

recipe.yaml      what was asked for
metrics.jsonl    one line an event: "train", "evaluation", "sample", "state", "end"
summary.json     what came of it
states/          step-00000100/ … to go on from
model/           what `polyformer.load` opens
report.html      the curves
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyformer.checkpoints.disk import whole_file, write_whole
from polyformer.errors import TrainingError

RECIPE = "recipe.yaml"
JOURNAL = "metrics.jsonl"
SUMMARY = "summary.json"
REPORT = "report.html"


class RunFolder:
    """See the module.

    Args:
        path: the folder; made when a run begins.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        return self.path / RECIPE

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    @property
    def summary(self) -> Path:
        return self.path / SUMMARY

    @property
    def report(self) -> Path:
        return self.path / REPORT

    @property
    def states(self) -> Path:
        return self.path / "states"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def has_run(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.is_file()

    def begin(self, recipe_text: str, *, overwrite: bool = False) -> None:
        """Make the folder for a new run.

        Raises:
            TrainingError: there is a run, or something else, in it.
        """
        if self.has_run:
            if not overwrite:
                raise TrainingError(
                    f"{self.path} already holds a run: go on with it (--resume), replace it (--overwrite), or choose "
                    "another folder (--output)"
                )
            self._remove_run()
        elif self.path.is_dir() and any(self.path.iterdir()):
            raise TrainingError(f"{self.path} is not empty and holds no run: choose another folder (--output)")
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.recipe, recipe_text)

    def _remove_run(self) -> None:
        for path in (self.states, self.model, self.tokenizer, self.path / "tensorboard"):
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.journal, self.summary, self.report, self.recipe):
            path.unlink(missing_ok=True)

    def write_summary(self, values: dict[str, Any]) -> None:
        write_whole(self.summary, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


class Journal:
    """The file of a run's events, one JSON object a line, each written at once.

    Args:
        path: the file; it is continued.
        after_step: events of later steps are taken out first: they belong to what was lost when the run broke off.
    """

    def __init__(self, path: Path, *, after_step: int | None = None):
        self.path = path
        if after_step is not None and path.is_file():
            kept = [event for event in read_journal(path) if event.get("step", 0) <= after_step]
            with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(event) + "\n" for event in kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: str, **values: Any) -> None:
        """An event is a line with its name and its values, those that are no finite numbers as null."""
        cleaned = {name: None if _is_no_number(value) else value for name, value in values.items()}
        self._file.write(json.dumps({"event": event, **cleaned}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a journal. A last line that was cut off when the machine died is left out.

    Raises:
        TrainingError: a line before the last is damaged.
    """
    # Texts that a model wrote may hold other characters that end a line: only "\n" ends one here.
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    if lines == [""]:
        return
    for number, line in enumerate(lines, start=1):
        try:
            yield json.loads(line)
        except ValueError:
            if number == len(lines):
                return
            raise TrainingError(f"{path}:{number} is not valid JSON: the journal of this run is damaged") from None
