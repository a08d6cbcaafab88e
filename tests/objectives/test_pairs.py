"""Targets from sources: against T5's own loss; and texts that were damaged can be put together again."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from proof import saved
from proof_objectives import (
    HIDDEN,
    VOCABULARY,
    assert_same,
    built,
    check_adds,
    decoder,
    guesser,
    prepared,
    stack,
    texts,
    translator,
)
from torch.nn import functional

from polyformer import core
from polyformer.checkpoints.loading import open_checkpoint
from polyformer.errors import ConfigError, DataError
from polyformer.objectives import Captioning, Denoising, SequenceToSequence, SpanCorruption

END, MASK = 1, 4


def pairs() -> list[dict[str, Any]]:
    return [{"source_ids": a, "target_ids": b} for a, b in zip(texts(7, 3, 12), texts(4, 9, 1, seed=1))]


# ---------------------------------------------------------------------------------------------------------------
# The loss


def test_the_loss_of_t5(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=16,
        d_kv=6,
        num_heads=2,
        d_ff=24,
        num_layers=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    hf = saved(transformers.T5ForConditionalGeneration, config, tmp_path).train()
    with open_checkpoint(tmp_path) as checkpoint:
        network = checkpoint.load().train()
    objective = SequenceToSequence(rows_at_once=5)
    batch = objective.collate(pairs())
    ours = objective(network, batch)
    labels = torch.full((3, 9), -100)
    for row, example in enumerate(pairs()):
        labels[row, : len(example["target_ids"])] = torch.tensor(example["target_ids"])
    theirs = hf(batch["input_ids"], attention_mask=batch["attention_mask"].long(), labels=labels).loss
    assert ours.count == 14
    assert_same(ours.total / ours.count, theirs, 1e-5)  # T5's norm rounds to float32
    (ours.total / ours.count).backward()
    theirs.backward()
    assert_same(network.encoder.embedding.tokens.weight.grad, hf.shared.weight.grad, 1e-5)
    mine = network.decoder.stack.layers[1].cross_attention.key.weight.grad
    assert_same(mine, hf.decoder.block[1].layer[1].EncDecAttention.k.weight.grad, 1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_each_pair_by_itself(smoothing: float) -> None:
    network = built(translator(start=3))
    objective = SequenceToSequence(label_smoothing=smoothing, rows_at_once=4)
    loss = check_adds(objective, network, pairs())
    total, entropy = 0.0, 0.0
    for example in pairs():
        source, target = (torch.tensor(example[name]) for name in ("source_ids", "target_ids"))
        moved = torch.cat([torch.tensor([3]), target[:-1]])
        logits = network(source[None], decoder_input_ids=moved[None]).logits[0]
        total += functional.cross_entropy(logits, target, reduction="sum", label_smoothing=smoothing)
        entropy += functional.cross_entropy(logits, target, reduction="sum")
    assert_same(loss.total, total)
    assert_same(loss.metrics["cross_entropy"][0], entropy.detach())
    assert loss.metrics["predictions"] == (14, 3)


def test_pictures_and_their_captions() -> None:
    patches = core.PatchEmbedding.Config(HIDDEN, (4, 4), (8, 8), channels=1)
    config = translator()
    reader = replace(config, shared_embedding=False, encoder=core.Encoder.Config(patches, stack(core.Bidirectional())))
    random = np.random.default_rng(0)
    examples = [
        {"pixel_values": random.normal(size=(1, 8, 8)).astype(np.float32), "input_ids": ids} for ids in texts(5, 8)
    ]
    objective = Captioning()
    objective.check(reader)
    network = built(reader)
    loss = objective(network.float(), objective.collate(examples))
    assert loss.count == 13
    logits = network(
        pixel_values=torch.tensor(examples[0]["pixel_values"])[None],
        decoder_input_ids=torch.tensor([[3, *examples[0]["input_ids"][:-1]]]),
    ).logits[0]
    first = functional.cross_entropy(logits, torch.tensor(examples[0]["input_ids"]), reduction="sum")
    assert_same(objective(network, objective.collate(examples[:1])).total, first, 1e-5)
    with pytest.raises(
        ConfigError, match="Captioning trains networks that read pictures, but this one reads input_ids"
    ):
        objective.check(config)
    examples[1]["pixel_values"] = examples[1]["pixel_values"][:, :4]
    with pytest.raises(DataError, match=r"has the shape \[1, 4, 8\], but others of its batch have \[1, 8, 8\]"):
        objective.collate(examples)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            decoder(),
            "networks that read a source and write a target, such as EncoderDecoder, but this network is Decod",
        ),
        (guesser(), "but this network is EncoderOnly"),
        (replace(translator(), decoder_start_token_id=None), "this network has no decoder_start_token_id"),
        (replace(translator(), head=None), "needs a head over the vocabulary"),
    ],
)
def test_networks_that_do_not_fit(config: Any, message: str) -> None:
    SequenceToSequence().check(translator())
    with pytest.raises(ConfigError, match=message):
        SequenceToSequence().check(config)


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing is 1\.0, but it must be at least 0 and below 1"):
        SequenceToSequence(label_smoothing=1.0)


# ---------------------------------------------------------------------------------------------------------------
# Spans


def corruption(**options: Any) -> SpanCorruption:
    return SpanCorruption(**{"sentinel_token_ids": tuple(range(136, 36, -1)), "eos_token_id": END, **options})


def put_together(source: list[int], target: list[int]) -> tuple[list[int], list[list[int]]]:
    """The text, and its spans, from source and target as T5 reads them."""
    assert source[-1] == target[-1] == END
    spans: dict[int, list[int]] = {}
    for number in target[:-1]:
        if number > 36:
            assert number not in spans
            spans[number] = []
            last = number
        else:
            spans[last].append(number)
    assert spans[last] == [] and last == 136 - (len(spans) - 1)  # one more at the end, and they fall
    text: list[int] = []
    for number in source[:-1]:
        text += spans[number] if number > 36 else [number]
    return text, list(spans.values())[:-1]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 20, 100, 512])
@pytest.mark.parametrize(
    "options", [{}, {"rate": 0.5, "mean_span_length": 1.0}, {"rate": 0.3, "mean_span_length": 20.0}]
)
def test_spans_can_be_put_back(length: int, options: Any) -> None:
    objective = replace(corruption(sentinel_token_ids=tuple(range(136, 36, -1))), **options)
    if length == 512 and options.get("rate") == 0.5:
        with pytest.raises(DataError, match="has 512 tokens and 256 spans, which need 257 sentinel_token_ids"):
            prepared(objective, [{"input_ids": row} for row in texts(length)])
        return
    for row in texts(*[length] * 20):
        for given in (row, np.append(row, END)):
            (example,) = prepared(objective, [{"input_ids": given}])
            text, spans = put_together(example["source_ids"].tolist(), example["target_ids"].tolist())
            assert text == row.tolist()
            noise = min(max(1, round(length * objective.rate)), max(1, length - 1))
            assert sum(map(len, spans)) == noise and all(spans)
            assert len(spans) == min(max(1, round(noise / objective.mean_span_length)), noise, length - noise + 1)


def test_where_spans_lie() -> None:
    """Every token is taken with the same chance, about, from the first to the last; lengths have the mean of 3."""
    objective = corruption()
    taken, lengths = np.zeros(100), []
    for number in range(4000):
        spans = objective.spans(100, np.random.default_rng(number))
        assert all(stop < start for (_, stop), (start, _) in pairwise(spans))
        for start, stop in spans:
            taken[start:stop] += 1
            lengths.append(stop - start)
    assert np.mean(lengths) == 3.0 and 1 <= min(lengths) < 3 < 8 < max(lengths)
    assert taken.mean() / 4000 == pytest.approx(0.15)
    assert (np.abs(taken[5:-5] / 4000 - 0.15) < 0.03).all()
    assert (taken[[0, -1]] / 4000 > 0.04).all()


def test_corrupted_rows_add() -> None:
    objective = SpanCorruption(sentinel_token_ids=tuple(range(36, 26, -1)), eos_token_id=END)
    objective.check(translator())
    examples = prepared(objective, [{"input_ids": row} for row in texts(20, 9, 33, last=27)])
    check_adds(objective, built(translator()), examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 2.0}, "rate is 2.0"),
        ({"mean_span_length": 0.5}, "mean_span_length is 0.5, below 1"),
        ({"sentinel_token_ids": (5, 5)}, "must be two or more different ids"),
    ],
)
def test_impossible_spans(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        corruption(**options)


def test_bad_texts() -> None:
    with pytest.raises(ConfigError, match="sentinel_token_ids 136 is not in the network's vocabulary of 37"):
        corruption().check(translator())
    with pytest.raises(DataError, match="example 7 has no token besides its end"):
        prepared(corruption(), [{"input_ids": np.array([END]), "index": 7}])
    with pytest.raises(DataError, match="holds several documents, but span corruption reads one document a row"):
        prepared(corruption(), [{"input_ids": np.arange(4), "document_ids": np.array([0, 0, 1, 1])}])


# ---------------------------------------------------------------------------------------------------------------
# Damage of every kind

NOTHING: dict[str, Any] = {"infilling_rate": 0.0, "permute_sentences": 0.0}


def denoising(**options: Any) -> Denoising:
    return Denoising(mask_token_id=MASK, eos_token_id=END, **options)


def damaged(options: Any, row: np.ndarray, seed: int = 0, **fields: Any) -> tuple[list[int], list[int]]:
    (example,) = prepared(denoising(**options), [{"input_ids": row, **fields}], seed)
    source, target = example["source_ids"].tolist(), example["target_ids"].tolist()
    assert source[-1] == target[-1] == END and target[:-1] == [number for number in row if number != END]
    return source[:-1], target[:-1]


def test_infilling() -> None:
    """What stands between masks is the text in its order; spans have Poisson lengths, and 30% of it is gone."""
    kept, masks, inserted = 0, 0, 0
    random = np.random.default_rng(0)
    for seed in range(400):
        row = random.permutation(1000)[:200] + 5  # all different
        source, target = damaged({"permute_sentences": 0.0}, row, seed)
        place = [target.index(number) for number in source if number != MASK]
        assert place == sorted(place)  # nothing but masks is new, and nothing has moved
        gone = 200 - len(place)
        assert gone == 60
        kept += len(place)
        masks += source.count(MASK)
        gaps = np.diff([-1, *place, 200]) - 1
        inserted += source.count(MASK) - (gaps > 0).sum()  # every gap has a mask, and some masks have no gap
    # A span has a length of Poisson(3), so that 60 tokens take about 20 spans; e^-3 of all are empty.
    assert masks / 400 == pytest.approx(20.5, abs=0.6)
    assert inserted / masks == pytest.approx(np.exp(-3), abs=0.01)


def test_permutation_of_sentences() -> None:
    row = np.array([10, 11, 2, 12, 2, 13, 14, 15, 2, 2, 16])  # 2 ends a sentence; twice ends one, too
    sentences = [[10, 11, 2], [12, 2], [13, 14, 15, 2, 2], [16]]
    orders = set()
    options = {"infilling_rate": 0.0, "sentence_end_token_ids": (2,)}
    for seed in range(200):
        source, _ = damaged(options, row, seed)
        rest, order = source, []
        while rest:
            (number,) = [n for n, sentence in enumerate(sentences) if rest[: len(sentence)] == sentence][-1:]
            order.append(number)
            rest = rest[len(sentences[number]) :]
        assert sorted(order) == [0, 1, 2, 3]
        orders.add(tuple(order))
    assert len(orders) == 24
    starts = np.zeros(11, bool)
    starts[[0, 5]] = True
    seen = {tuple(damaged({"infilling_rate": 0.0}, row, seed, starts_sentence=starts)[0]) for seed in range(20)}
    assert seen == {tuple(row), (*row[5:], *row[:5])}
    with pytest.raises(DataError, match="must know them: give sentence_end_token_ids or examples with starts_sentence"):
        damaged({}, row)


def test_deletion() -> None:
    left = 0
    for seed in range(200):
        row = np.arange(5, 105)
        source, target = damaged({**NOTHING, "deletion_rate": 0.25}, row, seed)
        assert source == sorted(source) and set(source) <= set(target)
        left += len(source)
    assert left / 20_000 == pytest.approx(0.75, abs=0.013)


def test_rotation() -> None:
    row, begins = np.arange(5, 25), []
    for seed in range(1000):
        source, target = damaged({**NOTHING, "rotation_rate": 0.5}, row, seed)
        turned = source.index(5)
        assert source[turned:] + source[:turned] == target
        begins.append(source[0] - 5)
    assert np.mean(np.array(begins) == 0) == pytest.approx(0.5 + 0.5 / 20, abs=0.05)
    assert set(begins) == set(range(20))


def test_nothing_is_done_that_was_not_asked_for() -> None:
    row = texts(30)[0]
    assert damaged(NOTHING, np.append(row, END))[0] == row.tolist()
    (example,) = prepared(denoising(**NOTHING, bos_token_id=0), [{"input_ids": np.array([0, 9, 8, END])}])
    assert example["source_ids"].tolist() == example["target_ids"].tolist() == [0, 9, 8, END]


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("rate", [0.3, 0.7, 1.0])
def test_short_texts(length: int, rate: float) -> None:
    for seed in range(50):
        row = np.arange(5, 5 + length)
        source, _ = damaged({"permute_sentences": 0.0, "infilling_rate": rate}, row, seed)
        assert len([number for number in source if number != MASK]) == length - round(rate * length)


def test_damaged_rows_add() -> None:
    objective = denoising(sentence_end_token_ids=(9, 17), deletion_rate=0.1, rotation_rate=0.5, label_smoothing=0.1)
    objective.check(translator())
    examples = prepared(objective, [{"input_ids": row} for row in texts(25, 14, 3)])
    check_adds(objective, built(translator()), examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deletion_rate": -0.1}, "deletion_rate is -0.1, but it must be between 0 and 1"),
        ({"mean_span_length": 0.0}, "with a mean_span_length of 0 no token is ever replaced"),
        ({"mean_span_length": -1.0}, "mean_span_length is -1.0, below 0"),
    ],
)
def test_impossible_damage(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        denoising(**options)
