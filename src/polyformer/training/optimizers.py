"""Optimizers, and which parameters each of them moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from polyformer.core.embeddings import TokenEmbedding
from polyformer.errors import ConfigError
from polyformer.training.tensors import local_part

NAMES = ("adamw", "muon", "adafactor", "lion")


@dataclass(frozen=True)
class OptimizerSettings:
    """Which optimizer, and its numbers.

    Attributes:
        name: one of `NAMES`. "muon" moves matrices inside the layers, "adamw" everything else beside it.
        learning_rate: the peak.
        weight_decay: decoupled from the gradient (Loshchilov and Hutter, 2019). Vectors (norms, biases) have none.
        betas: memories of the gradient and of its square (AdamW, Lion); of Muon, the first is the momentum.
        eps: added to the root of the second (AdamW).
        adamw_learning_rate: of what Muon does not move; None takes ``learning_rate``.
    """

    name: str = "adamw"
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] | None = None
    eps: float = 1e-8
    adamw_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"optimizer {self.name!r} is not one of {', '.join(NAMES)}")
        if self.adamw_learning_rate is not None and self.name != "muon":
            raise ConfigError(f"adamw_learning_rate is for muon, but the optimizer is {self.name}")
        if self.betas is not None and self.name == "adafactor":
            raise ConfigError("adafactor has no betas: leave them out")


class Lion(Optimizer):
    """The sign of an interpolated momentum (Chen et al., 2023, algorithm 2).

    Args:
        params: parameters or groups.
        lr: the length of every step, in each number alike.
        betas: of the interpolation and of the momentum.
        weight_decay: decoupled.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _call(closure)
        for group in self.param_groups:
            first, second = group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = _momentum(self, parameter)
                update = momentum.lerp(parameter.grad, 1 - first).sign_()
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
                momentum.lerp_(parameter.grad, 1 - second)
        return loss


class Muon(Optimizer):
    """Momentum whose matrix is made orthogonal before each step (Jordan et al., 2024), scaled so that a step has the
    size of AdamW's (Liu et al., 2025, equation 4).

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        momentum: Nesterov's.
        weight_decay: decoupled.
        steps: of the Newton-Schulz iteration.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-4,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise ConfigError(f"Muon moves matrices, but a parameter has the shape {list(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = _call(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = _momentum(self, parameter)
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"])
                rows, columns = parameter.shape
                scale = 0.2 * max(rows, columns) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(_whole(orthogonalize, update, group["steps"]), alpha=-group["lr"] * scale)
        return loss


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the nearest orthogonal matrix, by a quintic Newton-Schulz iteration: singular values end between about 0.7
    and 1.2, whatever they were.

    Args:
        matrix: [rows, columns].
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # 16 bits are exact enough here, where the device is fast in them.
    x = matrix.bfloat16() if matrix.is_cuda else matrix.clone()
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + torch.addmm(square, square, square, beta=b, alpha=c) @ x
    return (x.mT if tall else x).to(matrix.dtype)


def _whole(function: Callable[..., Tensor], value: Tensor, *options: Any) -> Tensor:
    """``function`` of a whole matrix, also where each process holds a part of it."""
    if not isinstance(value, DTensor):
        return function(value, *options)
    result = function(value.full_tensor(), *options)
    everywhere = [Replicate()] * value.device_mesh.ndim
    whole = DTensor.from_local(result, value.device_mesh, everywhere, run_check=False)
    return whole.redistribute(placements=value.placements)


def _momentum(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    state = optimizer.state[parameter]
    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(parameter)
    momentum: Tensor = state["momentum"]
    return momentum


def _call(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def make_optimizers(network: nn.Module, settings: OptimizerSettings) -> list[Optimizer]:
    """The optimizers that together move every parameter that takes a gradient, each exactly once.

    Raises:
        ConfigError: no parameter takes a gradient, or Adafactor was chosen for many processes.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ConfigError("no parameter of the network takes a gradient: there is nothing to train")
    if settings.name == "muon":
        matrices = _hidden_matrices(network)
        momentum = settings.betas[0] if settings.betas else 0.95
        rest = [parameter for parameter in parameters if id(parameter) not in matrices]
        moved = [parameter for parameter in parameters if id(parameter) in matrices]
        made: list[Optimizer] = []
        if moved:
            made.append(Muon(moved, lr=settings.learning_rate, momentum=momentum, weight_decay=settings.weight_decay))
        if rest:
            rate = settings.adamw_learning_rate or settings.learning_rate
            made.append(_adamw(rest, settings, rate, (0.9, 0.95)))
        return made
    groups = _groups(parameters, settings.weight_decay)
    if settings.name == "lion":
        return [Lion(groups, lr=settings.learning_rate, betas=settings.betas or (0.9, 0.99))]
    if settings.name == "adafactor":
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise ConfigError("adafactor looks at whole matrices, so it is for one process: use adamw, muon or lion")
        return [torch.optim.Adafactor(groups, lr=settings.learning_rate)]
    return [_adamw(parameters, settings, settings.learning_rate, settings.betas or (0.9, 0.95))]


def _adamw(
    parameters: list[nn.Parameter], settings: OptimizerSettings, rate: float, betas: tuple[float, float]
) -> Optimizer:
    floating = all(parameter.is_floating_point() for parameter in parameters)
    return torch.optim.AdamW(
        _groups(parameters, settings.weight_decay), lr=rate, betas=betas, eps=settings.eps, fused=floating
    )


def step_scaled(optimizer: Optimizer, factor: float) -> None:
    """A step with all gradients multiplied by a factor, which they keep.

    Fused AdamW does that while it reads them, by the protocol of mixed precision (`torch.amp.GradScaler`): it divides
    them by the attribute ``grad_scale``. That is a pass over the memory less.
    """
    parameters = _moved(optimizer)
    plain = all(type(parameter) is nn.Parameter and parameter.dtype == torch.float32 for parameter in parameters)
    if not plain or not getattr(optimizer, "_step_supports_amp_scaling", False):
        scale_gradients(optimizer, factor)
        optimizer.step()
        return
    optimizer.grad_scale = torch.tensor(1 / factor, device=parameters[0].device)  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.grad_scale  # type: ignore[attr-defined]


def scale_gradients(optimizer: Optimizer, factor: float) -> None:
    """Multiply the gradients of all that an optimizer moves by a factor."""
    gradients = [local_part(parameter.grad) for parameter in _moved(optimizer) if parameter.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, factor)


def _moved(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors (norms, biases) do not. What is divided among the same processes goes together."""
    groups: dict[Any, dict[str, Any]] = {}
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        decays = parameter.dim() >= 2
        group = groups.setdefault((decays, mesh), {"params": [], "weight_decay": weight_decay if decays else 0.0})
        group["params"].append(parameter)
    return list(groups.values())


def _hidden_matrices(network: nn.Module) -> set[int]:
    """Ids of the matrices between the embeddings and the heads: those that stand in a list of layers."""
    tables = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, (TokenEmbedding, nn.Embedding))
        for parameter in module.parameters()
    }
    return {
        id(parameter)
        for name, parameter in network.named_parameters()
        if parameter.dim() == 2 and id(parameter) not in tables and ".layers." in f".{name}"
    }
