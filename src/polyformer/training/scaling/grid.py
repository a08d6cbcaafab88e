"""A grid of runs from one recipe: every size with every number of tokens, each an ordinary run in its own folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polyformer.errors import ConfigError, TrainingError
from polyformer.training.group import Alone, Group
from polyformer.training.recipe import Recipe, parse_recipe
from polyformer.training.run import Summary, train
from polyformer.training.run_folder import RunFolder
from polyformer.training.scaling.law import Point, require_enough
from polyformer.training.scaling.shapes import Sized, scaled_to
from polyformer.training.states import States

_NUMBER = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:e([+-]?\d+))?\s*([kmgbt]?)", re.IGNORECASE)
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class GridRun:
    """One run that is to be.

    Attributes:
        name: of its folder.
        recipe: of it.
        sized: its network.
        tokens: it is asked to see.
    """

    name: str
    recipe: Recipe
    sized: Sized
    tokens: float


@dataclass(frozen=True)
class GridResult:
    """What came of one.

    Attributes:
        name: of its folder.
        parameters: without embeddings, which is what the law speaks of.
        all_parameters: with them.
        depth, width: of the network.
        tokens: it saw; epochs: how often that is all of the training data.
        flops, seconds: of training.
        loss: on the held-out data, at the end.
    """

    name: str
    parameters: int
    all_parameters: int
    depth: int
    width: int
    tokens: int
    epochs: float
    flops: float
    seconds: float
    loss: float

    @property
    def point(self) -> Point:
        return Point(self.parameters, self.tokens, self.loss)


class Stopped(TrainingError):
    """Someone ended a run of the grid; ``exit_code`` is a shell's."""

    def __init__(self, name: str, exit_code: int):
        super().__init__(f"stopped in the run {name}: the same command goes on from there")
        self.exit_code = exit_code


def read_numbers(text: str, what: str) -> list[float]:
    """``"0.3M, 1M, 1e7"`` -> numbers; k, M, G (or B) and T are thousands, millions and so on.

    Raises:
        ConfigError: something is no number above zero.
    """
    numbers = []
    for part in text.split(","):
        match = _NUMBER.fullmatch(part.strip())
        value = float(f"{match[1]}e{match[2] or 0}") * _UNITS[match[3].lower()] if match else 0.0
        if not 0.0 < value < float("inf"):
            raise ConfigError(f"{what}: {part.strip()!r} is no number such as 300k, 1.5M or 2e9")
        numbers.append(value)
    return numbers


def plan(
    recipe: Recipe,
    sizes: Sequence[float],
    tokens: Sequence[float],
    learning_rates: Sequence[float] | None = None,
) -> list[GridRun]:
    """The runs of a grid, the shortest of the smallest first.

    Args:
        recipe: of a network that can be scaled (see `scaled_to`), with held-out data.
        sizes: parameters without embeddings, about.
        tokens: lengths of the runs; each has the recipe's schedule over its own length.
        learning_rates: one for each size, in place of the recipe's.

    Raises:
        ConfigError: too few for a law, two sizes that come to the same network, or a recipe that has no held-out data.
    """
    if not (recipe.data.validation or recipe.data.validation_share):
        raise ConfigError("a law is fitted to held-out losses: give data.validation or data.validation_share")
    if learning_rates is not None and len(learning_rates) != len(sizes):
        raise ConfigError(f"there are {len(sizes)} sizes, but {len(learning_rates)} learning rates: give one for each")
    require_enough([Point(size, length, 1.0) for size in sizes for length in tokens])
    rates = learning_rates or [recipe.optimizer.learning_rate] * len(sizes)
    scaled: dict[int, tuple[float, Sized, float]] = {}
    for size, rate in sorted(zip(sizes, rates)):
        sized = scaled_to(recipe.model, size, recipe.data.length)
        if sized.parameters in scaled:
            raise ConfigError(
                f"sizes {_short(scaled[sized.parameters][0])} and {_short(size)} come to the same network of "
                f"{sized.parameters:,} parameters: take them further apart"
            )
        scaled[sized.parameters] = size, sized, rate
    return [
        _run(recipe, f"{_short(size)}-{_short(length)}", sized, length, rate)
        for size, sized, rate in scaled.values()
        for length in sorted(tokens)
    ]


def _run(recipe: Recipe, name: str, sized: Sized, length: float, rate: float) -> GridRun:
    # The law is of whole schedules: no run ends early, and the last weights count, not the luckiest.
    training = {"steps": None, "epochs": None, "tokens": round(length), "early_stopping": None}
    changed = recipe.model_copy(
        update={
            "name": f"{recipe.name or 'scale'}-{name}",
            "output": None,
            "model": sized.section,
            "training": recipe.training.model_copy(update={**training, "keep_best": False, "keep_last": 1}),
            "optimizer": recipe.optimizer.model_copy(update={"learning_rate": rate}),
        }
    )
    # Read anew, so that it is what a file would be, and what is no recipe is found before anything runs.
    return GridRun(name, parse_recipe(_yaml(changed), where=f"the recipe of {name}"), sized, length)


def _yaml(recipe: Recipe) -> str:
    import yaml

    values = recipe.model_dump(mode="json", exclude_defaults=True)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _short(value: float) -> str:
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.6g}{letter}"
    return f"{value:.6g}"


# --- running --------------------------------------------------------------------------------------------------------


def run_grid(
    runs: Sequence[GridRun],
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    observers: Sequence[Any] = (),
    device: str | None = None,
    group: Group | None = None,
    trains: Callable[..., Summary] = train,
    tell: Callable[[str], None] | None = None,
) -> list[GridResult]:
    """Train what has not been trained yet.

    Args:
        runs: of `plan`.
        folder: for their folders. A run that is whole in it stays; one that was broken off goes on.
        overwrite: begin all of them anew.
        observers, device: of `polyformer.training.run.train`.
        group: the processes, all of which are here and train every run together; None: this one alone.
        trains: trains one recipe.
        tell: told in words what begins and what came of it.

    Raises:
        Stopped: someone ended a run.
        TrainingError: a folder holds another run, or a run came to no loss.
        and what `train` raises.
    """
    group = group or Alone()
    say = tell if tell is not None and group.first else (lambda words: None)
    results = []
    for number, run in enumerate(runs, 1):
        place = RunFolder(Path(folder) / run.name)
        resume, done, replaced = group.share(partial(_found, run, place, overwrite))
        title = f"run {number} of {len(runs)}, {run.name} ({run.sized.parameters:,} parameters)"
        if done is None:
            say(f"{title} {'goes on' if resume else 'begins'}")
            summary = trains(
                run.recipe,
                output=place.path,
                resume=resume,
                overwrite=replaced,
                device=device,
                observers=observers,
            )
            if summary.ended == "stopped":
                raise Stopped(run.name, summary.exit_code)
            done = summary.to_json()
        result = _result(run, done)
        results.append(result)
        say(f"{title}: held-out loss {result.loss:.4f} after {result.tokens:,} tokens")
    return results


def _found(run: GridRun, place: RunFolder, overwrite: bool) -> tuple[bool, dict[str, Any] | None, bool]:
    """Whether the run that is there goes on, what came of it if it is whole, and whether it is replaced."""
    resume = False if overwrite else _may_go_on(run, place)
    return resume, None if overwrite else _finished(place), not resume and place.has_run


def _may_go_on(run: GridRun, place: RunFolder) -> bool:
    """Whether there is a state of this very run.

    Raises:
        TrainingError: the folder holds another one.
    """
    if not place.has_run:
        return False
    there = parse_recipe(place.recipe.read_text(encoding="utf-8"), where=str(place.recipe))
    if there.model_dump(exclude={"name"}) != run.recipe.model_dump(exclude={"name"}):
        raise TrainingError(
            f"{place.path} holds a run of another recipe: choose another folder (-o), or replace what is there "
            "(--overwrite)"
        )
    return bool(States(place.states).steps())


def _finished(place: RunFolder) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(place.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if values.get("ended") == "done" else None


def _result(run: GridRun, values: dict[str, Any]) -> GridResult:
    loss = values["evaluation"].get("loss")
    if loss is None:
        raise TrainingError(f"the run {run.name} has no held-out loss: its held-out data are empty")
    data = values.get("data") or {}
    return GridResult(
        name=run.name,
        parameters=run.sized.parameters,
        all_parameters=int(values["parameters"]),
        depth=run.sized.shape.depth,
        width=run.sized.shape.width,
        tokens=int(values["tokens"]),
        epochs=int(values["tokens"]) / data["training_tokens"] if data.get("training_tokens") else 0.0,
        flops=float(values["flops"]),
        seconds=float(values["seconds"]),
        loss=float(loss),
    )
