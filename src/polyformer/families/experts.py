"""Mixtures of experts in GGUF files, where each layer stacks its experts in one tensor a projection."""

from __future__ import annotations

from collections.abc import Collection

from polyformer.core import DecoderOnly, FeedForward, MixtureOfExperts
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader
from polyformer.families.weights import Rule, Unstack


def read_gguf_experts(
    config: ConfigReader, expert: FeedForward.Config, names: Collection[str]
) -> FeedForward.Config | MixtureOfExperts.Config:
    """``expert`` itself, or a mixture of such if the metadata count experts.

    Raises:
        ConfigError: the file stores experts one by one, or routes to them in a way that is not supported.
    """
    count = config.integer("expert_count", 0, least=0)
    if not count:
        return expert
    if "blk.0.ffn_gate.0.weight" in names:
        raise ConfigError(
            f"{config.where}: this file stores every expert as a tensor of its own, a layout that llama.cpp left in "
            "2024: convert the model anew"
        )
    config.only("expert_shared_count", 0)
    config.only("expert_gating_func", 1)  # softmax
    config.only("expert_weights_norm", True)
    config.only("expert_weights_scale", 0, 1)
    config.only("expert_feed_forward_length", expert.intermediate_size)
    return MixtureOfExperts.Config(expert, count, config.integer("expert_used_count"))


def gguf_expert_rules(config: DecoderOnly.Config) -> list[Rule]:
    """Rules of the router and of the stacked experts; none for a network without experts."""
    mixture = config.stack.layers[0].feedforward
    if not isinstance(mixture, MixtureOfExperts.Config):
        return []
    ours, theirs = "stack.layers.{layer}.feedforward", "blk.{layer}"
    rules = [Rule(f"{ours}.router.weight", f"{theirs}.ffn_gate_inp.weight")]
    for part in ("gate", "up", "down"):
        experts = [f"{ours}.experts.{number}.{part}.weight" for number in range(mixture.num_experts)]
        rules.append(Rule(experts, f"{theirs}.ffn_{part}_exps.weight", Unstack()))
    return rules
