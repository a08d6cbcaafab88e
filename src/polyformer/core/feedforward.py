"""The feed-forward part of a layer: two linear maps, gated or not, and a mixture of such experts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core
from polyformer.core.activations import activation
from polyformer.core.config import require
from polyformer.core.linear import Linear, Packable
from polyformer.core.packing import ACTIVATIONS_WITHIN


class FeedForward(Packable):
    """down(activation(up(x))) (Vaswani et al., 2017, equation 2), or gated: down(activation(gate(x)) * up(x)).

    The gated form is SwiGLU with "silu", GeGLU with "gelu", ReGLU with "relu" (Shazeer, 2020, equation 6).
    x and the result are [..., hidden_size].
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        hidden_size: int
        intermediate_size: int
        activation: str = "gelu"
        gated: bool = False
        bias: bool = False
        dropout: float = 0.0

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.activation = activation(config.activation)
        wide = Linear.Config(config.hidden_size, config.intermediate_size, config.bias)
        self.gate = wide.build() if config.gated else None
        self.up = wide.build()
        self.down = Linear.Config(config.intermediate_size, config.hidden_size, config.bias).build()

    def joint_linears(self) -> tuple[Linear, ...]:
        """Gate and up read the same input."""
        return (self.gate, self.up) if self.gate is not None else ()

    def forward(self, inputs: Tensor) -> Tensor:
        if self.gate is None:
            within = self.up.joint is not None and self.config.activation in ACTIVATIONS_WITHIN
            inner = self.up.joint(inputs, self.config.activation) if within else self.activation(self.up(inputs))
        else:
            gate, up = self.project(inputs)
            inner = self.activation(gate) * up
        if self.config.dropout:
            inner = functional.dropout(inner, self.config.dropout, self.training)
        return self.down(inner)


class MixtureOfExperts(core.Module):
    """Each token goes to its ``top_k`` best experts; the results are added, weighted by the router.

    Router: softmax over all experts, the top k kept and, if ``normalize_weights``, scaled to sum to one
    (Shazeer et al., 2017; Jiang et al., 2024, section 2.1). Routing is computed in float32 at least.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        expert: FeedForward.Config
        num_experts: int
        top_k: int
        normalize_weights: bool = True

        def __post_init__(self) -> None:
            require(
                1 <= self.top_k <= self.num_experts,
                f"top_k is {self.top_k}, but it must lie between 1 and num_experts = {self.num_experts}",
            )

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.router = Linear.Config(config.expert.hidden_size, config.num_experts).build()
        self.experts = nn.ModuleList(config.expert.build() for _ in range(config.num_experts))

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = inputs.reshape(-1, inputs.shape[-1])
        weights, chosen = self.route(tokens)
        result = torch.zeros_like(tokens)
        # In training even an expert without tokens takes part. Its gradients are then zero, and not missing: processes
        # that train together must agree on which there are.
        for number in range(len(self.experts)) if self.training else chosen.unique().tolist():
            rows, slot = torch.where(chosen == number)
            part = self.experts[number](tokens[rows]) * weights[rows, slot, None]
            result.index_add_(0, rows, part.to(result.dtype))
        return result.reshape(inputs.shape)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: [tokens, hidden_size].

        Returns:
            weights [tokens, top_k] in the dtype of the tokens, and expert numbers [tokens, top_k].
        """
        logits = self.router(tokens)
        probabilities = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        weights, chosen = probabilities.topk(self.config.top_k, dim=-1)
        if self.config.normalize_weights:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(tokens.dtype), chosen
