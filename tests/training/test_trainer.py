"""The loop: what a step does, and that a run broken off goes on as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import Counting, small_config
from torch import nn

from polyformer.errors import ConfigError, TrainingError
from polyformer.objectives import CausalLM
from polyformer.objectives.base import Loss
from polyformer.training.averaging import ExponentialAverage
from polyformer.training.data.loader import EvaluationLoader, Loader
from polyformer.training.optimizers import OptimizerSettings, make_optimizers
from polyformer.training.schedules import Schedule
from polyformer.training.spikes import SpikeSettings
from polyformer.training.states import States
from polyformer.training.trainer import Evaluation, Observer, StepReport, Trainer, TrainerSettings


class Record(Observer):
    def __init__(self) -> None:
        self.steps: list[StepReport] = []
        self.evaluations: list[Evaluation] = []
        self.messages: list[str] = []

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation)

    def on_message(self, message: str) -> None:
        self.messages.append(message)

    @property
    def losses(self) -> list[float]:
        return [report.loss for report in self.steps]


def make(
    folder: Path | None = None,
    *,
    dropout: float = 0.0,
    steps: int = 20,
    batch_size: int = 8,
    micro: int | None = None,
    optimizer: str = "adamw",
    learning_rate: float = 1e-2,
    average: float | None = None,
    objective: Any = None,
    dtype: torch.dtype = torch.float32,
    evaluate: bool = False,
    **settings: Any,
) -> tuple[Trainer, Record]:
    torch.manual_seed(0)
    network = small_config(dropout=dropout).build().to(dtype)
    objective = objective or CausalLM()
    record = Record()
    trainer = Trainer(
        network,
        objective,
        Loader(Counting(), objective, batch_size=batch_size, micro_batch_size=micro, seed=3),
        optimizers=make_optimizers(network, OptimizerSettings(optimizer, learning_rate=learning_rate)),
        schedule=Schedule("cosine", steps, warmup_steps=2),
        settings=TrainerSettings(steps=steps, seed=3, measure_peak=False, **settings),
        states=States(folder / "states") if folder is not None else None,
        average=ExponentialAverage(network, average) if average is not None else None,
        evaluation=(lambda: iter(EvaluationLoader(Counting(12), objective, batch_size=5))) if evaluate else None,
        observers=[record],
    )
    return trainer, record


@pytest.mark.parametrize(
    ("optimizer", "learning_rate"),
    [("adamw", 1e-2), ("muon", 1e-2), ("lion", 3e-3), ("adafactor", 0.3)],  # Adafactor's is relative to the weights
)
def test_the_loss_goes_down(optimizer: str, learning_rate: float) -> None:
    trainer, record = make(steps=60, optimizer=optimizer, learning_rate=learning_rate)
    assert trainer.run() == "done"
    assert len(record.losses) == 60
    assert sum(record.losses[-5:]) < 0.8 * sum(record.losses[:5])


def test_micro_batches_give_the_gradients_of_the_whole_batch() -> None:
    whole, record = make(steps=3, dtype=torch.float64)
    whole.run()
    parts, other = make(steps=3, micro=3, dtype=torch.float64)
    parts.run()
    assert other.losses == pytest.approx(record.losses, rel=1e-12)
    for one, two in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


AT_ONCE: dict[str, Any] = {"micro": 2, "micro_batches_at_once": 2, "dropout": 0.0}


@pytest.fixture
def two_cores() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("at_once", [2, 3])
def test_micro_batches_at_once_give_what_they_give_in_turn(at_once: int, two_cores: None) -> None:
    """Four micro-batches by two threads or by three, of which one has two; the last micro-batch is smaller."""
    torch.set_num_threads(3)
    in_turn, record = make(steps=4, batch_size=7, micro=2, dtype=torch.float64)
    in_turn.run()
    together, other = make(steps=4, batch_size=7, micro=2, dtype=torch.float64, micro_batches_at_once=at_once)
    assert together.run() == "done"
    assert other.losses == pytest.approx(record.losses, rel=1e-12)
    for one, two in zip(record.steps, other.steps, strict=True):
        assert (one.tokens, one.flops, one.metrics) == (two.tokens, two.flops, pytest.approx(two.metrics, rel=1e-12))
    for one, two in zip(in_turn.network.parameters(), together.network.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "float16"}, "take bfloat16 or float32"),
        ({"compiled": True}, "does not go with compile"),
        ({"micro_batches_at_once": 3}, "PyTorch has 2 here: give at most 2"),
    ],
)
def test_what_cannot_be_computed_at_once_is_refused(options: dict[str, Any], words: str, two_cores: None) -> None:
    with pytest.raises(ConfigError, match=words):
        make(micro=2, **{"micro_batches_at_once": 2, **options})


def test_random_numbers_are_not_drawn_by_several_at_once(two_cores: None) -> None:
    trainer, record = make(micro=2, dropout=0.1, micro_batches_at_once=2)
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    with pytest.raises(ConfigError, match="draws random numbers"):
        trainer.run()
    assert not record.steps
    assert all(torch.equal(one, two) for one, two in zip(before, trainer.network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("optimizer", "average", "precision", "others"),
    [
        ("adamw", None, "float32", {}),
        ("muon", 0.9, "float32", {}),
        ("lion", None, "bfloat16", {}),
        ("adafactor", None, "float32", {}),
        ("adamw", None, "float32", AT_ONCE),
        ("adamw", None, "bfloat16", AT_ONCE),
    ],
)
def test_a_run_that_goes_on_has_the_same_losses(
    tmp_path: Path, optimizer: str, average: float | None, precision: str, others: dict[str, Any], two_cores: None
) -> None:
    options = {"dropout": 0.1, "optimizer": optimizer, "average": average, "precision": precision, **others}
    whole, expected = make(steps=12, **options)
    whole.run()
    first, before = make(tmp_path, steps=12, save_every=5, **options)
    first.observers.append(StopAfter(first, 7))
    assert first.run() == "stopped"
    assert first.states is not None and first.states.steps() == [5, 7]
    second, after = make(tmp_path, steps=12, **options)
    second.resume(7)
    assert second.run() == "done"
    assert before.losses + after.losses == expected.losses
    for one, two in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(one, two)
    if average is not None:
        assert whole.average is not None and second.average is not None
        for one, two in zip(whole.average.average, second.average.average, strict=True):
            assert torch.equal(one, two)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("has", [True, False])
def test_slow_16_bits_are_named(has: bool, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyformer.training.trainer.has_bfloat16", lambda device: has)
    trainer, record = make(steps=3, precision=precision)
    trainer.run()
    said = ["this machine has no instructions for bfloat16: float32 is faster on it"]
    assert record.messages == (said if precision == "bfloat16" and not has else [])


def test_memory_is_joined_once_it_is_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    trainer, record = make(steps=25)
    monkeypatch.setattr("polyformer.training.trainer.keep_freed_memory", lambda: True)
    monkeypatch.setattr("polyformer.training.trainer.join_heap", lambda: joined.append(len(record.steps)))
    trainer.run()
    assert joined == [9], "before the tenth step was told"


class StopAfter(Observer):
    def __init__(self, trainer: Trainer, step: int):
        self.trainer, self.step = trainer, step

    def on_step(self, report: StepReport) -> None:
        if report.step == self.step:
            self.trainer.stop()


class Breaking(CausalLM):
    """A loss that is wrong at one call."""

    calls = 0

    def __init__(self, at: int, factor: float):
        super().__init__()
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "factor", factor)
        object.__setattr__(self, "calls", 0)

    def __call__(self, network: nn.Module, batch: Any) -> Loss:
        object.__setattr__(self, "calls", self.calls + 1)
        loss = super().__call__(network, batch)
        return Loss(loss.total * (self.factor if self.calls == self.at else 1.0), loss.count, loss.metrics)  # type: ignore[attr-defined]


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_rows(tmp_path: Path) -> None:
    trainer, record = make(tmp_path, steps=20, objective=Breaking(8, float("nan")), batch_size=3)
    with pytest.raises(TrainingError, match=r"the loss of step 8 is not a number, with rows \d+, \d+, \d+ of the data"):
        trainer.run()
    assert len(record.losses) == 7
    assert trainer.states is not None and trainer.states.steps() == [7]
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())


def test_a_spike_is_told_or_ends_the_run(tmp_path: Path) -> None:
    settings = {"steps": 40, "objective": Breaking(30, 50.0)}
    trainer, record = make(**settings, spikes=SpikeSettings("warn"))
    assert trainer.run() == "done"
    assert len(record.messages) == 1 and "the loss of step 30 jumped to" in record.messages[0]
    trainer, record = make(tmp_path, steps=40, objective=Breaking(30, 50.0), spikes=SpikeSettings("stop"))
    with pytest.raises(TrainingError, match="step 30 jumped"):
        trainer.run()
    assert trainer.states is not None and trainer.states.steps() == [29]
    trainer, record = make(steps=40, objective=Breaking(30, 50.0), spikes=SpikeSettings("off"))
    assert trainer.run() == "done" and not record.messages


def test_held_out_loss_best_state_and_early_stopping(tmp_path: Path) -> None:
    trainer, record = make(tmp_path, steps=40, evaluate=True, evaluate_every=5, patience=2, least_improvement=10.0)
    assert trainer.run() == "early"
    assert [one.step for one in record.evaluations] == [5, 10, 15]
    expected = trainer.evaluate()
    trainer.network.eval()
    with torch.no_grad():
        batches: Iterator[Any] = iter(EvaluationLoader(Counting(12), trainer.objective, batch_size=12))
        loss = trainer.objective(trainer.network, next(batches))
    assert expected.loss == pytest.approx(float(loss.total) / loss.count, rel=1e-6)
    assert trainer.progress.best_step in (trainer.states.steps() if trainer.states else [])


def test_the_average_is_what_is_evaluated() -> None:
    trainer, record = make(steps=10, average=0.5, evaluate=True, evaluate_every=10)
    trainer.run()
    assert trainer.average is not None
    plain = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    with trainer.average.in_place():
        assert not all(torch.equal(one, two) for one, two in zip(plain, trainer.network.parameters(), strict=True))
        without = Trainer(
            trainer.network,
            trainer.objective,
            trainer.batches,
            optimizers=trainer.optimizers,
            schedule=trainer.schedule,
            settings=trainer.settings,
            evaluation=trainer.evaluation,
        )
        expected = without.evaluate().loss
    assert record.evaluations[-1].loss == expected
    assert all(torch.equal(one, two) for one, two in zip(plain, trainer.network.parameters(), strict=True))


def test_clipping_and_the_learning_rate_are_what_was_asked_for() -> None:
    trainer, record = make(steps=6, gradient_clipping=1e-3)
    trainer.run()
    assert [report.learning_rate for report in record.steps] == [1e-2 * trainer.schedule(step) for step in range(6)]
    assert all(report.gradient_norm > 1e-3 for report in record.steps)
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainer.network.parameters() if p.grad is not None])
    assert float(norm) == pytest.approx(1e-3, rel=1e-4)


def test_tokens_and_arithmetic_are_counted() -> None:
    trainer, record = make(steps=2, batch_size=4)
    trainer.run()
    assert [report.tokens for report in record.steps] == [48, 96]
    # Products of 11 of 12 columns with the head, and of all columns with the layers: forward, and twice that backward.
    layers = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32)
    products = 6 * 48 * layers + 6 * 44 * 16 * 32
    attention = 2 * 4 * 2 * 12 * 12 * 8 * (4 + 10)  # layers, rows, heads, queries, keys, width; two and five products
    assert record.steps[0].flops == products + attention


def test_float16_scales_its_loss() -> None:
    trainer, record = make(steps=30, precision="float16")
    assert trainer.run() == "done"
    assert all(np.isfinite(record.losses))
    assert sum(record.losses[-5:]) < sum(record.losses[:5])
