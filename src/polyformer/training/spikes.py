"""Losses that jump: where training goes wrong, it is seen there first."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class SpikeSettings:
    """What counts as a spike.

    Attributes:
        action: "stop", "warn" or "off".
        deviations: so many standard deviations above the mean of the last losses, and
        ratio: so many times that mean.
        window: losses that are remembered.
    """

    action: str = "warn"
    deviations: float = 8.0
    ratio: float = 1.5
    window: int = 100


class SpikeWatch:
    """Compares every loss with those before it. A spike is not remembered, so that a second one is seen too."""

    def __init__(self, settings: SpikeSettings, losses: Iterable[float] = ()):
        self.settings = settings
        self.losses: deque[float] = deque(losses, maxlen=settings.window)

    def is_spike(self, loss: float) -> bool:
        """Whether this loss stands out; it is remembered if not. A tenth of the window must be full to judge."""
        settings = self.settings
        if settings.action == "off":
            return False
        known = len(self.losses)
        if known >= max(10, settings.window // 10):
            mean = math.fsum(self.losses) / known
            deviation = math.sqrt(math.fsum((one - mean) ** 2 for one in self.losses) / known)
            if loss > mean + settings.deviations * deviation and loss > mean + (settings.ratio - 1) * abs(mean):
                return True
        self.losses.append(loss)
        return False
