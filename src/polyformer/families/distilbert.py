"""DistilBERT (Sanh et al., 2019): a BERT with half the layers, without types of tokens and without a pooler."""

from __future__ import annotations

from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Encoder,
    EncoderOnly,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    Learned,
    MaskedTokenHead,
    Pooling,
    SequenceHead,
    Stack,
    TokenEmbedding,
    TokenHead,
    Transform,
)
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.heads import count_labels, head_dropout, read_task, written_task
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.weights import Rule, WeightTable

TASKS = {
    "DistilBertModel": "features",
    "DistilBertForMaskedLM": "masked-lm",
    "DistilBertForSequenceClassification": "sequence-classification",
    "DistilBertForTokenClassification": "token-classification",
    "DistilBertForQuestionAnswering": "question-answering",
    "DistilBertForMultipleChoice": "multiple-choice",
}
NORM_EPS = 1e-12


def read(config: ConfigReader) -> EncoderOnly.Config:
    task = read_task(config, TASKS)
    hidden, dropout = config.integer("dim", 768), config.number("dropout", 0.1)
    config.flag("sinusoidal_pos_embds", False)  # how the table began; it is in the file like any other
    norm = LayerNorm.Config(hidden, NORM_EPS)
    activation = config.choose("activation", ACTIVATION_NAMES, "gelu")
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            config.integer("n_heads", 12),
            mask=Bidirectional(),
            bias=True,
            dropout=config.number("attention_dropout", 0.1),
        ),
        feedforward=FeedForward.Config(hidden, config.integer("hidden_dim", 3072), activation, bias=True),
        norm=norm,
        placement="post",
        dropout=dropout,
    )
    vocab_size, max_positions = config.integer("vocab_size", 30522), config.integer("max_position_embeddings", 512)
    embedding = TokenEmbedding.Config(vocab_size, hidden, Learned.Config(max_positions, hidden), None, norm, dropout)
    tied = config.flag("tie_word_embeddings", True)
    masked_head = None
    if task == "masked-lm":
        transform = Transform.Config(hidden, hidden, activation, norm)
        masked_head = MaskedTokenHead.Config(transform, Head.Config(hidden, vocab_size, tied, bias=True))
    answer_dropout = config.number("qa_dropout", 0.1)
    label_dropout = config.number("seq_classif_dropout", 0.2)
    token_head = None
    if task == "token-classification":
        token_head = TokenHead.Config(hidden, count_labels(config), dropout=dropout)
    elif task == "question-answering":
        token_head = TokenHead.Config(hidden, 2, dropout=answer_dropout)
    pooling = sequence_head = None
    if task in ("sequence-classification", "multiple-choice"):
        pooling = Pooling.Config("first", transform=Transform.Config(hidden, hidden, "relu"))
        count = 1 if task == "multiple-choice" else count_labels(config)
        sequence_head = SequenceHead.Config(hidden, count, dropout=label_dropout)
    return EncoderOnly.Config(
        Encoder.Config(embedding, Stack.Config((layer,) * config.integer("n_layers", 6))),
        task,
        pooling=pooling,
        masked_head=masked_head,
        token_head=token_head,
        sequence_head=sequence_head,
        max_positions=max_positions,
    )


def write(config: EncoderOnly.Config) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    embedding = only_kind(config.encoder.embedding, TokenEmbedding.Config, "the embedding")
    layer = config.encoder.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    values = {
        "vocab_size": embedding.vocab_size,
        "max_position_embeddings": only_kind(embedding.positions, Learned.Config, "the position scheme").max_positions,
        "dim": layer.norm.size,
        "n_layers": config.num_layers,
        "n_heads": layer.attention.num_heads,
        "hidden_dim": feedforward.intermediate_size,
        "activation": activation_name(feedforward.activation),
        "dropout": layer.dropout,
        "attention_dropout": layer.attention.dropout,
        "tie_word_embeddings": config.masked_head.head.tied if config.masked_head else True,
        **written_task(config, TASKS),
    }
    if config.task == "question-answering":
        values["qa_dropout"] = head_dropout(config)
    elif config.sequence_head is not None:
        values["seq_classif_dropout"] = head_dropout(config)
    return values


def weight_table(config: EncoderOnly.Config) -> WeightTable:
    embedding = {"tokens": "word_embeddings", "positions": "position_embeddings", "norm": "LayerNorm"}
    layer = {
        "attention.query": "attention.q_lin",
        "attention.key": "attention.k_lin",
        "attention.value": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "feedforward.up": "ffn.lin1",
        "feedforward.down": "ffn.lin2",
        "feedforward_norm": "output_layer_norm",
    }
    heads = {
        "masked_head.transform.linear": "vocab_transform",
        "masked_head.transform.norm": "vocab_layer_norm",
        "pooling.transform.linear": "pre_classifier",
        "sequence_head.linear": "classifier",
        "token_head.linear": "qa_outputs" if config.task == "question-answering" else "classifier",
    }
    rules = (
        *renamed("encoder.embedding", "distilbert.embeddings", embedding),
        *renamed("encoder.stack.layers.{layer}", "distilbert.transformer.layer.{layer}", layer),
        *(Rule(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in heads.items() for kind in ("weight", "bias")),
        *(Rule(f"masked_head.head.{kind}", f"vocab_projector.{kind}") for kind in ("weight", "bias")),
    )
    ignored = [r"(distilbert\.)?embeddings\.position_ids"]
    if config.masked_head is None or config.masked_head.head.tied:
        ignored.append(r"vocab_projector\.weight")
    if config.task == "features":
        ignored.append(r"vocab_(transform|layer_norm|projector)\..*")
    return WeightTable(rules, tuple(ignored), "distilbert.", config.task != "features")


family = Family("distilbert", tuple(TASKS), read, write, weight_table)
