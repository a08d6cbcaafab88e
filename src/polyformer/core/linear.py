"""The two maps with a weight matrix: `Linear` (vectors to vectors) and `Embedding` (ids to vectors)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core
from polyformer.core.packing import (
    Packed,
    bring_back,
    can_learn,
    can_pack,
    give_up,
    is_in_use,
    joined,
    learned_product,
    learned_split,
)

INITIAL_STANDARD_DEVIATION = 0.02  # GPT-2 (Radford et al., 2019) and most after it


def initialize(parameter: Tensor, standard_deviation: float = INITIAL_STANDARD_DEVIATION) -> None:
    """Fill with N(0, standard_deviation²).

    On the meta device there is nothing to fill, and PyTorch's own function would import its compiler, which takes a
    second.
    """
    if not parameter.is_meta:
        nn.init.normal_(parameter, std=standard_deviation)


class Packable(core.Module):
    """A module whose linear maps can be packed for inference; see `packing`.

    A subclass names those that read the same input in ``joint_linears`` and asks `project` for their results.
    """

    def __init__(self) -> None:
        super().__init__()
        self.joint: Packed | None = None

    def joint_linears(self) -> tuple[Linear, ...]:
        """Maps that read the same input; none if there is nothing to join."""
        return ()

    def project(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """The result of each of ``joint_linears``."""
        linears = self.joint_linears()
        if self.joint is not None:
            return self.joint.split(inputs)
        if linears and all(linear.joins(inputs) for linear in linears):
            weight, bias = joined([linear.weight for linear in linears], [linear.bias for linear in linears])
            sizes = [linear.config.out_features for linear in linears]
            if can_learn(inputs, *(linear.weight for linear in linears)):
                return learned_split(learned_product(inputs, weight, bias), sizes)
            return functional.linear(inputs, weight, bias).split(sizes, dim=-1)
        return tuple(linear(inputs) for linear in linears)

    def pack(self) -> None:
        """Pack the weights, if this machine gains by it and every map is a plain `Linear` that nobody is training."""
        linears = self.joint_linears()
        if self.joint is None and linears and all(type(linear) is Linear and linear.packs for linear in linears):
            self.joint = Packed([linear.weight for linear in linears], [linear.bias for linear in linears])
            for linear in linears:
                give_up(linear.weight)

    def unpack(self) -> None:
        """Back to plain weights, bit for bit."""
        if self.joint is not None:
            for linear, weight in zip(self.joint_linears(), self.joint.plain(), strict=True):
                bring_back(linear.weight, weight)
            self.joint = None


class Linear(Packable):
    """y = x Wᵀ + b, for x [..., in_features] and y [..., out_features]. W is [out_features, in_features].

    It starts as N(0, 0.02²) with b = 0, the custom of language models since GPT.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        in_features: int
        out_features: int
        bias: bool = False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.out_features, config.in_features))
        self.bias = nn.Parameter(torch.zeros(config.out_features)) if config.bias else None
        initialize(self.weight)

    @property
    def packs(self) -> bool:
        return can_pack(self.weight) and not is_in_use(self.weight)

    def joint_linears(self) -> tuple[Linear, ...]:
        return (self,)

    def joins(self, inputs: Tensor) -> bool:
        """Whether maps with the same input are better computed as one: in training in 16 bits on a CPU, where each of
        them would convert the input, and its gradient back. Not if more than a plain map is hidden here."""
        return (
            inputs.device.type == "cpu"
            and torch.is_autocast_enabled("cpu")
            and torch.is_grad_enabled()
            and type(self) is Linear
            and type(self.weight) is nn.Parameter  # not one that processes share
            and not (self._forward_hooks or self._forward_pre_hooks)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        if self.joint is not None:
            return self.joint(inputs)
        if can_learn(inputs, self.weight):
            return learned_product(inputs, self.weight, self.bias)
        return functional.linear(inputs, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.config.in_features} -> {self.config.out_features}, bias={self.config.bias}"


def keep_size(*linears: Linear) -> None:
    """Draw weights that keep the size of what comes in and of its gradients: N(0, 2/(inputs + outputs)) (Glorot and
    Bengio, 2010, equation 12)."""
    for linear in linears:
        if not linear.weight.is_meta:
            nn.init.xavier_normal_(linear.weight)


class Embedding(core.Module):
    """Row ``id`` of a table [num_embeddings, hidden_size]. The table starts as N(0, standard_deviation²)."""

    @dataclass(frozen=True)
    class Config(core.Config):
        num_embeddings: int
        hidden_size: int
        standard_deviation: float = INITIAL_STANDARD_DEVIATION

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_embeddings, config.hidden_size))
        initialize(self.weight, config.standard_deviation)

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.config.num_embeddings} x {self.config.hidden_size}"
