"""Objectives that draw together what belongs together: pairs of texts, pictures and their captions.

What does not belong together is the rest of the batch, so that a loss depends on all of its rows, and small batches do
not add up to a large one. With several processes, each compares its own rows with those of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from polyformer.core import TEXT_POOLINGS, DualEncoder, EncoderOnly, Pooling, Span
from polyformer.core import config as core
from polyformer.core.config import Config
from polyformer.core.network import Network
from polyformer.errors import DataError
from polyformer.objectives.base import Batch, Example, Loss, Objective, demand, described, stack, tokens_of

LARGEST_SCALE = 100.0  # Radford et al., 2021, section 2.5


class PairEncoder(Network):
    """An encoder, and how sharply its vectors are told apart, learned beside it. The encoder is what is kept.

    Args of the config:
        encoder: of texts.
        logit_scale: the number that the learned scale starts from (a logarithm).
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        encoder: EncoderOnly.Config
        logit_scale: float = math.log(20)

        @property
        def vocab_size(self) -> int | None:
            return self.encoder.vocab_size

        @property
        def max_positions(self) -> int | None:
            return self.encoder.max_positions

    def __init__(self, config: Config, encoder: EncoderOnly | None = None):
        """
        Args:
            encoder: a network of the encoder's config, with its weights; None makes a new one.
        """
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build() if encoder is None else encoder
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale))

    def forward(self, *args: Any, **options: Any) -> Any:
        """As `EncoderOnly.forward`."""
        return self.encoder(*args, **options)


@dataclass(frozen=True, kw_only=True)
class ContrastivePairs(Objective):
    """A text finds its partner among those of the whole batch (Henderson et al., 2017, section 4.4; Gao et al., 2021,
    SimCSE, equations 1 and 5).

    Vectors are made of the last hidden states, at length 1; a score is their cosine over the temperature; the loss is
    the cross-entropy of the true partner. Examples have ``first_ids`` and ``second_ids``, and may have
    ``negative_ids``, a text that is near and yet wrong: it is one more to choose from for all.

    Args:
        pooling: "mean" of all tokens, "class" (the first token's) or "last", as for `polyformer.tasks.embedding.embed`.
        temperature: 0.05 in SimCSE; None learns it, from 0.05 on.
        symmetric: the second text has to find the first as well, and the two losses are averaged (Radford et al., 2021,
            figure 3).

    The loss is summed over pairs. Metrics: "accuracy" of the first texts' choices, "scale" (1 / temperature).
    """

    reads: ClassVar[str] = "texts"
    depends_on_batch: ClassVar[bool] = True

    pooling: str = "mean"
    temperature: float | None = 0.05
    symmetric: bool = False

    def __post_init__(self) -> None:
        demand(
            self.pooling in TEXT_POOLINGS,
            f"ContrastivePairs: pooling is {self.pooling!r}, but it must be {', '.join(TEXT_POOLINGS)}",
        )
        demand(
            self.temperature is None or self.temperature > 0,
            f"ContrastivePairs: temperature is {self.temperature}, but it must be above 0",
        )

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``first_input_ids``, ``second_input_ids``, and ``negative_input_ids`` where examples have them, each with the
        masks it needs."""
        negatives = ["negative_ids" in example for example in examples]
        if any(negatives) and not all(negatives):
            raise DataError(
                f"{described(examples[negatives.index(False)])} has no negative_ids, but others of its batch have: "
                "give them to all or none"
            )
        names = ("first", "second", "negative") if negatives[0] else ("first", "second")
        batch: Batch = {}
        for name in names:
            batch.update(tokens_of(examples, f"{name}_ids", f"{name}_"))
        return batch

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        scale = self._scale(network)
        vectors = {
            name: functional.normalize(self._vectors(network, batch, name), dim=-1)
            for name in ("first", "second", "negative")
            if f"{name}_input_ids" in batch
        }
        first, second = vectors["first"], vectors["second"]
        others, own = gather(second)
        choices = torch.cat([others, gather(vectors["negative"])[0]]) if "negative" in vectors else others
        losses, right = choose(first @ choices.mT * scale, own)
        if self.symmetric:
            back, _ = choose(second @ gather(first)[0].mT * scale, own)
            losses = (losses + back) / 2
        rows = len(first)
        value = scale.detach() if isinstance(scale, Tensor) else scale
        return Loss(losses.sum(), rows, {"accuracy": (right, rows), "scale": (value * rows, rows)})

    def _vectors(self, network: nn.Module, batch: Batch, name: str) -> Tensor:
        """[rows, size] of one text of each example."""
        inputs = {key.removeprefix(f"{name}_"): value for key, value in batch.items() if key.startswith(f"{name}_")}
        hidden: Tensor = network(**inputs, with_logits=False).last_hidden_state
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        span = Span.of(hidden.shape[1], inputs.get("attention_mask"), device=hidden.device)
        pooled: Tensor = Pooling.Config(TEXT_POOLINGS[self.pooling]).build()(hidden, span)
        return pooled

    def _scale(self, network: nn.Module) -> Tensor | float:
        if self.temperature is not None:
            return 1 / self.temperature
        return learned_scale(network)

    def check(self, config: Config) -> None:
        inner = config.encoder if isinstance(config, PairEncoder.Config) else config
        demand(
            isinstance(inner, EncoderOnly.Config) and inner.vocab_size is not None,
            "ContrastivePairs trains encoders of texts (EncoderOnly with a vocabulary), but this network is "
            f"{inner.kind}{' without one' if isinstance(inner, EncoderOnly.Config) else ''}",
        )
        demand(
            self.temperature is None or inner is config,
            "ContrastivePairs has a fixed temperature, but this PairEncoder would learn one: leave one of them out",
        )

    def begun(self, network: nn.Module) -> nn.Module:
        """With a temperature to learn beside it, if that is wanted."""
        if self.temperature is not None or isinstance(network, PairEncoder):
            return network
        assert isinstance(network, EncoderOnly)
        return PairEncoder(PairEncoder.Config(network.config), network)

    def finished(self, network: Any, family: Any) -> tuple[Any, Any]:
        """The encoder alone."""
        return (network.encoder if isinstance(network, PairEncoder) else network), family


@dataclass(frozen=True, kw_only=True)
class ContrastiveImages(Objective):
    """Pictures find their captions, and captions their pictures, in the batch (Radford et al., 2021, CLIP, figure 3),
    or each pair by itself is told to fit or not (Zhai et al., 2023, SigLIP, section 3.2).

    The first is for networks without a ``logit_bias``, and keeps the learned scale from growing beyond 100 (section 2.5
    there); the second is for networks with one. Examples have ``pixel_values`` and ``input_ids``.

    The loss is summed over pairs. Metrics: "accuracy" of the pictures' choices, "scale".
    """

    reads: ClassVar[str] = "captions"
    depends_on_batch: ClassVar[bool] = True

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``pixel_values``; ``input_ids`` and what masks they need."""
        captions = [{name: example[name] for name in ("input_ids", "index") if name in example} for example in examples]
        return {"pixel_values": stack(examples, "pixel_values"), **tokens_of(captions)}

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        output = network(**batch)
        images, texts = output.image_embeds, output.text_embeds
        bias: Tensor | None = network.logit_bias  # type: ignore[assignment]
        scale = learned_scale(network, None if bias is not None else LARGEST_SCALE)
        all_texts, own = gather(texts)
        scores = images @ all_texts.mT * scale
        if bias is None:
            losses, right = choose(scores, own)
            back, _ = choose(texts @ gather(images)[0].mT * scale, own)
            losses = (losses + back) / 2
        else:
            fits = torch.zeros_like(scores).scatter_(1, own[:, None], 1)
            losses = -functional.logsigmoid((2 * fits - 1) * (scores + bias)).sum(-1)
            right = (scores.detach().argmax(-1) == own).sum()
        rows = len(images)
        return Loss(losses.sum(), rows, {"accuracy": (right, rows), "scale": (scale.detach() * rows, rows)})

    def check(self, config: Config) -> None:
        demand(
            isinstance(config, DualEncoder.Config) and config.logit_scale is not None,
            "ContrastiveImages trains networks with a text and a picture tower (DualEncoder), but this network is "
            f"{config.kind}{' with one tower' if isinstance(config, DualEncoder.Config) else ''}",
        )


def learned_scale(network: nn.Module, largest: float | None = LARGEST_SCALE) -> Tensor:
    """exp of the network's ``logit_scale``, which is first cut so that it is no larger than this, where it learns."""
    parameter: Tensor = network.logit_scale  # type: ignore[assignment]
    if largest is not None and network.training and torch.is_grad_enabled():
        with torch.no_grad():
            parameter.clamp_(max=math.log(largest))
    return parameter.exp()


def choose(scores: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """scores [rows, choices] and the true ones [rows] -> cross-entropies [rows], and how many had the highest score."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return functional.cross_entropy(scores, true, reduction="none"), (scores.detach().argmax(-1) == true).sum()


# ---------------------------------------------------------------------------------------------------------------
# Several processes


def gather(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The rows [all rows, size] of all processes, in their order, and where this process's own are among them.

    Only in training: held-out batches are whole where they are read. Gradients flow back to the process that a row came
    from, so that gradients summed over the processes are those of the sum of all losses.
    """
    rows = torch.arange(len(vectors), device=vectors.device)
    alone = not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1
    if alone or not torch.is_grad_enabled():
        return vectors, rows
    sizes = [torch.zeros(1, dtype=torch.long, device=vectors.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(vectors)], device=vectors.device))
    counts = [int(size) for size in sizes]
    longest, before = max(counts), sum(counts[: distributed.get_rank()])
    padded = functional.pad(vectors, (0, 0, 0, longest - len(vectors)))
    together = _Gather.apply(padded)
    return torch.cat([part[:count] for part, count in zip(together, counts)]), rows + before


class _Gather(torch.autograd.Function):
    """[rows, size] of each process -> [processes, rows, size] on all."""

    @staticmethod
    def forward(context: Any, vectors: Tensor) -> Tensor:
        parts = [torch.empty_like(vectors) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, vectors.contiguous())
        return torch.stack(parts)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradients: Tensor) -> Tensor:
        summed = gradients.contiguous()
        distributed.all_reduce(summed)
        return summed[distributed.get_rank()]
