"""BERT (Devlin et al., 2019), with every head it is published with."""

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
    Stack,
    TokenEmbedding,
    Transform,
)
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.heads import (
    head_dropout,
    read_task,
    simple_sequence_head,
    simple_token_head,
    written_task,
)
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.weights import Repeated, Rule, WeightTable

TASKS = {
    "BertModel": "features",
    "BertForMaskedLM": "masked-lm",
    "BertForPreTraining": "pretraining",
    "BertForNextSentencePrediction": "next-sentence",
    "BertForSequenceClassification": "sequence-classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
}
# The vector of the first token goes through a layer of its own where a whole text is judged.
POOLED_TASKS = ("features", "pretraining", "next-sentence", "sequence-classification", "multiple-choice")

# TensorFlow's names of the two vectors of a LayerNorm, in the oldest files
OLD_NORM_NAMES = ((r"(.*LayerNorm)\.weight", r"\1.gamma"), (r"(.*LayerNorm)\.bias", r"\1.beta"))


def read_stack(config: ConfigReader) -> Stack.Config:
    """The layers, which RoBERTa and ELECTRA share: post-norm, biases everywhere."""
    hidden = config.integer("hidden_size", 768)
    # Relative positions were an option once; no published checkpoint uses them.
    config.only("position_embedding_type", "absolute")
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            config.integer("num_attention_heads", 12),
            mask=Bidirectional(),
            bias=True,
            dropout=config.number("attention_probs_dropout_prob", 0.1),
        ),
        feedforward=FeedForward.Config(
            hidden,
            config.integer("intermediate_size", 3072),
            config.choose("hidden_act", ACTIVATION_NAMES, "gelu"),
            bias=True,
        ),
        norm=LayerNorm.Config(hidden, config.number("layer_norm_eps", 1e-12)),
        placement="post",
        dropout=config.number("hidden_dropout_prob", 0.1),
    )
    return Stack.Config((layer,) * config.integer("num_hidden_layers", 12))


def read_embedding(
    config: ConfigReader, *, positions: Learned.Config, vocab_size: int = 30522, types: int = 2
) -> TokenEmbedding.Config:
    """Tokens, positions and types of tokens, added and normalized."""
    size = positions.hidden_size
    return TokenEmbedding.Config(
        config.integer("vocab_size", vocab_size),
        size,
        positions,
        norm=LayerNorm.Config(size, config.number("layer_norm_eps", 1e-12)),
        dropout=config.number("hidden_dropout_prob", 0.1),
        token_types=config.integer("type_vocab_size", types, least=0),
    )


def read_classifier_dropout(config: ConfigReader) -> float:
    dropout: float = config.number("classifier_dropout", config.number("hidden_dropout_prob", 0.1))
    return dropout


def has_pooler(config: ConfigReader, task: str) -> bool:
    """Whether the model alone has the layer that pools, which some files leave out; with a head it is needed."""
    return bool(config.flag("add_pooling_layer", True)) or task != "features"


def read(config: ConfigReader) -> EncoderOnly.Config:
    task = read_task(config, TASKS)
    config.only("is_decoder", False)
    stack = read_stack(config)
    norm = stack.layers[0].norm
    hidden, dropout = norm.size, read_classifier_dropout(config)
    max_positions = config.integer("max_position_embeddings", 512)
    embedding = read_embedding(config, positions=Learned.Config(max_positions, hidden))
    tied = config.flag("tie_word_embeddings", True)
    masked_head = None
    if task in ("masked-lm", "pretraining"):
        transform = Transform.Config(hidden, hidden, stack.layers[0].feedforward.activation, norm)  # type: ignore[union-attr]
        masked_head = MaskedTokenHead.Config(transform, Head.Config(hidden, embedding.vocab_size, tied, bias=True))
    return EncoderOnly.Config(
        Encoder.Config(embedding, stack),
        task,
        pooling=Pooling.Config("first", transform=Transform.Config(hidden, hidden, "tanh"))
        if task in POOLED_TASKS and has_pooler(config, task)
        else None,
        masked_head=masked_head,
        token_head=simple_token_head(config, task, hidden, dropout),
        sequence_head=simple_sequence_head(config, task, hidden, dropout),
        max_positions=max_positions,
    )


def written_stack(stack: Stack.Config) -> dict[str, Any]:
    layer = stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    return {
        "hidden_size": layer.norm.size,
        "num_hidden_layers": len(stack.layers),
        "num_attention_heads": layer.attention.num_heads,
        "intermediate_size": feedforward.intermediate_size,
        "hidden_act": activation_name(feedforward.activation),
        "hidden_dropout_prob": layer.dropout,
        "attention_probs_dropout_prob": layer.attention.dropout,
        "layer_norm_eps": layer.norm.eps,
    }


def written_embedding(embedding: TokenEmbedding.Config) -> dict[str, Any]:
    positions = only_kind(embedding.positions, Learned.Config, "the position scheme")
    return {
        "vocab_size": embedding.vocab_size,
        "type_vocab_size": embedding.token_types,
        "max_position_embeddings": positions.max_positions + positions.offset,
    }


def written_heads(config: EncoderOnly.Config) -> dict[str, Any]:
    return {
        "classifier_dropout": head_dropout(config) if config.num_labels else None,
        "tie_word_embeddings": config.masked_head.head.tied if config.masked_head else True,
    }


def written_pooler(config: EncoderOnly.Config) -> dict[str, Any]:
    return {"add_pooling_layer": False} if config.task == "features" and config.pooling is None else {}


def write(config: EncoderOnly.Config) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    embedding = only_kind(config.encoder.embedding, TokenEmbedding.Config, "the embedding")
    return {
        **written_embedding(embedding),
        **written_stack(config.encoder.stack),
        **written_heads(config),
        **written_pooler(config),
        **written_task(config, TASKS),
    }


def embedding_rules(prefix: str) -> list[Rule]:
    names = {
        "tokens": "word_embeddings",
        "positions": "position_embeddings",
        "token_types": "token_type_embeddings",
        "norm": "LayerNorm",
    }
    return renamed("encoder.embedding", f"{prefix}embeddings", names)


def layer_rules(prefix: str) -> list[Rule]:
    """The names of the layers, which RoBERTa and ELECTRA share."""
    ours, theirs = "encoder.stack.layers.{layer}", f"{prefix}encoder.layer.{{layer}}"
    names = {
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "feedforward.up": "intermediate.dense",
        "feedforward.down": "output.dense",
        "feedforward_norm": "output.LayerNorm",
    }
    return renamed(ours, theirs, names)


def weight_table(config: EncoderOnly.Config) -> WeightTable:
    tied = config.masked_head is None or config.masked_head.head.tied
    ignored = [r"(bert\.)?embeddings\.position_ids"]
    if tied:
        bias = Rule("masked_head.head.bias", "cls.predictions.bias")
        ignored.append(r"cls\.predictions\.decoder\.(weight|bias)")
    else:
        names = ("cls.predictions.bias", "cls.predictions.decoder.bias")
        bias = Rule("masked_head.head.bias", names, Repeated(2))
    if config.pooling is None:
        ignored.append(r"(bert\.)?pooler\.dense\.(weight|bias)")
    if config.task == "features":
        # The model alone, out of a file that also has the heads of pretraining.
        ignored.append(r"cls\..*")
    sequence = "cls.seq_relationship" if config.task in ("pretraining", "next-sentence") else "classifier"
    token = "qa_outputs" if config.task == "question-answering" else "classifier"
    heads = {
        "masked_head.transform.linear": "cls.predictions.transform.dense",
        "masked_head.transform.norm": "cls.predictions.transform.LayerNorm",
        "token_head.linear": token,
        "sequence_head.linear": sequence,
        "pooling.transform.linear": "bert.pooler.dense",
    }
    rules = (
        *embedding_rules("bert."),
        *layer_rules("bert."),
        *(Rule(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in heads.items() for kind in ("weight", "bias")),
        bias,
        Rule("masked_head.head.weight", "cls.predictions.decoder.weight"),
    )
    return WeightTable(rules, tuple(ignored), "bert.", config.task != "features", OLD_NORM_NAMES)


family = Family(
    name="bert",
    architectures=tuple(TASKS),
    read=read,
    write=write,
    weight_table=weight_table,
)
