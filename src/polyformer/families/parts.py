"""What many families share: activation names, rotary settings, and the layout that LLaMA made common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from polyformer.core.rotary import (
    DynamicNTKScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    Rotary,
    Scaling,
    YaRNScaling,
)
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, GGUFContents, only_kind
from polyformer.families.weights import InterleavedRotaryRows, Rule, Transform, Transpose, chain

# Hugging Face's names of activations -> the core's
ACTIVATION_NAMES = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "gelu_quick",
    "relu": "relu",
    "relu2": "relu_squared",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
}


def activation_name(core_name: str, *, prefer: str | None = None) -> str:
    """Hugging Face's name of an activation; ``prefer`` chooses among several names of the same function."""
    names = [name for name, meaning in ACTIVATION_NAMES.items() if meaning == core_name]
    return prefer if prefer in names else names[0]


# ---------------------------------------------------------------------------------------------------------------
# Rotary positions


def read_rotary(
    config: ConfigReader, rotary_dim: int, *, max_positions: int, base: float = 10000.0, interleaved: bool = False
) -> Rotary.Config:
    """Rotary settings of a ``config.json``: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``."""
    values = dict(config("rope_scaling", None, kind=dict) or {})
    values.update(config("rope_parameters", None, kind=dict) or {})
    base = float(values.get("rope_theta") or config.number("rope_theta", base))
    return rotary_from_parameters(
        config, values, rotary_dim, base, max_positions=max_positions, interleaved=interleaved
    )


def rotary_from_parameters(
    config: ConfigReader,
    values: Mapping[str, Any],
    rotary_dim: int,
    base: float,
    *,
    max_positions: int,
    interleaved: bool = False,
) -> Rotary.Config:
    """Rotary settings out of one dictionary of them (a config may have one for each kind of layer)."""
    original = values.get("original_max_position_embeddings") or config("original_max_position_embeddings", None)
    try:
        scaling = _read_scaling(values, int(original or max_positions), max_positions)
    except KeyError as error:
        raise ConfigError(f"{config.where}: rope_scaling has no {error.args[0]!r}, which its type needs") from None
    return Rotary.Config(rotary_dim, base, interleaved, scaling)


def _read_scaling(values: Mapping[str, Any], original: int, max_positions: int) -> Scaling | None:
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind in ("default", "mrope"):
        return None
    if kind == "linear":
        return LinearScaling(float(values["factor"]))
    if kind == "dynamic":
        return DynamicNTKScaling(float(values["factor"]), max_positions)
    if kind == "llama3":
        return Llama3Scaling(
            float(values["factor"]), float(values["low_freq_factor"]), float(values["high_freq_factor"]), original
        )
    if kind == "yarn":
        factor = float(values.get("factor") or max_positions / original)
        return YaRNScaling(
            factor,
            original,
            float(values.get("beta_fast") or 32),
            float(values.get("beta_slow") or 1),
            _yarn_attention_factor(values, factor),
            bool(values.get("truncate", True)),
        )
    if kind in ("longrope", "su"):
        factor = float(values.get("factor") or max_positions / original)
        magnitude = values.get("attention_factor")
        if magnitude is None:
            magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        return LongRoPEScaling(
            tuple(map(float, values["short_factor"])),
            tuple(map(float, values["long_factor"])),
            original,
            float(magnitude),
        )
    raise ConfigError(
        f"rope_type {kind!r} is not supported; supported: default, linear, dynamic, yarn, llama3, longrope"
    )


def _yarn_attention_factor(values: Mapping[str, Any], factor: float) -> float | None:
    if values.get("attention_factor") is not None:
        return float(values["attention_factor"])
    scales = values.get("mscale"), values.get("mscale_all_dim")
    if all(scales) and factor > 1:  # DeepSeek's form: the ratio of two scales
        first, second = (0.1 * float(scale) * math.log(factor) + 1 for scale in scales if scale)
        return first / second
    return None


def write_rotary(rotary: Any) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``, which every version of transformers reads.

    Raises:
        ConfigError: the positions are not rotary, or the scaling has no name there.
    """
    rotary = only_kind(rotary, Rotary.Config, "the position scheme")
    return {"rope_theta": rotary.base, "rope_scaling": _write_scaling(rotary.scaling)}


def _write_scaling(scaling: Scaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, DynamicNTKScaling):
        return {"rope_type": "dynamic", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    if isinstance(scaling, YaRNScaling):
        values = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_max_positions,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "truncate": scaling.truncate,
        }
        return values if scaling.attention_factor is None else {**values, "attention_factor": scaling.attention_factor}
    if isinstance(scaling, LongRoPEScaling):
        return {
            "rope_type": "longrope",
            "short_factor": list(scaling.short_factors),
            "long_factor": list(scaling.long_factors),
            "original_max_position_embeddings": scaling.original_max_positions,
            "attention_factor": scaling.attention_factor,
        }
    raise ConfigError(f"rotary scaling {scaling.kind} cannot be written to a config.json: save it as 'polyformer'")


def refuse_partial_rotary(config: ConfigReader) -> None:
    """For families whose heads are turned whole.

    Raises:
        ConfigError: the config asks for a part of them.
    """
    config.only("partial_rotary_factor", 1)
    for key in ("rope_parameters", "rope_scaling"):
        values = config(key, None, kind=dict) or {}
        ConfigReader(values, f"{config.where}: {key}").only("partial_rotary_factor", 1)


def read_gguf_rotary(
    config: ConfigReader, file: GGUFContents, rotary_dim: int, *, interleaved: bool = False
) -> Rotary.Config:
    """Rotary settings of a GGUF file: ``rope.*`` keys, and Llama 3's factors in a tensor of their own."""
    base = config.number("rope.freq_base", 10000.0)
    # As in llama.cpp, a factor without a type is a linear one, under an older name too.
    factor = config.number("rope.scaling.factor", config.number("rope.scale_linear", 1.0))
    original = config.integer("rope.scaling.original_context_length", config.integer("context_length"))
    kind = config("rope.scaling.type", "linear" if factor != 1 else "none")
    names = file.names()
    scaling: Scaling | None = None
    if "rope_freqs.weight" in names:
        scaling = _named_factors(_numbers(file, "rope_freqs.weight"), base, rotary_dim)
    elif "rope_factors_long.weight" in names:
        scaling = LongRoPEScaling(
            _numbers(file, "rope_factors_short.weight"),
            _numbers(file, "rope_factors_long.weight"),
            original,
            config.number("rope.scaling.attn_factor", 1.0),
        )
    elif kind == "linear":
        scaling = LinearScaling(factor) if factor != 1 else None
    elif kind == "yarn":
        config.only("rope.scaling.attn_factor", 1)
        config.only("rope.scaling.yarn_ext_factor", 1)
        fast, slow = (
            config.number("rope.scaling.yarn_beta_fast", 32.0),
            config.number("rope.scaling.yarn_beta_slow", 1.0),
        )
        scaling = YaRNScaling(factor, original, fast, slow)
    elif kind != "none":
        raise ConfigError(
            f"{config.where}: rope.scaling.type={kind!r} is not supported; supported: none, linear, yarn, "
            "and longrope with its tensors of factors"
        )
    return Rotary.Config(rotary_dim, base, interleaved, scaling)


def _numbers(file: GGUFContents, name: str) -> tuple[float, ...]:
    return tuple(file.load(name).double().tolist())


def _named_factors(factors: tuple[float, ...], base: float, rotary_dim: int) -> Scaling:
    """Llama 3's own scaling if the factors are its, so that it can be exported under its name."""
    import torch

    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim
    guess = Llama3Scaling(max(factors), 1.0, 4.0, 8192)
    made = guess.frequencies(base, exponents, torch.zeros(1)) * base**exponents
    if torch.allclose(1 / made, torch.tensor(factors, dtype=torch.float64), rtol=1e-4):
        return guess
    return FactorScaling(factors)


# ---------------------------------------------------------------------------------------------------------------
# The layout that LLaMA made common

LLAMA_EMBEDDING = Rule("embedding.tokens.weight", "model.embed_tokens.weight")
LLAMA_FINAL_NORM = Rule("stack.norm.weight", "model.norm.weight")
LLAMA_HEAD = Rule("head.weight", "lm_head.weight")


def renamed(
    ours: str, theirs: str, names: Mapping[str, str], kinds: tuple[str, ...] = ("weight", "bias")
) -> list[Rule]:
    """One rule for each of ``names`` (our module -> their module) and each kind of parameter, below two prefixes."""
    return [Rule(f"{ours}.{our}.{kind}", f"{theirs}.{their}.{kind}") for our, their in names.items() for kind in kinds]


def transposed(ours: str, theirs: str) -> list[Rule]:
    """A linear layer that the file stores as [in, out] (``Conv1D``)."""
    return [Rule(f"{ours}.weight", f"{theirs}.weight", Transpose()), Rule(f"{ours}.bias", f"{theirs}.bias")]


def fused_attention_rules(theirs: str, split: Transform, *, transpose: bool = False) -> list[Rule]:
    """Query, key and value in one linear layer: ``split`` takes its rows apart, those of the bias alike.

    Args:
        transpose: whether the file stores the matrix as [in, out].
    """
    parts = [f"stack.layers.{{layer}}.attention.{part}" for part in ("query", "key", "value")]
    matrix = chain(Transpose(), split) if transpose else split
    return [
        Rule([f"{part}.weight" for part in parts], f"{theirs}.weight", matrix),
        Rule([f"{part}.bias" for part in parts], f"{theirs}.bias", split),
    ]


def llama_attention_rules(theirs: str = "model.layers.{layer}.self_attn") -> list[Rule]:
    names = {
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "output": "o_proj",
        "query_norm": "q_norm",
        "key_norm": "k_norm",
    }
    return renamed("stack.layers.{layer}.attention", theirs, names)


def llama_feedforward_rules(theirs: str = "model.layers.{layer}.mlp") -> list[Rule]:
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    return renamed("stack.layers.{layer}.feedforward", theirs, names)


def llama_norm_rules() -> list[Rule]:
    names = {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}
    return renamed("stack.layers.{layer}", "model.layers.{layer}", names)


def gguf_rules(*, interleaved_rotary: tuple[int, int] | None = None, fused: Transform | None = None) -> list[Rule]:
    """The names every GGUF file uses.

    Args:
        interleaved_rotary: (num_heads, num_key_value_heads) where the file's query and key rows pair neighbours.
        fused: how ``attn_qkv`` becomes query, key and value, where the file has the three in one.
    """
    block = "blk.{layer}"
    layer = "stack.layers.{layer}"
    rules = [
        *renamed("embedding", "", {"tokens": "token_embd", "positions": "position_embd"}, ("weight",)),
        *renamed("stack", "", {"norm": "output_norm"}),
        *renamed("", "", {"head": "output"}),
        *renamed(layer, block, {"attention_norm": "attn_norm", "feedforward_norm": "ffn_norm"}),
        *renamed(
            layer,
            block,
            {"attention_output_norm": "post_attention_norm", "feedforward_output_norm": "post_ffw_norm"},
        ),
        *renamed(f"{layer}.attention", block, {"output": "attn_output"}),
        *renamed(f"{layer}.attention", block, {"query_norm": "attn_q_norm", "key_norm": "attn_k_norm"}),
        *renamed(f"{layer}.feedforward", block, {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}),
    ]
    if fused is not None:
        rules += fused_attention_rules(f"{block}.attn_qkv", fused)
    else:
        heads = interleaved_rotary or (None, None)
        for ours, theirs, count in (
            ("query", "attn_q", heads[0]),
            ("key", "attn_k", heads[1]),
            ("value", "attn_v", None),
        ):
            turn = InterleavedRotaryRows(count) if count else None
            rules += [
                Rule(f"{layer}.attention.{ours}.{kind}", f"{block}.{theirs}.{kind}", turn)
                for kind in ("weight", "bias")
            ]
    return [Rule(_undotted(rule.ours), _undotted(rule.theirs), rule.transform) for rule in rules]


def _undotted(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name.removeprefix(".") for name in names)


# Rotary factors are read with the config
GGUF_IGNORED = (r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight")


def gguf_vocab_size(config: ConfigReader, file: GGUFContents) -> int:
    """Rows of the embedding, from the metadata."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return config.integer("vocab_size", len(tokens) if tokens else None) or config.integer("vocab_size")
