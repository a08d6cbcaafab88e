"""The loop: the same for every network and every objective, on one process or many.

A step is a pure function of the state before it, the seed and the number of the step: the order of the data, the noise
and dropout all follow from the number. So a run that is broken off and gone on with gives the same losses, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from polyformer.core.freed_memory import keep_freed_memory
from polyformer.core.huge_pages import join_heap
from polyformer.core.placement import has_bfloat16
from polyformer.core.threads import make_pool
from polyformer.errors import ConfigError, TrainingError
from polyformer.objectives.base import Batch, Loss, Objective
from polyformer.training.averaging import ExponentialAverage
from polyformer.training.group import Alone, Group
from polyformer.training.optimizers import scale_gradients, step_scaled
from polyformer.training.peak import count_flops, measured_peak
from polyformer.training.schedules import Schedule
from polyformer.training.spikes import SpikeSettings, SpikeWatch
from polyformer.training.states import States
from polyformer.training.tensors import total_norm

_SETTLED = 10  # steps
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Batches(Protocol):
    """What the trainer reads from; `training.data.loader.Loader` is one."""

    def iterate(self, start: int) -> Iterator[list[Batch]]: ...

    def rows(self, number: int, *, all_ranks: bool = False) -> list[tuple[int, int]]: ...


class Spare(dict[str, Tensor]):
    """A batch of held-out data that is computed, but not counted: a process without rows of its own must take part in
    what all do."""


@dataclass(frozen=True)
class TrainerSettings:
    """How the loop runs; see `polyformer.training.recipe.TrainingSection` for what each field means."""

    steps: int
    seed: int = 0
    precision: str = "float32"
    gradient_clipping: float | None = 1.0
    log_every: int = 10
    evaluate_every: int | None = None
    save_every: int | None = None
    sample_every: int | None = None
    keep_best: bool = True
    patience: int | None = None
    least_improvement: float = 0.0
    spikes: SpikeSettings = field(default_factory=SpikeSettings)
    measure_peak: bool = True
    compiled: bool = False
    micro_batches_at_once: int = 1


@dataclass
class Progress:
    """Where a run stands; it is saved with every state.

    Attributes:
        step: steps done.
        tokens: tokens that the network read in them, padding not counted.
        examples: rows.
        seconds: of work, over all the times the run was gone on with.
        flops: of matrix products and attention.
        best_loss, best_step, best_evaluation: of the held-out data.
        evaluations_since_best: for early stopping.
        losses: the last ones, for the watch on spikes.
        scaler: of float16.
    """

    step: int = 0
    tokens: int = 0
    examples: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    best_evaluation: dict[str, float] = field(default_factory=dict)
    evaluations_since_best: int = 0
    losses: list[float] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepReport:
    """What a step gave.

    Attributes:
        step: steps done, this one included.
        steps: of the whole run.
        loss: mean over what the objective counts.
        metrics: the objective's own, each a mean.
        learning_rate: of this step.
        gradient_norm: of all gradients together, before clipping.
        tokens, seconds, flops: of the whole run so far.
        tokens_per_second: of the last steps.
        utilization: FLOP/s of the last steps as a fraction of the measured peak; None where it was not measured.
        seconds_left: at this speed.
        starved: seconds of this step spent waiting for data.
    """

    step: int
    steps: int
    loss: float
    metrics: dict[str, float]
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    flops: float
    tokens_per_second: float
    utilization: float | None
    seconds_left: float
    starved: float


@dataclass(frozen=True)
class Evaluation:
    """The held-out data after ``step`` steps: the mean loss and the objective's metrics, each a mean."""

    step: int
    loss: float
    metrics: dict[str, float]
    best: bool


class Observer:
    """Is told what happens. Every method may be left as it is."""

    def on_begin(self, trainer: Trainer) -> None: ...

    def on_step(self, report: StepReport) -> None: ...

    def on_evaluation(self, evaluation: Evaluation) -> None: ...

    def on_state(self, step: int) -> None: ...

    def on_message(self, message: str) -> None: ...

    def on_sample(self, step: int, prompt: str, text: str) -> None: ...

    def on_end(self) -> None: ...


class Trainer:
    """Trains a network on an objective.

    Args:
        network: on its device, in float32 (`precision` is that of the computation).
        objective: batch -> loss.
        batches: of every step.
        optimizers: that together move every parameter.
        schedule: factor of their learning rates.
        settings: see there.
        states: where states are saved; None saves none.
        evaluation: gives the batches of the held-out data, the same each time; None evaluates nothing.
        average: evaluated in place of the weights; None without.
        group: the processes.
        observers: told what happens.
        sample: writes something with the network as it is: gives pairs of prompt and text.

    Raises:
        ConfigError: micro-batches cannot be computed at the same time with these settings, or here.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        batches: Batches,
        *,
        optimizers: Sequence[Optimizer],
        schedule: Schedule,
        settings: TrainerSettings,
        states: States | None = None,
        evaluation: Callable[[], Iterator[Batch]] | None = None,
        average: ExponentialAverage | None = None,
        group: Group | None = None,
        observers: Sequence[Observer] = (),
        sample: Callable[[nn.Module, int], Iterator[tuple[str, str]]] | None = None,
    ) -> None:
        self.network = network
        self.objective = objective
        self.batches = batches
        self.optimizers = list(optimizers)
        self.schedule = schedule
        self.settings = settings
        self.states = states
        self.evaluation = evaluation
        self.average = average
        self.group: Group = group or Alone()
        self.observers = list(observers)
        self.sample = sample
        self.progress = Progress()
        self.last_evaluation: dict[str, float] = {}
        self.device = next(network.parameters()).device
        self._peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self._weights = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._watch = SpikeWatch(settings.spikes)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=settings.precision == "float16")
        self._stop_asked = False
        self._pool: Executor | None = None  # computes micro-batches at the same time
        self._steps_done = 0
        self._flops_per_token: float | None = None
        self._peak: float | None = None
        if settings.micro_batches_at_once > 1:
            self._require_at_once()

    # --- the run ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the run to end after the step it is in, with a state saved. May be called from a signal handler."""
        self._stop_asked = True

    def resume(self, step: int) -> None:
        """Take up the state after ``step`` steps.

        Raises:
            TrainingError: there is none, or it does not fit.
        """
        assert self.states is not None
        values = self.states.load(step, self.network, self.optimizers, self.average)
        self.progress = Progress(**values)
        self._watch = SpikeWatch(self.settings.spikes, self.progress.losses)
        if self.progress.scaler:
            self._scaler.load_state_dict(self.progress.scaler)

    def run(self) -> str:
        """Train until the end.

        Returns:
            Why it ended: "done", "stopped" (someone asked) or "early" (the held-out loss went down no more).

        Raises:
            TrainingError: the loss is not a number, or jumped where that ends the run. The weights are those before
                the step, and are saved.
            ConfigError: micro-batches were to be computed at the same time, and random numbers are drawn for them.
        """
        settings = self.settings
        if self.device.type == "cpu":
            keep_freed_memory()
        for observer in self.observers:
            observer.on_begin(self)
            if settings.precision == "bfloat16" and not has_bfloat16(self.device):
                observer.on_message("this machine has no instructions for bfloat16: float32 is faster on it")
        if self.progress.step >= settings.steps:
            return "done"
        if settings.micro_batches_at_once > 1:
            self._pool = make_pool(settings.micro_batches_at_once, "micro-batches")
        stream = self.batches.iterate(self.progress.step)
        window = _Window(has_begun=self.progress.step > 0)
        try:
            for number in range(self.progress.step, settings.steps):
                begin = time.perf_counter()
                micro_batches = next(stream)
                starved = time.perf_counter() - begin
                report = self._step(number, micro_batches, begin, starved, window)
                self._join_memory()
                for observer in self.observers:
                    observer.on_step(report)
                reason = self._after(number + 1)
                if reason is not None:
                    return reason
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)
                self._pool = None
            for observer in self.observers:
                observer.on_end()
        return "done"

    def _join_memory(self) -> None:
        """After some steps they have all the memory they need; on a CPU it is better in large pages."""
        self._steps_done += 1
        if self._steps_done == _SETTLED and self.device.type == "cpu" and keep_freed_memory():
            join_heap()

    def _after(self, step: int) -> str | None:
        """What is due after a step; a reason to end, or None."""
        settings, last = self.settings, step == self.settings.steps
        stopped = self.group.any(self._stop_asked)
        due = last or _is_due(step, settings.evaluate_every)
        improved = False
        if due and not stopped and self.evaluation is not None:
            improved = self.evaluate().best
        if self.sample is not None and not stopped and (last or _is_due(step, settings.sample_every)):
            self._write_samples(step)
        early = settings.patience is not None and self.progress.evaluations_since_best >= settings.patience
        if self.states is not None and (
            last or stopped or early or _is_due(step, settings.save_every) or (improved and settings.keep_best)
        ):
            self.save_state()
        if stopped and not last:
            return "stopped"
        return "early" if early and not last else None

    def save_state(self) -> None:
        """Save the state as it is now.

        Raises:
            DiskFullError: there is no room; older states are whole.
        """
        assert self.states is not None
        self.progress.losses = list(self._watch.losses)
        self.progress.scaler = self._scaler.state_dict()
        best = self.progress.best_step if self.settings.keep_best else None
        self.states.save(
            self.progress.step,
            self.network,
            self.optimizers,
            self.average,
            dict(self.progress.__dict__),
            best_step=best,
        )
        for observer in self.observers:
            observer.on_state(self.progress.step)

    # --- one step ---------------------------------------------------------------------------------------------------

    def _step(
        self, number: int, micro_batches: list[Batch], begin: float, starved: float, window: _Window
    ) -> StepReport:
        self.network.train()
        totals: dict[str, Tensor] = {}
        self._forget(totals)
        if self._pool is not None and len(micro_batches) > 1:
            self._learn_at_once(self._pool, number, micro_batches, totals)
        else:
            self._learn_in_turn(number, micro_batches, totals)
        tokens, examples = sum(map(tokens_of, micro_batches)), sum(map(rows_of, micro_batches))
        counts = torch.tensor([float(tokens), float(examples)], dtype=torch.float64, device=self.device)
        names = sorted(totals)
        summed = self.group.sum(torch.cat([counts, *(totals[name] for name in names)]))
        values = dict(zip(names, summed[2:].view(-1, 2).tolist(), strict=True))
        total, count = values.pop("loss")
        loss = total / count if count else math.nan
        norm, scale = self._weigh_gradients(count)
        self._refuse_bad(number, loss, norm)
        factor = self.schedule(number)
        self._update(factor, scale)
        if self.average is not None:
            self.average.update(number)
        progress = self.progress
        progress.step = number + 1
        progress.tokens += int(summed[0])
        progress.examples += int(summed[1])
        progress.flops += (self._flops_per_token or 0.0) * int(summed[0])
        seconds = time.perf_counter() - begin
        window.add(seconds, int(summed[0]))
        progress.seconds += seconds
        speed = window.tokens_per_second
        utilization = None
        if self._peak:
            utilization = (self._flops_per_token or 0.0) * speed / (self._peak * self.group.processes)
        return StepReport(
            step=progress.step,
            steps=self.settings.steps,
            loss=loss,
            metrics={name: total / count for name, (total, count) in values.items() if count},
            learning_rate=self._peaks[0][0] * factor,
            gradient_norm=norm,
            tokens=progress.tokens,
            seconds=progress.seconds,
            flops=progress.flops,
            tokens_per_second=speed,
            utilization=utilization,
            seconds_left=window.seconds_per_step * (self.settings.steps - progress.step),
            starved=starved,
        )

    def _forget(self, totals: dict[str, Tensor]) -> None:
        """No gradients, and nothing counted."""
        totals.clear()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _learn_in_turn(self, number: int, batches: list[Batch], totals: dict[str, Tensor]) -> None:
        """The gradients of all micro-batches, one after the other."""
        for index, batch in enumerate(batches):
            batch = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
            self.group.last_micro_batch(self.network, index == len(batches) - 1)
            self._seed(number, index)
            if self._flops_per_token is None:
                self._measure(partial(self._forward_backward, batch, totals), batch)
                if not self.settings.compiled:
                    continue
                # Arithmetic is counted as the network is written. What is learned comes from the compiled one, always.
                self._forget(totals)
                self._seed(number, index)
            self._forward_backward(batch, totals)

    def _forward_backward(self, batch: Batch, totals: dict[str, Tensor]) -> None:
        with self._autocast():
            loss = self.objective(self.network, batch)
        self._scaler.scale(loss.total).backward()
        self._count(loss, totals)

    def _count(self, loss: Loss, totals: dict[str, Tensor]) -> None:
        for name, (total, count) in {"loss": (loss.total.detach(), loss.count), **loss.metrics}.items():
            pair = torch.stack([_number(total, self.device), _number(count, self.device)])
            totals[name] = totals[name] + pair if name in totals else pair

    def _require_at_once(self) -> None:
        """Micro-batches can be computed at the same time where they share nothing but the weights."""
        settings, threads, reason = self.settings, torch.get_num_threads(), None
        if self.device.type != "cpu":
            reason = "it is for training on a CPU: leave it out"
        elif self.group.processes > 1:
            reason = "it is for one process: leave it out"
        elif settings.compiled:
            reason = "it does not go with compile: leave one of them out"
        elif settings.precision == "float16":
            reason = "it does not go with precision float16: take bfloat16 or float32"
        elif settings.micro_batches_at_once > threads:
            reason = f"each takes a core, and PyTorch has {threads} here: give at most {threads}"
        if reason is not None:
            raise self._not_at_once(reason)

    def _not_at_once(self, reason: str) -> ConfigError:
        return ConfigError(f"micro_batches_at_once is {self.settings.micro_batches_at_once}, but {reason}")

    def _learn_at_once(self, pool: Executor, number: int, batches: list[Batch], totals: dict[str, Tensor]) -> None:
        """The gradients of all micro-batches, as many at the same time as there are threads.

        Each is computed by one core, which need not wait for the others after every operation. Gradients are added in
        the order of the batches, so that their sum is the same each time.
        """
        if self._flops_per_token is None:
            # Arithmetic is counted in this thread. What is learned comes from the others, always.
            self._seed(number, 0)
            self._measure(partial(self._forward_backward, batches[0], totals), batches[0])
            self._forget(totals)
        drawn = torch.get_rng_state()
        sums: dict[int, Tensor] = {}
        for loss, gradients in pool.map(self._gradients, batches):
            self._count(loss, totals)
            given = {index: gradient for index, gradient in enumerate(gradients) if gradient is not None}
            if both := [index for index in given if index in sums]:  # not in place: weights may share a gradient
                added = torch._foreach_add([sums[index] for index in both], [given[index] for index in both])
                given.update(zip(both, added, strict=True))
            sums.update(given)
        for index, gradient in sums.items():
            self._weights[index].grad = gradient
        if not torch.equal(torch.get_rng_state(), drawn):
            raise self._not_at_once(
                "this network or its objective draws random numbers, as dropout does, and which of them each would get "
                "is not certain: leave it out, or turn dropout off"
            )

    def _gradients(self, batch: Batch) -> tuple[Loss, tuple[Tensor | None, ...]]:
        """The loss and the gradients of one micro-batch, in a thread of its own."""
        with self._autocast(keeps_weights=False):
            loss = self.objective(self.network, batch)
        return loss, torch.autograd.grad(loss.total, self._weights, allow_unused=True)

    def _measure(self, work: Callable[[], None], batch: Batch) -> None:
        """Count the arithmetic of the first micro-batch, and find out what the machine could do."""
        with torch.compiler.set_stance("force_eager") if self.settings.compiled else nullcontext():
            self._flops_per_token = count_flops(work) * self.group.tensor / (tokens_of(batch) or 1)
        if self.settings.measure_peak:
            self._peak = measured_peak(self.device, PRECISIONS[self.settings.precision])

    def _autocast(self, *, keeps_weights: bool = True) -> AbstractContextManager[Any]:
        """It keeps the converted weights until it ends, but not for several threads: they would have one place."""
        dtype = PRECISIONS[self.settings.precision]
        if dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype, cache_enabled=keeps_weights)

    def _seed(self, number: int, index: int) -> None:
        """Dropout and whatever else draws numbers follow from the seed, the step, the process and the micro-batch."""
        torch.manual_seed(_mixed(self.settings.seed, number, self.group.rank, index))

    def _weigh_gradients(self, count: float) -> tuple[float, float]:
        """The norm of the gradients of the mean loss before clipping, and what the gradients of its sum, as they are,
        must be multiplied by: one over the global count, and less where they are clipped."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        self.group.add_up(gradients)
        for optimizer in self.optimizers:
            self._scaler.unscale_(optimizer)
        scale = self.group.gradient_factor / max(count, 1e-30)
        norm = total_norm(gradients, self.group) * scale
        limit = self.settings.gradient_clipping
        if limit is not None and norm > limit:
            scale *= limit / norm
        return norm, scale

    def _refuse_bad(self, number: int, loss: float, norm: float) -> None:
        scaled = self._scaler.is_enabled()
        if not math.isfinite(loss) or (not math.isfinite(norm) and not scaled):
            what = "loss" if not math.isfinite(loss) else "norm of the gradients"
            self._give_up(number, f"the {what} of step {number + 1} is not a number")
        if self._watch.is_spike(loss):
            watch = self._watch.losses
            words = f"the loss of step {number + 1} jumped to {loss:.4g} (mean of the {len(watch)} before: "
            words += f"{math.fsum(watch) / len(watch):.4g}), with {self._rows(number)}"
            if self.settings.spikes.action == "stop":
                self._give_up(number, words, named=True)
            for observer in self.observers:
                observer.on_message(words)

    def _give_up(self, number: int, what: str, *, named: bool = False) -> None:
        """End the run with the weights as they were before the step."""
        where = ""
        if self.states is not None:
            if self.progress.step and self.group.any(self.progress.step not in self.states.steps()):
                self.save_state()
            where = f"; the state before it is kept in {self.states.folder}" if self.states.steps() else ""
        batch = "" if named else f", with {self._rows(number)}"
        raise TrainingError(
            f"{what}{batch}{where}: look at that data, or lower the learning rate or clip gradients lower"
        )

    def _rows(self, number: int) -> str:
        return describe_rows(self.batches.rows(number, all_ranks=True))

    def _update(self, factor: float, scale: float) -> None:
        for optimizer, peaks in zip(self.optimizers, self._peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            if self._scaler.is_enabled():  # it leaves the step out where a gradient is infinite
                scale_gradients(optimizer, scale)
                self._scaler.step(optimizer)
            else:
                step_scaled(optimizer, scale)
        self._scaler.update()

    # --- the held-out data ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self) -> Evaluation:
        """The loss and the metrics on the held-out data, with the averaged weights if there are any."""
        assert self.evaluation is not None
        self.network.eval()
        totals: dict[str, Tensor] = {}
        with self._averaged(), self.group.reading(self.network):
            for index, batch in enumerate(self.evaluation()):
                counted = not isinstance(batch, Spare)
                batch = {name: value.to(self.device) for name, value in batch.items()}
                torch.manual_seed(_mixed(self.settings.seed, index))
                with self._autocast():
                    loss = self.objective(self.network, batch)
                for name, (total, count) in {"loss": (loss.total, loss.count), **loss.metrics}.items():
                    pair = torch.stack([_number(total, self.device), _number(count, self.device)])
                    pair = pair if counted else torch.zeros_like(pair)
                    totals[name] = totals[name] + pair if name in totals else pair
        names = sorted(totals)
        summed = self.group.sum(torch.cat([totals[name] for name in names]))
        values = dict(zip(names, summed.view(-1, 2).tolist(), strict=True))
        total, count = values.pop("loss")
        result = self._judge(total / count, {name: total / count for name, (total, count) in values.items() if count})
        for observer in self.observers:
            observer.on_evaluation(result)
        return result

    def _judge(self, loss: float, metrics: dict[str, float]) -> Evaluation:
        progress = self.progress
        best = progress.best_loss is None or loss < progress.best_loss
        enough = progress.best_loss is None or loss < progress.best_loss - self.settings.least_improvement
        progress.evaluations_since_best = 0 if enough else progress.evaluations_since_best + 1
        if best:
            progress.best_loss, progress.best_step = loss, progress.step
            progress.best_evaluation = {"loss": loss, **metrics}
        self.last_evaluation = {"loss": loss, **metrics}
        return Evaluation(progress.step, loss, metrics, best)

    def _write_samples(self, step: int) -> None:
        assert self.sample is not None
        self.network.eval()
        with self._averaged(), self.group.reading(self.network):
            for prompt, text in self.sample(self.network, step):
                for observer in self.observers:
                    observer.on_sample(step, prompt, text)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.in_place() if self.average is not None else nullcontext()


class _Window:
    """The speed of the last steps. Each is timed on its own: evaluating and saving do not count."""

    _KEPT = 20

    def __init__(self, has_begun: bool) -> None:
        self._steps: list[tuple[float, int]] = []
        self._warms_up = not has_begun  # the first step of all measures, and is forgotten by the second

    def add(self, seconds: float, tokens: int) -> None:
        if self._warms_up and self._steps:
            self._warms_up, self._steps = False, []
        self._steps = [*self._steps[1 - self._KEPT :], (seconds, tokens)]

    @property
    def tokens_per_second(self) -> float:
        return sum(tokens for _, tokens in self._steps) / max(sum(seconds for seconds, _ in self._steps), 1e-9)

    @property
    def seconds_per_step(self) -> float:
        return sum(seconds for seconds, _ in self._steps) / len(self._steps)


def tokens_of(batch: Batch) -> int:
    """Tokens that a network reads in a batch, padding not counted; of pictures, their number."""
    count = 0
    for name, value in batch.items():
        if name.endswith("input_ids"):
            mask = batch.get(name.removesuffix("input_ids") + "attention_mask")
            count += int(mask.sum()) if mask is not None else value.numel()
    return count or rows_of(batch)


def describe_rows(rows: Sequence[tuple[int, int]], most: int = 8) -> str:
    """Where the rows of a step stand in the data: "rows 3, 17 of the data (epoch 0)"."""
    epochs = sorted({epoch for epoch, _ in rows})
    listed = ", ".join(str(index) for _, index in rows[:most]) + (", …" if len(rows) > most else "")
    return f"rows {listed} of the data (epoch {' and '.join(map(str, epochs))})"


def rows_of(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _mixed(*numbers: int) -> int:
    """One seed out of several numbers, as well mixed as numpy's generators are seeded."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _number(value: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=device).detach()
