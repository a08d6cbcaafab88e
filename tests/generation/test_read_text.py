"""A growing text is read only from where it differs, and the tokens are those of reading it whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from polyformer.core import (
    Attention,
    Causal,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    RMSNorm,
    SlidingWindow,
    Stack,
    TokenEmbedding,
)
from polyformer.core.masks import Mask
from polyformer.core.rotary import Rotary
from polyformer.errors import GenerationError
from polyformer.generation.generate import stream_events
from polyformer.generation.requests import ReadText
from polyformer.generation.settings import GenerationSettings


def build(*masks: Mask) -> DecoderOnly:
    torch.manual_seed(0)
    norm = RMSNorm.Config(24)
    layers = tuple(
        Layer.Config(
            Attention.Config(24, 4, 2, mask=mask, positions=Rotary.Config(6)), FeedForward.Config(24, 40), norm
        )
        for mask in masks
    )
    config = DecoderOnly.Config(TokenEmbedding.Config(71, 24), Stack.Config(layers, norm), Head.Config(24, 71))
    network = config.build().double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


class Counting(torch.nn.Module):
    """Counts the columns that a network reads."""

    def __init__(self, network: DecoderOnly):
        super().__init__()
        self.network, self.config, self.device, self.columns = network, network.config, network.device, 0

    def new_cache(self, kind: str) -> Any:
        return self.network.new_cache(kind)

    def forward(self, ids: torch.Tensor, **options: Any) -> Any:
        self.columns += ids.shape[1]
        return self.network(ids, **options)


SETTINGS = GenerationSettings(max_new_tokens=6, temperature=0.9, seed=4)


def answer(network: Any, prompt: Sequence[int], read_text: ReadText | None = None) -> list[int]:
    return [event.token_id for event in stream_events(network, prompt, SETTINGS, read_text=read_text)]


@pytest.mark.parametrize("masks", [(Causal(), Causal()), (SlidingWindow(7), Causal())], ids=["causal", "window"])
def test_turns_equal_reading_everything(masks: tuple[Mask, ...]) -> None:
    network = Counting(build(*masks))
    read_text, text = ReadText(), [3, 9, 27, 10]
    for turn in range(4):
        expected = answer(network, text)
        network.columns = 0
        assert answer(network, text, read_text) == expected
        if turn:
            assert network.columns <= 4 + 6, "only the new tokens of a turn may be read"
        text = [*text, *expected, 11 + turn, 5, 8]


def test_a_text_that_differs_is_read_from_there() -> None:
    network = Counting(build(Causal()))
    read_text = ReadText()
    text = list(range(30))
    answer(network, text, read_text)
    changed = [*text[:20], 60, 61]
    expected = answer(network, changed)
    network.columns = 0
    assert answer(network, changed, read_text) == expected
    assert network.columns == 2 + 5


def test_what_a_window_has_forgotten_is_read_again() -> None:
    network = build(SlidingWindow(5))
    read_text = ReadText()
    text = [token % 71 for token in range(300)]
    answer(network, text, read_text)
    answer(network, [*text, *text], read_text)
    assert answer(network, text[:50], read_text) == answer(network, text[:50])


def test_an_interrupted_turn_leaves_nothing_wrong() -> None:
    network = build(Causal(), Causal())
    read_text = ReadText()
    events = stream_events(network, [1, 2, 3, 4], SETTINGS, read_text=read_text)
    next(events)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert answer(network, [1, 2, 3, 4, 5, 6], read_text) == answer(network, [1, 2, 3, 4, 5, 6])
    read_text.tokens.append(7)  # as if the interrupt had come between the cache and the list
    assert answer(network, [1, 2, 3, 4, 5, 6], read_text) == answer(network, [1, 2, 3, 4, 5, 6])


def test_refused_where_it_cannot_be_right() -> None:
    network = build(Causal())
    contrastive = GenerationSettings(max_new_tokens=2, penalty_alpha=0.6, top_k=4)
    with pytest.raises(GenerationError, match="read_text cannot be used"):
        stream_events(network, [1, 2], contrastive, read_text=ReadText())
