"""SigLIP (Zhai et al., 2023): both towers, or one of them alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from polyformer.core import (
    Attention,
    AttentionPooling,
    Bidirectional,
    DualEncoder,
    Encoder,
    EncoderOnly,
    FeedForward,
    Learned,
    PatchEmbedding,
    Pooling,
    TokenEmbedding,
    Tower,
    Transform,
)
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.clip import POSITION_IDS, layer_rules, read_stack, written_stack
from polyformer.families.heads import read_task, written_labels
from polyformer.families.pictures import classifier, read_pair, written_patches
from polyformer.families.weights import Reshape, Rule, Split, WeightTable

TASKS = {"SiglipModel": "both", "SiglipForImageClassification": "sequence-classification"}


# Of either tower
_read_layers = partial(
    read_stack,
    heads=12,
    inner=3072,
    act="gelu_pytorch_tanh",
    epsilon=1e-6,
    mask=Bidirectional(),
    norm=True,
    initialization="xavier",
)


def read_text(config: ConfigReader) -> tuple[Encoder.Config, Pooling.Config]:
    hidden, positions = config.integer("hidden_size", 768), config.integer("max_position_embeddings", 64)
    stack = _read_layers(config, hidden)
    learned = Learned.Config(positions, hidden, standard_deviation=hidden**-0.5)
    embedding = TokenEmbedding.Config(
        config.integer("vocab_size", 32000), hidden, learned, standard_deviation=hidden**-0.5
    )
    size = config.integer("projection_size", hidden)
    # Texts are filled up to the full length, and the last position stands for the whole.
    return Encoder.Config(embedding, stack), Pooling.Config("last", transform=Transform.Config(hidden, size))


def written_text(encoder: Encoder.Config, pooling: Any) -> dict[str, Any]:
    embedding = only_kind(encoder.embedding, TokenEmbedding.Config, "the embedding of texts")
    return {
        **written_stack(encoder.stack),
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": encoder.max_positions,
        "projection_size": only_kind(pooling.transform, Transform.Config, "the projection").out_features,
    }


def read_vision(config: ConfigReader) -> tuple[Encoder.Config, AttentionPooling.Config | None]:
    hidden = config.integer("hidden_size", 768)
    stack = _read_layers(config, hidden)
    layer = stack.layers[0]
    patch, channels = read_pair(config, "patch_size", 16), config.integer("num_channels", 3)
    embedding = PatchEmbedding.Config(
        hidden,
        patch,
        read_pair(config, "image_size", 224),
        channels,
        class_token=False,
        standard_deviation=hidden**-0.5,
        patch_deviation=(channels * math.prod(patch)) ** -0.5,
    )
    pooling = None
    if config.flag("vision_use_head", True):
        feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
        attention = Attention.Config(
            hidden, layer.attention.num_heads, source_size=hidden, mask=Bidirectional(), bias=True
        )
        pooling = AttentionPooling.Config(attention, layer.norm, feedforward)
    return Encoder.Config(embedding, stack), pooling


def written_vision(encoder: Encoder.Config, pooling: Any) -> dict[str, Any]:
    return {
        **written_stack(encoder.stack),
        **written_patches(encoder.embedding),
        "vision_use_head": isinstance(pooling, AttentionPooling.Config),
    }


def read(config: ConfigReader) -> DualEncoder.Config | EncoderOnly.Config:
    sections = {name: config.section(f"{name}_config_dict", f"{name}_config") for name in ("text", "vision")}
    config.number("initializer_factor", 1.0)
    vision, vision_pooling = read_vision(sections["vision"])
    text, pooling = read_text(sections["text"])
    if read_task(config, TASKS) == "sequence-classification":
        return EncoderOnly.Config(
            vision, "sequence-classification", **classifier(config, vision.hidden_size, "mean_patches", 0)
        )
    if vision_pooling is None:
        raise ConfigError(f"{config.where}: vision_use_head=False leaves nothing to compare with texts")
    return DualEncoder.Config(
        Tower.Config(text, pooling),
        Tower.Config(vision, vision_pooling),
        # Where training begins (section 4 of the paper); the file holds what was learned.
        logit_scale=2.302585092994046,
        logit_bias=-10.0,
        max_positions=text.max_positions,
    )


def write(config: DualEncoder.Config | EncoderOnly.Config) -> dict[str, Any]:
    if isinstance(config, EncoderOnly.Config):
        return {
            "architectures": ["SiglipForImageClassification"],
            "vision_config": written_vision(config.encoder, config.pooling),
            **written_labels(config.num_labels or 0),
        }
    only_kind(config, DualEncoder.Config, "the network")
    text = only_kind(config.text, Tower.Config, "the tower of texts")
    image = only_kind(config.image, Tower.Config, "the tower of pictures")
    return {
        "text_config": written_text(text.encoder, text.pooling),
        "vision_config": written_vision(image.encoder, image.pooling),
    }


def text_rules(ours: str, theirs: str) -> list[Rule]:
    names = {f"{ours}encoder.stack.norm": "final_layer_norm", f"{ours}pooling.transform.linear": "head"}
    return [
        Rule(f"{ours}encoder.embedding.tokens.weight", f"{theirs}embeddings.token_embedding.weight"),
        Rule(f"{ours}encoder.embedding.positions.weight", f"{theirs}embeddings.position_embedding.weight"),
        *layer_rules(ours, theirs),
        *(
            Rule(f"{our}.{kind}", f"{theirs}{their}.{kind}")
            for our, their in names.items()
            for kind in ("weight", "bias")
        ),
    ]


def vision_rules(ours: str, theirs: str, hidden: int) -> list[Rule]:
    embedding, pooling = f"{ours}encoder.embedding", f"{ours}pooling"
    names = {
        f"{embedding}": "embeddings.patch_embedding",
        f"{ours}encoder.stack.norm": "post_layernorm",
        f"{pooling}.attention.output": "head.attention.out_proj",
        f"{pooling}.norm": "head.layernorm",
        f"{pooling}.feedforward.up": "head.mlp.fc1",
        f"{pooling}.feedforward.down": "head.mlp.fc2",
    }
    fused = [f"{pooling}.attention.{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{embedding}.positions.weight", f"{theirs}embeddings.position_embedding.weight"),
        *layer_rules(ours, theirs),
        *(
            Rule(f"{our}.{kind}", f"{theirs}{their}.{kind}")
            for our, their in names.items()
            for kind in ("weight", "bias")
        ),
        Rule(f"{pooling}.probe", f"{theirs}head.probe", Reshape((hidden,), (1, 1, hidden))),
        *(
            Rule([f"{part}.{kind}" for part in fused], f"{theirs}head.attention.in_proj_{kind}", Split((hidden,) * 3))
            for kind in ("weight", "bias")
        ),
    ]


def weight_table(config: DualEncoder.Config | EncoderOnly.Config) -> WeightTable:
    if isinstance(config, EncoderOnly.Config):
        rules = (
            *vision_rules("", "vision_model.", config.hidden_size),
            *(Rule(f"sequence_head.linear.{kind}", f"classifier.{kind}") for kind in ("weight", "bias")),
        )
        # Labels come from the mean of the patches; some files hold the pooling of comparison too.
        return WeightTable(rules, (POSITION_IDS, r"vision_model\.head\..*"))
    assert config.image is not None
    rules = (
        *text_rules("text.", "text_model."),
        *vision_rules("image.", "vision_model.", config.image.encoder.hidden_size),
        *(Rule(name, name, Reshape((), (1,))) for name in ("logit_scale", "logit_bias")),
    )
    return WeightTable(rules, (POSITION_IDS,))


# --- one tower alone ------------------------------------------------------------------------------------------------


def read_tower(config: ConfigReader, side: str) -> EncoderOnly.Config:
    encoder, pooling = read_text(config) if side == "text" else read_vision(config)
    return EncoderOnly.Config(encoder, "features", pooling, max_positions=encoder.max_positions)


def write_tower(config: EncoderOnly.Config, side: str) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    written = written_text if side == "text" else written_vision
    return written(config.encoder, config.pooling)


def tower_weight_table(config: EncoderOnly.Config, side: str) -> WeightTable:
    theirs = f"{side}_model."
    rules = text_rules("", theirs) if side == "text" else vision_rules("", theirs, config.hidden_size)
    # A file of both towers holds these too.
    other = "vision_model" if side == "text" else "text_model"
    return WeightTable(tuple(rules), (POSITION_IDS, rf"{other}\..*", "logit_scale", "logit_bias"), theirs, False)


def tower_family(side: str) -> Family:
    return Family(
        f"siglip_{side}_model",
        (f"Siglip{side.capitalize()}Model",),
        partial(read_tower, side=side),
        partial(write_tower, side=side),
        partial(tower_weight_table, side=side),
    )


family = Family("siglip", tuple(TASKS), read, write, weight_table)
