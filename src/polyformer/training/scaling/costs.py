"""The arithmetic of training: FLOP for one token, as it was counted in runs, for networks of any size."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# At constant shape a network's matrices grow with N, attention with depth times width, the head with the width.
_POWERS = (1.0, 2 / 3, 1 / 3)


@dataclass(frozen=True)
class Cost:
    """FLOP that one token of training takes in a network of N parameters: a N + b N^(2/3) + c N^(1/3).

    The first term is 6 N where everything is matrices (Kaplan et al., 2020, section 2.1). The others, for attention and
    for the scores over the vocabulary, are what makes small networks cost more than that.
    """

    factors: tuple[float, ...]

    def __call__(self, parameters: Any) -> Any:
        """FLOP per token; broadcasts."""
        return sum(factor * parameters**power for factor, power in zip(self.factors, _POWERS))


def fit_cost(parameters: Sequence[float], flops: Sequence[float]) -> Cost:
    """The cost, no term below zero, with the least squared relative error.

    Args:
        parameters: of networks.
        flops: that one token took in each. Where none was counted (0), it is 6 N.
    """
    sizes, counted = np.asarray(parameters, dtype=float), np.asarray(flops, dtype=float)
    if not (counted > 0).all():
        return Cost((6.0, 0.0, 0.0))
    terms = np.stack([sizes**power / counted for power in _POWERS], axis=-1)
    scale = terms.max(0)
    best, least = (6.0, 0.0, 0.0), np.inf
    count = min(len(_POWERS), len(set(parameters)))
    for used in itertools.chain(*(itertools.combinations(range(len(_POWERS)), many) for many in range(1, count + 1))):
        chosen = list(used)
        found = np.linalg.lstsq(terms[:, chosen] / scale[chosen], np.ones(len(sizes)), rcond=None)[0]
        error = float(((terms[:, chosen] / scale[chosen] @ found - 1.0) ** 2).sum())
        if (found >= 0).all() and error < least:
            factors = np.zeros(len(_POWERS))
            factors[chosen] = found / scale[chosen]
            best, least = tuple(map(float, factors)), error  # type: ignore[assignment]
    return Cost(best)
