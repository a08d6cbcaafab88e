"""Every objective can be found by its name, made from the plain data of a recipe, and says what it needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from proof_objectives import built, decoder
from pydantic import TypeAdapter

from polyformer.objectives import OBJECTIVES, CausalLM, ContrastivePairs, Objective

# What has no default, as a recipe would say it.
OPTIONS: dict[str, dict[str, Any]] = {
    "fill-in-the-middle": {"prefix_token_id": 1, "suffix_token_id": 2, "middle_token_id": 3, "eos_token_id": 4},
    "masked-lm": {"mask_token_id": 4, "vocab_size": 9, "special_token_ids": [0, 1]},
    "replaced-tokens": {"mask_token_id": 4},
    "span-corruption": {"sentinel_token_ids": [9, 8, 7], "eos_token_id": 1},
    "denoising": {"mask_token_id": 4, "eos_token_id": 1, "sentence_end_token_ids": [5]},
    "classification": {"num_labels": 2},
    "image-classification": {"num_labels": 2},
    "multi-label": {"num_labels": 2},
    "tagging": {"num_labels": 2},
}
READS = {"tokens", "pair", "labels", "tags", "texts", "images", "captions"}


def test_names() -> None:
    assert set(OBJECTIVES) >= {
        "causal-lm", "fill-in-the-middle", "masked-lm", "replaced-tokens", "span-corruption", "denoising", "prefix-lm",
        "sequence-to-sequence", "classification", "regression", "multi-label", "tagging", "contrastive-pairs",
        "contrastive-images",
    }  # fmt: skip
    assert len(set(OBJECTIVES.values())) == len(OBJECTIVES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_made_from_plain_data(name: str) -> None:
    objective = TypeAdapter(OBJECTIVES[name]).validate_python(OPTIONS.get(name, {}))
    assert isinstance(objective, Objective) and objective.reads in READS
    assert objective.depends_on_batch == name.startswith("contrastive")
    assert objective == dataclasses.replace(objective) and hash(objective) == hash(dataclasses.replace(objective))
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.anything = 1  # type: ignore[attr-defined]
    sources = [each.__doc__ or "" for each in type(objective).__mro__[:2]]
    assert any(year in source for source in sources for year in ("20", "19")), "no source is given"


def test_most_networks_are_trained_as_they_are() -> None:
    network = built(decoder())
    for objective in (CausalLM(), ContrastivePairs()):
        assert objective.begun(network) is network
        assert objective.finished(network, "family") == (network, "family")
    assert isinstance(network, torch.nn.Module)
