"""Gemma (Gemma team, 2024): LLaMA with scaled embeddings, GeGLU, and norms that store their weight less one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyformer.core import DecoderOnly, RMSNorm
from polyformer.core.config import Config
from polyformer.families import llama
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat
from polyformer.families.parts import ACTIVATION_NAMES, GGUF_IGNORED, activation_name, gguf_rules
from polyformer.families.weights import AddConstant, Rule, WeightTable


def read(config: ConfigReader) -> DecoderOnly.Config:
    assume_defaults(config)
    config.only("hidden_activation", "gelu_pytorch_tanh")
    # The first checkpoints say "gelu" and mean its approximation, which they were trained with.
    names = {**ACTIVATION_NAMES, "gelu": "gelu_tanh"}
    return like_gemma(llama.read(config, activation=config.choose("hidden_act", names, "gelu_tanh")))


def assume_defaults(config: ConfigReader) -> None:
    """What all Gemmas have in common."""
    config.assume(head_dim=256, max_position_embeddings=8192, tie_word_embeddings=True)
    config.only("use_bidirectional_attention", False)
    config.only("mlp_bias", False)


def like_gemma(config: DecoderOnly.Config) -> DecoderOnly.Config:
    """The same network with scaled embeddings and norms that add one to their weight."""

    def shift(path: str, part: Config) -> Config:
        return replace(part, offset=1.0) if isinstance(part, RMSNorm.Config) else part

    shifted = config.rewrite(shift)
    return replace(shifted, embedding=replace(shifted.embedding, scale=config.hidden_size**0.5))


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    values = llama.write(config)
    values["hidden_act"] = activation_name(ACTIVATION_NAMES[values["hidden_act"]], prefer="gelu_pytorch_tanh")
    return {key: value for key, value in values.items() if key != "mlp_bias"}


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    return like_gemma(llama.read_gguf(config, file, activation="gelu_tanh"))


def gguf_weight_table(config: DecoderOnly.Config) -> WeightTable:
    """The usual names; the file's norms have the one in their weight."""
    rules = [
        Rule(rule.ours, rule.theirs, AddConstant(-1.0)) if "norm" in rule.ours[0] else rule for rule in gguf_rules()
    ]
    return WeightTable(tuple(rules), ignored=GGUF_IGNORED)


family = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    read=read,
    write=write,
    weight_table=llama.weight_table,
    gguf=GGUFFormat("gemma", read_gguf, gguf_weight_table),
)
