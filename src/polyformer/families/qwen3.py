"""Qwen3, dense (Yang et al., 2025): Qwen2 without those biases, and each head's query and key normalized."""

from __future__ import annotations

from typing import Any

from polyformer.core import DecoderOnly, RMSNorm
from polyformer.families import llama, qwen2
from polyformer.families.base import ConfigReader, Family, GGUFFormat


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.assume(head_dim=128)
    norm = RMSNorm.Config(config.integer("head_dim"), config.number("rms_norm_eps", 1e-6))
    return qwen2.read_with_windows(config, {"query_key_norm": norm})


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    values = {**llama.write(config), **qwen2.write_windows(config)}
    return {key: value for key, value in values.items() if key != "mlp_bias"}


family = Family(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    read=read,
    write=write,
    weight_table=llama.weight_table,
    gguf=GGUFFormat("qwen3", llama.read_gguf, qwen2.gguf_weight_table),
)
