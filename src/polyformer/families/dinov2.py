"""DINOv2 (Oquab et al., 2024), and the form with registers (Darcet et al., 2024)."""

from __future__ import annotations

from functools import partial
from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Encoder,
    EncoderOnly,
    FeedForward,
    Layer,
    LayerNorm,
    PatchEmbedding,
    Pooling,
    Stack,
)
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.heads import read_task, written_task
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.pictures import classifier, patch_rules, read_pair, written_patches
from polyformer.families.weights import Rule, Split, WeightTable


def tasks_of(name: str) -> dict[str, str]:
    return {f"{name}Model": "features", f"{name}ForImageClassification": "sequence-classification"}


def gated_width(hidden: int, ratio: int) -> int:
    """Two thirds of the plain width, up to the next multiple of 8, for the gated form has three matrices."""
    return (int(hidden * ratio * 2 / 3) + 7) // 8 * 8


def read(config: ConfigReader, name: str, *, registers: bool) -> EncoderOnly.Config:
    task = read_task(config, tasks_of(name))
    hidden = config.integer("hidden_size", 768)
    ratio = config.integer("mlp_ratio", 4)
    dropout = config.number("hidden_dropout_prob", 0.0)
    config.only("drop_path_rate", 0)
    # Where training begins; and what the backbone for other networks would give.
    config.number("layerscale_value", 1.0)
    for key in ("apply_layernorm", "reshape_hidden_states"):
        config.flag(key, True)
    for key in ("out_features", "out_indices", "stage_names"):
        config(key, None)
    gated = config.flag("use_swiglu_ffn", False)
    act = config.choose("hidden_act", ACTIVATION_NAMES, "gelu")
    norm = LayerNorm.Config(hidden, config.number("layer_norm_eps", 1e-6))
    layer = Layer.Config(
        Attention.Config(
            hidden,
            config.integer("num_attention_heads", 12),
            mask=Bidirectional(),
            bias=config.flag("qkv_bias", True),
            output_bias=True,
            dropout=config.number("attention_probs_dropout_prob", 0.0),
        ),
        FeedForward.Config(
            hidden,
            gated_width(hidden, ratio) if gated else hidden * ratio,
            "silu" if gated else act,
            gated=gated,
            bias=True,
        ),
        norm,
        dropout=dropout,
        layer_scale=True,
    )
    embedding = PatchEmbedding.Config(
        hidden,
        read_pair(config, "patch_size", 14 if not registers else 16),
        read_pair(config, "image_size", 224),
        config.integer("num_channels", 3),
        registers=config.integer("num_register_tokens", 4, least=0) if registers else 0,
        mask_token=config.flag("use_mask_token", True),
        dropout=dropout,
        antialias=registers,
    )
    encoder = Encoder.Config(embedding, Stack.Config((layer,) * config.integer("num_hidden_layers", 12), norm))
    if task == "sequence-classification":
        return EncoderOnly.Config(
            encoder, task, **classifier(config, hidden, "first_and_mean_patches", embedding.leading)
        )
    return EncoderOnly.Config(encoder, task, Pooling.Config("first"))


def write(config: EncoderOnly.Config, name: str, *, registers: bool) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    encoder = config.encoder
    embedding = only_kind(encoder.embedding, PatchEmbedding.Config, "the embedding")
    layer = encoder.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    hidden, width = encoder.hidden_size, feedforward.intermediate_size
    ratio = next(
        (n for n in range(1, 65) if width == (gated_width(hidden, n) if feedforward.gated else hidden * n)), None
    )
    if ratio is None:
        raise ConfigError(f"a feed-forward width of {width} is no multiple of {hidden}: {name} cannot express it")
    values = {
        "hidden_size": hidden,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": layer.attention.num_heads,
        "mlp_ratio": ratio,
        "hidden_act": "gelu" if feedforward.gated else activation_name(feedforward.activation),
        "use_swiglu_ffn": feedforward.gated,
        "hidden_dropout_prob": layer.dropout,
        "attention_probs_dropout_prob": layer.attention.dropout,
        "layer_norm_eps": layer.norm.eps,
        "qkv_bias": layer.attention.bias,
        "use_mask_token": embedding.mask_token,
        **written_patches(embedding),
        **written_task(config, tasks_of(name)),
    }
    return {**values, "num_register_tokens": embedding.registers} if registers else values


def weight_table(config: EncoderOnly.Config, prefix: str) -> WeightTable:
    ours, theirs = "encoder.stack.layers.{layer}", f"{prefix}encoder.layer.{{layer}}"
    feedforward = only_kind(config.encoder.stack.layers[0].feedforward, FeedForward.Config, "the feed-forward part")
    names = {
        "attention.query": "attention.attention.query",
        "attention.key": "attention.attention.key",
        "attention.value": "attention.attention.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "norm1",
        "feedforward_norm": "norm2",
    }
    if feedforward.gated:
        names["feedforward.down"] = "mlp.weights_out"
        split = Split((feedforward.intermediate_size,) * 2)
        inner = [
            Rule(
                [f"{ours}.feedforward.{part}.{kind}" for part in ("gate", "up")],
                f"{theirs}.mlp.weights_in.{kind}",
                split,
            )
            for kind in ("weight", "bias")
        ]
    else:
        inner = renamed(f"{ours}.feedforward", f"{theirs}.mlp", {"up": "fc1", "down": "fc2"})
    embedding = only_kind(config.encoder.embedding, PatchEmbedding.Config, "the embedding")
    rules = (
        *patch_rules(embedding, f"{prefix}embeddings."),
        *renamed(ours, theirs, names),
        *inner,
        Rule(f"{ours}.attention_scale", f"{theirs}.layer_scale1.lambda1"),
        Rule(f"{ours}.feedforward_scale", f"{theirs}.layer_scale2.lambda1"),
        *renamed("encoder.stack", prefix.removesuffix("."), {"norm": "layernorm"}),
        *(Rule(f"sequence_head.linear.{kind}", f"classifier.{kind}") for kind in ("weight", "bias")),
    )
    ignored = () if embedding.mask_token else (rf"({prefix[:-1]}\.)?embeddings\.mask_token",)
    return WeightTable(rules, ignored, prefix, config.task != "features")


def make_family(model_type: str, name: str, *, registers: bool) -> Family:
    return Family(
        model_type,
        tuple(tasks_of(name)),
        partial(read, name=name, registers=registers),
        partial(write, name=name, registers=registers),
        partial(weight_table, prefix=f"{model_type}."),
    )


family = make_family("dinov2", "Dinov2", registers=False)
