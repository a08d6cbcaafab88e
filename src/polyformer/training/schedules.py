"""How the learning rate goes up and down: a factor of its peak for each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from polyformer.errors import ConfigError

SHAPES = ("constant", "cosine", "linear", "warmup-stable-decay", "inverse-square-root")


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step, as a fraction of its peak.

    Attributes:
        shape: what follows the warm-up.
            "constant": stays at the peak.
            "cosine": half a cosine down to ``final`` (Loshchilov and Hutter, 2017).
            "linear": a straight line down to ``final`` (BERT).
            "warmup-stable-decay": stays, then falls in a straight line over the last ``decay_steps`` (Hu et al., 2024,
            section 4).
            "inverse-square-root": peak · √(warmup / step) (Vaswani et al., 2017, section 5.3); ``final`` does not act.
        steps: of the whole run.
        warmup_steps: a straight line from 0 up to the peak; the first step already has a part of it.
        final: what is left at the last step, as a fraction of the peak.
        decay_steps: of "warmup-stable-decay".
    """

    shape: str = "cosine"
    steps: int = 1
    warmup_steps: int = 0
    final: float = 0.1
    decay_steps: int = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(f"schedule {self.shape!r} is not one of {', '.join(SHAPES)}")
        if self.warmup_steps > self.steps:
            raise ConfigError(f"the warm-up takes {self.warmup_steps} steps, but the whole run only {self.steps}")
        if self.decay_steps + self.warmup_steps > self.steps:
            raise ConfigError(
                f"warm-up and decay take {self.warmup_steps} + {self.decay_steps} steps, but the run only {self.steps}"
            )

    def __call__(self, step: int) -> float:
        """The factor of step ``step``, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.shape == "constant":
            return 1.0
        if self.shape == "inverse-square-root":
            return math.sqrt(max(self.warmup_steps, 1) / (step + 1))
        begin = self.steps - self.decay_steps if self.shape == "warmup-stable-decay" else self.warmup_steps
        # The last step of the run, not the one after it, has the final rate.
        gone = min(max(step - begin, 0) / max(self.steps - 1 - begin, 1), 1.0)
        left = 0.5 * (1 + math.cos(math.pi * gone)) if self.shape == "cosine" else 1 - gone
        return self.final + (1 - self.final) * left
