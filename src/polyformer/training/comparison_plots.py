"""Pictures of a comparison, with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyformer.checkpoints.disk import whole_file
from polyformer.errors import ConfigError
from polyformer.training.charts import readable

if TYPE_CHECKING:
    from polyformer.training.comparison import Run

# Told apart also by those who see few colours (Okabe and Ito, 2008), and by their marks.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D3B")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")

_AXES: Mapping[str, tuple[str, str, str, str]] = {  # title, across, up, scale of up
    "recall": ("Recall of a token", "steps back", "share recalled", "linear"),
    "gradients": ("Gradient of the last loss", "steps back", "norm, as a share of the last token's", "log"),
    "throughput": ("Training", "tokens of a row", "tokens a second", "log"),
}


def draw_losses(runs: Sequence[Run], path: Path) -> Path:
    """The held-out loss against parameters, arithmetic and time, side by side.

    Raises:
        ConfigError: matplotlib is missing.
    """
    figure, panels = _figure(3)
    for number, run in enumerate(runs):
        style = _style(number)
        if run.loss is not None:
            panels[0].plot([run.parameters], [run.loss], linestyle="none", label=run.name, **style)
        for panel, name in ((panels[1], "flops"), (panels[2], "seconds")):
            points = [(getattr(point, name), point.loss) for point in run.points if getattr(point, name) > 0]
            if points:
                panel.plot(*zip(*points), label=run.name, **{**style, "markersize": 3})
            elif run.loss is not None:  # n-grams do no arithmetic worth the name
                panel.axhline(run.loss, color=style["color"], linestyle="--", label=run.name)
    for panel, label in zip(panels, ("parameters", "FLOP of training", "seconds of training")):
        panel.set_xscale("log")
        _few_ticks(panel.xaxis)
        panel.set_xlabel(label)
        panel.set_ylabel("held-out loss, nats a token")
        panel.grid(True, alpha=0.3)
    _legend(figure, panels)
    return _save(figure, path)


def draw_curves(probe: str, found: Mapping[str, Mapping[int, float]], names: Sequence[str], path: Path) -> Path:
    """What a probe found, by distance or by length of rows.

    Args:
        names: of all runs, in their order: each keeps its colour in every picture.
    """
    title, across, up, scale = _AXES[probe]
    figure, (panel,) = _figure(1)
    for name, values in found.items():
        points = sorted((place, value) for place, value in values.items() if place > 0)
        style = _style(names.index(name))
        many = len(points) > 30
        panel.plot(*zip(*points), label=name, **{**style, "marker": None if many else style["marker"]})
    panel.set_xscale("log", base=2)
    panel.set_yscale(scale)
    if probe == "throughput":
        _few_ticks(panel.yaxis)
    if probe == "recall":
        panel.set_ylim(-0.03, 1.03)
    panel.set_title(title)
    panel.set_xlabel(across)
    panel.set_ylabel(up)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(True, alpha=0.3)
    _legend(figure, [panel])
    return _save(figure, path)


def require_matplotlib() -> None:
    """
    Raises:
        ConfigError: it is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigError("the pictures need matplotlib: pip install 'polyformer[train]'") from error


def _figure(panels: int) -> tuple[Any, Any]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels + (1.0 if panels == 1 else 0.0), 4.4), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _few_ticks(axis: Any) -> None:
    """1, 2 and 5 of each power of ten on a logarithmic axis, as short numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: readable(value))


def _style(number: int) -> dict[str, Any]:
    return {"color": COLORS[number % len(COLORS)], "marker": MARKS[number % len(MARKS)]}


def _legend(figure: Any, panels: Sequence[Any]) -> None:
    """One for all panels, below them."""
    entries: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels()):
            entries.setdefault(label, handle)
    if entries:
        columns = min(len(entries), 4 if len(panels) == 1 else 8)
        figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns, frameon=False)


def _save(figure: Any, path: Path) -> Path:
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=144, format="png")
    return path
