"""Small random networks of what came before the transformer, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from polyformer.baselines import ConvolutionLM, RecurrentLM, RecurrentTranslator

VOCABULARY = 13

LANGUAGE_MODELS = {
    "rnn": RecurrentLM.Config(VOCABULARY, 8, 2, "rnn"),
    "lstm": RecurrentLM.Config(VOCABULARY, 8, 2, "lstm"),
    "gru": RecurrentLM.Config(VOCABULARY, 8, 3, "gru", tied=False),
    "convolution": ConvolutionLM.Config(VOCABULARY, 8, 4, kernel_size=3, dilation_cycle=3),
}
TRANSLATORS = {
    cell: RecurrentTranslator.Config(VOCABULARY + 2, VOCABULARY, 8, 2, cell, decoder_start_token_id=1)
    for cell in ("rnn", "lstm", "gru")
}


@pytest.fixture(scope="session")
def random_network() -> Callable[..., Any]:
    """Builds a config in float64 with random parameters everywhere, in eval mode."""

    def build(config: Any, seed: int = 0, std: float = 0.4) -> Any:
        network = config.build().double()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return network.eval()

    return build


@pytest.fixture(params=list(LANGUAGE_MODELS))
def language_model(request: pytest.FixtureRequest, random_network: Callable[..., Any]) -> Any:
    return random_network(LANGUAGE_MODELS[request.param])


@pytest.fixture(params=list(TRANSLATORS))
def translator(request: pytest.FixtureRequest, random_network: Callable[..., Any]) -> Any:
    return random_network(TRANSLATORS[request.param])


@pytest.fixture(scope="session")
def random_ids() -> Callable[..., torch.Tensor]:
    def draw(*shape: int, seed: int = 1, below: int = VOCABULARY) -> torch.Tensor:
        return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))

    return draw
