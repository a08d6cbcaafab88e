"""What TensorBoard is given is what happened."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.conftest import Counting, small_config
from tests.training.test_run import recipe_of, write_texts
from torch import nn

from polyformer.errors import ConfigError
from polyformer.objectives import CausalLM
from polyformer.training.data.loader import EvaluationLoader, Loader
from polyformer.training.optimizers import OptimizerSettings, make_optimizers
from polyformer.training.run import train
from polyformer.training.schedules import Schedule
from polyformer.training.states import States
from polyformer.training.tensorboard import TensorBoardObserver
from polyformer.training.trainer import Evaluation, Observer, StepReport, Trainer, TrainerSettings


class Record(Observer):
    def __init__(self) -> None:
        self.steps: dict[int, StepReport] = {}
        self.evaluations: dict[int, Evaluation] = {}

    def on_step(self, report: StepReport) -> None:
        self.steps[report.step] = report

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self.evaluations[evaluation.step] = evaluation


def make(folder: Path, record: Record) -> Trainer:
    torch.manual_seed(0)
    network, objective = small_config().build(), CausalLM()

    def sample(network: nn.Module, step: int) -> Iterator[tuple[str, str]]:
        yield "one two ", f"three\nfour {step}"

    settings = TrainerSettings(
        steps=12, seed=3, measure_peak=False, log_every=3, evaluate_every=4, save_every=6, sample_every=6
    )
    return Trainer(
        network,
        objective,
        Loader(Counting(), objective, batch_size=8, seed=3),
        optimizers=make_optimizers(network, OptimizerSettings("adamw")),
        schedule=Schedule("cosine", 12, warmup_steps=2),
        settings=settings,
        states=States(folder / "states"),
        evaluation=lambda: iter(EvaluationLoader(Counting(12), objective, batch_size=5)),
        observers=[record, TensorBoardObserver(folder / "tensorboard")],
        sample=sample,
    )


def read(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    return events.Reload()


def curve(events: Any, tag: str) -> dict[int, float]:
    return {event.step: event.value for event in events.Scalars(tag)}


def test_scalars_and_samples_are_those_of_the_run(tmp_path: Path) -> None:
    record = Record()
    make(tmp_path, record).run()
    events = read(tmp_path)
    wanted = {step: pytest.approx(record.steps[step].loss, rel=1e-6) for step in (1, 3, 6, 9, 12)}
    assert curve(events, "training/loss") == wanted
    wanted = {step: pytest.approx(one.loss, rel=1e-6) for step, one in record.evaluations.items()}
    assert curve(events, "held_out/loss") == wanted and list(wanted) == [4, 8, 12]
    assert set(curve(events, "training/learning_rate")) == {1, 3, 6, 9, 12}
    for name in record.steps[1].metrics:
        assert curve(events, f"training/{name}")[12] == pytest.approx(record.steps[12].metrics[name], rel=1e-6)
    (tag,) = (tag for tag in events.Tags()["tensors"] if "samples/one two" in tag)
    texts = {event.step: event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)}
    assert texts == {step: f"    one two three\n    four {step}" for step in (6, 12)}


def test_a_run_gone_on_with_has_one_curve(tmp_path: Path) -> None:
    trainer = make(tmp_path, Record())

    class Break(Observer):
        def on_step(self, report: StepReport) -> None:
            if report.step == 9:
                raise RuntimeError("the machine died")

    trainer.observers.append(Break())
    with pytest.raises(RuntimeError):
        trainer.run()
    record = Record()
    again = make(tmp_path, record)
    again.resume(6)
    again.run()
    events = read(tmp_path)
    steps = [event.step for event in events.Scalars("training/loss")]
    assert steps == [1, 3, 6, 9, 12]
    assert curve(events, "training/loss")[9] == pytest.approx(record.steps[9].loss, rel=1e-6)


def test_without_tensorboard_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboard" else found(name))
    with pytest.raises(ConfigError, match=r"pip install 'polyformer\[train\]'"):
        TensorBoardObserver(tmp_path)
    recipe = recipe_of(write_texts(tmp_path / "texts"), training__tensorboard=True)
    with pytest.raises(ConfigError, match=r"training\.tensorboard needs the package tensorboard"):
        train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nothing has begun
