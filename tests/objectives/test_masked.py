"""Hidden tokens: which are chosen and what becomes of them, against BERT's and ELECTRA's own losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from proof import load_folder, saved
from proof_objectives import (
    HIDDEN,
    VOCABULARY,
    assert_same,
    built,
    check_adds,
    decoder,
    encoder,
    gradients_of,
    guesser,
    prepared,
    texts,
)

from polyformer import core
from polyformer.errors import ConfigError
from polyformer.objectives import GeneratorDiscriminator, MaskedLM, ReplacedTokens
from polyformer.objectives.cross_entropy import Piece
from polyformer.objectives.masked import _Drawing, small_generator

MASK, SPECIAL = 4, (0, 1, 2)
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


def objective(**options: Any) -> MaskedLM:
    return MaskedLM(mask_token_id=MASK, special_token_ids=SPECIAL, vocab_size=VOCABULARY, **options)


def discriminator(**options: Any) -> Any:
    transform = core.Transform.Config(HIDDEN, HIDDEN, "gelu")
    return encoder(task="replaced-token-detection", token_head=core.TokenHead.Config(HIDDEN, 1, transform), **options)


# ---------------------------------------------------------------------------------------------------------------
# The noise


def test_eighty_ten_ten() -> None:
    rows = [np.concatenate([[1], row, [2]]) for row in texts(*[100] * 1000)]
    fates = {"masked": 0, "kept": 0, "random": 0}
    drawn = np.zeros(VOCABULARY)
    for row, example in zip(rows, prepared(objective(), [{"input_ids": row} for row in rows])):
        ids, labels = example["input_ids"], example["labels"]
        chosen = labels != -100
        assert chosen.sum() == 15 and not chosen[0] and not chosen[-1]
        assert (labels[chosen] == row[chosen]).all() and (ids[~chosen] == row[~chosen]).all()
        fates["masked"] += (ids[chosen] == MASK).sum()
        fates["kept"] += (ids[chosen] == row[chosen]).sum()
        other = ids[chosen & (ids != MASK) & (ids != row)]
        fates["random"] += len(other)
        np.add.at(drawn, other, 1)
    candidates = VOCABULARY - 4  # a random token may be the true one, which then looks kept
    assert fates["masked"] / 15_000 == pytest.approx(0.8, abs=0.013)
    assert fates["random"] / 15_000 == pytest.approx(0.1 * (1 - 1 / candidates), abs=0.01)
    assert fates["kept"] / 15_000 == pytest.approx(0.1 * (1 + 1 / candidates), abs=0.01)
    assert not drawn[[MASK, *SPECIAL]].any()
    assert (drawn[5:] > 15).all() and (drawn[5:] < 100).all()  # about 47 of each


def test_noise_is_the_examples_own_and_new_in_each_epoch() -> None:
    examples = [{"input_ids": row} for row in texts(30, 30)]
    first, again, later = (prepared(objective(), examples, seed=seed) for seed in (0, 0, 1))
    assert all((a["input_ids"] == b["input_ids"]).all() for a, b in zip(first, again))
    assert any((a["labels"] != b["labels"]).any() for a, b in zip(first, later))


@pytest.mark.parametrize("told", ["ids", "starts", "continuations"])
def test_whole_words(told: str) -> None:
    """Words of one to three tokens; ids from 20 on continue a word."""
    random = np.random.default_rng(0)
    chosen_words = hidden = 0
    for number in range(300):
        words = [
            np.append(random.integers(5, 20), random.integers(20, 37, length)) for length in random.integers(0, 3, 40)
        ]
        ids = np.concatenate([[1], *words, [2]])
        word_ids = np.concatenate([[-1], np.repeat(np.arange(40), [len(word) for word in words]), [-1]])
        example: dict[str, Any] = {"input_ids": ids}
        options: dict[str, Any] = {}
        if told == "ids":
            example["word_ids"] = word_ids
        elif told == "starts":
            example["starts_word"] = np.diff(word_ids, prepend=-2) != 0
        else:
            options["continuation_token_ids"] = tuple(range(20, 37))
        (result,) = prepared(objective(whole_words=True, **options), [example], seed=number)
        chosen = result["labels"] != -100
        assert not chosen[0] and not chosen[-1]
        for word in range(40):
            assert len(set(chosen[word_ids == word])) == 1  # whole or not at all
            chosen_words += chosen[word_ids == word][0]
        hidden += chosen.sum()
        assert abs(chosen.sum() - round(0.15 * (len(ids) - 2))) <= 3
    assert chosen_words / (300 * 40) == pytest.approx(0.15, abs=0.02)
    with pytest.raises(ConfigError, match="must know where words begin: give continuation_token_ids"):
        prepared(objective(whole_words=True), [{"input_ids": np.arange(9) + 5}])


def test_short_texts() -> None:
    (one,) = prepared(objective(), [{"input_ids": np.array([1, 9, 2])}])
    assert (one["labels"] != -100).tolist() == [False, True, False]
    (none,) = prepared(objective(), [{"input_ids": np.array([1, 2])}])
    assert (none["labels"] == -100).all()
    network = built(guesser())
    loss = objective()(network, objective().collate([none]))
    loss.total.backward()
    assert loss.total == 0 and loss.count == 0
    (long,) = prepared(objective(whole_words=True), [{"input_ids": np.arange(9, 15), "word_ids": np.zeros(6, int)}])
    assert (long["labels"] != -100).all()  # one word, and at least one is hidden


def test_packed_rows() -> None:
    ids = np.concatenate([*texts(10, 5), [0, 0]])
    example = {"input_ids": ids, "document_ids": np.repeat([0, 1, -1], [10, 5, 2])}
    (result,) = prepared(objective(rate=1.0), [example])
    assert (result["labels"] != -100).tolist() == [True] * 15 + [False] * 2
    check_adds(objective(), built(guesser()), [result, *prepared(objective(), [{"input_ids": ids[:7]}])])


# ---------------------------------------------------------------------------------------------------------------
# The loss


def test_the_loss_of_bert(tmp_path: Path) -> None:
    hf = saved(transformers.BertForMaskedLM, transformers.BertConfig(**BERT), tmp_path).train()
    network = load_folder(tmp_path)[1].train()
    examples = prepared(objective(), [{"input_ids": row} for row in texts(30, 17, 24)])
    batch = objective(rows_at_once=3).collate(examples)
    ours = objective(rows_at_once=3)(network, batch)
    labels = torch.full(batch["input_ids"].shape, -100)
    for row, example in enumerate(examples):
        labels[row, : len(example["labels"])] = torch.tensor(example["labels"])
    theirs = hf(batch["input_ids"], attention_mask=batch["attention_mask"].long(), labels=labels)
    assert ours.count == 4 + 3 + 4
    assert_same(ours.total / ours.count, theirs.loss, 1e-8)
    (ours.total / ours.count).backward()
    theirs.loss.backward()
    pairs = {
        "encoder.embedding.tokens.weight": "bert.embeddings.word_embeddings.weight",
        "encoder.stack.layers.0.attention.query.weight": "bert.encoder.layer.0.attention.self.query.weight",
        "masked_head.head.bias": "cls.predictions.bias",
        "masked_head.transform.linear.weight": "cls.predictions.transform.dense.weight",
    }
    for mine, other in pairs.items():
        assert_same(network.get_parameter(mine).grad, hf.get_parameter(other).grad, 1e-8)
    right = (theirs.logits.argmax(-1) == labels)[labels != -100].sum()
    assert ours.metrics["accuracy"][0] == right


def test_rows_add() -> None:
    examples = prepared(objective(), [{"input_ids": row} for row in texts(20, 7, 33)])
    check_adds(objective(rows_at_once=4), built(guesser()), examples)


def test_only_chosen_tokens_are_scored() -> None:
    network, sizes = built(guesser()), []
    score = network.score
    network.score = lambda hidden: sizes.append(len(hidden)) or score(hidden)
    examples = prepared(objective(), [{"input_ids": row} for row in texts(20, 20)])
    objective()(network, objective().collate(examples))
    assert sizes == [0, 6]


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({}, decoder(), r"EncoderOnly with a masked_head\), but this network is DecoderOnly"),
        ({}, encoder(), "but this network is EncoderOnly without one"),
        ({"mask_token_id": 40}, guesser(), "mask_token_id 40 is not in the network's vocabulary of 37"),
        ({"vocab_size": 50}, guesser(), "vocab_size is 50, but the network's is 37"),
        ({"rate": 1.2}, None, r"rate is 1\.2, but it must be between 0 and 1"),
        ({"random_rate": 0.6, "keep_rate": 0.6}, None, r"random_rate \+ keep_rate is 1\.2"),
        ({"continuation_token_ids": (9,)}, None, "continuation_token_ids are for whole_words, which is off"),
    ],
)
def test_what_does_not_fit(options: Any, config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(objective(), **options).check(config)


# ---------------------------------------------------------------------------------------------------------------
# Replaced tokens


def replaced(**options: Any) -> ReplacedTokens:
    return ReplacedTokens(mask_token_id=MASK, special_token_ids=SPECIAL, **options)


def pair(**options: Any) -> Any:
    config = discriminator()
    return built(GeneratorDiscriminator.Config(small_generator(config, 0.5), config, **options))


def test_the_losses_of_electra(tmp_path: Path) -> None:
    """Rows of one length, for which the mean over rows is the mean over tokens that the authors took."""
    config = transformers.ElectraConfig(**BERT, embedding_size=12)
    small = transformers.ElectraConfig(**{**BERT, "hidden_size": 8, "num_attention_heads": 2}, embedding_size=12)
    parts = []
    for name, model, own in [
        ("generator", transformers.ElectraForMaskedLM, small),
        ("discriminator", transformers.ElectraForPreTraining, config),
    ]:
        hf = saved(model, own, tmp_path / name).train()
        parts.append((hf, load_folder(tmp_path / name)[1].train()))
    (hf_generator, generator), (hf_discriminator, network) = parts
    both = GeneratorDiscriminator.Config(generator.config, network.config, shared_embeddings=False).build().double()
    both.generator.load_state_dict(generator.state_dict())
    both.discriminator.load_state_dict(network.state_dict())
    task = replaced()
    examples = prepared(task, [{"input_ids": row} for row in texts(26, 26, 26)])
    ours = task(both, task.collate(examples))

    ids = torch.tensor(np.stack([example["input_ids"] for example in examples]))
    hidden = torch.tensor(np.stack([example["hidden"] for example in examples]))
    guessed = hf_generator(ids.masked_fill(hidden, MASK), labels=ids.masked_fill(~hidden, -100))
    text = ids.clone()
    for row, column in hidden.nonzero():
        sums = guessed.logits[row, column].softmax(-1).cumsum(-1)
        text[row, column] = (sums <= examples[row]["draws"][column]).sum()
    judged = hf_discriminator(text, labels=(text != ids).long())
    assert (text != ids).any() and not (text != ids)[~hidden].any()
    expected = guessed.loss + 50 * judged.loss
    assert_same(ours.total / ours.count, expected, 1e-6)
    (ours.total / ours.count).backward()
    expected.backward()
    for side, other in ((both.generator, hf_generator), (both.discriminator, hf_discriminator)):
        for mine, theirs in {
            "encoder.embedding.tokens.weight": "electra.embeddings.word_embeddings.weight",
            "encoder.stack.layers.1.attention.output.weight": "electra.encoder.layer.1.attention.output.dense.weight",
        }.items():
            # Row 0 is padding to transformers: looking it up teaches it nothing there.
            assert_same(side.get_parameter(mine).grad[1:], other.get_parameter(theirs).grad[1:], 1e-6)
    counts = ours.metrics
    assert counts["replaced"] == ((text != ids).sum(), ids.numel())
    assert_same(float(counts["generator_loss"][0]) / counts["generator_loss"][1], guessed.loss.item(), 1e-6)
    assert_same(float(counts["discriminator_loss"][0]) / counts["discriminator_loss"][1], judged.loss.item(), 1e-6)


def test_replaced_rows_add() -> None:
    """The draws do not depend on the batch, so that losses of rows of any length add."""
    network, task = pair(), replaced(rows_at_once=3)
    check_adds(task, network, prepared(task, [{"input_ids": row} for row in texts(30, 9, 1, 21)]))
    ids = np.concatenate(texts(10, 6))
    packed = {"input_ids": ids, "document_ids": np.repeat([0, 1], [10, 6])}
    check_adds(task, network, prepared(task, [packed, {"input_ids": ids[:5]}]))


def test_tokens_are_drawn_as_the_generator_says() -> None:
    """The same text many times: frequencies of what stands at a hidden token are its probabilities."""
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawing = _Drawing(torch.cat([draws, torch.tensor([0.0, 1 - 2**-53]).double()]))
    for start in range(0, 20_002, 4001):
        rows = slice(start, start + 4001)
        scores = probabilities.log().expand(len(drawing.draws[rows]), -1)
        drawing(Piece(scores, torch.zeros(len(scores)).long(), rows))
    frequencies = torch.bincount(drawing.ids, minlength=4) / 20_002
    torch.testing.assert_close(frequencies, probabilities, atol=0.012, rtol=0)
    assert frequencies[1] == 0 and drawing.ids[-2:].tolist() == [0, 3]


def test_shared_embeddings_learn_from_both() -> None:
    network, task = pair(), replaced()
    first, second = network.generator.encoder.embedding, network.discriminator.encoder.embedding
    assert first.tokens is second.tokens and first.positions is second.positions
    assert first.projection is not None and second.projection is None
    batch = task.collate(prepared(task, [{"input_ids": row} for row in texts(20, 20)]))
    names = dict(network.named_parameters())
    assert not any(name.startswith("discriminator.encoder.embedding.tokens") for name in names)
    total = task(network, batch).total
    gradients = gradients_of(network, total)
    assert gradients.keys() == names.keys()
    alone = pair(shared_embeddings=False)
    assert len(list(alone.parameters())) == len(names) + 2


def test_a_generator_is_made_and_left_behind() -> None:
    network, task = built(discriminator()), replaced(generator_share=0.5)
    task.check(network.config)
    both = task.begun(network)
    assert both.discriminator is network and task.begun(both) is both
    small, large = both.generator.config.encoder.stack.layers[0], network.config.encoder.stack.layers[0]
    assert (small.attention.hidden_size, small.attention.num_heads, small.feedforward.intermediate_size) == (8, 2, 12)
    assert small.attention.head_dim == large.attention.head_dim
    task.check(both.config)
    assert task.finished(both, "family") == (network, "family")
    assert core.Config.from_dict(both.config.to_dict()) == both.config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replaced().check(guesser()), "but this network is EncoderOnly with the task 'masked-lm'"),
        (lambda: replaced().check(decoder()), "but this network is DecoderOnly"),
        (lambda: replaced(weight=0), "weight is 0, but it must be above 0"),
        (lambda: replaced(generator_share=0), "generator_share is 0"),
        (lambda: GeneratorDiscriminator.Config(discriminator(), discriminator()), "the generator needs a masked_head"),
        (lambda: GeneratorDiscriminator.Config(guesser(), guesser()), "its task is 'masked-lm' and it has None labels"),
        (
            lambda: GeneratorDiscriminator.Config(
                guesser(),
                replace(
                    discriminator(),
                    encoder=core.Encoder.Config(core.TokenEmbedding.Config(50, HIDDEN), discriminator().encoder.stack),
                ),
            ),
            "shared embeddings must be alike, but the generator has",
        ),
    ],
)
def test_pairs_that_do_not_fit(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
