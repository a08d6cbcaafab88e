"""Mixtral (Jiang et al., 2024): Mistral whose feed-forward parts are mixtures of experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyformer.core import DecoderOnly, FeedForward, MixtureOfExperts
from polyformer.families import llama, mistral
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.parts import (
    LLAMA_EMBEDDING,
    LLAMA_FINAL_NORM,
    LLAMA_HEAD,
    llama_attention_rules,
    llama_norm_rules,
    renamed,
)
from polyformer.families.weights import WeightTable
from polyformer.families.windows import with_layers


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.assume(sliding_window=None, rms_norm_eps=1e-5, rope_theta=1e6, num_local_experts=8, num_experts_per_tok=2)
    config.only("router_jitter_noise", 0)
    for key in ("output_router_logits", "router_aux_loss_coef"):
        config(key, None)  # they choose what a training loop of transformers adds to its loss
    experts, top_k = config.integer("num_local_experts"), config.integer("num_experts_per_tok")
    plain = mistral.read(config)
    expert = only_kind(plain.stack.layers[0].feedforward, FeedForward.Config, "the feed-forward part")
    return with_layers(
        plain,
        [replace(layer, feedforward=MixtureOfExperts.Config(expert, experts, top_k)) for layer in plain.stack.layers],
    )


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    mixture = only_kind(config.stack.layers[0].feedforward, MixtureOfExperts.Config, "the feed-forward part")
    plain = with_layers(config, [replace(layer, feedforward=mixture.expert) for layer in config.stack.layers])
    return {
        **mistral.write(plain),
        "num_local_experts": mixture.num_experts,
        "num_experts_per_tok": mixture.top_k,
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    ours, theirs = "stack.layers.{layer}.feedforward", "model.layers.{layer}.block_sparse_moe"
    experts = {"gate": "w1", "down": "w2", "up": "w3"}
    return WeightTable(
        rules=(
            LLAMA_EMBEDDING,
            LLAMA_FINAL_NORM,
            LLAMA_HEAD,
            *llama_norm_rules(),
            *llama_attention_rules(),
            *renamed(ours, theirs, {"router": "gate"}, ("weight",)),
            *renamed(f"{ours}.experts.{{expert}}", f"{theirs}.experts.{{expert}}", experts, ("weight",)),
        ),
        ignored=llama.weight_table(config).ignored,
    )


family = Family(
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=llama.gguf,
)
