"""Every baseline learns: from new weights, in a few steps, what it must be able to know."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from polyformer.baselines import ConvolutionLM, RecurrentLM, RecurrentTranslator

SIZE = 16


@pytest.mark.parametrize(
    "config",
    [RecurrentLM.Config(SIZE, 32, 2, cell) for cell in ("rnn", "lstm", "gru")] + [ConvolutionLM.Config(SIZE, 32, 2)],
    ids=["rnn", "lstm", "gru", "convolution"],
)
def test_language_models_learn_what_follows(config: Any) -> None:
    """Each token is a function of the two before it; a model of single tokens would stay at log 16 = 2.77."""
    torch.manual_seed(0)
    network = config.build()
    follows = torch.randint(SIZE, (SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(300):
        ids = torch.randint(SIZE, (16, 14), generator=generator)
        for column in range(2, 14, 3):  # two tokens by chance, then one that follows from them
            ids[:, column] = follows[ids[:, column - 2], ids[:, column - 1]]
        logits = network(ids).logits[:, 1:-1:3]
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 2::3].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.8


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_translator_learns_to_look(cell: str) -> None:
    """The target is the source turned round, each token under another name: only attention says where to look."""
    torch.manual_seed(0)
    network = RecurrentTranslator.Config(SIZE, SIZE, 32, 1, cell, decoder_start_token_id=0).build()
    names = torch.randperm(SIZE - 1, generator=torch.Generator().manual_seed(1)) + 1
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(250):
        source = torch.randint(1, SIZE, (32, 6), generator=generator)
        target = names[source.flip(1) - 1]
        given = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], dim=1)
        logits = network(source, decoder_input_ids=given).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5
