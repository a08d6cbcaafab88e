"""Gemma 2 (Gemma team, 2024b): Gemma with norms before and after each branch, capped scores and logits, and every other
layer local."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polyformer.core import DecoderOnly
from polyformer.families import llama
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat
from polyformer.families.gemma import assume_defaults, gguf_weight_table, like_gemma
from polyformer.families.parts import (
    ACTIVATION_NAMES,
    LLAMA_EMBEDDING,
    LLAMA_FINAL_NORM,
    LLAMA_HEAD,
    activation_name,
    llama_attention_rules,
    llama_feedforward_rules,
    renamed,
)
from polyformer.families.weights import WeightTable
from polyformer.families.windows import read_layer_types, with_attention, with_layers, with_windows, write_layer_types

_LAYERS_OF_27B = 46  # the one size whose scores are not scaled by the width of a head


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.assume(
        sliding_window=4096, final_logit_softcapping=30.0, attn_logit_softcapping=50.0, query_pre_attn_scalar=256
    )
    plain = read_sandwich(config)
    sliding = read_layer_types(config, [number % 2 == 0 for number in range(plain.num_layers)])
    return with_windows(plain, sliding, config.integer("sliding_window", None), config.where)


def read_sandwich(config: ConfigReader, attention: Mapping[str, Any] | None = None) -> DecoderOnly.Config:
    """What Gemma 2 and 3 have in common, all layers global."""
    assume_defaults(config)
    options = {
        "scale": config.number("query_pre_attn_scalar") ** -0.5,
        "soft_cap": config.number("attn_logit_softcapping", None),
        **(attention or {}),
    }
    activation = config.choose("hidden_activation", ACTIVATION_NAMES, "gelu_tanh")
    plain = llama.read(config, activation=activation, attention=options)
    return sandwiched(plain, config.number("final_logit_softcapping", None))


def sandwiched(config: DecoderOnly.Config, logit_cap: float | None) -> DecoderOnly.Config:
    """The same network like Gemma, with a norm after each branch too, and capped logits."""
    layers = [replace(layer, placement="sandwich") for layer in config.stack.layers]
    return like_gemma(replace(with_layers(config, layers), head=replace(config.head, soft_cap=logit_cap)))


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    """The keys of Gemma 2 and 3 but for the rotary ones of Gemma 3."""
    attention = config.stack.layers[0].attention
    values, types = llama.write(config), write_layer_types(config)
    activation = activation_name(ACTIVATION_NAMES[values["hidden_act"]], prefer="gelu_pytorch_tanh")
    return {
        **{key: value for key, value in values.items() if key not in ("mlp_bias", "hidden_act")},
        "hidden_activation": activation,
        "query_pre_attn_scalar": round(attention.scale**-2),
        "attn_logit_softcapping": attention.soft_cap,
        "final_logit_softcapping": config.head.soft_cap,
        "layer_types": types["layer_types"],
        "sliding_window": types["sliding_window"] or 4096,  # transformers wants one even if no layer uses it
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    norms = {
        "attention_norm": "input_layernorm",
        "attention_output_norm": "post_attention_layernorm",
        "feedforward_norm": "pre_feedforward_layernorm",
        "feedforward_output_norm": "post_feedforward_layernorm",
    }
    return WeightTable(
        rules=(
            LLAMA_EMBEDDING,
            LLAMA_FINAL_NORM,
            LLAMA_HEAD,
            *renamed("stack.layers.{layer}", "model.layers.{layer}", norms, ("weight",)),
            *llama_attention_rules(),
            *llama_feedforward_rules(),
        ),
        ignored=llama.weight_table(config).ignored,
    )


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    config.assume(**{"attention.sliding_window": 4096})
    plain = read_gguf_sandwich(config, file, layers_of_27b=_LAYERS_OF_27B)
    soft_cap = config.number("attn_logit_softcapping", 50.0)
    capped = with_layers(plain, [with_attention(layer, soft_cap=soft_cap) for layer in plain.stack.layers])
    capped = replace(capped, head=replace(capped.head, soft_cap=config.number("final_logit_softcapping", 30.0)))
    sliding = read_gguf_pattern(config, 2, plain.num_layers)
    return with_windows(capped, sliding, config.integer("attention.sliding_window"), config.where)


def read_gguf_sandwich(config: ConfigReader, file: GGUFContents, *, layers_of_27b: int) -> DecoderOnly.Config:
    """What the GGUF files of Gemma 2 and 3 have in common. They do not say how scores are scaled: as in llama.cpp, by
    the width of a head, but in the 27B model by the hidden size over the number of heads."""
    plain = llama.read_gguf(config, file, activation="gelu_tanh")
    attention = plain.stack.layers[0].attention
    size = plain.hidden_size // attention.num_heads if plain.num_layers == layers_of_27b else attention.head_dim
    layers = [with_attention(layer, scale=size**-0.5) for layer in plain.stack.layers]
    return sandwiched(with_layers(plain, layers), None)


def read_gguf_pattern(config: ConfigReader, default: int, layers: int) -> list[bool]:
    """Which layers slide: ``attention.sliding_window_pattern`` is one flag a layer, or n where every n-th is global."""
    pattern = config("attention.sliding_window_pattern", default, kind=(int, list))
    if isinstance(pattern, int):
        return [(number + 1) % pattern != 0 for number in range(layers)] if pattern else [False] * layers
    return [bool(slides) for slides in pattern]


family = Family(
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("gemma2", read_gguf, gguf_weight_table),
)
