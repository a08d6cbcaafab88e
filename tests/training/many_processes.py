"""What a process does in test_parallel.py: ``torchrun … many_processes.py SETTINGS.json`` trains once for each setting
and writes, from the first process, what came out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.training.conftest import Counting, small_config

from polyformer.baselines import RecurrentLM
from polyformer.core import (
    Attention,
    Bidirectional,
    DualEncoder,
    Encoder,
    EncoderOnly,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    Learned,
    MaskedTokenHead,
    MixtureOfExperts,
    PatchEmbedding,
    Pooling,
    RMSNorm,
    Stack,
    TokenEmbedding,
    Tower,
    Transform,
)
from polyformer.objectives import CausalLM, ContrastiveImages, ContrastivePairs, MaskedLM, PairEncoder
from polyformer.objectives.base import Objective
from polyformer.training.averaging import ExponentialAverage
from polyformer.training.data.loader import Dataset, EvaluationLoader, Loader
from polyformer.training.group import Group
from polyformer.training.optimizers import OptimizerSettings, make_optimizers
from polyformer.training.parallel import end_group, gather, parallelize, start_group, with_spares
from polyformer.training.recipe import ParallelSection
from polyformer.training.schedules import Schedule
from polyformer.training.states import States
from polyformer.training.trainer import Evaluation, Observer, StepReport, Trainer, TrainerSettings

VOCABULARY = 32


def encoder_config() -> EncoderOnly.Config:
    """With biases everywhere, norms of queries and keys, and a tied head."""
    norm = LayerNorm.Config(16)
    attention = Attention.Config(16, 4, 2, 4, mask=Bidirectional(), bias=True, query_key_norm=RMSNorm.Config(4))
    layer = Layer.Config(attention, FeedForward.Config(16, 24, "gelu", bias=True), norm, placement="post")
    return EncoderOnly.Config(
        Encoder.Config(
            TokenEmbedding.Config(VOCABULARY, 16, positions=Learned.Config(64, 16), norm=norm),
            Stack.Config((layer, layer)),
        ),
        "masked-lm",
        masked_head=MaskedTokenHead.Config(
            Transform.Config(16, 16, "gelu", norm), Head.Config(16, VOCABULARY, bias=True)
        ),
    )


def language_model_config() -> Any:
    """Four query heads, two key heads."""
    config = small_config()
    layers = tuple(
        replace(layer, attention=replace(layer.attention, num_heads=4, num_key_value_heads=2))
        for layer in config.stack.layers
    )
    return replace(config, stack=replace(config.stack, layers=layers))


def experts_config() -> Any:
    """A language model whose experts often get no token."""
    config = language_model_config()
    experts = MixtureOfExperts.Config(FeedForward.Config(16, 16, "silu", gated=True), 4, 1)
    layers = tuple(replace(layer, feedforward=experts) for layer in config.stack.layers)
    return replace(config, stack=replace(config.stack, layers=layers))


def recurrent_config() -> Any:
    return RecurrentLM.Config(VOCABULARY, 16, num_layers=1, cell="lstm")


def pairs_config() -> Any:
    """An encoder of texts, and a temperature beside it that soon meets its limit."""
    encoder = EncoderOnly.Config(encoder_config().encoder, pooling=Pooling.Config("mean"))
    return PairEncoder.Config(encoder, logit_scale=4.595)


def towers_config(**numbers: float) -> Any:
    """A tower for texts and one for pictures."""
    encoder = encoder_config().encoder
    patches = PatchEmbedding.Config(16, (4, 4), (8, 8))
    text = Tower.Config(encoder, Pooling.Config("mean"))
    image = Tower.Config(Encoder.Config(patches, encoder.stack), Pooling.Config("first"))
    return DualEncoder.Config(text, image, **numbers)


NETWORKS = {
    "decoder": language_model_config,
    "encoder": encoder_config,
    "pairs": pairs_config,
    "clip": lambda: towers_config(logit_scale=1.0),
    "siglip": lambda: towers_config(logit_scale=1.0, logit_bias=-2.0),
    "experts": experts_config,
    "recurrent": recurrent_config,
}


class Pairs:
    """Texts that count upwards, and others that go on where they end."""

    def __init__(self, rows: int):
        self.texts = Counting(rows)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.texts[index]["input_ids"]
        return {"first_ids": ids[: 2 + index % 4], "second_ids": ids[6:]}


class Captioned:
    """Pictures and texts of several lengths."""

    def __init__(self, rows: int):
        self.texts = Counting(rows)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = np.random.default_rng(index).normal(size=(3, 8, 8))
        return {"pixel_values": pixels, "input_ids": self.texts[index]["input_ids"][: 3 + index % 5]}


class Record(Observer):
    """What a run tells."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.evaluations: list[float] = []

    def on_step(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        self.norms.append(report.gradient_norm)

    def on_evaluation(self, evaluation: Evaluation) -> None:
        self.evaluations.append(evaluation.loss)


class StopAt(Observer):
    def __init__(self, trainer: Trainer, step: int):
        self.trainer, self.step = trainer, step

    def on_step(self, report: StepReport) -> None:
        if report.step == self.step:
            self.trainer.stop()


def objective_of(name: str) -> Objective:
    if name == "encoder":
        return MaskedLM(mask_token_id=1, special_token_ids=(0,), vocab_size=VOCABULARY, rate=0.2)
    if name == "pairs":
        return ContrastivePairs(temperature=None, symmetric=True)
    if name in ("clip", "siglip"):
        return ContrastiveImages()
    return CausalLM(rows_at_once=7)


def rows_of(name: str, count: int) -> Dataset:
    if name == "pairs":
        return Pairs(count)
    return Captioned(count) if name in ("clip", "siglip") else Counting(count)


def make(setting: dict[str, Any], group: Group) -> tuple[Trainer, Record]:
    """The trainer of a setting; see `DEFAULTS` for what is in one."""
    torch.manual_seed(0)
    name = setting["network"]
    network = NETWORKS[name]().build().to(getattr(torch, setting["dtype"]))
    with torch.no_grad():
        for parameter in network.parameters():  # norms and biases too
            parameter.add_(0.1 * torch.randn_like(parameter))
    for beginning in setting["freeze"]:
        for path, parameter in network.named_parameters():
            if path.startswith(beginning):
                parameter.requires_grad_(False)
    if setting["checkpoint"]:
        network.stack.checkpoint_layers = True
    parallelize(network, group)
    objective = objective_of(name)
    record = Record()
    rows = EvaluationLoader(
        rows_of(name, 5),
        objective,
        batch_size=4,
        rank=group.rank,
        world_size=group.size,
        whole_batches=objective.depends_on_batch,
    )
    trainer = Trainer(
        network,
        objective,
        Loader(
            rows_of(name, 40),
            objective,
            batch_size=8,
            micro_batch_size=setting["micro"],
            seed=3,
            rank=group.rank,
            world_size=group.size,
        ),
        optimizers=make_optimizers(network, OptimizerSettings(setting["optimizer"], learning_rate=1e-2)),
        schedule=Schedule("cosine", setting["steps"], warmup_steps=2),
        settings=TrainerSettings(
            steps=setting["steps"],
            seed=3,
            measure_peak=False,
            precision=setting["precision"],
            evaluate_every=4,
            gradient_clipping=0.5,
        ),
        states=States(Path(setting["states"]), group=group) if setting["states"] else None,
        evaluation=lambda: with_spares(rows),
        average=ExponentialAverage(network, setting["average"]) if setting["average"] else None,
        group=group,
        observers=[record],
    )
    if setting["stop"] and group.rank == group.size - 1:
        trainer.observers.append(StopAt(trainer, setting["stop"]))
    return trainer, record


DEFAULTS: dict[str, Any] = {
    "network": "decoder",
    "dtype": "float64",
    "precision": "float32",
    "optimizer": "adamw",
    "steps": 10,
    "micro": None,
    "average": None,
    "freeze": [],
    "checkpoint": False,
    "states": None,  # where states are saved
    "resume": False,  # from the last of them
    "stop": None,  # after this step, asked of the last processes alone
    "parallel": {},
}


def run(setting: dict[str, Any], group: Group) -> dict[str, Any]:
    """What came of a setting: losses, norms of gradients, evaluations, and a number for every weight at the end."""
    setting = {**DEFAULTS, **setting}
    trainer, record = make(setting, group)
    if setting["resume"]:
        assert trainer.states is not None
        trainer.resume(trainer.states.steps()[-1])
    ended = trainer.run()
    weights = gather(trainer.network, group)
    return {
        "ended": ended,
        "losses": record.losses,
        "norms": record.norms,
        "evaluations": record.evaluations,
        "flops": trainer.progress.flops,
        "weights": {name: _number(weight) for name, weight in weights.items()},
        "scale": trainer._scaler.get_scale(),
    }


def _number(weight: torch.Tensor) -> float:
    """That changes with every element and its place."""
    return float(weight.flatten().double() @ torch.arange(weight.numel(), dtype=torch.float64).cos())


def main() -> None:
    torch.distributed.init_process_group("gloo")
    settings = json.loads(Path(sys.argv[1]).read_text())
    results = {}
    for name, setting in settings.items():
        group = start_group(ParallelSection(**setting.get("parallel", {})), torch.device("cpu"))
        print(f"{name} …", file=sys.stderr, flush=True)  # so that it is seen where it hangs
        results[name] = run(setting, group)
        scales: list[Any] = [None] * group.processes
        torch.distributed.all_gather_object(scales, results[name]["scale"])
        assert len(set(scales)) == 1, scales
        first = group.first
        end_group(group)
    if first:
        Path(sys.argv[2]).write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
