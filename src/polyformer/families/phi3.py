"""Phi-3, and Phi-4 where it is dense (Abdin et al., 2024): LLaMA with fused projections, LongRoPE, and in some sizes a
window or heads that are turned in part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyformer.core import Causal, DecoderOnly, FeedForward, Rotary, SlidingWindow
from polyformer.core.rotary import LongRoPEScaling
from polyformer.families import llama
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.parts import (
    GGUF_IGNORED,
    LLAMA_EMBEDDING,
    LLAMA_FINAL_NORM,
    LLAMA_HEAD,
    fused_attention_rules,
    gguf_rules,
    llama_norm_rules,
    rotary_from_parameters,
)
from polyformer.families.weights import Rule, Split, WeightTable
from polyformer.families.windows import window_of, with_layers


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.assume(max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5)
    config.only("attention_bias", False)
    config.only("mlp_bias", False)
    rotary = _read_rotary(config)
    window = config.integer("sliding_window", None)
    mask = SlidingWindow(window) if window else Causal()
    plain = llama.read(config, attention={"mask": mask, "positions": rotary})
    dropout = config.number("resid_pdrop", 0.0)
    dropped = with_layers(plain, [replace(layer, dropout=dropout) for layer in plain.stack.layers])
    return replace(dropped, embedding=replace(dropped.embedding, dropout=config.number("embd_pdrop", 0.0)))


def _read_rotary(config: ConfigReader) -> Rotary.Config:
    """LongRoPE, which early configs call "su" or "yarn". Its original length stands outside of its dictionary."""
    values = dict(config("rope_scaling", None, kind=dict) or {})
    values.update(config("rope_parameters", None, kind=dict) or {})
    kind = values.get("rope_type") or values.get("type") or "default"
    ConfigReader({"rope_type": kind}, config.where).only("rope_type", "default", "longrope", "su", "yarn")
    for key in ("short_mscale", "long_mscale"):
        ConfigReader(values, f"{config.where}: rope_scaling").only(key, None)
    values["rope_type"] = "default" if kind == "default" else "longrope"
    values["original_max_position_embeddings"] = config.integer("original_max_position_embeddings")
    part = values.get("partial_rotary_factor") or config.number("partial_rotary_factor", 1.0)
    head_dim = config.integer("head_dim", config.integer("hidden_size") // config.integer("num_attention_heads"))
    base = values.get("rope_theta") or config.number("rope_theta", 10000.0)
    max_positions = config.integer("max_position_embeddings")
    return rotary_from_parameters(config, values, int(head_dim * part), float(base), max_positions=max_positions)


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layer = config.stack.layers[0]
    rotary = only_kind(layer.attention.positions, Rotary.Config, "the position scheme")
    values = {key: value for key, value in llama.write(config).items() if key not in ("attention_bias", "mlp_bias")}
    if isinstance(rotary.scaling, LongRoPEScaling):
        values["original_max_position_embeddings"] = rotary.scaling.original_max_positions
    return {
        **values,
        "partial_rotary_factor": rotary.rotary_dim / layer.attention.head_dim,
        "sliding_window": window_of(layer.attention.mask),
        "resid_pdrop": layer.dropout,
        "embd_pdrop": config.embedding.dropout,
        "pad_token_id": None,  # the default of the class, 32000, need not be in the vocabulary
    }


def _splits(config: DecoderOnly.Config) -> tuple[Split, Split]:
    """How the fused projections come apart: query, key and value; gate and up."""
    layer = config.stack.layers[0]
    attention, feedforward = layer.attention, only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    shared = attention.num_key_value_heads * attention.head_dim
    return (
        Split((attention.num_heads * attention.head_dim, shared, shared)),
        Split((feedforward.intermediate_size,) * 2),
    )


def _gate_up_rule(theirs: str, split: Split) -> Rule:
    return Rule([f"stack.layers.{{layer}}.feedforward.{part}.weight" for part in ("gate", "up")], theirs, split)


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    attention, gate_up = _splits(config)
    layer = "model.layers.{layer}"
    return WeightTable(
        rules=(
            LLAMA_EMBEDDING,
            LLAMA_FINAL_NORM,
            LLAMA_HEAD,
            *llama_norm_rules(),
            *fused_attention_rules(f"{layer}.self_attn.qkv_proj", attention),
            Rule("stack.layers.{layer}.attention.output.weight", f"{layer}.self_attn.o_proj.weight"),
            _gate_up_rule(f"{layer}.mlp.gate_up_proj.weight", gate_up),
            Rule("stack.layers.{layer}.feedforward.down.weight", f"{layer}.mlp.down_proj.weight"),
        ),
        ignored=llama.weight_table(config).ignored,
    )


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    if config.integer("context_length") == 4096:  # the first files of the 4k models do not say the window they had
        config.assume(**{"attention.sliding_window": 2047})
    return llama.read_gguf(config, file)


def gguf_weight_table(config: DecoderOnly.Config) -> WeightTable:
    attention, gate_up = _splits(config)
    apart = {"stack.layers.{layer}.feedforward.gate.weight", "stack.layers.{layer}.feedforward.up.weight"}
    rules = [rule for rule in gguf_rules(fused=attention) if not apart & set(rule.ours)]
    return WeightTable((*rules, _gate_up_rule("blk.{layer}.ffn_up.weight", gate_up)), ignored=GGUF_IGNORED)


family = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("phi3", read_gguf, gguf_weight_table),
)
