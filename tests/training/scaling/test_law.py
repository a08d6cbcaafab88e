"""The law: known numbers come back, ranges hold them, and too little is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polyformer.errors import ConfigError
from polyformer.training.scaling.costs import fit_cost
from polyformer.training.scaling.law import DELTA, Fit, Law, Point, fit

# The numbers of Hoffmann et al., 2022, equation 10.
TRUE = Law(1.69, 406.4, 0.34, 410.7, 0.28)
SIZES = np.geomspace(3e5, 3e7, 4)
LENGTHS = np.geomspace(6e6, 6e8, 4)


def runs(noise: float, seed: int = 0, law: Law = TRUE) -> list[Point]:
    random = np.random.default_rng(seed)
    return [
        Point(size, length, float(law.loss(size, length) * np.exp(noise * random.normal())))
        for size, length in itertools.product(SIZES, LENGTHS)
    ]


def six(parameters: float) -> float:
    return 6 * parameters


def test_without_noise_the_law_comes_back() -> None:
    found = fit(runs(0.0), samples=10)
    for name, value in vars(TRUE).items():
        assert getattr(found.law, name) == pytest.approx(value, rel=1e-3)
    assert np.abs(found.errors).max() < 1e-5
    assert found.warnings == ()


@pytest.mark.parametrize("law", [Law(1.2, 30.0, 0.2, 2000.0, 0.4), Law(0.5, 5e3, 0.5, 1e3, 0.35)])
def test_so_do_other_laws(law: Law) -> None:
    found = fit(runs(0.0, law=law), samples=10).law
    assert found.parameter_exponent == pytest.approx(law.parameter_exponent, abs=2e-3)
    assert found.token_exponent == pytest.approx(law.token_exponent, abs=2e-3)
    assert found.irreducible == pytest.approx(law.irreducible, rel=5e-3)


def test_with_noise_the_ranges_hold_the_truth() -> None:
    """Of twelve grids with noise of half a percent, ninety per cent should hold it; that nine do not is one in 150."""
    held = {"exponent": 0, "best size": 0, "loss": 0}
    budget = 100 * 6 * SIZES[-1] * LENGTHS[-1]
    truth = fit(runs(0.0), samples=2).optimum(budget, six).parameters.value
    for seed in range(12):
        found = fit(runs(0.005, seed), samples=40, seed=seed)
        alpha = found.interval(lambda law: law.parameter_exponent)
        best = found.optimum(budget, six).parameters
        loss = found.interval(lambda law: law.loss(3e8, 6e9))
        held["exponent"] += alpha.low <= TRUE.parameter_exponent <= alpha.high
        held["best size"] += best.low <= truth <= best.high
        held["loss"] += loss.low <= TRUE.loss(3e8, 6e9) <= loss.high
        assert 0 < alpha.high - alpha.low < 0.15 and best.high / best.low < 4
    assert min(held.values()) >= 9, held


def test_the_range_grows_with_the_noise() -> None:
    widths = []
    for noise in (0.001, 0.004, 0.016):
        alpha = fit(runs(noise), samples=60).interval(lambda law: law.parameter_exponent)
        widths.append(alpha.high - alpha.low)
    assert widths[0] < widths[1] < widths[2]


def test_the_best_size_is_that_of_the_formula() -> None:
    """Hoffmann et al., 2022, equation 4, where a token costs 6 N."""
    found, budget = fit(runs(0.0), samples=10), 1e20
    alpha, beta = found.law.parameter_exponent, found.law.token_exponent
    factor = (alpha * found.law.parameter_factor / (beta * found.law.token_factor)) ** (1 / (alpha + beta))
    size = factor * (budget / 6) ** (beta / (alpha + beta))
    best = found.optimum(budget, six)
    assert best.parameters.value == pytest.approx(size, rel=1e-3)
    assert best.tokens.value == pytest.approx(budget / 6 / size, rel=1e-3)
    assert best.loss.value == pytest.approx(found.law.loss(size, budget / 6 / size), rel=1e-6)
    assert best.extrapolates == pytest.approx(max(size / SIZES[-1], budget / 6 / size / LENGTHS[-1]), rel=1e-3)
    inside = found.optimum(6 * SIZES[1] * LENGTHS[1], six)
    assert inside.extrapolates == pytest.approx(1.0)


def test_a_dearer_token_makes_the_best_network_smaller() -> None:
    found = fit(runs(0.0), samples=10)
    plain = found.optimum(1e18, six).parameters.value
    dear = found.optimum(1e18, lambda size: 6 * size + 3e8).parameters.value
    assert dear != pytest.approx(plain, rel=0.01)
    sizes = np.geomspace(1e5, 1e9, 4001)
    losses = found.law.loss(sizes, 1e18 / (6 * sizes + 3e8))
    assert dear == pytest.approx(sizes[losses.argmin()], rel=0.01)


def test_each_run_is_foretold_by_the_others() -> None:
    points = runs(0.002)
    wrong = points[5]
    points[5] = Point(wrong.parameters, wrong.tokens, wrong.loss * 1.2)
    found = fit(points, samples=10)
    rest = fit(points[:5] + points[6:], samples=2)
    assert found.foretold[5] == pytest.approx(rest.law.loss(wrong.parameters, wrong.tokens), rel=1e-4)
    assert np.abs(found.errors).argmax() == 5 and found.errors[5] == pytest.approx(-1 / 6, abs=0.02)
    # The Huber loss is not drawn after one run.
    assert found.law.loss(wrong.parameters, wrong.tokens) == pytest.approx(wrong.loss, rel=0.02)


def objective(found: Fit, law: Law) -> float:
    sizes, lengths, losses = np.array([(point.parameters, point.tokens, point.loss) for point in found.points]).T
    size = np.abs(np.log(law.loss(sizes, lengths)) - np.log(losses))
    return float(np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA)).sum())


@pytest.mark.parametrize("noise", [0.003, 0.02])
def test_no_lower_minimum_is_found_with_l_bfgs(noise: float) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    found = fit(runs(noise, seed=5), samples=2)

    def goal(unknowns: np.ndarray) -> float:
        level, of_parameters, of_tokens, alpha, beta = unknowns
        law = Law(np.exp(level), np.exp(of_parameters), alpha, np.exp(of_tokens), beta)
        return 1e4 * objective(found, law)

    # The grid of starts of Hoffmann et al., 2022, appendix D.3, thinned.
    starts = itertools.product((-1.0, 1.0), (0.0, 10.0), (0.0, 10.0), (0.35,), (0.35,))
    options = {"maxiter": 400}
    with np.errstate(all="ignore"):
        ends = [optimize.minimize(goal, start, method="L-BFGS-B", options=options) for start in starts]
    lowest = min(end.fun for end in ends if np.isfinite(end.fun))
    assert 1e4 * objective(found, found.law) <= lowest * (1 + 1e-4)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "needs at least 6 runs"),
        (runs(0.0)[:5], "here are 5, of"),
        ([point for point in runs(0.0) if point.parameters < 2e6], "here are 8, of 2 and 4"),
        ([point for point in runs(0.0) if point.tokens < 4e7], "of 4 and 2"),
        ([Point(p.parameters * (1 + 0.001 * i), 1e6, p.loss) for i, p in enumerate(runs(0.0))], "and 1"),
        ([*runs(0.0), Point(1e6, 1e6, float("nan"))], "has loss nan"),
        ([*runs(0.0), Point(0, 1e6, 1.0)], "has parameters 0"),
    ],
)
def test_too_little_is_refused(points: list[Point], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fit(points)


def test_what_the_runs_leave_open_is_said() -> None:
    flat = [Point(point.parameters, point.tokens, 2.0 + 100 / point.tokens**0.3) for point in runs(0.0)]
    found = fit(flat, samples=20)
    assert any("alpha" in warning for warning in found.warnings)
    no_floor = fit(runs(0.01, law=Law(1e-9, 40.0, 0.2, 60.0, 0.2)), samples=40)
    assert any("do not fix E" in warning for warning in no_floor.warnings)
    assert not any("do not fix E" in warning for warning in fit(runs(0.002), samples=40).warnings)
    rising = [Point(point.parameters, point.tokens, point.parameters**0.1) for point in runs(0.0)]
    with pytest.raises(ConfigError, match="no best size"):
        fit(rising, samples=5).optimum(1e18, six)


def test_the_same_seed_gives_the_same_ranges() -> None:
    one, two, other = (
        fit(runs(0.01), samples=20, seed=seed).interval(lambda law: law.irreducible) for seed in (1, 1, 2)
    )
    assert one == two and one != other


def test_the_cost_of_a_token_is_found() -> None:
    sizes = np.geomspace(1e5, 1e8, 6)
    exact = 6 * sizes + 900 * sizes ** (2 / 3) + 4e5 * sizes ** (1 / 3)
    cost = fit_cost(list(sizes), list(exact))
    assert cost.factors == pytest.approx((6, 900, 4e5), rel=1e-6)
    assert cost(1e9) == pytest.approx(6e9 + 900 * 1e6 + 4e5 * 1e3, rel=1e-6)
    noisy = fit_cost(list(sizes), list(6 * sizes * (1 + 0.05 * np.cos(np.arange(6)))))
    assert min(noisy.factors) >= 0 and noisy(1e12) == pytest.approx(6e12, rel=0.1)
    assert fit_cost([1e6, 2e6], [0.0, 0.0])(5.0) == 30.0
