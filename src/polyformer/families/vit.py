"""ViT (Dosovitskiy et al., 2021)."""

from __future__ import annotations

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
    Transform,
)
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.heads import read_task, written_task
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.pictures import classifier, patch_rules, read_pair, written_patches
from polyformer.families.weights import Rule, WeightTable

TASKS = {"ViTModel": "features", "ViTForImageClassification": "sequence-classification"}


def read_encoder(config: ConfigReader) -> Encoder.Config:
    hidden = config.integer("hidden_size", 768)
    dropout = config.number("hidden_dropout_prob", 0.0)
    # Of the decoder that guesses masked patches, which is not part of these classes.
    config.integer("encoder_stride", 16)
    norm = LayerNorm.Config(hidden, config.number("layer_norm_eps", 1e-12))
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
            config.integer("intermediate_size", 3072),
            config.choose("hidden_act", ACTIVATION_NAMES, "gelu"),
            bias=True,
        ),
        norm,
        dropout=dropout,
    )
    embedding = PatchEmbedding.Config(
        hidden,
        read_pair(config, "patch_size", 16),
        read_pair(config, "image_size", 224),
        config.integer("num_channels", 3),
        dropout=dropout,
    )
    return Encoder.Config(embedding, Stack.Config((layer,) * config.integer("num_hidden_layers", 12), norm))


def read(config: ConfigReader) -> EncoderOnly.Config:
    task = read_task(config, TASKS)
    encoder = read_encoder(config)
    hidden = encoder.hidden_size
    size = config.integer("pooler_output_size", hidden)
    act = config.choose("pooler_act", ACTIVATION_NAMES, "tanh")
    if task == "sequence-classification":
        return EncoderOnly.Config(encoder, task, **classifier(config, hidden, "first", 1))
    pooling = None
    if config.flag("add_pooling_layer", True):
        pooling = Pooling.Config("first", transform=Transform.Config(hidden, size, act))
    return EncoderOnly.Config(encoder, task, pooling)


def written_encoder(encoder: Encoder.Config) -> dict[str, Any]:
    layer = encoder.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    return {
        "hidden_size": encoder.hidden_size,
        "num_hidden_layers": encoder.num_layers,
        "num_attention_heads": layer.attention.num_heads,
        "intermediate_size": feedforward.intermediate_size,
        "hidden_act": activation_name(feedforward.activation),
        "hidden_dropout_prob": layer.dropout,
        "attention_probs_dropout_prob": layer.attention.dropout,
        "layer_norm_eps": layer.norm.eps,
        "qkv_bias": layer.attention.bias,
        **written_patches(encoder.embedding),
    }


def write(config: EncoderOnly.Config) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    values = {**written_encoder(config.encoder), **written_task(config, TASKS)}
    if config.task == "features":
        if config.pooling is None:
            return {**values, "add_pooling_layer": False}
        transform = only_kind(
            only_kind(config.pooling, Pooling.Config, "the pooling").transform, Transform.Config, "it"
        )
        values["pooler_output_size"] = transform.out_features
        values["pooler_act"] = activation_name(transform.activation or "tanh")
    return values


def encoder_rules(encoder: Encoder.Config, prefix: str) -> list[Rule]:
    names = {
        "attention.query": "attention.attention.query",
        "attention.key": "attention.attention.key",
        "attention.value": "attention.attention.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "layernorm_before",
        "feedforward_norm": "layernorm_after",
        "feedforward.up": "intermediate.dense",
        "feedforward.down": "output.dense",
    }
    return [
        *patch_rules(only_kind(encoder.embedding, PatchEmbedding.Config, "the embedding"), f"{prefix}embeddings."),
        *renamed("encoder.stack.layers.{layer}", f"{prefix}encoder.layer.{{layer}}", names),
        *renamed("encoder.stack", prefix.removesuffix("."), {"norm": "layernorm"}),
    ]


def weight_table(config: EncoderOnly.Config) -> WeightTable:
    heads = {"pooling.transform.linear": "vit.pooler.dense", "sequence_head.linear": "classifier"}
    rules = (
        *encoder_rules(config.encoder, "vit."),
        *(Rule(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in heads.items() for kind in ("weight", "bias")),
    )
    # Files from masked pretraining hold its token too.
    ignored = [r"(vit\.)?embeddings\.mask_token"]
    if config.task != "features" or config.pooling is None:
        ignored.append(r"(vit\.)?pooler\.dense\.(weight|bias)")
    return WeightTable(rules, tuple(ignored), "vit.", config.task != "features")


family = Family("vit", tuple(TASKS), read, write, weight_table)
