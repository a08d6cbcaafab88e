"""RoBERTa (Liu et al., 2019), and XLM-RoBERTa and CamemBERT, which are the same network: BERT with positions that are
counted from behind the padding id, and other heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from polyformer.core import (
    Encoder,
    EncoderOnly,
    Head,
    Learned,
    MaskedTokenHead,
    Pooling,
    TokenEmbedding,
    Transform,
)
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.bert import (
    OLD_NORM_NAMES,
    embedding_rules,
    has_pooler,
    layer_rules,
    read_classifier_dropout,
    read_embedding,
    read_stack,
    written_embedding,
    written_heads,
    written_pooler,
    written_stack,
)
from polyformer.families.heads import read_task, simple_sequence_head, simple_token_head, written_task
from polyformer.families.weights import Repeated, Rule, WeightTable


def tasks_of(name: str) -> dict[str, str]:
    """Class name -> task, for the classes that begin with ``name``."""
    return {
        f"{name}Model": "features",
        f"{name}ForMaskedLM": "masked-lm",
        f"{name}ForSequenceClassification": "sequence-classification",
        f"{name}ForTokenClassification": "token-classification",
        f"{name}ForQuestionAnswering": "question-answering",
        f"{name}ForMultipleChoice": "multiple-choice",
    }


def read(config: ConfigReader, tasks: Mapping[str, str]) -> EncoderOnly.Config:
    task = read_task(config, tasks)
    config.only("is_decoder", False)
    stack = read_stack(config)
    norm = stack.layers[0].norm
    hidden, dropout = norm.size, read_classifier_dropout(config)
    # Rows up to the padding id stand for no position.
    offset = config.integer("pad_token_id", 1, least=0) + 1
    max_positions = config.integer("max_position_embeddings", 512) - offset
    positions = Learned.Config(max_positions, hidden, offset)
    embedding = read_embedding(config, positions=positions, vocab_size=50265)
    tied = config.flag("tie_word_embeddings", True)
    masked_head = None
    if task == "masked-lm":
        transform = Transform.Config(hidden, hidden, "gelu", norm)
        masked_head = MaskedTokenHead.Config(transform, Head.Config(hidden, embedding.vocab_size, tied, bias=True))
    pooling = None
    if task in ("features", "sequence-classification", "multiple-choice") and has_pooler(config, task):
        pooling = Pooling.Config("first", transform=Transform.Config(hidden, hidden, "tanh"))
        if task == "sequence-classification":
            pooling = replace(pooling, dropout=dropout)
    return EncoderOnly.Config(
        Encoder.Config(embedding, stack),
        task,
        pooling=pooling,
        masked_head=masked_head,
        token_head=simple_token_head(config, task, hidden, dropout),
        sequence_head=simple_sequence_head(config, task, hidden, dropout),
        max_positions=max_positions,
    )


def write(config: EncoderOnly.Config, tasks: Mapping[str, str]) -> dict[str, Any]:
    only_kind(config, EncoderOnly.Config, "the network")
    embedding = only_kind(config.encoder.embedding, TokenEmbedding.Config, "the embedding")
    return {
        **written_embedding(embedding),
        "pad_token_id": only_kind(embedding.positions, Learned.Config, "the position scheme").offset - 1,
        **written_stack(config.encoder.stack),
        **written_heads(config),
        **written_pooler(config),
        **written_task(config, tasks),
    }


def weight_table(config: EncoderOnly.Config) -> WeightTable:
    ignored = [r"(roberta\.)?embeddings\.position_ids"]
    if config.masked_head is None or config.masked_head.head.tied:
        bias = Rule("masked_head.head.bias", "lm_head.bias")
        ignored.append(r"lm_head\.decoder\.(weight|bias)")
    else:
        bias = Rule("masked_head.head.bias", ("lm_head.bias", "lm_head.decoder.bias"), Repeated(2))
    judged = config.task == "sequence-classification"
    if config.pooling is None or judged:
        ignored.append(r"(roberta\.)?pooler\.dense\.(weight|bias)")
    if config.task == "features":
        ignored.append(r"lm_head\..*")
    heads = {
        "masked_head.transform.linear": "lm_head.dense",
        "masked_head.transform.norm": "lm_head.layer_norm",
        "token_head.linear": "qa_outputs" if config.task == "question-answering" else "classifier",
        "sequence_head.linear": "classifier.out_proj" if judged else "classifier",
        "pooling.transform.linear": "classifier.dense" if judged else "roberta.pooler.dense",
    }
    rules = (
        *embedding_rules("roberta."),
        *layer_rules("roberta."),
        *(Rule(f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in heads.items() for kind in ("weight", "bias")),
        bias,
        Rule("masked_head.head.weight", "lm_head.decoder.weight"),
    )
    return WeightTable(rules, tuple(ignored), "roberta.", config.task != "features", OLD_NORM_NAMES)


def make_family(model_type: str, name: str) -> Family:
    tasks = tasks_of(name)
    return Family(
        name=model_type,
        architectures=tuple(tasks),
        read=partial(read, tasks=tasks),
        write=partial(write, tasks=tasks),
        weight_table=weight_table,
    )


family = make_family("roberta", "Roberta")
