"""The report of a run: one HTML file with its result, curves, samples, recipe and machine.

It is made from what is in the run's folder, so it can be made again at any time, also while the run goes on. The file
needs nothing else: no script, no network.
"""

from __future__ import annotations

import json
import math
import statistics
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from polyformer.checkpoints.disk import write_whole
from polyformer.errors import TrainingError
from polyformer.training.charts import Chart, Line, Mark, Point, draw, readable, smoothed
from polyformer.training.run_folder import RunFolder, read_journal

Event = Mapping[str, Any]

# What events say beside the metrics of the objective.
_TIMES = {"time", "seconds", "starved", "tokens_per_second", "utilization"}
_NOT_METRICS = _TIMES | {
    "event",
    "step",
    "loss",
    "mean_loss",
    "best",
    "learning_rate",
    "gradient_norm",
    "tokens",
    "flops",
}
_ENDS = {
    "done": ("finished", "good"),
    "early": ("stopped early: the held-out loss went down no more", "good"),
    "stopped": ("stopped by request", ""),
}


def write_report(folder: RunFolder, path: Path | None = None) -> Path:
    """Make the report of a run, whatever it has come to.

    Args:
        folder: of the run.
        path: the file; None: the run's own ``report.html``.

    Returns:
        The file.

    Raises:
        TrainingError: there is no run in the folder, or its journal is damaged.
    """
    target = folder.report if path is None else path
    target.parent.mkdir(parents=True, exist_ok=True)
    # A text may hold half a character (a byte-level model writes what it likes), which no file can.
    write_whole(target, _page(_read(folder)).encode("utf-8", "replace").decode("utf-8"))
    return target


# --- what there is --------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """The events of a run, sorted, and what lies beside them."""

    name: str
    recipe_text: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    begins: list[Event] = field(default_factory=list)
    train: list[Event] = field(default_factory=list)
    evaluations: list[Event] = field(default_factory=list)
    samples: list[Event] = field(default_factory=list)
    messages: list[tuple[int, str]] = field(default_factory=list)
    ends: list[tuple[int, Event]] = field(default_factory=list)
    resumed: list[tuple[int, Event]] = field(default_factory=list)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str | None:
        """Why it ended; None while it goes on, or where it was broken off."""
        return str(self.ends[-1][1].get("reason")) if self.ends else None

    @property
    def step(self) -> int:
        """Steps done, as far as the journal knows."""
        return max((int(event.get("step") or 0) for event in [*self.train, *self.evaluations]), default=0)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run."""
        for event in reversed(self.begins):
            if event.get("steps"):
                return int(event["steps"])
        steps = (self.recipe.get("training") or {}).get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def parameters(self) -> int | None:
        for values in [*reversed(self.begins), self.summary]:
            if isinstance(values.get("parameters"), int):
                return int(values["parameters"])
        return None

    @property
    def best(self) -> Event | None:
        """The evaluation with the least loss."""
        finite = [event for event in self.evaluations if _number(event, "loss") is not None]
        return min(finite, key=lambda event: event["loss"], default=None)


def _read(folder: RunFolder) -> _Run:
    if not folder.has_run:
        raise TrainingError(f"{folder.path} holds no run: there is no {folder.recipe.name} in it")
    text = folder.recipe.read_text(encoding="utf-8", errors="replace")
    run = _Run(folder.path.resolve().name, text)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        values = None
    if isinstance(values, dict):
        run.recipe = values
        run.name = str(values.get("name") or run.name)
    try:
        run.summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        run.summary = {}
    if folder.journal.is_file():
        _sort(run, read_journal(folder.journal))
    return run


def _sort(run: _Run, events: Iterable[Event]) -> None:
    step = 0
    kinds = {"train": run.train, "evaluation": run.evaluations, "sample": run.samples}
    for event in events:
        step = int(event.get("step") or step)
        kind = event.get("event")
        if kind == "begin":
            if run.begins:
                run.resumed.append((step, event))
                run.ends.clear()  # what ended there has gone on
            run.begins.append(event)
        elif kind == "message":
            run.messages.append((step, str(event.get("text", ""))))
        elif kind == "end":
            run.ends.append((step, event))
        elif kind in kinds:
            kinds[kind].append(event)


def _number(event: Event, name: str) -> float | None:
    value = event.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _points(events: Sequence[Event], *names: str) -> list[Point]:
    """(step, value) of the first of ``names`` that an event has; not a number where it says null."""
    points = []
    for event in events:
        name = next((name for name in names if name in event), None)
        if name is not None and isinstance(event.get("step"), int):
            value = _number(event, name)
            points.append((float(event["step"]), math.nan if value is None else value))
    return points if any(math.isfinite(value) for _, value in points) else []


def _means(events: Sequence[Event]) -> list[Point]:
    """The mean losses of the steps since the line before, each in the middle of them; where there are none, losses."""
    points, before = [], 0.0
    for step, value in _points(events, "mean_loss", "loss"):
        points.append(((before + 1 + step) / 2 if "mean_loss" in events[0] else step, value))
        before = step
    return points


def _metrics(events: Sequence[Event]) -> list[str]:
    """Names of numbers that are no part of every event, in the order in which they first stand."""
    names: dict[str, None] = {}
    for event in events:
        names.update((name, None) for name in event if name not in _NOT_METRICS and _number(event, name) is not None)
    return list(names)


# --- the page -------------------------------------------------------------------------------------------------------


def _page(run: _Run) -> str:
    style = resources.files("polyformer.training").joinpath("report.css").read_text(encoding="utf-8")
    state, colour = _state(run)
    body = [
        f'<h1>{escape(run.name)} <span class="state {colour}">{escape(state)}</span></h1>',
        f"<p>{escape(_sentence(run))}</p>",
        _facts(run),
        _curves(run),
        _evaluation_table(run),
        _messages(run),
        _samples(run),
        f"<h2>Recipe</h2><pre>{escape(run.recipe_text)}</pre>",
        _machines(run),
        _history(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)}: training</title><style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )


def _state(run: _Run) -> tuple[str, str]:
    if run.reason is None:
        return ("going on, or broken off", "") if run.begins else ("not begun", "")
    return _ENDS.get(run.reason, (f"ended: {run.reason}", "bad"))


def _sentence(run: _Run) -> str:
    """The result in one sentence."""
    if not run.step:
        return "No step has been written down yet."
    best, last = run.best, run.train[-1] if run.train else {}
    what = "The network" if run.parameters is None else f"A network of {_size(run.parameters)} parameters"
    steps = f"{run.step:,}" if run.steps in (None, run.step) else f"{run.step:,} of {run.steps:,}"
    words = f"{what} was trained for {steps} steps"
    if _number(last, "tokens"):
        words += f" on {_size(last['tokens'])} tokens"
    if _number(last, "seconds"):
        words += f", in {duration(last['seconds'])}"
    if best is not None:
        words += f"; the least held-out loss is {best['loss']:.4g}, after step {best['step']:,}"
    elif run.train:
        words += f"; the training loss is {readable(_recent(run))}, and nothing was held out"
    return words + "."


def _recent(run: _Run) -> float:
    """The training loss at the end of the smoothed curve."""
    curve = smoothed(_means(run.train))
    return curve[-1][1] if curve else math.nan


def _facts(run: _Run) -> str:
    last = run.train[-1] if run.train else {}
    facts: list[tuple[str, str, str]] = []
    if run.best is not None:
        now = run.evaluations[-1]
        later = f"step {run.best['step']:,}"
        if now is not run.best and _number(now, "loss") is not None:
            later += f"; at the end {now['loss']:.4g}"
        facts.append(("held-out loss", f"{run.best['loss']:.4g}", later))
    if run.train:
        facts.append(("training loss", readable(_recent(run)), "smoothed"))
    if run.parameters is not None:
        facts.append(("parameters", _size(run.parameters), ""))
    if _number(last, "tokens"):
        facts.append(("tokens", _size(last["tokens"]), f"{run.step:,} steps"))
    if _number(last, "seconds"):
        facts.append(("time", duration(last["seconds"]), "of training alone"))
    speeds = [value for _, value in _points(run.train[1:] or run.train, "tokens_per_second") if math.isfinite(value)]
    if speeds:
        facts.append(("speed", f"{readable(round(statistics.median(speeds)))}/s", "tokens, median"))
    uses = [value for _, value in _points(run.train[1:] or run.train, "utilization") if math.isfinite(value)]
    if uses:
        facts.append(("utilization", f"{statistics.median(uses):.0%}", "of the measured peak, median"))
    if _number(last, "flops"):
        facts.append(("arithmetic", f"{_size(last['flops'], ' ')}FLOP", "in all"))
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in facts
    )
    return f'<dl class="facts">{cells}</dl>' if cells else ""


# --- curves ---------------------------------------------------------------------------------------------------------


def _curves(run: _Run) -> str:
    marks = [Mark(step, f"gone on with after step {step:,}, {event.get('time', '')}") for step, event in run.resumed]
    marks += [Mark(step, text, "warning") for step, text in run.messages]
    raw, held = _points(run.train, "loss"), _points(run.evaluations, "loss")
    smooth = smoothed(_means(run.train))
    charts = [
        Chart(
            "Loss",
            [
                Line("training", raw, "raw", notes=False),
                Line("training, smoothed", smooth, "train"),
                Line("held-out", held, "held", dots=True),
            ],
            marks,
            logarithmic=_spans(raw + held, 3.0),
            wide=True,
        )
    ]
    for name in dict.fromkeys([*_metrics(run.evaluations), *_metrics(run.train)]):
        lines = [
            Line("training, smoothed", smoothed(_points(run.train, name)), "train"),
            Line("held-out", _points(run.evaluations, name), "held", dots=True),
        ]
        values = [point for line in lines for point in line.points]
        if _is_constant(values) or values == smoothed(raw) + held:
            continue  # a curve that says nothing, or the loss once more
        charts.append(Chart(_words(name).capitalize(), lines, marks, logarithmic=_spans(values, 30.0)))
    norm, use = _points(run.train, "gradient_norm"), _points(run.train, "utilization")
    speed = _points(run.train, "tokens_per_second")
    charts += [
        Chart("Learning rate", [Line("learning rate", _points(run.train, "learning_rate"), "third")], from_zero=True),
        Chart("Gradient norm", [Line("before clipping", norm, "train")], marks, logarithmic=_spans(norm, 5.0)),
        Chart("Tokens per second", [Line("tokens per second", speed, "third")], marks, from_zero=True),
        Chart("Utilization", [Line("of the measured peak", use, "third")], marks, from_zero=True, show=_percent),
    ]
    drawn = "".join(draw(chart) for chart in charts)
    return f'<h2>Curves</h2><div class="charts">{drawn}</div>' if drawn else ""


def _spans(points: Sequence[Point], times: float) -> bool:
    """Whether values, all above zero, differ so many times: they are better seen on a logarithmic axis."""
    values = [value for _, value in points if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) / min(values) > times


def _is_constant(points: Sequence[Point]) -> bool:
    values = [value for _, value in points if math.isfinite(value)]
    return bool(values) and max(values) - min(values) <= 1e-6 * max(map(abs, values))


def _percent(value: float) -> str:
    return f"{value:.3g}%" if (value := 100 * value) < 10 else f"{value:.0f}%"


# --- the rest -------------------------------------------------------------------------------------------------------


def _evaluation_table(run: _Run) -> str:
    if not run.evaluations:
        return ""
    names = ["loss", *_metrics(run.evaluations)]
    head = "".join(f'<th class="number">{escape(_words(name))}</th>' for name in ["step", *names])
    rows = []
    for event in run.evaluations:
        values = [_number(event, name) for name in names]
        cells = "".join(f'<td class="number">{"–" if value is None else f"{value:.4f}"}</td>' for value in values)
        note = "best" if event is run.best else ""
        rows.append(f'<tr><td class="number">{int(event.get("step") or 0):,}</td>{cells}<td>{note}</td></tr>')
    return (
        f"<h2>Held-out data</h2><details><summary>Every evaluation<small>{len(rows)}</small></summary>"
        f'<div class="scroll"><table><tr>{head}<th></th></tr>{"".join(rows)}</table></div></details>'
    )


def _messages(run: _Run) -> str:
    if not run.messages:
        return ""
    items = "".join(f"<li>{escape(text)} <small>(step {step:,})</small></li>" for step, text in run.messages)
    return f'<h2>Messages</h2><ul class="messages">{items}</ul>'


def _samples(run: _Run) -> str:
    """What was written, the latest first; a reader opens the earlier ones."""
    if not run.samples:
        return ""
    by_step: dict[int, list[Event]] = {}
    for event in run.samples:
        by_step.setdefault(int(event.get("step") or 0), []).append(event)
    parts = ["<h2>Samples</h2>"]
    for number, step in enumerate(sorted(by_step, reverse=True)):
        texts = "".join(
            f'<div class="sample"><b>{escape(_clean(event.get("prompt")))}</b>{escape(_clean(event.get("text")))}</div>'
            for event in by_step[step]
        )
        count = len(by_step[step])
        opened = " open" if number == 0 else ""
        parts.append(
            f"<details{opened}><summary>After step {step:,}<small>{count} text{'s' if count > 1 else ''}</small>"
            f"</summary>{texts}</details>"
        )
    return "".join(parts)


def _clean(text: Any) -> str:
    """Without control characters, which an HTML file may not hold."""
    plain = "" if text is None else str(text)
    return "".join(
        "\ufffd" if letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in plain
    )


def _machines(run: _Run) -> str:
    """Where it ran: each machine once."""
    machines: list[Mapping[str, Any]] = []
    for begin in run.begins:
        machine = begin.get("machine")
        if isinstance(machine, dict) and machine not in machines:
            machines.append(machine)
    if not machines:
        return ""
    tables = [_table({_words(name): value for name, value in machine.items()}) for machine in machines]
    return f"<h2>Machine{'s' if len(tables) > 1 else ''}</h2>{''.join(tables)}"


def _history(run: _Run) -> str:
    """When it was begun and gone on with, and what it was begun with."""
    facts: dict[str, Any] = {}
    if run.begins:
        facts["begun"] = run.begins[0].get("time")
        known = {"event", "step", "time", "machine", "parameters", "steps"}
        facts.update({_words(name): value for name, value in run.begins[-1].items() if name not in known})
    for step, event in run.resumed:
        facts[f"gone on with after step {step:,}"] = event.get("time")
    return f"<h2>Run</h2>{_table(facts)}" if facts else ""


def _table(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_value(value))}</td></tr>" for name, value in values.items()
    )
    return f'<div class="scroll"><table>{rows}</table></div>'


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return readable(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(inner) for inner in value)
    if isinstance(value, dict):
        return ", ".join(f"{_words(name)} {_value(inner)}" for name, inner in value.items())
    return str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _size(value: float, space: str = "") -> str:
    """A large number in three digits: 10.7M."""
    for limit, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995 and value >= 1e4:
            return f"{value / limit:.{max(0, 2 - int(math.log10(value / limit)))}f}{space}{letter}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """``12 min 3 s``: the two largest units."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts: list[str] = []
    for size, name in units:
        count, whole = divmod(whole, size)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
