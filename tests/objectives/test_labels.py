"""Labels: against BERT's own losses for each kind of problem; labels that cannot be are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from proof import load_folder, saved
from proof_objectives import HIDDEN, VOCABULARY, assert_same, built, check_adds, decoder, encoder, guesser, stack, texts

from polyformer import core
from polyformer.errors import ConfigError, DataError
from polyformer.objectives import Classification, ImageClassification, MultiLabel, Objective, Regression, Tagging

BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
ROWS = texts(9, 14, 5, 11)
MULTI = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
PROBLEMS: dict[str, tuple[Objective, list[Any], dict[str, Any]]] = {
    "classification": (
        Classification(num_labels=3),
        [2, 0, 1, 2],
        {"num_labels": 3, "problem_type": "single_label_classification"},
    ),
    "regression": (Regression(), [0.5, -2.0, 1.25, 3.0], {"num_labels": 1, "problem_type": "regression"}),
    "two numbers": (
        Regression(num_labels=2),
        [[0.5, 1.0], [-2.0, 0.0], [1.0, 3.0], [2.0, 2.5]],
        {"num_labels": 2, "problem_type": "regression"},
    ),
    "multi-label": (MultiLabel(num_labels=3), MULTI, {"num_labels": 3, "problem_type": "multi_label_classification"}),
}


def examples(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"input_ids": row, "label": label} for row, label in zip(ROWS, labels)]


def classifier(labels: int, **options: Any) -> Any:
    return encoder(
        task="sequence-classification",
        pooling=core.Pooling.Config("first"),
        sequence_head=core.SequenceHead.Config(HIDDEN, labels),
        **options,
    )


def tagger(labels: int) -> Any:
    return encoder(task="token-classification", token_head=core.TokenHead.Config(HIDDEN, labels))


def same_gradients(network: Any, hf: Any, pairs: dict[str, str]) -> None:
    for mine, other in pairs.items():
        assert_same(network.get_parameter(mine).grad, hf.get_parameter(other).grad, 1e-8)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_losses_of_bert(problem: str, tmp_path: Path) -> None:
    objective, labels, options = PROBLEMS[problem]
    hf = saved(transformers.BertForSequenceClassification, transformers.BertConfig(**BERT, **options), tmp_path).train()
    network = load_folder(tmp_path)[1].train()
    objective.check(network.config)
    batch = objective.collate(examples(labels))
    ours = objective(network, batch)
    given = torch.tensor(labels).double() if problem != "classification" else torch.tensor(labels)
    theirs = hf(batch["input_ids"], attention_mask=batch["attention_mask"].long(), labels=given)
    assert ours.count == 4
    assert_same(ours.total / ours.count, theirs.loss, 1e-8)
    (ours.total / ours.count).backward()
    theirs.loss.backward()
    same_gradients(
        network,
        hf,
        {
            "sequence_head.linear.weight": "classifier.weight",
            "encoder.embedding.tokens.weight": "bert.embeddings.word_embeddings.weight",
        },
    )
    if problem == "classification":
        assert ours.metrics["accuracy"] == ((theirs.logits.argmax(-1) == given).sum(), 4)
    if "regression" in problem or "numbers" in problem:
        error = (theirs.logits.view(4, -1) - given.view(4, -1)).abs().mean(-1).sum()
        assert_same(ours.metrics["absolute_error"][0], error.detach(), 1e-8)


def test_tags_of_bert(tmp_path: Path) -> None:
    config = transformers.BertConfig(**BERT, num_labels=5)
    hf = saved(transformers.BertForTokenClassification, config, tmp_path).train()
    network = load_folder(tmp_path)[1].train()
    objective = Tagging(num_labels=5)
    objective.check(network.config)
    random = np.random.default_rng(0)
    tagged = [{"input_ids": row, "labels": random.integers(0, 5, len(row))} for row in ROWS]
    for example in tagged:
        example["labels"][[0, -1]] = -100
    batch = objective.collate(tagged)
    ours = objective(network, batch)
    labels = torch.full(batch["input_ids"].shape, -100)
    for row, example in enumerate(tagged):
        labels[row, : len(example["labels"])] = torch.tensor(example["labels"])
    theirs = hf(batch["input_ids"], attention_mask=batch["attention_mask"].long(), labels=labels)
    assert ours.count == sum(len(row) - 2 for row in ROWS)
    assert_same(ours.total / ours.count, theirs.loss, 1e-8)
    assert ours.metrics["accuracy"] == ((theirs.logits.argmax(-1) == labels).sum(), ours.count)
    (ours.total / ours.count).backward()
    theirs.loss.backward()
    same_gradients(network, hf, {"token_head.linear.weight": "classifier.weight"})
    check_adds(objective, network, tagged)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_rows_add(problem: str) -> None:
    objective, labels, options = PROBLEMS[problem]
    check_adds(objective, built(classifier(options["num_labels"])), examples(labels))


def test_smoothed_labels_and_segments() -> None:
    """Label smoothing as torch has it; types of tokens go where the network reads them."""
    config = classifier(3)
    embedding = core.TokenEmbedding.Config(VOCABULARY, HIDDEN, token_types=2)
    network = built(
        core.EncoderOnly.Config(
            core.Encoder.Config(embedding, stack(core.Bidirectional())),
            config.task,
            pooling=config.pooling,
            sequence_head=config.sequence_head,
        )
    )
    objective = Classification(num_labels=3, label_smoothing=0.1)
    given = examples([2, 0, 1, 2])
    given[1]["token_type_ids"] = np.repeat([0, 1], 7)
    batch = objective.collate(given)
    logits = network(batch["input_ids"], attention_mask=batch["attention_mask"], token_type_ids=batch["token_type_ids"])
    expected = torch.nn.functional.cross_entropy(
        logits.logits, torch.tensor([2, 0, 1, 2]), reduction="sum", label_smoothing=0.1
    )
    assert batch["token_type_ids"].sum() == 7
    assert_same(objective(network, batch).total, expected)


def test_precision_and_recall_when_nothing_is_learned() -> None:
    network, objective = built(classifier(2)), Classification(num_labels=2)
    given = examples([1, 0, 1, 1])
    with torch.no_grad():
        metrics = objective(network, objective.collate(given)).metrics
        found = network(**{k: v for k, v in objective.collate(given).items() if k != "labels"}).logits.argmax(-1)
    true = torch.tensor([1, 0, 1, 1])
    assert metrics["precision"] == ((found & true).sum(), found.sum())
    assert metrics["recall"] == ((found & true).sum(), 3)
    assert "precision" not in objective(network, objective.collate(given)).metrics
    several = MultiLabel(num_labels=3)
    with torch.no_grad():
        metrics = several(built(classifier(3)), several.collate(examples(MULTI))).metrics
    assert metrics["recall"][1] == 6 and metrics["accuracy"][1] == 12


def test_pictures() -> None:
    patches = core.PatchEmbedding.Config(HIDDEN, (4, 4), (8, 8), channels=1)
    config = core.EncoderOnly.Config(
        core.Encoder.Config(patches, stack(core.Bidirectional())),
        "sequence-classification",
        pooling=core.Pooling.Config("first"),
        sequence_head=core.SequenceHead.Config(HIDDEN, 10),
    )
    objective = ImageClassification(num_labels=10)
    objective.check(config)
    random = np.random.default_rng(0)
    given = [{"pixel_values": random.normal(size=(1, 8, 8)).astype(np.float32), "label": n} for n in (3, 9)]
    network = built(config).float()
    loss = objective(network, objective.collate(given))
    logits = network(pixel_values=torch.tensor(np.stack([each["pixel_values"] for each in given]))).logits
    assert_same(loss.total, torch.nn.functional.cross_entropy(logits, torch.tensor([3, 9]), reduction="sum"), 1e-6)
    with pytest.raises(ConfigError, match="networks that read pictures, but this one reads input_ids"):
        objective.check(classifier(10))


@pytest.mark.parametrize(
    ("objective", "label", "message"),
    [
        (Classification(num_labels=3), 3, "the label is 3, but it must be a whole number from 0 to 2"),
        (Classification(num_labels=3), -1, "example 12: the label is -1"),
        (Classification(num_labels=3), 1.0, r"the label is 1\.0"),
        (Classification(num_labels=3), "ham", "the label is 'ham'"),
        (Classification(num_labels=3), [1], r"the label is \[1\]"),
        (Regression(), float("nan"), r"the label is \[nan\], but it must be finite"),
        (Regression(num_labels=2), 1.0, r"the label is \[1\.0\], but it must be 2 numbers"),
        (Regression(), "five", r"the label is \['five'\], but it must be 1 number$"),
        (MultiLabel(num_labels=2), [0, 2], r"the label is \[0\.0, 2\.0\], but it must be zeros and ones"),
        (MultiLabel(num_labels=2), [0, 1, 1], "but it must be 2 numbers"),
    ],
)
def test_labels_that_cannot_be(objective: Objective, label: Any, message: str) -> None:
    example = {"input_ids": ROWS[0], "label": label, "index": 12}
    with pytest.raises(DataError, match=message):
        objective.prepare(example, np.random.default_rng(0))
    with pytest.raises(DataError, match=message):
        objective.collate([example])
    with pytest.raises(DataError, match="has no label, but only input_ids"):
        objective.collate([{"input_ids": ROWS[0]}])


def test_tags_that_cannot_be() -> None:
    labels = np.zeros(9, int)
    labels[4] = 5
    with pytest.raises(DataError, match=r"the label of token 4 is 5, but there are labels 0 to 4 \(and -100"):
        Tagging(num_labels=5).prepare({"input_ids": ROWS[0], "labels": labels}, np.random.default_rng(0))
    with pytest.raises(DataError, match=r"labels has the shape \[3\], but there are 9 tokens"):
        Tagging(num_labels=5).collate([{"input_ids": ROWS[0], "labels": labels[:3]}])
    with pytest.raises(DataError, match="has no labels, but only input_ids"):
        Tagging(num_labels=5).collate([{"input_ids": ROWS[0]}])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classification(num_labels=3).check(classifier(4)), "has num_labels 3, but the network gives 4"),
        (
            lambda: Classification(num_labels=3).check(decoder()),
            "with a sequence_head .* but this network is DecoderOnly$",
        ),
        (lambda: Regression().check(guesser()), "EncoderOnly with the task 'masked-lm' and masked_head"),
        (lambda: Tagging(num_labels=3).check(classifier(3)), "'sequence-classification' and sequence_head"),
        (lambda: Tagging(num_labels=3).check(tagger(4)), "Tagging has num_labels 3, but the network gives 4"),
        (lambda: Classification(num_labels=1), "chooses among labels, but num_labels is 1"),
        (lambda: Tagging(num_labels=1), "chooses among labels, but num_labels is 1"),
        (lambda: MultiLabel(num_labels=0), "num_labels is 0, below 1"),
        (lambda: Classification(num_labels=2, label_smoothing=1.0), "label_smoothing is 1.0"),
    ],
)
def test_what_does_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
