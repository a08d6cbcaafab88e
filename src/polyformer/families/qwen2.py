"""Qwen2 and Qwen2.5 (Yang et al., 2024): LLaMA with biases on query, key and value, and windows in the later layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyformer.core import DecoderOnly
from polyformer.families import llama
from polyformer.families.base import ConfigReader, Family, GGUFFormat
from polyformer.families.parts import GGUF_IGNORED, gguf_rules
from polyformer.families.weights import WeightTable
from polyformer.families.windows import read_layer_types, with_windows, write_layer_types


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.only("attention_bias", True)  # there is no such key: the class has these biases always
    return read_with_windows(config, {"bias": True, "output_bias": False})


def read_with_windows(config: ConfigReader, attention: Mapping[str, Any]) -> DecoderOnly.Config:
    """A ``config.json`` whose windows are switched by ``use_sliding_window`` (Qwen2 and Qwen3)."""
    config.assume(max_position_embeddings=32768, sliding_window=4096, max_window_layers=28)
    config.only("mlp_bias", False)
    plain = llama.read(config, attention=attention)
    switched_on = config.flag("use_sliding_window", False)
    window = config.integer("sliding_window", None) if switched_on else None
    first = config.integer("max_window_layers", plain.num_layers, least=0)
    sliding = read_layer_types(config, [window is not None and number >= first for number in range(plain.num_layers)])
    return with_windows(plain, sliding, window, config.where)


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    values = {**llama.write(config), **write_windows(config)}
    return {key: value for key, value in values.items() if key not in ("attention_bias", "mlp_bias")}


def write_windows(config: DecoderOnly.Config) -> dict[str, Any]:
    """The keys that `read_with_windows` reads: ``layer_types``, and the older ones that say the same where they can."""
    values = write_layer_types(config)
    full = values["layer_types"].index("sliding_attention") if values["sliding_window"] else config.num_layers
    return {**values, "use_sliding_window": values["sliding_window"] is not None, "max_window_layers": full}


def gguf_weight_table(config: DecoderOnly.Config) -> WeightTable:
    return WeightTable(tuple(gguf_rules()), ignored=GGUF_IGNORED)


family = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    read=read,
    write=write,
    weight_table=llama.weight_table,
    gguf=GGUFFormat("qwen2", llama.read_gguf, gguf_weight_table),
)
