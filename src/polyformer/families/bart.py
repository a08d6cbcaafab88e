"""BART (Lewis et al., 2020), and the layout of weights that mBART, PEGASUS and Marian share with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    Learned,
    Pooling,
    SequenceHead,
    Sinusoidal,
    Stack,
    TokenEmbedding,
    TokenHead,
    Transform,
)
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.heads import read_task, written_task
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.weights import Reshape, Rule, WeightTable


@dataclass(frozen=True)
class Layout:
    """What sets the families of this layout apart.

    Attributes:
        name: what the names of their classes begin with.
        placement: of the norms.
        sinusoidal: whether positions are sinusoids; else they are learned, from the third row of a table on.
        embedding_norm: whether the embedding ends with a norm.
        final_norm: whether each stack ends with one.
        heads: whether there are classes for classification and question answering.
        model_class: what the name of the class that generates ends with.
        start: what a target begins with where the config does not say.
    """

    name: str
    placement: str
    sinusoidal: bool = False
    embedding_norm: bool = True
    final_norm: bool = False
    heads: bool = True
    model_class: str = "ForConditionalGeneration"
    start: int = 2

    @property
    def tasks(self) -> dict[str, str]:
        """Class name -> task."""
        found = {f"{self.name}{self.model_class}": "generation", f"{self.name}Model": "features"}
        if self.heads:
            found[f"{self.name}ForSequenceClassification"] = "sequence-classification"
            found[f"{self.name}ForQuestionAnswering"] = "question-answering"
        return found


BART = Layout("Bart", "post")


def read(config: ConfigReader, layout: Layout = BART) -> EncoderDecoder.Config:
    task = read_task(config, layout.tasks) if config("architectures", None) else "generation"
    config.only("tie_word_embeddings", True)
    config.only("normalize_before", layout.placement == "pre")
    config.only("normalize_embedding", layout.embedding_norm)
    config.only("add_final_layer_norm", layout.final_norm)
    config.only("static_position_embeddings", layout.sinusoidal)
    config.only("add_bias_logits", False)
    for key in ("encoder_layerdrop", "decoder_layerdrop"):
        config.number(key, 0.0)  # whole layers left out in training
    hidden, limit = config.integer("d_model", 1024), config.integer("max_position_embeddings", 1024)
    vocab_size = config.integer("vocab_size", 50265)
    target_vocab_size = config.integer("decoder_vocab_size", vocab_size)
    shared = config.flag("share_encoder_decoder_embeddings", True)
    scale = hidden**0.5 if config.flag("scale_embedding", False) else None
    norm = LayerNorm.Config(hidden)
    dropout = config.number("dropout", 0.1)
    positions = Sinusoidal.Config(hidden, interleaved=False) if layout.sinusoidal else Learned.Config(limit, hidden, 2)

    def embedding(size: int) -> TokenEmbedding.Config:
        return TokenEmbedding.Config(size, hidden, positions, scale, norm if layout.embedding_norm else None, dropout)

    def stack(side: str, *, cross: bool) -> Stack.Config:
        attention = {
            "hidden_size": hidden,
            "num_heads": config.integer(f"{side}_attention_heads", 16),
            "bias": True,
            "dropout": config.number("attention_dropout", 0.0),
        }
        looking = Attention.Config(**attention, source_size=hidden, mask=Bidirectional()) if cross else None
        layer = Layer.Config(
            attention=Attention.Config(**attention) if cross else Attention.Config(**attention, mask=Bidirectional()),
            feedforward=FeedForward.Config(
                hidden,
                config.integer(f"{side}_ffn_dim", 4096),
                config.choose("activation_function", ACTIVATION_NAMES, "gelu"),
                bias=True,
                dropout=config.number("activation_dropout", 0.0),
            ),
            norm=norm,
            placement=layout.placement,
            cross_attention=looking,
            dropout=dropout,
        )
        return Stack.Config((layer,) * config.integer(f"{side}_layers", 12), norm if layout.final_norm else None)

    heads: dict[str, Any] = {}
    label_dropout = config.number("classifier_dropout", 0.0)
    if task == "sequence-classification":
        names = config("id2label", None, kind=dict)
        end = config.integer("eos_token_id", 2, least=0)
        transform = Transform.Config(hidden, hidden, "tanh")
        heads["pooling"] = Pooling.Config("last_end", transform=transform, dropout=label_dropout, end_token_id=end)
        count = len(names) if names else config.integer("num_labels", 3)
        heads["sequence_head"] = SequenceHead.Config(hidden, count, dropout=label_dropout)
    elif task == "question-answering":
        heads["token_head"] = TokenHead.Config(hidden, 2)
    start = config.integer("decoder_start_token_id", layout.start, least=0)
    return EncoderDecoder.Config(
        encoder=Encoder.Config(embedding(vocab_size), stack("encoder", cross=False)),
        decoder=Decoder.Config(embedding(target_vocab_size), stack("decoder", cross=True)),
        head=Head.Config(hidden, target_vocab_size, bias=True) if task == "generation" else None,
        shared_embedding=shared,
        decoder_start_token_id=start,
        max_positions=limit,
        max_source_positions=limit,
        task=task,
        **heads,
    )


def write(config: EncoderDecoder.Config, layout: Layout = BART) -> dict[str, Any]:
    only_kind(config, EncoderDecoder.Config, "the network")
    embedding = only_kind(config.encoder.embedding, TokenEmbedding.Config, "the source's embedding")
    values: dict[str, Any] = {
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": config.max_positions,
        "d_model": embedding.hidden_size,
        "scale_embedding": embedding.scale is not None,
        "dropout": embedding.dropout,
        "decoder_start_token_id": config.decoder_start_token_id,
        "is_encoder_decoder": True,
    }
    for side, stack in (("encoder", config.encoder.stack), ("decoder", config.decoder.stack)):
        layer = stack.layers[0]
        feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
        values[f"{side}_layers"] = len(stack.layers)
        values[f"{side}_attention_heads"] = layer.attention.num_heads
        values[f"{side}_ffn_dim"] = feedforward.intermediate_size
        values["activation_function"] = activation_name(feedforward.activation)
        values["activation_dropout"] = feedforward.dropout
        values["attention_dropout"] = layer.attention.dropout
    if config.pooling is not None:
        values["eos_token_id"] = config.pooling.end_token_id
    if config.sequence_head is not None:
        values["classifier_dropout"] = config.sequence_head.dropout
    return {**values, **written_task(config, layout.tasks)}


ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}


def layer_rules(prefix: str, side: str) -> list[Rule]:
    """The layers of one side ("encoder" or "decoder")."""
    names = {
        **{f"attention.{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()},
        **{f"cross_attention.{ours}": f"encoder_attn.{theirs}" for ours, theirs in ATTENTION.items()},
        "attention_norm": "self_attn_layer_norm",
        "cross_attention_norm": "encoder_attn_layer_norm",
        "feedforward.up": "fc1",
        "feedforward.down": "fc2",
        "feedforward_norm": "final_layer_norm",
    }
    return [
        *renamed(f"{side}.stack.layers.{{layer}}", f"{prefix}{side}.layers.{{layer}}", names),
        *renamed(f"{side}.stack", f"{prefix}{side}", {"norm": "layer_norm"}),
        *renamed(f"{side}.embedding", f"{prefix}{side}", {"norm": "layernorm_embedding"}),
        Rule(f"{side}.embedding.positions.weight", f"{prefix}{side}.embed_positions.weight"),
    ]


def weight_table(config: EncoderDecoder.Config) -> WeightTable:
    prefix, vocab_size = "model.", config.vocab_size
    ignored = [
        r"lm_head\.weight",
        r"(model\.)?(encoder|decoder)\.(version|embed_positions\._float_tensor)",
    ]
    if config.shared_embedding:
        tables = [Rule("encoder.embedding.tokens.weight", f"{prefix}shared.weight")]
        ignored.append(r"(model\.)?(encoder|decoder)\.embed_tokens\.weight")
    else:
        tables = [
            Rule(f"{side}.embedding.tokens.weight", f"{prefix}{side}.embed_tokens.weight")
            for side in ("encoder", "decoder")
        ]
        ignored.append(r"(model\.)?shared\.weight")
    if isinstance(config.decoder.embedding.positions, Sinusoidal.Config):
        ignored.append(r"(model\.)?(encoder|decoder)\.embed_positions\.weight")  # computed, not learned
    if config.head is None:
        ignored.append("final_logits_bias")
    heads = {
        "pooling.transform.linear": "classification_head.dense",
        "sequence_head.linear": "classification_head.out_proj",
        "token_head.linear": "qa_outputs",
    }
    rules = (
        *tables,
        *layer_rules(prefix, "encoder"),
        *layer_rules(prefix, "decoder"),
        *(Rule(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in heads.items() for kind in ("weight", "bias")),
        Rule("head.bias", "final_logits_bias", Reshape((vocab_size,), (1, vocab_size))),
    )
    return WeightTable(rules, tuple(ignored), prefix, config.task != "features")


family = Family("bart", tuple(BART.tasks), read, write, weight_table)
