"""What a person sees of a training run: a bar on a terminal, plain lines elsewhere; both on standard error."""

from __future__ import annotations

import sys
import time
from typing import Any

from polyformer.training.trainer import Evaluation, Observer, StepReport, Trainer

# Without a terminal, a line at most so often.
SECONDS_BETWEEN_LINES = 10.0


class Display(Observer):
    """Loss, speed, utilization and time left while it goes on; evaluations and samples stay on the screen."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._last_line = 0.0

    def on_begin(self, trainer: Trainer) -> None:
        steps, step = trainer.settings.steps, trainer.progress.step
        if step:
            self._say(f"going on after step {step:,} of {steps:,}")
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._progress.start()
        self._task = self._progress.add_task("", total=steps, completed=step)

    def on_step(self, report: StepReport) -> None:
        line = describe_step(report)
        if self._progress is not None:
            self._progress.update(self._task, completed=report.step, description=line)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES or report.step in (1, report.steps):
            self._last_line = now
            self._say(f"step {report.step:,}/{report.steps:,}  {line}")

    def on_evaluation(self, evaluation: Evaluation) -> None:
        metrics = "".join(f"  {name} {value:.4g}" for name, value in evaluation.metrics.items() if name != "tokens")
        best = "  (best so far)" if evaluation.best else ""
        self._say(f"step {evaluation.step:,}  held-out loss {evaluation.loss:.4f}{metrics}{best}")

    def on_message(self, message: str) -> None:
        self._say(f"warning: {message}")

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        self._say(f"step {step:,}  {prompt!r} -> {text!r}")

    def on_end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _say(self, line: str) -> None:
        if self._progress is not None:
            self._progress.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)


def describe_step(report: StepReport) -> str:
    """Loss, tokens/s, utilization of the measured peak, time left."""
    parts = [f"loss {report.loss:.4f}", f"{report.tokens_per_second:,.0f} tokens/s"]
    if report.utilization is not None:
        parts.append(f"{report.utilization:.0%} of peak")
    parts.append(f"{readable_time(report.seconds_left)} left")
    return "  ".join(parts)


def readable_time(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
