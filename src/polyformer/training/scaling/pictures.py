"""Pictures of a fitted law: the loss over the size, and along budgets."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.checkpoints.disk import whole_file
from polyformer.errors import ConfigError
from polyformer.training.charts import readable
from polyformer.training.scaling.law import Fit, Law, Optimum

COLOURS = ("#2f6fde", "#d1490c", "#2b8a3e", "#8f3fb8", "#b8860b", "#0b7285", "#c2255c", "#495057")


def require_matplotlib() -> None:
    """
    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("the pictures need the package matplotlib: pip install 'polyformer[train]'")


def draw_loss(fit: Fit, path: Path, *, level: float = 0.9) -> None:
    """The loss over the parameters for each number of tokens: the runs, the law and the band of its uncertainty."""
    figure, axes = _figure()
    points = fit.points
    low, high = (pick(point.parameters for point in points) for pick in (min, max))
    sizes = np.geomspace(low / 1.6, high * 1.6, 120)
    lengths = _groups([point.tokens for point in points])
    for number, length in enumerate(lengths):
        colour = COLOURS[number % len(COLOURS)]
        own = [point for point in points if abs(np.log(point.tokens / length)) < 0.05]
        axes.scatter([p.parameters for p in own], [p.loss for p in own], color=colour, zorder=3, s=26)
        axes.plot(sizes, fit.law.loss(sizes, length), color=colour, label=f"{readable(length)} tokens")
        _band(axes, sizes, _along(fit.samples).loss(sizes, length), level, colour)
    best = fit.law.to_dict()
    axes.set_title(
        "L(N, D) = {E:.3g} + {A:.3g} / N^{alpha:.3g} + {B:.3g} / D^{beta:.3g}".format(**best), fontsize="medium"
    )
    _finish(figure, axes, f"points: runs; lines: the law; bands: {level:.0%} of the bootstrap", path)


def draw_budgets(
    fit: Fit, optima: Sequence[Optimum], flops_per_token: Callable[[Any], Any], path: Path, *, level: float = 0.9
) -> None:
    """The loss over the parameters for each budget, where more parameters mean fewer tokens, and the least of each."""
    figure, axes = _figure()
    sizes = [point.parameters for point in fit.points]
    ends = [optimum.parameters.value for optimum in optima]
    across = np.geomspace(min(*sizes, *ends) / 4, max(*sizes, *ends) * 4, 160)
    axes.axvspan(min(sizes), max(sizes), color="#868e96", alpha=0.1, linewidth=0, label="sizes that were run")
    highest = 0.0
    for number, optimum in enumerate(optima):
        colour = COLOURS[number % len(COLOURS)]
        tokens = optimum.budget / flops_per_token(across)
        curve = fit.law.loss(across, tokens)
        seen = curve < optimum.loss.value * 1.35  # far from the best size a curve would only stretch the axis
        highest = max(highest, float(curve[seen].max()))
        axes.plot(across[seen], curve[seen], color=colour, label=f"{optimum.budget:.3g} FLOP")
        _band(axes, across[seen], _along(fit.samples).loss(across, tokens)[:, seen], level, colour)
        best = optimum.parameters
        reach = [max(best.low, across[0]), min(best.high, across[-1])]
        axes.plot(reach, [optimum.loss.value] * 2, color=colour, linewidth=4, alpha=0.5, solid_capstyle="round")
        axes.plot(best.value, optimum.loss.value, marker="*", markersize=13, color=colour, markeredgecolor="white")
    axes.set_ylim(top=highest * 1.08)  # bands may go far above the lines
    _finish(figure, axes, f"stars: the best size, with the bar that holds it in {level:.0%} of the bootstrap", path)


def _figure() -> tuple[Any, Any]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.0), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Any, axes: Any, note: str, path: Path) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"parameters without embeddings\n{note}")
    axes.set_ylabel("held-out loss")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=140, format="png")


def _band(axes: Any, x: Any, samples: Any, level: float, colour: str) -> None:
    low, high = np.quantile(samples, ((1 - level) / 2, (1 + level) / 2), axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)


def _along(laws: Law) -> Law:
    """Laws whose fields stand for rows."""
    return Law(*(np.asarray(value)[:, None] for value in vars(laws).values()))


def _groups(values: Sequence[float]) -> list[float]:
    """One of each group of values that lie within a twentieth of each other."""
    found: list[float] = []
    for value in sorted(values):
        if not found or np.log(value / found[-1]) > 0.05:
            found.append(value)
    return found
