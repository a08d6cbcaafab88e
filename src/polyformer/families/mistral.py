"""Mistral 7B and its successors (Jiang et al., 2023): LLaMA with grouped heads and, at first, a sliding window."""

from __future__ import annotations

from typing import Any

from polyformer.core import Causal, DecoderOnly, SlidingWindow
from polyformer.families import llama
from polyformer.families.base import ConfigReader, Family
from polyformer.families.windows import window_of


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.assume(num_key_value_heads=8, sliding_window=4096, max_position_embeddings=131072)
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    window = config.integer("sliding_window", None)
    return llama.read(config, attention={"mask": SlidingWindow(window) if window else Causal()})


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    return {**llama.write(config), "sliding_window": window_of(config.stack.layers[0].attention.mask)}


family = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    read=read,
    write=write,
    weight_table=llama.weight_table,
    gguf=llama.gguf,
)
