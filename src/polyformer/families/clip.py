"""CLIP (Radford et al., 2021): both towers, or one of them alone."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Causal,
    DualEncoder,
    Encoder,
    EncoderOnly,
    FeedForward,
    Layer,
    LayerNorm,
    Learned,
    Linear,
    PatchEmbedding,
    Pooling,
    Stack,
    TokenEmbedding,
    Tower,
)
from polyformer.core.masks import Mask
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.heads import read_task, written_labels
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.pictures import classifier, read_pair, written_patches
from polyformer.families.weights import Reshape, Rule, WeightTable

TASKS = {"CLIPModel": "both", "CLIPForImageClassification": "sequence-classification"}
TEXT_TASKS = {"CLIPTextModel": "features", "CLIPTextModelWithProjection": "projection"}
VISION_TASKS = {"CLIPVisionModel": "features", "CLIPVisionModelWithProjection": "projection"}


def read_stack(
    config: ConfigReader,
    hidden: int,
    heads: int,
    inner: int,
    *,
    act: str,
    epsilon: float,
    mask: Mask,
    norm: bool,
    initialization: str,
) -> Stack.Config:
    """Pre-norm layers with biases everywhere, which SigLIP shares; ``norm`` says whether one ends the stack."""
    normalization = LayerNorm.Config(hidden, config.number("layer_norm_eps", epsilon))
    layer = Layer.Config(
        Attention.Config(
            hidden,
            config.integer("num_attention_heads", heads),
            mask=mask,
            bias=True,
            dropout=config.number("attention_dropout", 0.0),
        ),
        FeedForward.Config(
            hidden,
            config.integer("intermediate_size", inner),
            config.choose("hidden_act", ACTIVATION_NAMES, ACTIVATION_NAMES[act]),
            bias=True,
        ),
        normalization,
    )
    count = config.integer("num_hidden_layers", 12)
    return Stack.Config((layer,) * count, normalization if norm else None, initialization=initialization)


_read_layers = partial(read_stack, act="quick_gelu", epsilon=1e-5, initialization="width")


def written_stack(stack: Stack.Config) -> dict[str, Any]:
    layer = stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    return {
        "hidden_size": layer.norm.size,
        "num_hidden_layers": len(stack.layers),
        "num_attention_heads": layer.attention.num_heads,
        "intermediate_size": feedforward.intermediate_size,
        "hidden_act": activation_name(feedforward.activation),
        "attention_dropout": layer.attention.dropout,
        "layer_norm_eps": layer.norm.eps,
    }


# --- the text tower -------------------------------------------------------------------------------------------------


def read_text(config: ConfigReader) -> tuple[Encoder.Config, Pooling.Config]:
    hidden, positions = config.integer("hidden_size", 512), config.integer("max_position_embeddings", 77)
    stack = _read_layers(config, hidden, 8, 2048, mask=Causal(), norm=True)
    learned = Learned.Config(positions, hidden, standard_deviation=0.01)
    embedding = TokenEmbedding.Config(config.integer("vocab_size", 49408), hidden, learned)
    end = config.integer("eos_token_id", 49407, least=0)
    # The first configs said 2, which is no end token of CLIP: there the end is the token with the largest id.
    pooling = Pooling.Config("largest_id") if end == 2 else Pooling.Config("end", end_token_id=end)
    return Encoder.Config(embedding, stack), pooling


def written_text(encoder: Encoder.Config, pooling: Any) -> dict[str, Any]:
    embedding = only_kind(encoder.embedding, TokenEmbedding.Config, "the embedding of texts")
    return {
        **written_stack(encoder.stack),
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": encoder.max_positions,
        "eos_token_id": 2 if pooling.method == "largest_id" else pooling.end_token_id,
    }


# --- the tower of pictures ------------------------------------------------------------------------------------------


def read_vision(config: ConfigReader) -> tuple[Encoder.Config, Pooling.Config]:
    hidden = config.integer("hidden_size", 768)
    stack = _read_layers(config, hidden, 12, 3072, mask=Bidirectional(), norm=False)
    norm = stack.layers[0].norm
    patch, channels = read_pair(config, "patch_size", 32), config.integer("num_channels", 3)
    embedding = PatchEmbedding.Config(
        hidden,
        patch,
        read_pair(config, "image_size", 224),
        channels,
        bias=False,
        norm=norm,
        standard_deviation=hidden**-0.5,
        patch_deviation=(3 * channels * math.prod(patch)) ** -0.5,  # of PyTorch's convolutions, as in their code
    )
    return Encoder.Config(embedding, stack), Pooling.Config("first", norm=norm)


def written_vision(encoder: Encoder.Config) -> dict[str, Any]:
    return {**written_stack(encoder.stack), **written_patches(encoder.embedding)}


# --- both -----------------------------------------------------------------------------------------------------------


def read(config: ConfigReader) -> DualEncoder.Config | EncoderOnly.Config:
    sections = {name: config.section(f"{name}_config_dict", f"{name}_config") for name in ("text", "vision")}
    size = config.integer("projection_dim", 512)
    scale = config.number("logit_scale_init_value", 2.6592)
    config.number("initializer_factor", 1.0)
    for section in sections.values():
        section.integer("projection_dim", size)  # counts where a tower stands alone
        section.number("dropout", 0.0)  # of older files, never used
    text, pooling = read_text(sections["text"])
    if read_task(config, TASKS) == "sequence-classification":
        encoder, _ = read_vision(sections["vision"])
        return EncoderOnly.Config(
            encoder, "sequence-classification", **classifier(config, encoder.hidden_size, "mean_patches", 1)
        )
    vision, vision_pooling = read_vision(sections["vision"])
    return DualEncoder.Config(
        Tower.Config(text, pooling, Linear.Config(text.hidden_size, size, bias=False)),
        Tower.Config(vision, vision_pooling, Linear.Config(vision.hidden_size, size, bias=False)),
        logit_scale=scale,
        max_positions=text.max_positions,
    )


def write(config: DualEncoder.Config | EncoderOnly.Config) -> dict[str, Any]:
    if isinstance(config, EncoderOnly.Config):
        return {
            "architectures": ["CLIPForImageClassification"],
            "vision_config": written_vision(config.encoder),
            **written_labels(config.num_labels or 0),
        }
    only_kind(config, DualEncoder.Config, "the network")
    text = only_kind(config.text, Tower.Config, "the tower of texts")
    image = only_kind(config.image, Tower.Config, "the tower of pictures")
    size = only_kind(text.projection, Linear.Config, "the projection").out_features
    return {
        "text_config": {**written_text(text.encoder, text.pooling), "projection_dim": size},
        "vision_config": {**written_vision(image.encoder), "projection_dim": size},
        "projection_dim": size,
        "logit_scale_init_value": config.logit_scale,
    }


def layer_rules(ours: str, theirs: str) -> list[Rule]:
    """Layers of a tower, which SigLIP names alike; both with a dot at the end."""
    names = {
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "attention_norm": "layer_norm1",
        "feedforward_norm": "layer_norm2",
        "feedforward.up": "mlp.fc1",
        "feedforward.down": "mlp.fc2",
    }
    return renamed(f"{ours}encoder.stack.layers.{{layer}}", f"{theirs}encoder.layers.{{layer}}", names)


def text_rules(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}encoder.embedding.tokens.weight", f"{theirs}embeddings.token_embedding.weight"),
        Rule(f"{ours}encoder.embedding.positions.weight", f"{theirs}embeddings.position_embedding.weight"),
        *layer_rules(ours, theirs),
        *(Rule(f"{ours}encoder.stack.norm.{kind}", f"{theirs}final_layer_norm.{kind}") for kind in ("weight", "bias")),
    ]


def vision_rules(ours: str, theirs: str, hidden: int) -> list[Rule]:
    embedding = f"{ours}encoder.embedding"
    norms = {f"{embedding}.norm": "pre_layrnorm", f"{ours}pooling.norm": "post_layernorm"}
    return [
        Rule(f"{embedding}.weight", f"{theirs}embeddings.patch_embedding.weight"),
        Rule(f"{embedding}.class_token", f"{theirs}embeddings.class_embedding", Reshape((1, hidden), (hidden,))),
        Rule(f"{embedding}.positions.weight", f"{theirs}embeddings.position_embedding.weight"),
        *layer_rules(ours, theirs),
        *(
            Rule(f"{our}.{kind}", f"{theirs}{their}.{kind}")
            for our, their in norms.items()
            for kind in ("weight", "bias")
        ),
    ]


# Buffers that older files hold
POSITION_IDS = r"((text|vision)_model\.)?embeddings\.position_ids"


def weight_table(config: DualEncoder.Config | EncoderOnly.Config) -> WeightTable:
    if isinstance(config, EncoderOnly.Config):
        rules = (
            *vision_rules("", "vision_model.", config.hidden_size),
            *(Rule(f"sequence_head.linear.{kind}", f"classifier.{kind}") for kind in ("weight", "bias")),
        )
        # The norm of the class token, which labels do not come from.
        return WeightTable(rules, (POSITION_IDS, r"vision_model\.post_layernorm\.(weight|bias)"))
    assert config.image is not None
    rules = (
        *text_rules("text.", "text_model."),
        *vision_rules("image.", "vision_model.", config.image.encoder.hidden_size),
        Rule("text.projection.weight", "text_projection.weight"),
        Rule("image.projection.weight", "visual_projection.weight"),
        Rule("logit_scale", "logit_scale"),
    )
    return WeightTable(rules, (POSITION_IDS,))


# --- one tower alone ------------------------------------------------------------------------------------------------


def read_tower(config: ConfigReader, side: str) -> EncoderOnly.Config | DualEncoder.Config:
    tasks = TEXT_TASKS if side == "text" else VISION_TASKS
    size = config.integer("projection_dim", 512)
    config.number("initializer_factor", 1.0)
    config.number("dropout", 0.0)
    encoder, pooling = read_text(config) if side == "text" else read_vision(config)
    if read_task(config, tasks) == "features":
        return EncoderOnly.Config(encoder, "features", pooling, max_positions=encoder.max_positions)
    tower = Tower.Config(encoder, pooling, Linear.Config(encoder.hidden_size, size, bias=False))
    if side == "text":
        return DualEncoder.Config(text=tower, max_positions=encoder.max_positions)
    return DualEncoder.Config(image=tower)


def write_tower(config: EncoderOnly.Config | DualEncoder.Config, side: str) -> dict[str, Any]:
    tower: Any = config
    if isinstance(config, DualEncoder.Config):
        tower = only_kind(config.text if side == "text" else config.image, Tower.Config, f"the {side} tower")
    values = written_text(tower.encoder, tower.pooling) if side == "text" else written_vision(tower.encoder)
    names = list(TEXT_TASKS if side == "text" else VISION_TASKS)
    if isinstance(config, EncoderOnly.Config):
        return {**values, "architectures": [names[0]]}
    size = only_kind(tower.projection, Linear.Config, "the projection").out_features
    return {**values, "projection_dim": size, "architectures": [names[1]]}


def tower_weight_table(config: EncoderOnly.Config | DualEncoder.Config, side: str) -> WeightTable:
    alone = isinstance(config, EncoderOnly.Config)
    tower: Any = config if alone else getattr(config, "text" if side == "text" else "image")
    ours = "" if alone else ("text." if side == "text" else "image.")
    theirs = f"{side}_model."
    rules = text_rules(ours, theirs) if side == "text" else vision_rules(ours, theirs, tower.encoder.hidden_size)
    projection = "text_projection" if side == "text" else "visual_projection"
    rules.append(Rule(f"{ours}projection.weight", f"{projection}.weight"))
    # A file of both towers holds these too.
    other = "vision_model" if side == "text" else "text_model"
    ignored = [POSITION_IDS, rf"{other}\..*", "logit_scale", r"(text|visual)_projection\.weight" if alone else r"-"]
    return WeightTable(tuple(rules), tuple(ignored), theirs, not alone)


def tower_family(side: str) -> Family:
    tasks = TEXT_TASKS if side == "text" else VISION_TASKS
    return Family(
        f"clip_{side}_model",
        tuple(tasks),
        partial(read_tower, side=side),
        partial(write_tower, side=side),
        partial(tower_weight_table, side=side),
    )


family = Family("clip", tuple(TASKS), read, write, weight_table)
