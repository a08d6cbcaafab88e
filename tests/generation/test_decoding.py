"""The decode loops over other kinds of caches, and past every growth of their buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyformer.core import (
    ALiBi,
    Attention,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    SlidingWindow,
    Stack,
    TokenEmbedding,
)
from polyformer.core.config import Module
from polyformer.generation.decoding import TokenHistory, left_padded
from polyformer.generation.generate import generate
from polyformer.generation.processors import PADDING
from polyformer.generation.requests import prefill
from polyformer.generation.settings import GenerationSettings

Prompts = list[list[int]]


@pytest.fixture(scope="module")
def windowed() -> DecoderOnly:
    """Layers that see 6 tokens and layers that see all, in turn; positions by distance (ALiBi); float64."""
    norm = LayerNorm.Config(24)
    layers = []
    for mask in (SlidingWindow(6), None, SlidingWindow(6)):
        options: dict[str, Any] = {} if mask is None else {"mask": mask}
        attention = Attention.Config(24, num_heads=4, num_key_value_heads=2, bias=True, **options)
        layers.append(Layer.Config(attention=attention, feedforward=FeedForward.Config(24, 40), norm=norm))
    torch.manual_seed(2)
    network: Module = DecoderOnly.Config(
        embedding=TokenEmbedding.Config(301, 24),
        stack=Stack.Config(layers=tuple(layers), norm=norm, bias=ALiBi.Config(4)),
        head=Head.Config(24, 301),
    ).build()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return network.double().eval()


MODES: list[dict[str, Any]] = [
    {"temperature": 0},
    {"top_k": 50, "seed": 3, "n": 2},
    {"guidance_scale": 1.6, "temperature": 0},
    {"num_beams": 4, "n": 4, "length_penalty": 0.0, "early_stopping": True},
    {"num_beams": 4, "n": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    {"penalty_alpha": 0.5, "top_k": 5},
]


@pytest.mark.parametrize("cache_kind", ["dense", "int8"])
@pytest.mark.parametrize("mode", MODES)
def test_sliding_windows_batched_equal_alone(
    windowed: DecoderOnly, prompts: Prompts, mode: dict[str, Any], cache_kind: str
) -> None:
    """Long past the window, with rows that end at different steps, prompts read in pieces."""
    settings = GenerationSettings(max_new_tokens=24, stop_token_ids=range(0, 301, 20), **mode)
    together = generate(windowed, prompts, settings, prefill_chunk=5, cache_kind=cache_kind)
    for prompt, generations in zip(prompts, together):
        alone = generate(windowed, [prompt], settings, prefill_chunk=100, cache_kind=cache_kind)[0]
        assert [g.token_ids for g in generations] == [g.token_ids for g in alone]
        assert len(generations) == len(alone) == settings.n
    assert len({len(g.token_ids) for each in together for g in each}) > 1


def test_greedy_over_windows_equals_plain_forwards(windowed: DecoderOnly, prompts: Prompts) -> None:
    results = generate(windowed, prompts, GenerationSettings(temperature=0, max_new_tokens=30))
    for prompt, (generation,) in zip(prompts, results):
        text = list(prompt)
        for token in generation.token_ids:
            with torch.inference_mode():
                assert int(windowed(torch.tensor([text])).logits[0, -1].argmax()) == token
            text.append(token)


def test_long_history_outgrows_its_buffer(network64: DecoderOnly, prompts: Prompts) -> None:
    """80 new tokens under every penalty, against the definitions applied to plain forwards."""
    settings = GenerationSettings(
        temperature=0, max_new_tokens=80, repetition_penalty=1.1, frequency_penalty=0.3, presence_penalty=-0.2
    )
    results = generate(network64, prompts[:2], settings)
    for prompt, (generation,) in zip(prompts, results):
        text: list[int] = list(prompt)
        for token in generation.token_ids:
            with torch.no_grad():
                logits = network64(torch.tensor([text])).logits[0, -1].clone()
            for seen in set(text):
                logits[seen] = logits[seen] * 1.1 if logits[seen] < 0 else logits[seen] / 1.1
            new_text = text[len(prompt) :]
            for seen in set(new_text):
                logits[seen] -= 0.3 * new_text.count(seen) - 0.2
            assert int(logits.argmax()) == token
            text.append(token)
        assert len(text) == len(prompt) + 80


def test_token_history() -> None:
    history = TokenHistory([[1, 2], [3]], torch.device("cpu"))
    for step in range(200):
        history.append(torch.tensor([10 + step, 500 + step]))
    expected = [[1, 2, *range(10, 210)], [PADDING, 3, *range(500, 700)]]
    assert history.tokens.tolist() == expected
    history.select(torch.tensor([1]))
    assert history.tokens.tolist() == expected[1:]
    assert left_padded([[1], [2, 3]], torch.device("cpu")).tolist() == [[PADDING, 1], [2, 3]]


@pytest.mark.parametrize("chunk", [1, 3, 4, 50])
def test_prefill_gives_the_last_token_of_every_prompt(network64: DecoderOnly, prompts: Prompts, chunk: int) -> None:
    with torch.inference_mode():
        read = prefill(network64, prompts, chunk=chunk, cache_kind="dense", keep_hidden=True)
        assert read.columns == max(map(len, prompts)) and read.hidden is not None
        assert read.cache.row_lengths().tolist() == [len(prompt) for prompt in prompts]
        for row, prompt in enumerate(prompts):
            output = network64(torch.tensor([prompt]))
            torch.testing.assert_close(read.logits[row], output.logits[0, -1])
            torch.testing.assert_close(read.hidden[row, -len(prompt) :], output.last_hidden_state[0])
