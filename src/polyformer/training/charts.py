"""Curves as HTML and inline SVG, without a library and without a script.

A chart takes whatever width the page has: its lines are drawn in an SVG box of fixed numbers that is stretched to it,
while strokes, dots and letters keep their size. Colours are those of the page, by the class of each line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000.0, 300.0
# A line on a screen has no use for more points than this; a person's pointer for fewer still.
MOST_POINTS = 1200
MOST_NOTES = 160

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: in the legend.
        points: (x, y), x rising; those whose y is not a finite number are gaps.
        style: class of the page's style sheet, which gives it a colour and a width.
        dots: whether each point is drawn as a dot too.
        notes: whether a point says its numbers when one points at it.
    """

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False
    notes: bool = True


@dataclass(frozen=True)
class Mark:
    """A vertical line that says something when one points at it, such as where a run was gone on with."""

    x: float
    text: str
    style: str = ""


@dataclass(frozen=True)
class Chart:
    """Curves over the same axis.

    Attributes:
        title: above.
        lines: drawn in this order, the last on top.
        marks: vertical lines.
        logarithmic: the axis of y.
        from_zero: the axis of y begins at 0.
        reach: where the axis of y ends; None is at the largest value. What lies beyond is cut off at the edge.
        show: a value in words.
        wide: whether the chart takes the whole width of the page.
    """

    title: str
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    logarithmic: bool = False
    from_zero: bool = False
    reach: float | None = None
    show: Callable[[float], str] | None = None
    wide: bool = False


def draw(chart: Chart) -> str:
    """The chart as a ``<figure>``; an empty text where no line has a point."""
    finite = [point for line in chart.lines for point in line.points if _is_drawable(point[1], chart.logarithmic)]
    if not finite:
        return ""
    show = chart.show or readable
    across = _Axis.around([x for x, _ in finite], logarithmic=False)
    up = _Axis.around(
        [y for _, y in finite], logarithmic=chart.logarithmic, from_zero=chart.from_zero, reach=chart.reach
    )
    drawn = [_draw_line(line, across, up, show) for line in chart.lines]
    named = [line for line in chart.lines if line.points and line.name.lower() != chart.title.lower()]
    legend = "".join(f'<span class="key {line.style}">{escape(line.name)}</span>' for line in named)
    grid = "".join(f'<path class="grid" d="M0 {_y(up, tick)}H{WIDTH:g}"/>' for tick in up.ticks())
    marks = "".join(_draw_mark(mark, across) for mark in chart.marks)
    last = ", ".join(f"{line.name} ends at {show(line.points[-1][1])}" for line in chart.lines if line.points)
    kind = "chart wide" if chart.wide else "chart"
    return (
        f'<figure class="{kind}"><figcaption><b>{escape(chart.title)}</b>{legend}</figcaption><div class="area">'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(chart.title)} over steps: {escape(last)}">{grid}{marks}{"".join(drawn)}</svg>'
        f"{_labels(across, up, show)}</div></figure>"
    )


def _labels(across: _Axis, up: _Axis, show: Callable[[float], str]) -> str:
    y = "".join(
        f'<span class="y" style="top:{100 - 100 * up.place(tick):.2f}%">{escape(show(tick))}</span>'
        for tick in up.ticks()
    )
    x = "".join(
        f'<span class="x" style="left:{100 * across.place(tick):.2f}%">{escape(readable(tick))}</span>'
        for tick in across.ticks()
    )
    return y + x


def _draw_line(line: Line, across: _Axis, up: _Axis, show: Callable[[float], str]) -> str:
    drawable = [[]] if not line.points else _runs(line.points, up.logarithmic)
    path = "".join(
        "M" + "L".join(f"{_x(across, x)} {_y(up, y)}" for x, y in thinned(run, MOST_POINTS)) for run in drawable if run
    )
    alone = "".join(f"M{_x(across, run[0][0])} {_y(up, run[0][1])}h0" for run in drawable if len(run) == 1)
    parts = [f'<path class="line {line.style}" d="{path}"/>'] if path else []
    points = [point for run in drawable for point in run]
    if line.dots:
        dots = "".join(f"M{_x(across, x)} {_y(up, y)}h0" for x, y in points)
        parts.append(f'<path class="dot {line.style}" d="{dots}"/>')
    elif alone:
        parts.append(f'<path class="dot {line.style}" d="{alone}"/>')
    if line.notes:
        step = max(1, math.ceil(len(points) / MOST_NOTES))
        parts += [
            f'<path class="note" d="M{_x(across, x)} {_y(up, y)}h0"><title>'
            f"{escape(line.name)}: {escape(show(y))}, step {readable(x)}</title></path>"
            for x, y in points[::-step][::-1]
        ]
    return "".join(parts)


def _draw_mark(mark: Mark, across: _Axis) -> str:
    if not 0.0 <= across.place(mark.x) <= 1.0:
        return ""
    path = f"M{_x(across, mark.x)} 0V{HEIGHT:g}"
    title = f"<title>{escape(mark.text)}</title>"
    return f'<path class="mark {mark.style}" d="{path}"/><path class="note thin" d="{path}">{title}</path>'


def _x(axis: _Axis, value: float) -> str:
    return f"{WIDTH * axis.place(value):.1f}".removesuffix(".0")


def _y(axis: _Axis, value: float) -> str:
    place = min(1.02, max(-0.02, axis.place(value)))
    return f"{HEIGHT * (1.0 - place):.1f}".removesuffix(".0")


def _is_drawable(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _runs(points: Sequence[Point], logarithmic: bool) -> list[list[Point]]:
    """Points in pieces, parted at the gaps."""
    runs: list[list[Point]] = [[]]
    for point in points:
        if _is_drawable(point[1], logarithmic):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return runs


# --- axes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Axis:
    """From a value to its place between 0 and 1."""

    low: float
    high: float
    logarithmic: bool

    @classmethod
    def around(
        cls, values: Sequence[float], *, logarithmic: bool, from_zero: bool = False, reach: float | None = None
    ) -> _Axis:
        low, high = min(values), max(values)
        if reach is not None and low < reach < high:
            high = reach
        if logarithmic:
            room = max((high / low) ** 0.04, 1.002)
            return cls(low / room, high * room, True)
        if from_zero and low >= 0:
            return cls(0.0, high * 1.06 if high else 1.0, False)
        size = max(abs(low), abs(high))
        room = (high - low) * 0.04 if high - low > 1e-9 * size else size * 0.05 or 1.0
        return cls(low - room, high + room, False)

    def place(self, value: float) -> float:
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round numbers inside the axis, about five."""
        if self.logarithmic and self.high / self.low >= 8:
            return _decades(self.low, self.high)
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step)
        return [round(number * step, 12) for number in range(first, math.floor(self.high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten, or only the powers where those would be too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= 7:
            break
    return inside[:: max(1, math.ceil(len(inside) / 7))]


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= least * 0.999)


# --- points and numbers ---------------------------------------------------------------------------------------------


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` of them, those that stick out among them: of each stretch the lowest and the highest."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    kept: list[Point] = []
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        kept += sorted({min(stretch, key=_height), max(stretch, key=_height)})
    return kept


def _height(point: Point) -> float:
    return point[1]


def smoothed(points: Sequence[Point], share: float = 0.03) -> list[Point]:
    """An exponential average that remembers about ``share`` of the line, and less where the line begins, since a loss
    falls fastest there."""
    if not points:
        return []
    first, longest = points[0][0], (points[-1][0] - points[0][0]) * share
    result: list[Point] = []
    total = weight = 0.0
    before = first
    for x, y in points:
        if not math.isfinite(y):
            continue
        reach = max(min(longest, 0.1 * (x - first)), 1e-12)
        forget = math.exp(-(x - before) / reach)
        total, weight, before = total * forget + y, weight * forget + 1.0, x
        result.append((x, total / weight))
    return result


def readable(value: float) -> str:
    """A number in few characters: 3.142, 1,250, 12.4k, 3.1M, 2.5e-05."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 10_000:
        for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if size >= limit * 0.99995:
                if size / limit >= 10_000:
                    break
                return f"{value / limit:.4g}{letter}"
        return f"{value:.3g}"
    if size and size < 1e-3:
        return f"{value:.2g}"
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4g}"
