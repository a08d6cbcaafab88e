"""Rows of several documents give what each document gives alone; layers computed twice give the same gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyformer import core
from polyformer.core.masks import Span
from polyformer.core.rotary import DynamicNTKScaling, LongRoPEScaling
from polyformer.errors import ConfigError

# Lengths of the documents of each row; what is left of 12 columns is padding, at the end or (negative) at the start.
ROWS = [[5, 4, 3], [1, 7, 2], [-3, 8, 1], [12], [-2, 6]]
WIDTH = 12
ROTARY = core.Rotary.Config(6)
NETWORKS: dict[str, dict[str, Any]] = {
    "causal, no positions": {},
    "rotary": {"attention": {"positions": ROTARY}},
    "rotary, angles by length": {"attention": {"positions": core.Rotary.Config(6, scaling=DynamicNTKScaling(2.0, 3))}},
    "rotary, long": {
        "attention": {"positions": core.Rotary.Config(6, scaling=LongRoPEScaling((1.0, 1.5, 2.0), (3.0, 4.0, 9.0), 4))}
    },
    "sliding window": {"attention": {"positions": ROTARY, "mask": core.SlidingWindow(3)}},
    "sliding window with sinks": {"attention": {"positions": ROTARY, "mask": core.SlidingWindow(2, sinks=1)}},
    "block local": {"attention": {"positions": ROTARY, "mask": core.BlockLocal(3)}},
    "bidirectional": {"attention": {"positions": ROTARY, "mask": core.Bidirectional()}},
    "bidirectional window": {"attention": {"positions": ROTARY, "mask": core.BidirectionalWindow(2)}},
    "learned": {"embedding": {"positions": core.Learned.Config(WIDTH, 16)}},
    "sinusoidal": {"embedding": {"positions": core.Sinusoidal.Config(16)}},
    "alibi": {"stack": {"bias": core.ALiBi.Config(4)}},
    "relative bias": {"stack": {"bias": core.RelativeBias.Config(4, 8, 6)}},
    "relative bias, both ways": {
        "attention": {"mask": core.Bidirectional()},
        "stack": {"bias": core.RelativeBias.Config(4, 8, 6, bidirectional=True)},
    },
    "relative vectors": {"attention": {"positions": core.Relative.Config(6, 4, values=True)}},
    "soft cap": {"attention": {"positions": ROTARY, "soft_cap": 3.0}},
}


def packed() -> tuple[Tensor, Tensor, list[tuple[int, slice]]]:
    """Ids, document ids, and where each document stands: (row, columns)."""
    ids = torch.randint(29, (len(ROWS), WIDTH), generator=torch.Generator().manual_seed(3))
    documents = torch.full_like(ids, -1)
    places = []
    for row, lengths in enumerate(ROWS):
        column = 0
        for number, length in enumerate(lengths):
            if length < 0:
                column -= length
                continue
            places.append((row, slice(column, column + length)))
            documents[row, places[-1][1]] = 7 * number + row  # any number, told apart from its neighbours
            column += length
    return ids, documents, places


def gradients(network: Any) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    network.zero_grad()
    return found


def same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_packed_row_gives_what_each_document_gives_alone(name: str, make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(**NETWORKS[name])).train()
    ids, documents, places = packed()
    states = network(ids, document_ids=documents, with_logits=False).last_hidden_state
    weights = torch.randn(states.shape, dtype=states.dtype, generator=torch.Generator().manual_seed(1))
    sum((states[place] * weights[place]).sum() for place in places).backward()
    together = gradients(network)
    for row, columns in places:
        alone = network(ids[row : row + 1, columns]).last_hidden_state
        same(states[row, columns], alone[0])
        (alone[0] * weights[row, columns]).sum().backward()
    for parameter, gradient in gradients(network).items():
        same(together[parameter], gradient)


def test_encoders(make_config: Any, random_module: Any) -> None:
    decoder = make_config({"mask": core.Bidirectional(), "positions": ROTARY})
    encoder = core.Encoder.Config(decoder.embedding, decoder.stack)
    head = core.MaskedTokenHead.Config(None, core.Head.Config(16, 29, bias=True))
    network = random_module(core.EncoderOnly.Config(encoder, "masked-lm", masked_head=head))
    ids, documents, places = packed()
    output = network(ids, document_ids=documents)
    for row, columns in places:
        alone = network(ids[row : row + 1, columns])
        same(output.last_hidden_state[row, columns], alone.last_hidden_state[0])
        same(output.logits[row, columns], alone.logits[0])
    pooled = random_module(core.EncoderOnly.Config(encoder, pooling=core.Pooling.Config("first")))
    with pytest.raises(ConfigError, match="makes one vector of a whole row: give each document its own row"):
        pooled(ids, document_ids=documents)


def test_one_document_a_row_is_as_fast_as_none() -> None:
    """No matrix of who sees whom is made: the mask is the plain triangle."""
    for ids in (torch.zeros(2, 6).long(), torch.tensor([[4] * 6, [9] * 6])):
        span = Span.of(6, document_ids=ids)
        assert span.start == 0 and span.documents is None and core.Causal().is_plain_causal(span)
        assert core.Bidirectional().of(span) is None
    padded = torch.tensor([[5, 5, 5, 5, -1, -1]])
    span = Span.of(6, document_ids=padded)
    expected = Span.of(6, padded >= 0)
    assert span.documents is None
    assert torch.equal(span.keys, expected.keys) and torch.equal(span.queries, expected.queries)


def test_positions_and_lengths() -> None:
    ids = torch.tensor([[3, 3, 3, -1, 3, 5, 5, -1], [0, 1, 2, 2, 2, 2, 0, 0]])
    span = Span.of(8, document_ids=ids)
    assert span.keys.tolist() == [[0, 1, 2, -1, 0, 0, 1, -1], [0, 0, 0, 1, 2, 3, 0, 1]]
    assert span.lengths().tolist()[1] == [1, 1, 4, 4, 4, 4, 2, 2]
    assert [span.lengths()[0, column].item() for column in (0, 1, 2, 4, 5, 6)] == [3, 3, 3, 1, 2, 2]
    masked = Span.of(8, torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1], [1] * 8]), document_ids=ids)
    assert masked.keys.tolist()[0] == [-1, 0, 1, -1, 0, 0, 1, -1]


def test_what_document_ids_do_not_go_with(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"mask": core.PrefixCausal()}))
    ids, documents, _ = packed()
    with pytest.raises(ConfigError, match="read once: leave out the cache, prefix_lengths and the source"):
        network(ids, document_ids=documents, cache=network.new_cache())
    with pytest.raises(ConfigError, match="leave out the cache"):
        network(ids, document_ids=documents, prefix_lengths=torch.zeros(len(ids)).long())
    with pytest.raises(ConfigError, match=r"document_ids are \[5, 11\], but input_ids are \[5, 12\]"):
        network(ids, document_ids=documents[:, 1:])


def test_scores_afterwards(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(head={"tied": False, "bias": True, "scale": 0.5, "soft_cap": 2.0}))
    ids = packed()[0]
    whole, bare = network(ids), network(ids, with_logits=False)
    assert bare.logits is None
    assert torch.equal(bare.last_hidden_state, whole.last_hidden_state)
    assert torch.equal(network.score(bare.last_hidden_state), whole.logits)


@pytest.mark.parametrize("name", ["rotary", "alibi", "relative bias", "relative vectors", "soft cap", "sliding window"])
@pytest.mark.parametrize("with_documents", [False, True])
def test_layers_computed_again_give_the_same_bits(
    name: str, with_documents: bool, make_config: Any, random_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = random_module(make_config(**NETWORKS[name], layer={"dropout": 0.2})).train()
    ids, documents, _ = packed()
    calls = []
    forward = core.Layer.forward
    monkeypatch.setattr(core.Layer, "forward", lambda self, *a, **o: calls.append(1) or forward(self, *a, **o))
    results = []
    for checkpoint in (False, True):
        network.stack.checkpoint_layers = checkpoint
        torch.manual_seed(5)
        logits = network(ids, document_ids=documents if with_documents else None).logits
        logits.square().sum().backward()
        results.append((logits.detach(), gradients(network)))
        assert len(calls) == (6 if checkpoint else 2)  # two layers; then each of them twice
    (plain, first), (again, second) = results
    assert torch.equal(plain, again)
    assert all(torch.equal(first[key], second[key]) for key in first)
    calls.clear()
    network.eval()(ids)
    assert len(calls) == 2


def test_encoder_decoders_computed_again_give_the_same_bits(make_config: Any, random_module: Any) -> None:
    decoder = make_config({"positions": ROTARY}, layer={"dropout": 0.2})
    reader = make_config({"mask": core.Bidirectional()}, stack={"bias": core.RelativeBias.Config(4, 8, 6, True)})
    cross = core.Attention.Config(16, 4, source_size=16, mask=core.Bidirectional())
    layers = tuple(replace(layer, cross_attention=cross) for layer in decoder.stack.layers)
    network = random_module(
        core.EncoderDecoder.Config(
            core.Encoder.Config(reader.embedding, reader.stack),
            core.Decoder.Config(decoder.embedding, replace(decoder.stack, layers=layers)),
            decoder.head,
        )
    ).train()
    ids, documents, _ = packed()
    results = []
    for checkpoint in (False, True):
        for part in (network.encoder, network.decoder):
            part.stack.checkpoint_layers = checkpoint
        torch.manual_seed(5)
        logits = network(ids, attention_mask=documents >= 0, decoder_input_ids=ids[:, :7]).logits
        logits.square().sum().backward()
        results.append((logits.detach(), gradients(network)))
    (plain, first), (again, second) = results
    assert torch.equal(plain, again)
    assert all(torch.equal(first[key], second[key]) for key in first)
