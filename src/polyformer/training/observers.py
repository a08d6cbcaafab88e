"""Who listens to a run: its journal on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from polyformer.training.run_folder import Journal
from polyformer.training.trainer import Evaluation, Observer, StepReport, Trainer


class JournalObserver(Observer):
    """Writes every event into ``metrics.jsonl``.

    Args:
        journal: open.
        facts: of the run, for the first line.
        log_every: steps between lines of training; the first and the last are always written.
    """

    def __init__(self, journal: Journal, facts: Mapping[str, Any], log_every: int):
        self.journal = journal
        self.facts = facts
        self.log_every = log_every
        self._loss_since_line: list[float] = []

    def on_begin(self, trainer: Trainer) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.journal.write("begin", step=trainer.progress.step, time=now, **self.facts)

    def on_step(self, report: StepReport) -> None:
        self._loss_since_line.append(report.loss)
        if report.step % self.log_every and report.step not in (1, report.steps):
            return
        losses, self._loss_since_line = self._loss_since_line, []
        values = {
            "step": report.step,
            "loss": report.loss,
            "mean_loss": sum(losses) / len(losses),
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "tokens": report.tokens,
            "seconds": round(report.seconds, 3),
            "flops": report.flops,
            "tokens_per_second": round(report.tokens_per_second, 1),
            "utilization": report.utilization,
            "starved": round(report.starved, 4),
        }
        self.journal.write("train", **_beside(values, report.metrics))

    def on_evaluation(self, evaluation: Evaluation) -> None:
        values = {"step": evaluation.step, "loss": evaluation.loss, "best": evaluation.best}
        self.journal.write("evaluation", **_beside(values, evaluation.metrics))

    def on_state(self, step: int) -> None:
        self.journal.write("state", step=step)

    def on_message(self, message: str) -> None:
        self.journal.write("message", text=message)

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        self.journal.write("sample", step=step, prompt=prompt, text=text)


def _beside(values: dict[str, Any], metrics: Mapping[str, float]) -> dict[str, Any]:
    """With an objective's metrics; one that has the name of a value is told apart from it."""
    return {**values, **{f"metric_{name}" if name in values else name: value for name, value in metrics.items()}}
