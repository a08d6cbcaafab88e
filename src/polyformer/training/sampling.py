"""What a network writes while it is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from polyformer.errors import ConfigError
from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.sequence_to_sequence import read_sources
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.recipe import SamplesSection


class Sampler:
    """Writes on from each prompt of a recipe, or a target for it where the network reads a source.

    Args:
        section: of the recipe.
        tokenizer: of the network.
        seed: the same step gives the same texts.

    Raises:
        ConfigError: a prompt has no token.
    """

    def __init__(self, section: SamplesSection, tokenizer: TextTokenizer, *, seed: int):
        self.section = section
        self.tokenizer = tokenizer
        self.seed = seed

    def __call__(self, network: nn.Module, step: int) -> Iterator[tuple[str, str]]:
        section = self.section
        settings = GenerationSettings(
            max_new_tokens=section.max_new_tokens, temperature=section.temperature, seed=self.seed + step
        )
        for prompt in section.prompts:
            with torch.inference_mode():
                reader, begin = self._reader(network, prompt)
                made = generate(
                    reader, [begin], settings, tokenizer=self.tokenizer, eos_token_ids=self.tokenizer.eos_token_ids
                )
            yield prompt, made[0][0].text or ""

    def _reader(self, network: Any, prompt: str) -> tuple[Any, list[int]]:
        if not hasattr(network, "with_source"):
            return network, self.tokenizer.encode(prompt)
        ids = self.tokenizer.encode(prompt)
        if not ids:
            raise ConfigError("samples.prompts: a source has no token")
        states, mask = read_sources(network, [ids], self.tokenizer.pad_token_id or 0)
        start = network.config.decoder_start_token_id
        if start is None:
            raise ConfigError("samples.prompts: the network does not say what a target begins with")
        return network.with_source(states, mask), [start]
