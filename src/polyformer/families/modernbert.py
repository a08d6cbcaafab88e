"""ModernBERT (Warner et al., 2024): rotary positions, gated layers, and windows of attention between full ones."""

from __future__ import annotations

from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    BidirectionalWindow,
    Encoder,
    EncoderOnly,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    MaskedTokenHead,
    Pooling,
    Rotary,
    SequenceHead,
    Stack,
    TokenEmbedding,
    TokenHead,
    Transform,
)
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.heads import count_labels, head_dropout, read_task, written_task
from polyformer.families.parts import (
    ACTIVATION_NAMES,
    activation_name,
    renamed,
    rotary_from_parameters,
    write_rotary,
)
from polyformer.families.weights import Rule, Split, WeightTable

TASKS = {
    "ModernBertModel": "features",
    "ModernBertForMaskedLM": "masked-lm",
    "ModernBertForSequenceClassification": "sequence-classification",
    "ModernBertForTokenClassification": "token-classification",
    "ModernBertForQuestionAnswering": "question-answering",
    "ModernBertForMultipleChoice": "multiple-choice",
}
PADDING = 50283  # the token of padding where a config does not say
POOLINGS = {"cls": "first", "mean": "mean"}
FULL, WINDOW = "full_attention", "sliding_attention"
BASES = {FULL: ("global_rope_theta", 160000.0), WINDOW: ("local_rope_theta", 10000.0)}


def read_kinds(config: ConfigReader) -> list[str]:
    """Of each layer: full, or a window."""
    count, every = config.integer("num_hidden_layers", 22), config.integer("global_attn_every_n_layers", 3)
    usual = [WINDOW if number % every else FULL for number in range(count)]
    kinds: list[str] = config("layer_types", usual, kind=list)
    if len(kinds) != count or not set(kinds) <= {FULL, WINDOW}:
        raise ConfigError(f"{config.where}: layer_types must name {FULL!r} or {WINDOW!r} for each of {count} layers")
    return kinds


def read_positions(config: ConfigReader, kind: str, size: int, limit: int) -> Rotary.Config:
    key, usual = BASES[kind]
    values = dict((config("rope_parameters", None, kind=dict) or {}).get(kind) or {})
    values.update(config("rope_scaling", None, kind=dict) or {})  # counts where both are there, as in transformers
    base = float(values.get("rope_theta") or config.number(key, usual))
    return rotary_from_parameters(config, values, size, base, max_positions=limit)


def read(config: ConfigReader) -> EncoderOnly.Config:
    task = read_task(config, TASKS)
    hidden, limit = config.integer("hidden_size", 768), config.integer("max_position_embeddings", 8192)
    heads = config.integer("num_attention_heads", 12)
    norm = LayerNorm.Config(hidden, config.number("norm_eps", 1e-5), config.flag("norm_bias", False))
    # What training begins with, how a loss is computed, which kernels run: nothing of what the network gives.
    for key in (
        "initializer_cutoff_factor",
        "sparse_prediction",
        "sparse_pred_ignore_index",
        "deterministic_flash_attn",
    ):
        config(key, None)
    for key in ("reference_compile", "repad_logits_with_grad", "cls_token_id", "layer_norm_eps"):
        config(key, None)
    config.only("position_embedding_type", "absolute")  # stands in published files, though positions are rotary
    kinds, distance = read_kinds(config), config.integer("local_attention", 128) // 2
    attention_dropout = config.number("attention_dropout", 0.0)  # of the weights, and of what attention gives
    feedforward = FeedForward.Config(
        hidden,
        config.integer("intermediate_size", 1152),
        config.choose("hidden_activation", ACTIVATION_NAMES, "gelu"),
        gated=True,
        bias=config.flag("mlp_bias", False),
        dropout=config.number("mlp_dropout", 0.0),
    )

    def layer(number: int, kind: str) -> Layer.Config:
        attention = Attention.Config(
            hidden,
            heads,
            mask=Bidirectional() if kind == FULL else BidirectionalWindow(distance),
            positions=read_positions(config, kind, hidden // heads, limit),
            bias=config.flag("attention_bias", False),
            dropout=attention_dropout,
            output_dropout=attention_dropout,
        )
        return Layer.Config(attention, feedforward, norm, attention_norm=number > 0)

    for kind in (FULL, WINDOW):
        read_positions(config, kind, hidden // heads, limit)  # also where no layer is of this kind
    stack = Stack.Config(tuple(layer(number, kind) for number, kind in enumerate(kinds)), norm)
    vocab_size = config.integer("vocab_size", 50368)
    embedding = TokenEmbedding.Config(vocab_size, hidden, norm=norm, dropout=config.number("embedding_dropout", 0.0))
    act = config.choose("classifier_activation", ACTIVATION_NAMES, "gelu")
    transform = Transform.Config(hidden, hidden, act, norm, config.flag("classifier_bias", False))
    dropout = config.number("classifier_dropout", 0.0)
    method = config.choose("classifier_pooling", POOLINGS, "first")
    output = Head.Config(
        hidden, vocab_size, config.flag("tie_word_embeddings", True), bias=config.flag("decoder_bias", True)
    )
    parts: dict[str, Any] = {}
    if task == "masked-lm":
        parts["masked_head"] = MaskedTokenHead.Config(transform, output)
    elif task in ("token-classification", "question-answering"):
        parts["token_head"] = TokenHead.Config(hidden, count_labels(config), transform, dropout)
    elif task in ("sequence-classification", "multiple-choice"):
        labels = 1 if task == "multiple-choice" else count_labels(config)
        parts["pooling"] = Pooling.Config(method, transform=transform)
        parts["sequence_head"] = SequenceHead.Config(hidden, labels, dropout)
    return EncoderOnly.Config(Encoder.Config(embedding, stack), task, max_positions=limit, **parts)


def write(config: EncoderOnly.Config) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    embedding = only_kind(config.encoder.embedding, TokenEmbedding.Config, "the embedding")
    layers = config.encoder.stack.layers
    attention = layers[0].attention
    feedforward = only_kind(layers[0].feedforward, FeedForward.Config, "the feed-forward part")
    kinds = [WINDOW if isinstance(layer.attention.mask, BidirectionalWindow) else FULL for layer in layers]
    windows = [layer.attention.mask for layer in layers if isinstance(layer.attention.mask, BidirectionalWindow)]
    positions = {}
    for kind, layer in zip(kinds, layers):
        rotary = write_rotary(layer.attention.positions)
        positions[kind] = {"rope_theta": rotary["rope_theta"], **(rotary["rope_scaling"] or {"rope_type": "default"})}
    values: dict[str, Any] = {
        "vocab_size": embedding.vocab_size,
        "hidden_size": embedding.hidden_size,
        "intermediate_size": feedforward.intermediate_size,
        "num_hidden_layers": len(layers),
        "num_attention_heads": attention.num_heads,
        "hidden_activation": activation_name(feedforward.activation),
        "max_position_embeddings": config.max_positions,
        "norm_eps": layers[0].norm.eps,
        "norm_bias": getattr(layers[0].norm, "bias", False),
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "mlp_bias": feedforward.bias,
        "mlp_dropout": feedforward.dropout,
        "embedding_dropout": embedding.dropout,
        "layer_types": kinds,
        "rope_parameters": positions,
        "local_attention": 2 * windows[0].distance if windows else 128,
        # For releases of transformers before 5
        **{BASES[kind][0]: found["rope_theta"] for kind, found in positions.items()},
    }
    if embedding.vocab_size <= PADDING:
        values["pad_token_id"] = None  # transformers would put it outside of the table
    if config.masked_head is not None:
        values["tie_word_embeddings"] = config.masked_head.head.tied
        values["decoder_bias"] = config.masked_head.head.bias
    pooling = None if config.pooling is None else only_kind(config.pooling, Pooling.Config, "the pooling")
    if pooling is not None:
        values["classifier_pooling"] = next((name for name, own in POOLINGS.items() if own == pooling.method), None)
    head: Any = config.masked_head or config.token_head or pooling
    if head is not None:
        transform = only_kind(head.transform, Transform.Config, "what stands before the scores")
        values["classifier_bias"] = transform.bias
        values["classifier_activation"] = activation_name(transform.activation or "gelu")
    if config.num_labels:
        values["classifier_dropout"] = head_dropout(config)
    return {**values, **written_task(config, TASKS)}


def weight_table(config: EncoderOnly.Config) -> WeightTable:
    ours, theirs = "encoder.stack.layers.{layer}", "model.layers.{layer}"
    layer = config.encoder.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    width = layer.attention.num_heads * layer.attention.head_dim
    fused = [f"{ours}.attention.{part}" for part in ("query", "key", "value")]
    gated = [f"{ours}.feedforward.{part}" for part in ("gate", "up")]
    names = {
        "attention.output": "attn.Wo",
        "attention_norm": "attn_norm",
        "feedforward.down": "mlp.Wo",
        "feedforward_norm": "mlp_norm",
    }
    heads = {"masked_head.transform": "head", "token_head.transform": "head", "pooling.transform": "head"}
    rules = [
        Rule("encoder.embedding.tokens.weight", "model.embeddings.tok_embeddings.weight"),
        *renamed("encoder.embedding", "model.embeddings", {"norm": "norm"}),
        *renamed(ours, theirs, names),
        *renamed("encoder.stack", "model", {"norm": "final_norm"}),
        Rule("masked_head.head.weight", "decoder.weight"),
        Rule("masked_head.head.bias", "decoder.bias"),
    ]
    for kind in ("weight", "bias"):
        rules += [
            Rule([f"{part}.{kind}" for part in fused], f"{theirs}.attn.Wqkv.{kind}", Split((width,) * 3)),
            Rule(
                [f"{part}.{kind}" for part in gated],
                f"{theirs}.mlp.Wi.{kind}",
                Split((feedforward.intermediate_size,) * 2),
            ),
            *(Rule(f"{our}.linear.{kind}", f"{their}.dense.{kind}") for our, their in heads.items()),
            *(Rule(f"{our}.norm.{kind}", f"{their}.norm.{kind}") for our, their in heads.items()),
            *(Rule(f"{head}.linear.{kind}", f"classifier.{kind}") for head in ("token_head", "sequence_head")),
        ]
    ignored = [r"decoder\.weight"] if config.masked_head is not None and config.masked_head.head.tied else []
    if config.task == "features":
        # The model alone, out of a file that also has the head of pretraining
        ignored += [r"head\..*", r"decoder\..*"]
    return WeightTable(tuple(rules), tuple(ignored), "model.", config.task != "features")


family = Family("modernbert", tuple(TASKS), read, write, weight_table)
