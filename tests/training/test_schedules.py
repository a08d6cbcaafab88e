"""Learning rates, against their formulas."""

from __future__ import annotations

import math

import pytest

from polyformer.errors import ConfigError
from polyformer.training.schedules import SHAPES, Schedule


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_up_is_a_line_to_the_peak(shape: str) -> None:
    schedule = Schedule(shape, 100, warmup_steps=10)
    assert [schedule(step) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule(10) == pytest.approx(1.0, abs=0.06)


def test_cosine_ends_at_its_final_rate() -> None:
    schedule = Schedule("cosine", 101, final=0.1)
    assert schedule(0) == 1.0
    assert schedule(50) == pytest.approx(0.55)
    assert schedule(25) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert schedule(100) == pytest.approx(0.1)


def test_linear_goes_down_evenly() -> None:
    schedule = Schedule("linear", 11, final=0.0)
    assert [schedule(step) for step in range(11)] == pytest.approx([1 - step / 10 for step in range(11)])


def test_warmup_stable_decay_stays_and_falls() -> None:
    schedule = Schedule("warmup-stable-decay", 100, warmup_steps=10, decay_steps=20, final=0.0)
    assert all(schedule(step) == 1.0 for step in range(10, 81))
    assert schedule(90) == pytest.approx(1 - 10 / 19)
    assert schedule(99) == 0.0


def test_inverse_square_root_is_that_of_the_transformer() -> None:
    """lrate ~ min(step^-0.5, step * warmup^-1.5), step counted from 1 (Vaswani et al., 2017, equation 3)."""
    schedule = Schedule("inverse-square-root", 1000, warmup_steps=40)
    peak = 40**-0.5
    for step in range(1000):
        expected = min((step + 1) ** -0.5, (step + 1) * 40**-1.5) / peak
        assert schedule(step) == pytest.approx(expected)


def test_a_run_of_one_step() -> None:
    for shape in SHAPES:
        assert 0 <= Schedule(shape, 1)(0) <= 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="not one of"):
        Schedule("step", 10)
    with pytest.raises(ConfigError, match="warm-up takes 11 steps"):
        Schedule("cosine", 10, warmup_steps=11)
    with pytest.raises(ConfigError, match="warm-up and decay take 6 \\+ 5"):
        Schedule("warmup-stable-decay", 10, warmup_steps=6, decay_steps=5)
