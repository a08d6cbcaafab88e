"""Gemma 3, the part for text (Gemma team, 2025): Gemma 2 without caps, queries and keys normalized, five local
layers to one global, and a rotary base for each kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polyformer.core import DecoderOnly, RMSNorm, Rotary
from polyformer.errors import ConfigError
from polyformer.families import gemma2
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.gemma import gguf_weight_table
from polyformer.families.gemma2 import read_gguf_pattern, read_gguf_sandwich, read_sandwich, weight_table
from polyformer.families.parts import rotary_from_parameters, write_rotary
from polyformer.families.windows import read_layer_types, with_attention, with_layers, with_windows

_LAYERS_OF_27B = 62  # the one size whose scores are not scaled by the width of a head
_KINDS = ("full_attention", "sliding_attention")
_BASES = {"full_attention": 1e6, "sliding_attention": 1e4}


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.assume(sliding_window=4096, query_pre_attn_scalar=256, max_position_embeddings=131072, head_dim=256)
    config.only("attn_logit_softcapping", None)  # there is such a key, but nobody computes it
    full, local = _read_rotary(config)
    norm = RMSNorm.Config(config.integer("head_dim"), config.number("rms_norm_eps", 1e-6))
    plain = read_sandwich(config, {"query_key_norm": norm, "positions": full})
    period = config.integer("sliding_window_pattern", config.integer("_sliding_window_pattern", 6))
    sliding = read_layer_types(config, [(number + 1) % period != 0 for number in range(plain.num_layers)])
    windowed = with_windows(plain, sliding, config.integer("sliding_window", None), config.where)
    return _with_rotary(windowed, sliding, full, local)


def _read_rotary(config: ConfigReader) -> tuple[Rotary.Config, Rotary.Config]:
    """Rotary settings of the global and of the local layers: one dictionary each in ``rope_parameters``; older configs
    have ``rope_theta`` and ``rope_scaling`` for the global layers, and ``rope_local_base_freq``."""
    parameters = config("rope_parameters", None, kind=dict) or {}
    for kind in parameters:
        if kind not in _KINDS:
            raise ConfigError(
                f"{config.where}: rope_parameters holds {kind!r}; this architecture has {' and '.join(_KINDS)} there"
            )
    older = config("rope_scaling", None, kind=dict) or {}
    bases = (
        config.number("rope_theta", _BASES["full_attention"]),
        config.number("rope_local_base_freq", _BASES["sliding_attention"]),
    )
    found = []
    for kind, base, scaling in zip(_KINDS, bases, (older, {}), strict=True):
        values = {**(parameters.get(kind) or {}), **scaling}
        ConfigReader(values, f"{config.where}: rope_parameters").only("partial_rotary_factor", 1)
        found.append(
            rotary_from_parameters(
                config,
                values,
                config.integer("head_dim"),
                float(values.get("rope_theta") or base),
                max_positions=config.integer("max_position_embeddings"),
            )
        )
    return found[0], found[1]


def _with_rotary(
    config: DecoderOnly.Config, sliding: Sequence[bool], full: Rotary.Config, local: Rotary.Config
) -> DecoderOnly.Config:
    layers = [
        with_attention(layer, positions=local if slides else full)
        for layer, slides in zip(config.stack.layers, sliding, strict=True)
    ]
    return with_layers(config, layers)


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    written = gemma2.write(config)
    rotary = {kind: Rotary.Config(config.stack.layers[0].attention.head_dim, base) for kind, base in _BASES.items()}
    for kind, layer in zip(written["layer_types"], config.stack.layers, strict=True):
        rotary[kind] = only_kind(layer.attention.positions, Rotary.Config, "the position scheme")
    full, local = (write_rotary(rotary[kind]) for kind in _KINDS)
    values = {key: value for key, value in written.items() if not key.startswith("rope_")}
    if local["rope_scaling"] is None:  # every version of transformers reads this form
        return {**values, **full, "rope_local_base_freq": local["rope_theta"]}
    nested = {
        kind: {"rope_theta": keys["rope_theta"], **(keys["rope_scaling"] or {"rope_type": "default"})}
        for kind, keys in zip(_KINDS, (full, local), strict=True)
    }
    return {**values, "rope_parameters": nested}


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    config.only("attn_logit_softcapping", 0)
    plain = read_gguf_sandwich(config, file, layers_of_27b=_LAYERS_OF_27B)
    plain = replace(plain, head=replace(plain.head, soft_cap=config.number("final_logit_softcapping", 0.0) or None))
    window = config.integer("attention.sliding_window", 0, least=0)
    sliding = read_gguf_pattern(config, 6, plain.num_layers) if window else [False] * plain.num_layers
    full = plain.stack.layers[0].attention.positions
    assert isinstance(full, Rotary.Config)
    local = Rotary.Config(full.rotary_dim, config.number("rope.freq_base_swa", 1e4))
    return _with_rotary(with_windows(plain, sliding, window or None, config.where), sliding, full, local)


family = Family(
    name="gemma3_text",
    architectures=("Gemma3ForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("gemma3", read_gguf, gguf_weight_table),
)
