"""Scaling laws: a grid of runs from one recipe, the law fitted to it, and the best size for a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from polyformer.checkpoints.disk import write_whole
from polyformer.errors import ConfigError
from polyformer.training.scaling.costs import Cost, fit_cost
from polyformer.training.scaling.grid import GridResult, GridRun, Stopped, plan, read_numbers, run_grid
from polyformer.training.scaling.law import Fit, Interval, Law, Optimum, Point, fit
from polyformer.training.scaling.pictures import draw_budgets, draw_loss, require_matplotlib
from polyformer.training.scaling.shapes import Shape, Sized, scaled_to

__all__ = [
    "Cost",
    "Fit",
    "GridResult",
    "GridRun",
    "Interval",
    "Law",
    "Optimum",
    "Point",
    "Scaling",
    "Shape",
    "Sized",
    "Stopped",
    "fit",
    "fit_cost",
    "learn",
    "plan",
    "read_numbers",
    "require_matplotlib",
    "run_grid",
    "scaled_to",
    "write",
]

LEVEL = 0.9
# Beyond the largest run: the budgets that are looked at where none is named.
_TIMES = (1.0, 10.0, 100.0)
_FACTOR_WORTH_SAYING = 1.5
_EPOCHS_WORTH_SAYING = 4.0


@dataclass(frozen=True)
class Scaling:
    """What a grid taught.

    Attributes:
        results: the runs.
        fit: the law.
        cost: FLOP of a token by size.
        optima: the best size for each budget.
        warnings: what should be known before the rest is believed.
    """

    results: tuple[GridResult, ...]
    fit: Fit
    cost: Cost
    optima: tuple[Optimum, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        letters = dict(zip(("E", "A", "alpha", "B", "beta"), vars(self.fit.law)))
        errors = self.fit.errors
        return {
            "runs": [
                {**asdict(result), "fitted": float(fitted), "foretold": foretold}
                for result, fitted, foretold in zip(self.results, self.fit.fitted, self.fit.foretold)
            ],
            "law": {letter: self.fit.interval(attrgetter(name), LEVEL).to_dict() for letter, name in letters.items()},
            "samples": {letter: getattr(self.fit.samples, name).tolist() for letter, name in letters.items()},
            "leave_one_out": {
                "errors": errors.tolist(),
                "root_mean_square": float((errors**2).mean() ** 0.5),
                "largest": float(abs(errors).max()),
            },
            "flops_per_token": dict(zip(("N", "N^(2/3)", "N^(1/3)"), self.cost.factors)),
            "optima": [
                {
                    "budget": optimum.budget,
                    "parameters": optimum.parameters.to_dict(),
                    "tokens": optimum.tokens.to_dict(),
                    "loss": optimum.loss.to_dict(),
                    "extrapolates": optimum.extrapolates,
                }
                for optimum in self.optima
            ],
            "warnings": list(self.warnings),
        }


def learn(results: Sequence[GridResult], budgets: Sequence[float] | None = None, *, seed: int = 0) -> Scaling:
    """Fit the law to finished runs and find the best sizes.

    Args:
        results: of `run_grid`.
        budgets: FLOP of training; None: that of the largest run, ten and a hundred times it.
        seed: of the bootstrap.

    Raises:
        ConfigError: too few runs, or a budget that is named has no best size.
    """
    found = fit([result.point for result in results], seed=seed)
    cost = fit_cost([result.parameters for result in results], [result.flops / result.tokens for result in results])
    warnings = list(found.warnings)
    most = max((result.epochs for result in results), default=0.0)
    if most > _EPOCHS_WORTH_SAYING:
        warnings.append(
            f"the longest runs read their data {most:.1f} times, and what was read before teaches less: the law speaks "
            "of new text, so give more data, or take fewer tokens"
        )
    optima = []
    for budget in budgets or _own_budgets(results):
        try:
            optima.append(found.optimum(budget, cost, LEVEL))
        except ConfigError as error:
            if budgets is not None:
                raise
            warnings.append(str(error))
            break
    for optimum in optima:
        beyond = max(optimum.extrapolates, 1 / optimum.extrapolates)
        if beyond > _FACTOR_WORTH_SAYING:
            warnings.append(
                f"the best size for {optimum.budget:.3g} FLOP lies {beyond:.3g} times outside what was run: the range "
                "holds only if the law does"
            )
    return Scaling(tuple(results), found, cost, tuple(optima), tuple(warnings))


def _own_budgets(results: Sequence[GridResult]) -> list[float]:
    largest = max(result.flops for result in results) or max(6.0 * run.parameters * run.tokens for run in results)
    return [times * largest for times in _TIMES]


def write(scaling: Scaling, folder: Path, about: dict[str, Any] | None = None) -> list[Path]:
    """Write ``scaling.json``, ``loss.png`` and, if there is a best size, ``budgets.png``.

    Args:
        about: more for the JSON file.

    Returns:
        The files.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "scaling.json"
    write_whole(table, json.dumps({**(about or {}), **scaling.to_dict()}, indent=2, ensure_ascii=False) + "\n")
    draw_loss(scaling.fit, folder / "loss.png", level=LEVEL)
    if not scaling.optima:
        return [table, folder / "loss.png"]
    draw_budgets(scaling.fit, scaling.optima, scaling.cost, folder / "budgets.png", level=LEVEL)
    return [table, folder / "loss.png", folder / "budgets.png"]
