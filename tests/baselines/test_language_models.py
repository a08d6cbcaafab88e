"""Recurrent and convolutional language models: their formulas by hand, and what must not change their results."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import polyformer
from polyformer.baselines import ConvolutionLM, RecurrentLM
from polyformer.errors import ConfigError
from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings

CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}
VOCABULARY = 13


# --- formulas ---------------------------------------------------------------------------------------------------------


def step_by_hand(cell: str, weights: dict[str, Tensor], inputs: Tensor, state: list[Tensor]) -> list[Tensor]:
    """One step of one layer, written from the papers; gates in PyTorch's order."""
    inner = weights["weight_ih"] @ inputs + weights["bias_ih"]
    recurrent = weights["weight_hh"] @ state[0] + weights["bias_hh"]
    if cell == "rnn":
        return [torch.tanh(inner + recurrent)]
    if cell == "lstm":
        into, forget, new, out = (inner + recurrent).chunk(4)
        memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(into) * torch.tanh(new)
        return [torch.sigmoid(out) * torch.tanh(memory), memory]
    (reset, update, new), (own_reset, own_update, own_new) = inner.chunk(3), recurrent.chunk(3)
    reset, update = torch.sigmoid(reset + own_reset), torch.sigmoid(update + own_update)
    return [(1 - update) * torch.tanh(new + reset * own_new) + update * state[0]]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_recurrent_network_by_hand(cell: str, random_network: Callable[..., Any], random_ids: Any) -> None:
    network = random_network(RecurrentLM.Config(VOCABULARY, 6, 2, cell))
    ids = random_ids(7)
    cells = network.recurrence.cells
    states = [[torch.zeros(6, dtype=torch.float64)] * 2 for _ in range(2)]
    expected = []
    for token in ids:
        hidden = network.embedding.tokens.weight[token] * 6**0.5
        for layer in range(2):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            weights = {name: getattr(cells, f"{name}_l{layer}") for name in names}
            states[layer] = step_by_hand(cell, weights, hidden, states[layer])
            hidden = states[layer][0]
        expected.append(network.embedding.tokens.weight @ hidden + network.head.bias)
    torch.testing.assert_close(network(ids[None]).logits[0], torch.stack(expected), **CLOSE)


def test_convolution_against_pytorch(random_network: Callable[..., Any]) -> None:
    """The filters as one map of shifted vectors are a dilated convolution padded on the left."""
    layer = random_network(ConvolutionLM.Config(VOCABULARY, 6, 3, kernel_size=3)).layers[2]
    hidden = torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernels = layer.filters.weight.view(12, 3, 6).transpose(1, 2)  # [out, in, place], the earliest place first
    padded = functional.pad(layer.norm(hidden).mT, (2 * 4, 0))
    filtered, gate = functional.conv1d(padded, kernels, layer.filters.bias, dilation=4).mT.chunk(2, dim=-1)
    expected = hidden + layer.output(filtered.tanh() * gate.sigmoid())
    torch.testing.assert_close(layer(hidden, None, None)[0], expected, **CLOSE)


def test_receptive_field_is_exact(random_network: Callable[..., Any], random_ids: Any) -> None:
    config = ConvolutionLM.Config(VOCABULARY, 8, 4, kernel_size=3, dilation_cycle=3)
    assert config.receptive_field == 1 + 2 * (1 + 2 + 4 + 1)
    network, ids = random_network(config), random_ids(1, 30)
    embedded: list[Tensor] = []
    network.embedding.register_forward_hook(lambda module, args, output: embedded.append(output) or output)
    logits = network(ids).logits
    (gradient,) = torch.autograd.grad(logits[0, -1].square().sum(), embedded[0])
    reached = gradient[0].norm(dim=-1) > 0
    assert reached.tolist() == [False] * (30 - config.receptive_field) + [True] * config.receptive_field


def test_forget_gate_starts_open() -> None:
    cells = RecurrentLM.Config(VOCABULARY, 5, 2, "lstm").build().recurrence.cells
    for layer in range(2):
        bias = getattr(cells, f"bias_ih_l{layer}") + getattr(cells, f"bias_hh_l{layer}")
        assert bias.tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 10


def test_untied_head_has_its_own_matrix(language_model: Any, random_ids: Any) -> None:
    ids = random_ids(2, 5)
    output = language_model(ids, with_logits=False)
    assert output.logits is None
    weight = language_model.head.weight
    table = language_model.embedding.tokens.weight if weight is None else weight
    assert (weight is None) == language_model.config.tied
    expected = output.last_hidden_state @ table.T + language_model.head.bias
    torch.testing.assert_close(language_model.score(output.last_hidden_state), expected, **CLOSE)
    torch.testing.assert_close(language_model(ids, logits_to_keep=2).logits, expected[:, -2:], **CLOSE)


# --- invariances ------------------------------------------------------------------------------------------------------


def test_no_token_sees_a_later_one(language_model: Any, random_ids: Any) -> None:
    ids = random_ids(1, 12)
    other = ids.clone()
    other[0, 7:] = (other[0, 7:] + 1) % VOCABULARY
    first, second = language_model(ids).logits, language_model(other).logits
    torch.testing.assert_close(first[:, :7], second[:, :7], **CLOSE)
    assert (first[:, 7] - second[:, 7]).abs().max() > 1e-4


@pytest.mark.parametrize("cuts", [(1,) * 20, (3, 1, 9, 7), (20,)])
def test_read_in_pieces(language_model: Any, random_ids: Any, cuts: tuple[int, ...]) -> None:
    ids = random_ids(3, 20)
    cache, pieces = language_model.new_cache(), []
    for part in ids.split(cuts, dim=1):
        pieces.append(language_model(part, cache=cache).logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), language_model(ids).logits, **CLOSE)
    assert (cache.length, cache.batch_size, cache.row_lengths().tolist()) == (20, 3, [20, 20, 20])


@pytest.mark.parametrize("piece", [1, 2, 5, 12])
def test_padding_changes_nothing(language_model: Any, random_ids: Any, piece: int) -> None:
    """Rows with padding left, right, in the middle and nowhere, read in pieces, are what each is alone."""
    ids = random_ids(4, 12)
    mask = torch.ones(4, 12, dtype=torch.bool)
    mask[0, :7], mask[1, 9:], mask[2, 3:8] = False, False, False
    cache, pieces = language_model.new_cache(), []
    for part, there in zip(ids.split(piece, 1), mask.split(piece, 1)):
        pieces.append(language_model(part, attention_mask=there, cache=cache).logits)
    together = torch.cat(pieces, dim=1)
    for row, there in enumerate(mask):
        torch.testing.assert_close(together[row, there], language_model(ids[row, there][None]).logits[0], **CLOSE)
    assert cache.row_lengths().tolist() == mask.sum(1).tolist()
    following = random_ids(4, 1, seed=5)
    logits = language_model(following, cache=cache).logits
    for row, there in enumerate(mask):
        text = torch.cat([ids[row, there], following[row]])[None]
        torch.testing.assert_close(logits[row, -1], language_model(text).logits[0, -1], **CLOSE)


def test_packed_documents_are_separate(language_model: Any, random_ids: Any) -> None:
    """Logits and gradients of packed rows are those of the documents, each alone."""
    ids = random_ids(2, 14)
    documents = torch.tensor([[0] * 5 + [1] * 1 + [2] * 6 + [-1] * 2, [7] * 3 + [3] * 11])
    packed = language_model(ids, document_ids=documents).logits
    weights = torch.randn(packed.shape, generator=torch.Generator().manual_seed(2), dtype=packed.dtype)
    loss, alone = torch.zeros(()), torch.zeros(())
    for row, number in [(0, 0), (0, 1), (0, 2), (1, 7), (1, 3)]:
        there = documents[row] == number
        logits = language_model(ids[row, there][None]).logits[0]
        torch.testing.assert_close(packed[row, there], logits, **CLOSE)
        loss = loss + (packed[row, there] * weights[row, there]).sum()
        alone = alone + (logits * weights[row, there]).sum()
    parameters = list(language_model.parameters())
    for one, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(alone, parameters)):
        torch.testing.assert_close(one, other, **CLOSE)


def test_cache_rows_can_be_chosen(language_model: Any, random_ids: Any) -> None:
    ids, following = random_ids(3, 9), random_ids(4, 2, seed=6)
    cache = language_model.new_cache()
    language_model(ids, cache=cache)
    rows = torch.tensor([2, 0, 0, 1])
    cache.select(rows)
    expected = language_model(torch.cat([ids[rows], following], dim=1)).logits[:, -2:]
    torch.testing.assert_close(language_model(following, cache=cache).logits, expected, **CLOSE)
    order = torch.tensor([3, 1, 0, 0])
    cache.reorder(order, first_column=9)
    text = torch.cat([ids[rows], following], dim=1)[order]
    last = random_ids(4, 1, seed=7)
    other = language_model.new_cache()
    language_model(random_ids(1, 3), cache=other)
    merged = cache.merge([other])
    found = language_model(torch.cat([last, last[:1]]), cache=merged).logits
    torch.testing.assert_close(found[:4, -1], language_model(torch.cat([text, last], 1)).logits[:, -1], **CLOSE)
    alone = torch.cat([random_ids(1, 3), last[:1]], dim=1)
    torch.testing.assert_close(found[4, -1], language_model(alone).logits[0, -1], **CLOSE)


def test_what_cannot_be_is_refused(language_model: Any, random_ids: Any) -> None:
    ids = random_ids(2, 4)
    cache = language_model.new_cache()
    language_model(ids, cache=cache)
    with pytest.raises(ConfigError, match="holds 2 rows, but the input has 1"):
        language_model(ids[:1], cache=cache)
    with pytest.raises(ConfigError, match="cannot forget"):
        cache.trim(1)
    with pytest.raises(ConfigError, match="go with no cache"):
        language_model(ids, cache=cache, document_ids=torch.zeros_like(ids))
    with pytest.raises(ConfigError, match="document_ids are"):
        language_model(ids, document_ids=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ConfigError, match="'int8' is for keys and values"):
        language_model.new_cache("int8")
    small = language_model.new_cache(capacity=5)
    language_model(ids, cache=small)
    with pytest.raises(ConfigError, match="holds 4 of its 5 columns: 2 more"):
        language_model(ids[:, :2], cache=small)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecurrentLM.Config(5, 4, cell="lstn"), "cell 'lstn' is not one of rnn, lstm, gru"),
        (lambda: RecurrentLM.Config(5, 4, num_layers=0), "num_layers is 0"),
        (lambda: RecurrentLM.Config(5, 4, dropout=1.0), "dropout is 1.0"),
        (lambda: ConvolutionLM.Config(5, 4, kernel_size=1), "kernel_size is 1"),
        (lambda: ConvolutionLM.Config(5, 4, num_layers=0), "num_layers is 0"),
        (lambda: ConvolutionLM.Config(5, 4, dilation_cycle=0), "dilation_cycle is 0"),
    ],
)
def test_impossible_configs(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_dropout_is_for_training_only(random_ids: Any) -> None:
    for config in (RecurrentLM.Config(VOCABULARY, 8, dropout=0.5), ConvolutionLM.Config(VOCABULARY, 8, 2, dropout=0.5)):
        network, ids = config.build(), random_ids(1, 6)
        assert not torch.equal(network.train()(ids).logits, network(ids).logits)
        assert torch.equal(network.eval()(ids).logits, network(ids).logits)


# --- generation -------------------------------------------------------------------------------------------------------


def best_by_force(network: Any, prompt: list[int], length: int) -> list[int]:
    """The likeliest continuation of ``length`` tokens, among all."""
    texts = torch.tensor([[*prompt, *rest] for rest in product(range(VOCABULARY), repeat=length)])
    scores = network(texts).logits.log_softmax(-1)[:, len(prompt) - 1 : -1]
    sums = scores.gather(-1, texts[:, len(prompt) :, None]).sum((1, 2))
    return texts[sums.argmax(), len(prompt) :].tolist()


def test_greedy_and_sampling(language_model: Any, random_ids: Any) -> None:
    prompts = [random_ids(length, seed=length).tolist() for length in (5, 1, 9)]
    greedy = GenerationSettings(max_new_tokens=6, temperature=0)
    found = generate(language_model, prompts, greedy, prefill_chunk=4)
    for prompt, (generation,) in zip(prompts, found):
        text = list(prompt)
        for _ in range(6):
            text.append(int(language_model(torch.tensor([text])).logits[0, -1].argmax()))
        assert generation.token_ids == text[len(prompt) :]
    sampling = GenerationSettings(max_new_tokens=8, seed=3, n=3)
    together = generate(language_model, prompts, sampling)
    for prompt, generations in zip(prompts, together):
        alone = generate(language_model, [prompt], sampling)[0]
        assert [one.token_ids for one in generations] == [one.token_ids for one in alone]
    assert len({tuple(one.token_ids) for one in together[0]}) > 1


def test_beam_search_finds_the_best(language_model: Any, random_ids: Any) -> None:
    prompts = [random_ids(length, seed=length).tolist() for length in (6, 2)]
    wide = GenerationSettings(max_new_tokens=3, num_beams=VOCABULARY**2, length_penalty=0.0)
    for prompt, (generation, *_) in zip(prompts, generate(language_model, prompts, wide)):
        assert generation.token_ids == best_by_force(language_model, prompt, 3)


def test_contrastive_search(language_model: Any, random_ids: Any) -> None:
    """With a penalty of zero it is greedy."""
    prompts = [random_ids(length, seed=length).tolist() for length in (6, 2)]
    contrastive = GenerationSettings(max_new_tokens=5, penalty_alpha=1e-9, top_k=4)
    greedy = GenerationSettings(max_new_tokens=5, temperature=0)
    found = generate(language_model, prompts, contrastive)
    assert [one[0].token_ids for one in found] == [
        one[0].token_ids for one in generate(language_model, prompts, greedy)
    ]


# --- the front door ---------------------------------------------------------------------------------------------------


def test_saved_and_loaded(language_model: Any, random_ids: Any, tmp_path: Path) -> None:
    model = polyformer.build(language_model.config, dtype="float64", seed=1)
    model.network.load_state_dict(language_model.state_dict())
    model.save(tmp_path / "model")
    again = polyformer.load(tmp_path / "model", device="cpu")
    assert again.config == language_model.config
    for name, parameter in language_model.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], parameter)
    ids = random_ids(9).tolist()
    expected = generate(language_model, [ids], GenerationSettings(max_new_tokens=5, temperature=0))[0][0].token_ids
    assert again.generate(ids, max_new_tokens=5, temperature=0).token_ids == expected
    assert list(again.stream(ids, max_new_tokens=5, temperature=0)) == expected
    assert again.capabilities == ("generate", "stream", "score")
    score = again.score(ids)
    logprobs = language_model(torch.tensor([ids])).logits[0].log_softmax(-1).tolist()
    torch.testing.assert_close(score.logprobs, [logprobs[n][ids[n + 1]] for n in range(8)], **CLOSE)


def test_half_precision_is_near(language_model: Any, random_ids: Any) -> None:
    ids = random_ids(2, 10)
    exact = language_model(ids).logits.softmax(-1)
    half = type(language_model)(language_model.config).eval()
    half.load_state_dict(language_model.state_dict())
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :3] = False
    near = half.to(torch.bfloat16)(ids).logits.double().log_softmax(-1)
    assert float((exact * (exact.log() - near)).sum(-1).mean()) < 0.01
    assert half(ids, attention_mask=mask).logits.isfinite().all()


def test_trains_in_mixed_precision(language_model: Any, random_ids: Any) -> None:
    """Under autocast, with packed rows and without, gradients are near those of float32."""
    network, ids = type(language_model)(language_model.config), random_ids(2, 10)
    network.load_state_dict(language_model.state_dict())
    for documents in (None, torch.tensor([[0] * 4 + [1] * 6] * 2)):
        gradients = []
        for enabled in (False, True):
            network.train().zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                logits = network(ids, document_ids=documents).logits
            functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten()).backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
        assert functional.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.99
