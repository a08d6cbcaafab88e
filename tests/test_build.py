from __future__ import annotations

from pathlib import Path

import pytest
import torch

import polyformer
from polyformer.core import (
    Attention,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    MixtureOfExperts,
    RMSNorm,
    SlidingWindow,
    Stack,
    TokenEmbedding,
)
from polyformer.core.positions import ALiBi
from polyformer.errors import ConfigError


def test_a_public_size_from_scratch(tmp_path: Path) -> None:
    model = polyformer.build("gpt2", dtype="bfloat16", seed=1)
    assert model.num_parameters == 124_439_808
    assert model.dtype == torch.bfloat16
    weight = model.network.stack.layers[3].attention.query.weight.detach()
    assert float(weight.float().std()) == pytest.approx(0.02, rel=0.02)
    again = polyformer.build("gpt2", dtype="bfloat16", seed=1)
    assert torch.equal(weight, again.network.stack.layers[3].attention.query.weight)
    assert torch.get_default_dtype() == torch.float32
    assert model.generate([1, 2, 3], max_new_tokens=3, temperature=0).token_ids


def test_a_network_of_ones_own_survives_saving(tmp_path: Path) -> None:
    """Parts of several families together: windows and global layers in turn, experts, ALiBi."""
    norm = RMSNorm.Config(32)
    dense = FeedForward.Config(32, 48, "silu", gated=True)
    experts = MixtureOfExperts.Config(dense, num_experts=4, top_k=2)
    local = Layer.Config(Attention.Config(32, 4, 1, mask=SlidingWindow(5)), dense, norm)
    whole = Layer.Config(Attention.Config(32, 4, 2), experts, norm, placement="sandwich")
    config = DecoderOnly.Config(
        TokenEmbedding.Config(61, 32), Stack.Config((local, whole) * 2, norm, ALiBi.Config(4)), Head.Config(32, 61)
    )
    model = polyformer.build(config, dtype="float64", seed=3)
    model.save(tmp_path / "mine")
    again = polyformer.load(tmp_path / "mine")
    ids = torch.arange(24).reshape(2, 12) % 61
    with torch.no_grad():
        assert torch.equal(again.network(ids).logits, model.network(ids).logits)
    assert again.config == config
    assert again.generate([5, 6], max_new_tokens=4, seed=1).token_ids == (
        model.generate([5, 6], max_new_tokens=4, seed=1).token_ids
    )


def test_what_cannot_be_built() -> None:
    with pytest.raises(ConfigError, match="nearest"):
        polyformer.build("gpt2-medum")
    with pytest.raises(ConfigError, match="choose a smaller size"):
        polyformer.build("palm-540b")
    with pytest.raises(ConfigError, match="a part, not a whole network"):
        polyformer.build(RMSNorm.Config(8))
