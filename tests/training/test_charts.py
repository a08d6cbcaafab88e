"""Curves: every number has its place, and odd ones do no harm."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from polyformer.training.charts import HEIGHT, WIDTH, Chart, Line, Mark, draw, readable, smoothed, thinned


def drawn(chart: Chart) -> Any:
    return ElementTree.fromstring(draw(chart))


def path_of(figure: Any, style: str) -> list[tuple[float, float]]:
    (path,) = [path for path in figure.iter("path") if path.get("class") == style]
    pairs = path.get("d").replace("M", "L").split("L")[1:]
    return [tuple(map(float, pair.removesuffix("h0").split())) for pair in pairs]  # type: ignore[misc]


def test_points_stand_where_the_labels_say() -> None:
    figure = drawn(Chart("Loss", [Line("training", [(0.0, 10.0), (50.0, 20.0), (100.0, 40.0)], "train")]))
    points = path_of(figure, "line train")
    labels = {span.get("class") + span.text: span.get("style") for span in figure.iter("span") if span.get("style")}
    left, top = (float(labels[name].split(":")[1].rstrip("%")) for name in ("x100", "y20"))
    assert points[2][0] == pytest.approx(left / 100 * WIDTH, abs=0.1)
    assert points[1][1] == pytest.approx(top / 100 * HEIGHT, abs=0.1)
    assert points[0][1] > points[1][1] > points[2][1]


def test_a_logarithmic_axis_spaces_factors_alike() -> None:
    chart = Chart("Norm", [Line("norm", [(1.0, 0.1), (2.0, 1.0), (3.0, 10.0)], "train")], logarithmic=True)
    first, second, third = (y for _, y in path_of(drawn(chart), "line train"))
    assert first - second == pytest.approx(second - third, abs=0.2)


def test_an_axis_from_zero_begins_there() -> None:
    figure = drawn(Chart("Speed", [Line("speed", [(1.0, 90.0), (2.0, 100.0)], "third")], from_zero=True))
    assert any(span.text == "0" and span.get("class") == "y" for span in figure.iter("span"))
    (_, low), (_, high) = path_of(figure, "line third")
    assert (HEIGHT - low) / (HEIGHT - high) == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9, 1e30])
def test_a_single_point_is_a_dot(value: float) -> None:
    figure = drawn(Chart("Loss", [Line("loss", [(7.0, value)], "held")]))
    assert len(path_of(figure, "dot held")) == 1
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in path_of(figure, "dot held"))


def test_what_is_no_number_is_a_gap() -> None:
    points = [(1.0, 1.0), (2.0, math.nan), (3.0, 2.0), (4.0, 3.0), (5.0, math.inf)]
    figure = drawn(Chart("Loss", [Line("loss", points, "train")]))
    (path,) = [path for path in figure.iter("path") if path.get("class") == "line train"]
    assert path.get("d").count("M") == 2 and "nan" not in path.get("d") and "inf" not in path.get("d")
    assert draw(Chart("Loss", [Line("loss", [(1.0, math.nan)], "train")])) == ""
    assert draw(Chart("Loss", [])) == ""


def test_points_and_marks_say_what_they_are() -> None:
    lines = [Line("<held-out>", [(10.0, 3.25), (20.0, 3.0)], "held")]
    figure = drawn(Chart("A & B", lines, [Mark(15.0, "gone on with"), Mark(99.0, "outside")]))
    titles = [title.text for title in figure.iter("title")]
    assert titles == ["gone on with", "<held-out>: 3.25, step 10", "<held-out>: 3, step 20"]


def test_a_long_line_keeps_its_spikes_and_stays_small() -> None:
    points = [(float(step), 1.0 + step % 7) for step in range(100_000)]
    points[77_777] = (77_777.0, 500.0)
    points[12_345] = (12_345.0, -500.0)
    kept = thinned(points, 1000)
    assert len(kept) <= 1000 and points[77_777] in kept and points[12_345] in kept
    assert kept == sorted(kept)
    assert len(draw(Chart("Loss", [Line("loss", points, "train", notes=True)]))) < 100_000


def test_smoothing_follows_the_first_points_and_calms_the_later() -> None:
    falling = [(float(step), 10.0 * math.exp(-step / 50)) for step in range(1, 1000)]
    assert all(abs(y - raw) < 0.12 * raw for (_, y), (_, raw) in zip(smoothed(falling)[:50], falling[:50]))
    noisy = [(float(step), 1.0 + (-1) ** step) for step in range(1000)]
    assert all(abs(y - 1.0) < 0.05 for _, y in smoothed(noisy)[200:])
    assert smoothed([]) == [] and smoothed([(3.0, 4.0)]) == [(3.0, 4.0)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.14159, "3.142"),
        (1250.0, "1,250"),
        (12_400.0, "12.4k"),
        (3.1e6, "3.1M"),
        (2.5e-5, "2.5e-05"),
        (-0.5, "-0.5"),
        (1e20, "1e+20"),
        (math.nan, "–"),
    ],
)
def test_numbers_are_readable(value: float, text: str) -> None:
    assert readable(value) == text
