"""GPTBigCode: SantaCoder and StarCoder (Ben Allal et al., 2023; Li et al., 2023): GPT-2 with one key/value head."""

from __future__ import annotations

from typing import Any

from polyformer.core import DecoderOnly
from polyformer.errors import ConfigError
from polyformer.families import gpt2
from polyformer.families.base import ConfigReader, Family, GGUFFormat
from polyformer.families.gpt2 import BLOCK, LAYER
from polyformer.families.parts import fused_attention_rules, renamed
from polyformer.families.weights import GroupedQueryKeyValue, Transform, WeightTable


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.only("scale_attn_by_inverse_layer_idx", False)
    config.only("reorder_and_upcast_attn", False)
    # Softmax in float32: a matter of rounding, and of this library's attention anyway.
    config.flag("attention_softmax_in_fp32", True)
    config.flag("scale_attention_softmax_in_fp32", True)
    for key in ("inference_runner", "validate_runner_input", "pre_allocate_kv_cache"):
        config(key, None)  # how a server of its authors ran it
    shared = 1 if config.flag("multi_query", True) else config.integer("n_head")
    config.only("num_key_value_heads", shared)
    return gpt2.read(config, key_value_heads=shared)


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    attention = config.stack.layers[0].attention
    if attention.num_key_value_heads not in (1, attention.num_heads):
        raise ConfigError(f"gpt_bigcode has one key/value head or {attention.num_heads}, not groups of them")
    values = gpt2.write(config)
    del values["scale_attn_by_inverse_layer_idx"]
    if values["activation_function"] == "gelu_new":  # two names of one function; this is the one it goes by here
        values["activation_function"] = "gelu_pytorch_tanh"
    return {**values, "multi_query": attention.num_key_value_heads == 1}


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    attention = config.stack.layers[0].attention
    split: Transform = gpt2.split_of(config)
    if attention.num_key_value_heads == attention.num_heads:  # then each head's three parts stand together
        split = GroupedQueryKeyValue(attention.num_heads, attention.num_heads, attention.head_dim)
    rules = (
        *gpt2.outer_rules(),
        *fused_attention_rules(f"{BLOCK}.attn.c_attn", split),
        *renamed(f"{LAYER}.attention", f"{BLOCK}.attn", {"output": "c_proj"}),
        *renamed(f"{LAYER}.feedforward", f"{BLOCK}.mlp", {"up": "c_fc", "down": "c_proj"}),
    )
    return WeightTable(rules, gpt2.ignored(config), optional_prefix="transformer.")


family = Family(
    name="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("starcoder", gpt2.read_gguf, gpt2.gguf_weight_table),
)
