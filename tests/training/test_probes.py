"""The probes: against what must come out by construction, and on networks whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from polyformer.baselines import ConvolutionLM, RecurrentLM, RecurrentTranslator
from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, LayerNorm, Rotary, Stack, TokenEmbedding
from polyformer.errors import ConfigError
from polyformer.training.probes import (
    Recall,
    RecallTask,
    _recall_rows,
    gradient_norms,
    recall,
    training_throughput,
)


def transformer(hidden: int = 32, layers: int = 1, max_positions: int | None = None) -> Any:
    norm = LayerNorm.Config(hidden)
    attention = Attention.Config(hidden, num_heads=4, positions=Rotary.Config(hidden // 4))
    layer = Layer.Config(attention=attention, feedforward=FeedForward.Config(hidden, 2 * hidden, "gelu"), norm=norm)
    return DecoderOnly.Config(
        TokenEmbedding.Config(40, hidden),
        Stack.Config((layer,) * layers, norm),
        Head.Config(hidden, 40),
        max_positions=max_positions,
    )


def test_rows_hold_the_key_where_they_say() -> None:
    import numpy as np

    task, random = RecallTask(noise=5, keys=3), np.random.default_rng(0)
    for distance in (1, 2, 7):
        lengths = set()
        for _ in range(30):
            ids, keys = _recall_rows(task, distance, 4, random, torch.device("cpu"))
            assert torch.equal(ids[:, -1 - distance], keys) and (ids[:, -1] == 8).all()
            assert ((keys >= 5) & (keys < 8)).all()
            rest = torch.cat([ids[:, : -1 - distance], ids[:, -distance:-1]], dim=1)
            assert (rest < 5).all()
            lengths.add(ids.shape[1])
        assert len(lengths) > 3  # the key stands in no fixed place


def test_recall_ends_at_the_receptive_field() -> None:
    """A convolution is perfect as far as it sees, and guesses beyond."""
    config = ConvolutionLM.Config(40, 32, 2)
    assert config.receptive_field == 4
    found = recall(config, RecallTask(distances=(1, 2, 3, 4, 9), keys=4, noise=4, steps=150, trials=128))
    assert all(found.accuracy[distance] > 0.9 for distance in (1, 2, 3))
    assert all(found.accuracy[distance] < 0.5 for distance in (4, 9))
    assert found.reach == 3 and found.chance == 0.25


def test_recall_is_the_same_every_time_and_disturbs_nothing() -> None:
    config, task = RecurrentLM.Config(40, 8, 1, "gru"), RecallTask(distances=(1, 2), steps=6, trials=8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = recall(config, task)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    steps: list[int] = []
    assert recall(config, task, progress=lambda done, total: steps.append(done)) == first
    assert steps == [1, 2, 3, 4, 5, 6]


def test_reach_is_where_recall_is_lost_first() -> None:
    assert Recall({1: 1.0, 2: 0.9, 4: 0.2, 8: 0.8}, 0.1, 5).reach == 2
    assert Recall({1: 0.2}, 0.1, 5).reach == 0


def test_a_short_context_leaves_distances_out() -> None:
    task = RecallTask(distances=(1, 4, 64), steps=2, trials=4)
    assert list(recall(transformer(max_positions=20), task).accuracy) == [1, 4]
    with pytest.raises(ConfigError, match="context of 6 tokens is too short"):
        recall(transformer(max_positions=6), task)


def test_gradients_against_finite_differences() -> None:
    network = RecurrentLM.Config(40, 6, 1, "lstm", dropout=0.5).build().double().train()
    ids = torch.randint(40, (2, 5), generator=torch.Generator().manual_seed(0))
    norms = gradient_norms(network, ids)
    assert len(norms) == 4 and network.training
    network.eval()
    small = 1e-6
    vectors = network.embedding(ids[:, :-1], torch.zeros_like(ids[:, :-1])).detach()

    def losses(changed: torch.Tensor) -> torch.Tensor:
        hook = network.embedding.register_forward_hook(lambda *_: changed)
        with torch.no_grad():
            logits = network(ids[:, :-1]).logits[:, -1]
        hook.remove()
        return functional.cross_entropy(logits, ids[:, -1], reduction="none")

    squares = torch.zeros(2, 4, dtype=torch.float64)
    for column in range(4):
        for dimension in range(6):
            step = torch.zeros_like(vectors)
            step[:, column, dimension] = small
            squares[:, column] += ((losses(vectors + step) - losses(vectors - step)) / (2 * small)) ** 2
    expected = squares.sqrt().mean(0).flip(0)
    torch.testing.assert_close(torch.tensor(norms, dtype=torch.float64), expected, rtol=1e-4, atol=1e-9)


def test_gradients_vanish_as_the_weights_say() -> None:
    """A linear recurrence of one dimension with weight w, tanh being nearly linear near 0: w to the power of the
    steps."""
    network = RecurrentLM.Config(40, 4, 1, "rnn").build().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.001)
        network.recurrence.cells.weight_hh_l0.copy_(0.5 * torch.eye(4))
        network.recurrence.cells.weight_ih_l0.copy_(torch.eye(4))
    ids = torch.randint(40, (1, 12), generator=torch.Generator().manual_seed(1))
    norms = gradient_norms(network, ids)
    for earlier, later in zip(norms[1:], norms):
        assert earlier / later == pytest.approx(0.5, rel=1e-3)


def test_gradients_of_a_convolution_end_at_its_field() -> None:
    config = ConvolutionLM.Config(40, 8, 3)
    norms = gradient_norms(config.build(), torch.randint(40, (2, 14), generator=torch.Generator().manual_seed(0)))
    assert [norm > 0 for norm in norms] == [True] * 8 + [False] * 5


def test_throughput() -> None:
    done: list[tuple[int, int]] = []
    state = torch.get_rng_state()
    found = training_throughput(
        transformer(max_positions=32),
        [8, 32, 64],
        batch_tokens=64,
        repeats=1,
        progress=lambda number, total: done.append((number, total)),
    )
    assert list(found) == [8, 32] and all(math.isfinite(value) and value > 0 for value in found.values())
    assert done == [(1, 2), (2, 2)] and torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_probed_is_refused() -> None:
    translator = RecurrentTranslator.Config(50, 50, 8, decoder_start_token_id=1)
    with pytest.raises(ConfigError, match="is for networks without a source, not RecurrentTranslator"):
        recall(translator)
    with pytest.raises(ConfigError, match="recall needs 33 tokens, but the network has 20"):
        recall(RecurrentLM.Config(20, 8))
    with pytest.raises(ConfigError, match="batch_tokens must be at least 1"):
        training_throughput(RecurrentLM.Config(20, 8), [8], batch_tokens=0)
    with pytest.raises(ConfigError, match="contexts must be at least 1"):
        training_throughput(RecurrentLM.Config(20, 8), [])
    with pytest.raises(ConfigError, match="2 or more"):
        gradient_norms(RecurrentLM.Config(20, 8).build(), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ConfigError, match="a distance is 0"):
        RecallTask(distances=(0,))
