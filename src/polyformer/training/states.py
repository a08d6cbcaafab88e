"""States of a run on disk: everything that is needed to go on as if nothing had happened.

They are written with PyTorch's distributed checkpoints, by one process or many, and can be read by another number of
processes. A state is written beside its place and renamed when it is complete: a crash or a full disk leaves the last
one whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from polyformer.checkpoints.disk import DiskFullError, require_room, write_whole
from polyformer.errors import TrainingError
from polyformer.training.averaging import ExponentialAverage
from polyformer.training.group import Alone, Group

_NAME = re.compile(r"step-(\d{8})")
PROGRESS = "progress.json"


class States:
    """The states of a run.

    Args:
        folder: where they are.
        keep_last: how many stay; the best stays beside them.
        group: the processes, each of which writes what it holds.
    """

    def __init__(self, folder: Path, *, keep_last: int = 2, group: Group | None = None):
        self.folder = folder
        self.keep_last = keep_last
        self.group: Group = group or Alone()

    def steps(self) -> list[int]:
        """Steps of the complete states, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def progress(self, step: int) -> dict[str, Any]:
        """What was written beside the tensors.

        Raises:
            TrainingError: the state is damaged.
        """
        path = self.path(step) / PROGRESS
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"{path} cannot be read ({error}): remove {path.parent} to use the one before"
            ) from None
        return values

    def save(
        self,
        step: int,
        network: nn.Module,
        optimizers: Sequence[Optimizer],
        average: ExponentialAverage | None,
        progress: dict[str, Any],
        *,
        best_step: int | None = None,
    ) -> Path:
        """Write the state after ``step`` steps, then remove older ones than are kept.

        Raises:
            DiskFullError: there is no room for it; the older states are whole.
            TrainingError: the machines do not share the folder.
        """
        from torch.distributed import checkpoint

        target = self.path(step)
        partial = self.folder / f".{target.name}.partial"
        tensors, _ = _tensors(network, optimizers, average)
        with self._together():
            if self.group.first:
                self.folder.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(partial, ignore_errors=True)
                require_room(self.folder, _nbytes(tensors), f"the state after step {step}")
                partial.mkdir()
        with self._together():
            _require_visible(partial)
        with self._together(partial), self._disk_full_named(step):
            with _quiet():
                checkpoint.save(tensors, checkpoint_id=str(partial))
            if self.group.first:
                write_whole(partial / PROGRESS, json.dumps(progress))
        with self._together():
            if self.group.first:
                if target.exists():
                    shutil.rmtree(target)
                os.replace(partial, target)
                self._remove_old(best_step)
        return target

    @contextlib.contextmanager
    def _together(self, partial: Path | None = None) -> Iterator[None]:
        """A piece of work after which all processes go on, or none; then ``partial`` is removed."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
        try:
            self.group.require_all(error)
        except BaseException:
            if partial is not None and self.group.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    @contextlib.contextmanager
    def _disk_full_named(self, step: int) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not _disk_is_full(error):
                raise
            kept = self.steps()
            last = f"; the state after step {kept[-1]} is whole" if kept else ""
            raise DiskFullError(
                f"the disk was full while writing the state after step {step} to {self.folder}{last}: make room "
                "and go on with --resume"
            ) from error

    def _remove_old(self, best_step: int | None) -> None:
        steps = self.steps()
        kept = {*steps[-self.keep_last :], best_step}
        for step in steps:
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def load(
        self,
        step: int,
        network: nn.Module,
        optimizers: Sequence[Optimizer],
        average: ExponentialAverage | None,
    ) -> dict[str, Any]:
        """Put a state into the network, the optimizers and the average, bit for bit; gives its progress.

        Raises:
            TrainingError: the state is damaged, or is of another network or optimizer.
        """
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict import set_state_dict

        progress = self.group.share(lambda: self.progress(step))
        tensors, groups = _tensors(network, optimizers, average)
        try:
            with _quiet():
                checkpoint.load(tensors, checkpoint_id=str(self.path(step)))
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise TrainingError(
                f"{self.path(step)} does not fit this run, or is damaged: {reason[-1] if reason else error!r}"
            ) from error
        set_state_dict(
            network,
            list(optimizers),
            model_state_dict=tensors["network"],
            optim_state_dict={"state": tensors["optimizers"], "param_groups": groups},
        )
        if average is not None:
            average.load_state_dict(tensors["average"])
        return progress


def _tensors(
    network: nn.Module, optimizers: Sequence[Optimizer], average: ExponentialAverage | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is saved; and the optimizers' groups, which are not: they follow from the recipe and the processes."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    for optimizer in optimizers:
        _complete(optimizer)
    weights, moments = get_state_dict(network, list(optimizers))
    tensors: dict[str, Any] = {"network": weights, "optimizers": moments["state"]}
    if average is not None:
        tensors["average"] = average.state_dict()
    return tensors, moments["param_groups"]  # type: ignore[return-value]


def _complete(optimizer: Optimizer) -> None:
    """An optimizer's state begins with a parameter's first gradient, but a state that is saved or loaded must have all
    parameters in it: those that had no gradient yet (of a head that is not used, of an expert that was not chosen) get
    the state that they would begin with."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fresh = [parameter for parameter in parameters if parameter.requires_grad and parameter not in optimizer.state]
    if not fresh:
        return
    gradients = [parameter.grad for parameter in parameters]
    rates = [group["lr"] for group in optimizer.param_groups]
    for parameter in parameters:
        parameter.grad = None
    for parameter in fresh:
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()  # moves nothing
    for parameter in fresh:
        if "step" in optimizer.state[parameter]:
            optimizer.state[parameter]["step"] *= 0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _nbytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_nbytes(inner) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_nbytes(inner) for inner in value)
    return 0


def _require_visible(folder: Path, seconds: float = 5.0) -> None:
    """
    Raises:
        TrainingError: this process does not see the folder, which the first one has made, even after a while.
    """
    end = time.monotonic() + seconds
    while not folder.is_dir():
        if time.monotonic() > end:
            raise TrainingError(
                f"a process on {platform.node()} does not see {folder}, which the first process has made: the folder "
                "of a run must be on a disk that all machines share"
            )
        time.sleep(0.1)


def _disk_is_full(error: BaseException) -> bool:
    """Whether "no space left on device" is behind an error, however it was wrapped."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(seen) or "unexpected pos" in str(seen):  # PyTorch's zip writer
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the library says about running in one process."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
