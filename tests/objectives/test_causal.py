"""Next tokens: against GPT-2's own loss, in packed rows, with padding; texts whose middle was moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from proof import load_folder, saved
from proof_objectives import VOCABULARY, assert_same, built, check_adds, decoder, gradients_of, guesser, prepared, texts
from torch.nn import functional

from polyformer import core
from polyformer.errors import ConfigError, DataError
from polyformer.objectives import CausalLM, FillInTheMiddle, PrefixLM

MARKS = {"prefix_token_id": 1, "suffix_token_id": 2, "middle_token_id": 3, "eos_token_id": 4}


# ---------------------------------------------------------------------------------------------------------------
# Next tokens


def test_the_loss_of_gpt2(tmp_path: Path) -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=16, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    hf = saved(transformers.GPT2LMHeadModel, config, tmp_path).train()
    network = load_folder(tmp_path)[1].train()
    rows = texts(12, 12, 12)
    batch = CausalLM(rows_at_once=7).collate([{"input_ids": row} for row in rows])
    assert batch.keys() == {"input_ids", "places", "labels"}  # no mask is needed
    ours = CausalLM(rows_at_once=7)(network, batch)
    ids = torch.tensor(np.stack(rows))
    theirs = hf(ids, labels=ids).loss
    assert ours.count == 33
    assert_same(ours.total / ours.count, theirs.double(), 1e-5)  # transformers works its losses out in float32
    (ours.total / ours.count).backward()
    theirs.backward()
    assert_same(network.embedding.tokens.weight.grad, hf.transformer.wte.weight.grad, 1e-5)
    assert_same(
        network.stack.layers[0].attention.output.weight.grad, hf.transformer.h[0].attn.c_proj.weight.grad.T, 1e-5
    )


@pytest.mark.parametrize("head", [{}, {"tied": False, "bias": True, "scale": 0.5, "soft_cap": 3.0}])
@pytest.mark.parametrize("z_loss", [0.0, 0.05])
def test_rows_of_any_length_add(head: Any, z_loss: float) -> None:
    network = built(decoder(**head))
    examples = [{"input_ids": row} for row in texts(9, 4, 1, 12)]
    loss = check_adds(CausalLM(z_loss=z_loss, rows_at_once=5), network, examples)
    assert loss.count == 8 + 3 + 0 + 11
    total, entropy = 0.0, 0.0
    for example in examples:
        ids = torch.tensor(example["input_ids"])
        logits = network(ids[None]).logits[0, :-1]
        entropy += functional.cross_entropy(logits, ids[1:], reduction="sum")
        total += entropy * 0 + z_loss * logits.logsumexp(-1).square().sum()
    assert_same(loss.total, entropy + total)
    assert_same(loss.metrics["cross_entropy"][0], entropy.detach())
    assert loss.metrics["predictions"] == (22, 4)


def test_packed_rows_are_their_documents() -> None:
    """The same loss and gradients, whether documents share rows or not; nothing is predicted across."""
    network, objective = built(decoder()), CausalLM()
    documents = texts(5, 3, 1, 8, 4, 2)
    packed = [
        {"input_ids": np.concatenate(documents[:3]), "document_ids": np.repeat([4, 5, 6], [5, 3, 1])},
        {"input_ids": np.concatenate(documents[3:5]), "document_ids": np.repeat([0, 1], [8, 4])},
        {"input_ids": documents[5], "document_ids": np.zeros(2, int)},
    ]
    together = objective(network, objective.collate(packed))
    assert together.count == sum(len(document) - 1 for document in documents)
    ours = gradients_of(network, together.total)
    alone = objective(network, objective.collate([{"input_ids": document} for document in documents]))
    assert_same(together.total, alone.total)
    for name, gradient in gradients_of(network, alone.total).items():
        assert_same(ours[name], gradient)
    check_adds(objective, network, packed)


def test_padding_within_packed_rows_is_not_predicted() -> None:
    ids, numbers = np.arange(8) + 5, np.array([0, 0, 0, -1, -1, 3, 3, -1])
    batch = CausalLM().collate([{"input_ids": ids, "document_ids": numbers}])
    assert batch["places"].tolist() == [0, 1, 5]
    assert batch["labels"].tolist() == [6, 7, 11]


def test_one_document_a_row_needs_no_document_ids() -> None:
    rows = [{"input_ids": row, "document_ids": np.full(6, 9)} for row in texts(6, 6)]
    assert CausalLM().collate(rows).keys() == {"input_ids", "places", "labels"}


def test_bad_examples() -> None:
    for example, message in [
        ({"text": 3}, "an example has no input_ids, but only text"),
        ({"input_ids": np.zeros(0, int)}, "input_ids must be one or more token ids"),
        ({"input_ids": np.zeros(2)}, "input_ids must be one or more token ids, but are float64"),
        (
            {"input_ids": np.arange(3), "document_ids": np.arange(2)},
            r"begin with 0, 1, 2: document_ids has the shape \[2\], but there are 3 tokens",
        ),
    ]:
        with pytest.raises(DataError, match=message):
            CausalLM().collate([example])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (guesser(), "CausalLM trains language models such as DecoderOnly, but this network is EncoderOnly"),
        (decoder(core.Bidirectional()), r"stack.layers.0.attention has the mask Bidirectional\(\): use Causal"),
    ],
)
def test_networks_that_do_not_fit(config: Any, message: str) -> None:
    CausalLM().check(decoder())
    with pytest.raises(ConfigError, match=message):
        CausalLM().check(config)


@pytest.mark.parametrize("options", [{"z_loss": -1.0}, {"rows_at_once": 0}])
def test_impossible_settings(options: Any) -> None:
    with pytest.raises(ConfigError, match="must be at least"):
        CausalLM(**options)


# ---------------------------------------------------------------------------------------------------------------
# The middle


def restored(ids: list[int]) -> tuple[list[int], str]:
    """The text that `FillInTheMiddle` moved about, and in which form it was."""
    if 3 not in ids:
        return ids, "whole"
    assert ids[0] == 1 and ids[-1] == 4
    middle = ids.index(3)
    if ids[1] == 2:
        return [*ids[middle + 1 : -1], *ids[2:middle]], "suffix first"  # prefix and middle stand together
    after = ids.index(2)
    return [*ids[1:after], *ids[middle + 1 : -1], *ids[after + 1 : middle]], "prefix first"


def test_every_form_can_be_put_back_and_rates_hold() -> None:
    objective = FillInTheMiddle(rate=0.6, suffix_first_rate=0.3, max_length=100, **MARKS)
    rows = [np.append(row, 4) for row in texts(*[20] * 3000)]
    forms: dict[str, int] = {}
    cuts = []
    for row, example in zip(rows, prepared(objective, [{"input_ids": row} for row in rows])):
        ids = example["input_ids"].tolist()
        text, form = restored(ids)
        assert (text if form == "whole" else [*text, 4]) == row.tolist()
        assert len(ids) == len(row) + (0 if form == "whole" else 3)
        forms[form] = forms.get(form, 0) + 1
        if form == "prefix first":
            cuts.append((ids.index(2) - 1) / 20)  # where the first cut fell
    assert forms["whole"] / 3000 == pytest.approx(0.4, abs=0.03)
    # Of two places drawn evenly among 0..20, the first is 0 with a chance of 41 / 441: then both forms look alike.
    # In the mean it is at 20 · 41 / 126.
    assert forms["suffix first"] / 3000 == pytest.approx(0.18 + 0.42 * 41 / 441, abs=0.025)
    assert np.mean(cuts) == pytest.approx(41 / 126 / (400 / 441), abs=0.02)


def test_each_document_of_a_row_by_itself() -> None:
    documents = [np.append(row, 4) for row in texts(9, 5, 7)]
    row = {
        "input_ids": np.concatenate([*documents, [0, 0]]),
        "document_ids": np.repeat([2, 5, 6, -1], [10, 6, 8, 2]),
    }
    objective = FillInTheMiddle(rate=1.0, max_length=64, **MARKS)
    (example,) = prepared(objective, [row])
    ids, numbers = example["input_ids"], example["document_ids"]
    for number, document in zip([2, 5, 6], documents):
        assert [*restored(ids[numbers == number].tolist())[0], 4] == document.tolist()
    assert ids[numbers == -1].tolist() == [0, 0]
    assert (np.diff(np.flatnonzero(np.diff(numbers))) > 0).all() and len(ids) == 26 + 9
    (short,) = prepared(FillInTheMiddle(rate=1.0, **MARKS), [row])
    assert len(short["input_ids"]) == len(short["document_ids"]) == 26  # no longer than it was
    for number, document in zip([2, 5, 6], documents):  # each gives up the room that its marks take, and ends
        text = restored(short["input_ids"][short["document_ids"] == number].tolist())[0]
        assert text == document[:-4].tolist()
    network = built(decoder())
    check_adds(objective, network, [example, short])


def test_the_middle_is_whole_lines() -> None:
    """Tokens 5 and 6 begin lines. One line in half of the cases, two in a quarter; the last line only where it ends."""
    objective = FillInTheMiddle(
        rate=1.0, suffix_first_rate=0.0, mean_lines=2.0, newline_token_ids=(5, 6), max_length=99, **MARKS
    )
    text = [9, 10, 5, 11, 12, 6, 13, 5, 14, 5, 15, 16]
    lines = {"ended": [[5, 11, 12], [6, 13], [5, 14], [5, 15, 16]], "cut": [[5, 11, 12], [6, 13], [5, 14]]}
    for kind, end in (("ended", [4]), ("cut", [])):
        counts: dict[int, int] = {}
        for example in prepared(objective, [{"input_ids": np.array(text + end)}] * 2000):
            ids = example["input_ids"].tolist()
            assert restored(ids) == (text, "prefix first")
            middle = ids[ids.index(3) + 1 : -1]
            runs = [
                (start, stop)
                for start in range(len(lines[kind]))
                for stop in range(start + 1, len(lines[kind]) + 1)
                if [token for line in lines[kind][start:stop] for token in line] == middle
            ]
            assert len(runs) == 1, middle
            counts[runs[0][1] - runs[0][0]] = counts.get(runs[0][1] - runs[0][0], 0) + 1
        assert counts[1] / 2000 == pytest.approx(0.5, abs=0.04)
        assert counts[2] / 2000 == pytest.approx(0.25, abs=0.04)
        assert max(counts) == len(lines[kind])
    for without in ([9, 10, 11], [9, 5, 10]):  # no whole line: cut anywhere
        (example,) = prepared(objective, [{"input_ids": np.array(without)}])
        assert restored(example["input_ids"].tolist())[0] == without
    with pytest.raises(ConfigError, match=r"mean_lines is 0\.5, below 1"):
        FillInTheMiddle(mean_lines=0.5, newline_token_ids=(5,), **MARKS)
    with pytest.raises(ConfigError, match="needs newline_token_ids, but no token ends a line"):
        FillInTheMiddle(mean_lines=2.0, **MARKS)


def test_no_room_for_marks() -> None:
    """A document that is shorter than its marks stays as it is; an empty text has an empty middle."""
    objective = FillInTheMiddle(rate=1.0, **MARKS)
    short, long = prepared(objective, [{"input_ids": np.array([9, 10, 11, 12])}, {"input_ids": np.arange(9, 20)}])
    assert short["input_ids"].tolist() == [9, 10, 11, 12]
    assert restored(long["input_ids"].tolist())[0] == list(range(9, 16)) and len(long["input_ids"]) == 11


def test_fill_in_the_middle_settings() -> None:
    with pytest.raises(ConfigError, match=r"FillInTheMiddle: rate is 1\.5, but it must be between 0 and 1"):
        FillInTheMiddle(rate=1.5, **MARKS)
    with pytest.raises(ConfigError, match="middle_token_id 37 is not in the network's vocabulary of 37"):
        FillInTheMiddle(**{**MARKS, "middle_token_id": 37}).check(decoder())


# ---------------------------------------------------------------------------------------------------------------
# Prefixes


def test_prefix_lm_predicts_the_rest_only() -> None:
    network, objective = built(decoder(core.PrefixCausal())), PrefixLM(rows_at_once=3)
    pairs = [{"source_ids": a, "target_ids": b} for a, b in zip(texts(4, 1, 6), texts(3, 5, 2, seed=1))]
    examples = prepared(objective, pairs)
    loss = check_adds(objective, network, examples)
    assert loss.count == 3 + 5 + 2
    total = torch.zeros(())
    for pair in pairs:
        ids = torch.tensor(np.concatenate([pair["source_ids"], pair["target_ids"]]))
        length = len(pair["source_ids"])
        logits = network(ids[None], prefix_lengths=torch.tensor([length])).logits[0]
        total = total + functional.cross_entropy(logits[length - 1 : -1], ids[length:], reduction="sum")
    assert_same(loss.total, total)


def test_prefixes_are_drawn_evenly() -> None:
    objective = PrefixLM()
    lengths = [example["prefix_length"] for example in prepared(objective, [{"input_ids": np.arange(11)}] * 3000)]
    assert min(lengths) == 1 and max(lengths) == 10 and np.mean(lengths) == pytest.approx(5.5, abs=0.2)
    with pytest.raises(DataError, match="holds several documents, but a prefix language model reads one"):
        prepared(objective, [{"input_ids": np.arange(4), "document_ids": np.array([0, 0, 1, 1])}])
    with pytest.raises(ConfigError, match=r"has the mask Causal\(\): use PrefixCausal in every layer"):
        objective.check(decoder())
    objective.check(decoder(core.PrefixCausal()))
