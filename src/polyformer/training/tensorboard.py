"""The curves and samples of a run for TensorBoard."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from polyformer.errors import ConfigError
from polyformer.training.trainer import Evaluation, Observer, StepReport, Trainer


def require_tensorboard() -> None:
    """
    Raises:
        ConfigError: TensorBoard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "training.tensorboard needs the package tensorboard: pip install 'polyformer[train]', or leave it out"
        )


class TensorBoardObserver(Observer):
    """Writes what ``tensorboard --logdir FOLDER`` shows: scalars of training and of the held-out data, and samples.

    A run that is gone on with continues its curves; what was written after its state is taken back.

    Args:
        folder: for the event files; made when the run begins.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        require_tensorboard()
        self.folder = os.fspath(folder)
        self._writer: Any = None
        self._log_every = 1

    def on_begin(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        begun = trainer.progress.step
        self._log_every = trainer.settings.log_every
        # An event at this step or a later one that an earlier file holds is no longer shown.
        self._writer = SummaryWriter(self.folder, purge_step=begun + 1 if begun else None)

    def on_step(self, report: StepReport) -> None:
        if report.step % self._log_every and report.step not in (1, report.steps):
            return
        values = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.gradient_norm,
            "tokens_per_second": report.tokens_per_second,
            "utilization": report.utilization,
            **report.metrics,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(f"training/{name}", value, report.step)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        for name, value in {"loss": evaluation.loss, **evaluation.metrics}.items():
            self._writer.add_scalar(f"held_out/{name}", value, evaluation.step)
        self._writer.flush()

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        # Markdown: four spaces keep a text as it is.
        shown = (prompt + text).encode("utf-8", "replace").decode("utf-8").replace("\n", "\n    ")
        self._writer.add_text(f"samples/{prompt[:40]}", f"    {shown}", step)

    def on_end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
