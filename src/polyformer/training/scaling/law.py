"""L(N, D) = E + A / N^alpha + B / D^beta, fitted to runs (Hoffmann et al., 2022, section 3.3).

N is parameters, D tokens, L the held-out loss. As there, the five numbers minimize the Huber loss (delta 1e-3) of
log L, where the logarithm of the sum is taken of the logarithms of its terms (equation 3). A minimum is looked for from
a grid of starts. With five unknowns the whole curvature is at hand, so the steps are those of Levenberg and Marquardt
with the weights of the Huber loss, for all starts and all bootstrap samples at once, in place of L-BFGS; a test finds
no lower minimum with the latter.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyformer.errors import ConfigError

Numbers = NDArray[np.float64]

DELTA = 1e-3
LEAST_LEVELS = 3
SMALLEST_EXPONENT, LARGEST_EXPONENT = 0.01, 3.0
_UNKNOWNS = 5


@dataclass(frozen=True)
class Point:
    """What one run says: its parameters, the tokens it was trained on, its loss on held-out data."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta. Fields may be arrays: several laws at once.

    Attributes:
        irreducible: E, the loss that neither size nor data take away.
        parameter_factor, parameter_exponent: A and alpha.
        token_factor, token_exponent: B and beta.
    """

    irreducible: Any
    parameter_factor: Any
    parameter_exponent: Any
    token_factor: Any
    token_exponent: Any

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """The loss of a network of ``parameters`` after ``tokens``; broadcasts."""
        of_parameters = np.log(self.parameter_factor) - self.parameter_exponent * np.log(parameters)
        of_tokens = np.log(self.token_factor) - self.token_exponent * np.log(tokens)
        return self.irreducible + np.exp(of_parameters) + np.exp(of_tokens)

    def to_dict(self) -> dict[str, float]:
        return {
            "E": float(self.irreducible),
            "A": float(self.parameter_factor),
            "alpha": float(self.parameter_exponent),
            "B": float(self.token_factor),
            "beta": float(self.token_exponent),
        }


@dataclass(frozen=True)
class Interval:
    """A number with the range that holds it with the probability ``level``."""

    value: float
    low: float
    high: float
    level: float

    def to_dict(self) -> dict[str, float | None]:
        values = {"value": self.value, "low": self.low, "high": self.high, "level": self.level}
        return {name: value if np.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True)
class Optimum:
    """The best size for a budget.

    Attributes:
        budget: FLOP of training.
        parameters, tokens, loss: of the best run, each with its range.
        extrapolates: how many times larger (or, below 1, smaller) the best size or number of tokens is than any that
            was run; 1 where both lie inside.
    """

    budget: float
    parameters: Interval
    tokens: Interval
    loss: Interval
    extrapolates: float


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: the best one.
        points: what it was fitted to.
        samples: laws fitted to bootstrap samples; the fields are arrays.
        foretold: the loss of each point, foretold from all the others.
        warnings: what the points do not tell, in words.
    """

    law: Law
    points: tuple[Point, ...]
    samples: Law
    foretold: tuple[float, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def fitted(self) -> Numbers:
        """The loss of each point by the law."""
        values: Numbers = self.law.loss(*_columns(self.points)[:2])
        return values

    @property
    def errors(self) -> Numbers:
        """Foretold over measured loss, less 1, of each point that was left out."""
        losses: Numbers = _columns(self.points)[2]
        return np.array(self.foretold) / losses - 1.0

    def interval(self, of: Callable[[Law], Any], level: float = 0.9) -> Interval:
        """A number that follows from a law, with its range over the bootstrap samples."""
        return _interval(float(of(self.law)), np.asarray(of(self.samples), dtype=float), level)

    def optimum(self, budget: float, flops_per_token: Callable[[Any], Any], level: float = 0.9) -> Optimum:
        """The size that gives the least loss for a budget.

        Args:
            budget: FLOP of training.
            flops_per_token: parameters -> FLOP that one token of training takes; the tokens follow from it.

        Raises:
            ConfigError: the law has no best size: the loss falls (or rises) with size without end.
        """
        sizes = _sizes_around(self.points)
        tokens = budget / flops_per_token(sizes)
        best = _least(self.law, sizes, tokens)
        if not 0.0 < best[0] < np.inf:
            raise ConfigError(
                f"the fit has no best size for {budget:.3g} FLOP: its loss has no minimum between "
                f"{sizes[0]:.3g} and {sizes[-1]:.3g} parameters; run more sizes and lengths, further apart"
            )
        many = _least(self.samples, sizes, tokens)
        columns = _columns(self.points)
        ranges = [_interval(float(one), samples, level) for one, samples in zip(best, many)]
        beyond = _furthest([(float(best[0]), columns[0]), (float(best[1]), columns[1])])
        return Optimum(budget, ranges[0], ranges[1], ranges[2], beyond)


def fit(
    points: Sequence[Point], *, samples: int = 300, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Fit:
    """Fit the law.

    Args:
        points: of at least three sizes, each with at least three lengths or so: six points or more.
        samples: of the bootstrap.
        seed: of the bootstrap.
        progress: told (done, total).

    Raises:
        ConfigError: too few points, or a value that is no number above zero.
    """
    require_enough(points)
    problem = _Problem.of(points)
    ends = problem.solve(problem.starts())
    starts = _different(ends, 6)
    tell = progress or (lambda done, total: None)
    tell(1, 3)
    without = problem.solve_each(starts, 1.0 - np.eye(len(points)), np.tile(problem.y, (len(points), 1)))
    foretold = np.exp(np.diagonal(problem.predict(without)))
    tell(2, 3)
    drawn = problem.bootstrap(ends[0], starts, samples, np.random.default_rng(seed))
    tell(3, 3)
    return Fit(
        problem.law(ends[0]),
        tuple(points),
        problem.law(drawn),
        tuple(map(float, foretold)),
        problem.warnings(ends[0], drawn),
    )


def require_enough(points: Sequence[Point]) -> None:
    """
    Raises:
        ConfigError: so few points do not fix five numbers, or one of them is no number above zero.
    """
    for point in points:
        for name in ("parameters", "tokens", "loss"):
            value = getattr(point, name)
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"a run of {point.parameters:.3g} parameters has {name} {value}: it cannot be fitted")
    parameters, tokens, _ = _columns(points) if points else (np.empty(0),) * 3
    sizes, lengths = _levels(parameters), _levels(tokens)
    if sizes < LEAST_LEVELS or lengths < LEAST_LEVELS or len(points) <= _UNKNOWNS:
        raise ConfigError(
            f"a law with {_UNKNOWNS} unknown numbers needs at least {_UNKNOWNS + 1} runs, of {LEAST_LEVELS} sizes and "
            f"{LEAST_LEVELS} lengths; here are {len(points)}, of {sizes} and {lengths}"
        )


def _levels(values: Numbers) -> int:
    """How many different values there are; what differs by less than a twentieth is the same one."""
    return len(values) and 1 + int((np.diff(np.sort(np.log(values))) > 0.05).sum())


# --- the minimum ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """The points as logarithms about their middle, where the unknowns depend least on one another.

    The unknowns, [..., 5], are log E, the logarithm of each of the two terms in the middle, alpha and beta.
    """

    x: Numbers
    z: Numbers
    y: Numbers
    middle: tuple[float, float]

    @classmethod
    def of(cls, points: Sequence[Point]) -> _Problem:
        x, z, y = (np.log(column) for column in _columns(points))
        return cls(x - x.mean(), z - z.mean(), y, (float(x.mean()), float(z.mean())))

    def law(self, unknowns: Numbers) -> Law:
        """[..., 5] -> laws in parameters and tokens as they are counted."""
        level, of_parameters, of_tokens, alpha, beta = np.moveaxis(unknowns, -1, 0)
        return Law(
            np.exp(level),
            np.exp(of_parameters + alpha * self.middle[0]),
            alpha,
            np.exp(of_tokens + beta * self.middle[1]),
            beta,
        )

    def starts(self) -> Numbers:
        """[starts, 5]: shares of the loss in the middle that are E, A and B, and exponents."""
        middle, least = float(np.exp(np.median(self.y))), float(np.exp(self.y.min()))
        rows = []
        for share, part, alpha, beta in itertools.product(
            (0.05, 0.4, 0.7, 0.95), (0.15, 0.5, 0.85), (0.1, 0.3, 0.6, 1.2), (0.1, 0.3, 0.6, 1.2)
        ):
            level = share * least
            rest = max(middle - level, 0.01 * middle)
            rows.append([np.log(level), np.log(rest * part), np.log(rest * (1 - part)), alpha, beta])
        return np.array(rows)

    def terms(self, unknowns: Numbers) -> Numbers:
        """[..., 5] -> logarithms of the three terms at each point [..., points, 3]."""
        level, of_parameters, of_tokens, alpha, beta = (part[..., None] for part in np.moveaxis(unknowns, -1, 0))
        parts = (level + 0 * self.x, of_parameters - alpha * self.x, of_tokens - beta * self.z)
        return np.stack(parts, axis=-1)

    def predict(self, unknowns: Numbers) -> Numbers:
        """[..., 5] -> log L of each point [..., points]."""
        values: Numbers = np.logaddexp.reduce(self.terms(unknowns), axis=-1)
        return values

    def descend(
        self, starts: Numbers, weights: Numbers, targets: Numbers, rounds: int = 300
    ) -> tuple[Numbers, Numbers]:
        """From each start to a minimum of the weighted Huber loss.

        Args:
            starts: [starts, 5].
            weights, targets: [starts, points]; targets are values of log L.

        Returns:
            The minima [starts, 5] and their losses [starts].
        """
        ends, at_ends = self._inside(starts), np.empty(len(starts))
        going = np.arange(len(starts))  # rows that have not come to rest
        now, damping = ends.copy(), np.full(len(starts), 1e-2)
        losses = _huber(self.predict(now) - targets, weights)
        for _ in range(rounds):
            tried = self._inside(now + self._step(now, weights, targets, damping))
            after = _huber(self.predict(tried) - targets, weights)
            better = after < losses
            rests = np.where(better, losses - after < 1e-9 * losses + 1e-300, damping > 1e5)
            now = np.where(better[:, None], tried, now)
            losses = np.where(better, after, losses)
            damping = np.clip(np.where(better, damping * 0.3, damping * 4.0), 1e-9, 1e9)
            ends[going], at_ends[going] = now, losses
            if rests.any():
                goes = ~rests
                going, now, losses, damping = going[goes], now[goes], losses[goes], damping[goes]
                weights, targets = weights[goes], targets[goes]
            if not len(going):
                break
        return ends, at_ends

    def _step(self, now: Numbers, weights: Numbers, targets: Numbers, damping: Numbers) -> Numbers:
        terms = self.terms(now)
        predicted = np.logaddexp.reduce(terms, axis=-1)
        share = np.exp(terms - predicted[..., None])
        slopes = np.stack(
            [share[..., 0], share[..., 1], share[..., 2], -share[..., 1] * self.x, -share[..., 2] * self.z], axis=-1
        )
        residuals = predicted - targets
        weighed = slopes * (weights * np.minimum(1.0, DELTA / np.maximum(np.abs(residuals), 1e-300)))[..., None]
        curvature = np.einsum("spi,spj->sij", weighed, slopes)
        gradient = np.einsum("spi,sp->si", weighed, residuals)
        diagonal = np.einsum("sii->si", curvature)
        added = damping[:, None] * diagonal + 1e-12 * (1.0 + diagonal.max(-1, keepdims=True))
        damped = curvature + added[..., None] * np.eye(_UNKNOWNS)
        return np.clip(-np.linalg.solve(damped, gradient[..., None])[..., 0], -1.0, 1.0)

    def _inside(self, unknowns: Numbers) -> Numbers:
        """Terms above nothing at all, and exponents that are ones."""
        lowest = float(self.y.min()) - 14.0
        inside: Numbers = unknowns.copy()
        inside[..., :3] = np.clip(inside[..., :3], lowest, float(self.y.max()) + 1.0)
        inside[..., 3:] = np.clip(inside[..., 3:], SMALLEST_EXPONENT, LARGEST_EXPONENT)
        return inside

    def solve(self, starts: Numbers) -> Numbers:
        """The minima for the points themselves [starts, 5], the lowest first."""
        shape = (len(starts), len(self.y))
        found, losses = self.descend(starts, np.ones(shape), np.broadcast_to(self.y, shape))
        return found[np.argsort(losses, kind="stable")]

    def solve_each(self, starts: Numbers, weights: Numbers, targets: Numbers) -> Numbers:
        """The lowest minimum for each row of weights and targets [rows, points]: [rows, 5]."""
        rows, count = len(weights), len(starts)
        found, losses = self.descend(
            np.tile(starts, (rows, 1)), np.repeat(weights, count, axis=0), np.repeat(targets, count, axis=0)
        )
        best: Numbers = found.reshape(rows, count, _UNKNOWNS)[np.arange(rows), losses.reshape(rows, count).argmin(1)]
        return best

    def bootstrap(self, best: Numbers, starts: Numbers, samples: int, random: np.random.Generator) -> Numbers:
        """Fits to what the runs might have given, [samples, 5]: the law, and noise as large as what it leaves over.

        Runs drawn with replacement would often lack a whole size or length of a small grid. The noise is drawn anew
        for every run; its size is itself drawn as uncertain as the few runs leave it (residuals over a chi-square
        number), so the ranges are not too narrow: in simulations they hold the truth as often as they say.
        """
        fitted, free = self.predict(best), len(self.y) - _UNKNOWNS
        squares = float(((self.y - fitted) ** 2).sum())
        size = np.sqrt(squares / random.chisquare(free, samples))
        targets = fitted + size[:, None] * random.normal(size=(samples, len(self.y)))
        return self.solve_each(starts, np.ones_like(targets), targets)

    def warnings(self, best: Numbers, drawn: Numbers) -> tuple[str, ...]:
        """What the runs leave open."""
        found = []
        for number, name, what in ((3, "alpha", "sizes"), (4, "beta", "lengths")):
            values = np.append(drawn[:, number], best[number])
            at_edge = (values <= SMALLEST_EXPONENT * 1.01) | (values >= LARGEST_EXPONENT * 0.99)
            if at_edge[-1] or at_edge.mean() > 0.05:
                found.append(f"the runs do not fix {name}: take {what} further apart, or more of them")
        levels = np.exp(np.append(drawn[:, 0], best[0]))
        if np.quantile(levels, 0.05) < 0.02 * np.exp(self.y.min()):  # a loss of nothing would do as well
            found.append("the runs do not fix E: what they say beyond the largest of them is a guess")
        return tuple(found)


def _huber(residuals: Numbers, weights: Numbers) -> Numbers:
    """[..., points] -> [...]."""
    size = np.abs(residuals)
    values = np.where(size <= DELTA, 0.5 * size**2, DELTA * (size - 0.5 * DELTA))
    total: Numbers = (weights * values).sum(-1)
    return total


def _different(ends: Numbers, most: int) -> Numbers:
    """The first ``most`` of some minima that are not the same one."""
    kept: list[Numbers] = []
    for end in ends:
        if all(np.abs(end - other).max() > 0.05 for other in kept):
            kept.append(end)
        if len(kept) == most:
            break
    return np.array(kept)


def _columns(points: Sequence[Point]) -> tuple[Numbers, Numbers, Numbers]:
    rows = np.array([(point.parameters, point.tokens, point.loss) for point in points], dtype=float)
    return rows[:, 0], rows[:, 1], rows[:, 2]


# --- the best size --------------------------------------------------------------------------------------------------


def _sizes_around(points: Sequence[Point]) -> Numbers:
    parameters = _columns(points)[0]
    return np.geomspace(parameters.min() / 1e3, parameters.max() * 1e8, 4000)


def _least(law: Law, sizes: Numbers, tokens: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Where each law is least along pairs of sizes and tokens: size, tokens and loss. Where it is least at an end, the
    size is 0 or infinite."""
    many = Law(*(np.asarray(value)[..., None] for value in vars(law).values()))
    losses = many.loss(sizes, tokens)
    place = losses.argmin(-1)
    last = len(sizes) - 1
    inside = np.clip(place, 1, last - 1)
    left, middle, right = (np.take_along_axis(losses, (inside + by)[..., None], -1)[..., 0] for by in (-1, 0, 1))
    bend = left - 2 * middle + right
    offset = np.where(bend > 0, 0.5 * (left - right) / np.where(bend > 0, bend, 1.0), 0.0)
    at = inside + np.clip(offset, -1.0, 1.0)
    steps = np.arange(len(sizes))
    best, for_it = (np.exp(np.interp(at, steps, np.log(values))) for values in (sizes, tokens))
    low, high = place == 0, place == last
    best = np.where(low, 0.0, np.where(high, np.inf, best))
    for_it = np.where(low, np.inf, np.where(high, 0.0, for_it))
    return best, for_it, np.take_along_axis(losses, place[..., None], -1)[..., 0]


def _interval(value: float, samples: Numbers, level: float) -> Interval:
    """Between the samples, since some may be infinite, a range ends at one of them."""
    low, high = np.quantile(samples, ((1 - level) / 2, (1 + level) / 2), method="nearest")
    return Interval(value, float(low), float(high), level)


def _furthest(pairs: Sequence[tuple[float, Numbers]]) -> float:
    """How far the furthest of some values lies outside what there was, as a factor."""
    factors = [value / max(min(value, float(known.max())), float(known.min())) for value, known in pairs]
    return max(factors, key=lambda factor: abs(np.log(factor)) if factor > 0 else np.inf)
