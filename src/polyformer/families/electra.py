"""ELECTRA (Clark et al., 2020): the generator guesses masked tokens, the discriminator tells which were replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyformer.core import (
    Encoder,
    EncoderOnly,
    Head,
    LayerNorm,
    Learned,
    Linear,
    MaskedTokenHead,
    Pooling,
    TokenEmbedding,
    TokenHead,
    Transform,
)
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.bert import (
    OLD_NORM_NAMES,
    embedding_rules,
    layer_rules,
    read_classifier_dropout,
    read_embedding,
    read_stack,
    written_embedding,
    written_heads,
    written_stack,
)
from polyformer.families.heads import head_dropout, read_task, simple_sequence_head, simple_token_head, written_task
from polyformer.families.weights import Rule, WeightTable

TASKS = {
    "ElectraModel": "features",
    "ElectraForMaskedLM": "masked-lm",
    "ElectraForPreTraining": "replaced-token-detection",
    "ElectraForSequenceClassification": "sequence-classification",
    "ElectraForTokenClassification": "token-classification",
    "ElectraForQuestionAnswering": "question-answering",
    "ElectraForMultipleChoice": "multiple-choice",
}


def read(config: ConfigReader) -> EncoderOnly.Config:
    task = read_task(config, TASKS)
    config.only("is_decoder", False)
    stack = read_stack(config)
    layer = stack.layers[0]
    hidden, dropout = layer.norm.size, read_classifier_dropout(config)
    size = config.integer("embedding_size", hidden)
    max_positions = config.integer("max_position_embeddings", 512)
    embedding = read_embedding(config, positions=Learned.Config(max_positions, size))
    if size != hidden:
        embedding = replace(embedding, projection=Linear.Config(size, hidden, True))
    tied = config.flag("tie_word_embeddings", True)
    for key, only in (("summary_type", "first"), ("summary_use_proj", True), ("summary_activation", "gelu")):
        config.only(key, only)
    choice_dropout = config.number("summary_last_dropout", 0.1)
    masked_head = None
    if task == "masked-lm":
        transform = Transform.Config(hidden, size, "gelu", LayerNorm.Config(size, layer.norm.eps))
        masked_head = MaskedTokenHead.Config(transform, Head.Config(size, embedding.vocab_size, tied, bias=True))
    token_head = simple_token_head(config, task, hidden, dropout)
    if task == "replaced-token-detection":
        transform = Transform.Config(hidden, hidden, layer.feedforward.activation)  # type: ignore[union-attr]
        token_head = TokenHead.Config(hidden, 1, transform)
    pooling = None
    if task in ("sequence-classification", "multiple-choice"):
        pooling = Pooling.Config("first", transform=Transform.Config(hidden, hidden, "gelu"))
        if task == "sequence-classification":
            pooling = replace(pooling, dropout=dropout)
    return EncoderOnly.Config(
        Encoder.Config(embedding, stack),
        task,
        pooling=pooling,
        masked_head=masked_head,
        token_head=token_head,
        sequence_head=simple_sequence_head(
            config, task, hidden, choice_dropout if task == "multiple-choice" else dropout
        ),
        max_positions=max_positions,
    )


def write(config: EncoderOnly.Config) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    embedding = only_kind(config.encoder.embedding, TokenEmbedding.Config, "the embedding")
    choice = {"summary_last_dropout": head_dropout(config)}
    return {
        **written_embedding(embedding),
        "embedding_size": embedding.hidden_size,
        **written_stack(config.encoder.stack),
        **(choice if config.task == "multiple-choice" else written_heads(config)),
        **written_task(config, TASKS),
    }


def weight_table(config: EncoderOnly.Config) -> WeightTable:
    token = {
        "question-answering": "qa_outputs",
        "replaced-token-detection": "discriminator_predictions.dense_prediction",
    }
    judged = config.task == "sequence-classification"
    heads = {
        "encoder.embedding.projection": "electra.embeddings_project",
        "masked_head.transform.linear": "generator_predictions.dense",
        "masked_head.transform.norm": "generator_predictions.LayerNorm",
        "masked_head.head": "generator_lm_head",
        "token_head.transform.linear": "discriminator_predictions.dense",
        "token_head.linear": token.get(config.task, "classifier"),
        "pooling.transform.linear": "classifier.dense" if judged else "sequence_summary.summary",
        "sequence_head.linear": "classifier.out_proj" if judged else "classifier",
    }
    rules = (
        *embedding_rules("electra."),
        *layer_rules("electra."),
        *(Rule(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in heads.items() for kind in ("weight", "bias")),
    )
    ignored = [r"(electra\.)?embeddings\.position_ids"]
    if config.masked_head is None or config.masked_head.head.tied:
        ignored.append(r"generator_lm_head\.weight")
    if config.task == "features":
        ignored.append(r"(generator|discriminator)_(predictions|lm_head)\..*")
    return WeightTable(rules, tuple(ignored), "electra.", config.task != "features", OLD_NORM_NAMES)


family = Family("electra", tuple(TASKS), read, write, weight_table)
