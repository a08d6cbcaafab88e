"""ModernBERT against transformers, every head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof import close, load_folder, randomise, saved
from proof_encoder import inputs_for, prove_encoder

from polyformer.core import BidirectionalWindow
from polyformer.errors import ConfigError
from polyformer.families import find_family

# Rotary angles and attention weights are rounded to float32 in the reference.
TOLERANCE = 1e-5
HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)


def make_config(**options: Any) -> transformers.ModernBertConfig:
    values = {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 5,
        "num_attention_heads": 3,
        "intermediate_size": 31,
        "max_position_embeddings": 40,
        # Windows at least as wide as the padding: a token that sees nothing becomes NaN in the reference.
        "local_attention": 14,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "cls_token_id": 1,
        "sep_token_id": 2,
    }
    return transformers.ModernBertConfig(**{**values, **options})


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
            "classifier_pooling": "mean",
            "classifier_activation": "silu",
            "hidden_activation": "gelu_new",
            "decoder_bias": False,
            "global_attn_every_n_layers": 2,
            "norm_eps": 1e-3,
            "attention_dropout": 0.2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
            },
            "num_labels": 4,
        },
    ],
    ids=["plain", "biases"],
)
def test_modernbert(head: str, options: dict[str, Any], tmp_path: Path) -> None:
    hf_class = getattr(transformers, f"ModernBert{head}")
    if head == "ForQuestionAnswering":
        options = {name: value for name, value in options.items() if name != "num_labels"}
    network = prove_encoder(hf_class, make_config(**options), tmp_path, tolerance=TOLERANCE)
    windows = [isinstance(layer.attention.mask, BidirectionalWindow) for layer in network.config.encoder.stack.layers]
    assert windows == ([False, True, True, False, True] if not options else [False, True, False, True, False])


def test_untied_head(tmp_path: Path) -> None:
    config = make_config(tie_word_embeddings=False)
    prove_encoder(transformers.ModernBertForMaskedLM, config, tmp_path, tolerance=TOLERANCE)


@pytest.mark.parametrize("place", ["attention", "mlp", "embedding", "classifier", "every"])
def test_training_drops_what_the_reference_drops(place: str, tmp_path: Path) -> None:
    """Both draw in the same order, so from the same seed they drop the same numbers, forwards and backwards."""
    places = ("attention", "mlp", "embedding", "classifier") if place == "every" else (place,)
    config = make_config(**{f"{one}_dropout": 0.3 for one in places}, num_labels=4)
    hf = saved(transformers.ModernBertForTokenClassification, config, tmp_path)
    _, network, _ = load_folder(tmp_path)
    given = inputs_for(hf, config.vocab_size)
    del given["attention_mask"]
    exact = network(**given).logits
    scores = {}
    for model in (hf.train(), network.train()):
        torch.manual_seed(3)
        # Asked for weights, ours computes them as plainly as the reference: fused kernels draw in their own way.
        scores[model] = model(**given, output_attentions=True).logits
        scores[model].square().mean().backward()
    close(scores[network], scores[hf], TOLERANCE, "scores")
    assert (scores[network] - exact).abs().max() > 0.1 * exact.abs().max()
    ours = network.get_parameter("encoder.stack.layers.1.attention.output.weight").grad
    close(ours, hf.get_parameter("model.layers.1.attn.Wo.weight").grad, 10 * TOLERANCE, "gradient")


def test_first_token_with_padding_on_the_left(tmp_path: Path) -> None:
    """The first real token stands for the text here, so that it counts the same on either side; transformers takes
    the first column, which then is padding."""
    config = make_config(num_labels=4)
    hf = saved(transformers.ModernBertForSequenceClassification, config, tmp_path)
    _, network, _ = load_folder(tmp_path)
    ids = torch.tensor([[0, 0, 0, 1, 7, 9, 2], [1, 8, 11, 30, 12, 5, 2]])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        alone, beside = hf(ids[:1, 3:]).logits[0], hf(ids, attention_mask=mask).logits[0]
        ours = network(ids, attention_mask=mask).logits[0]
    close(ours, alone, TOLERANCE, "scores")
    assert not torch.allclose(beside, alone, atol=1e-2)


def test_old_configs() -> None:
    """Before transformers 5: two bases by name, and how often a layer is full."""
    family = find_family("modernbert")
    config = family.read_config(
        {
            "global_rope_theta": 5000.0,
            "local_rope_theta": 300.0,
            "global_attn_every_n_layers": 4,
            "num_hidden_layers": 6,
            "local_attention": 16,
            "layer_norm_eps": 1e-5,
            "position_embedding_type": "absolute",
        }
    )
    assert family.unread_keys({"layer_norm_eps": 1e-5, "position_embedding_type": "absolute"}) == []
    layers = config.encoder.stack.layers
    assert [layer.attention.positions.base for layer in layers] == [5000.0, 300.0, 300.0, 300.0, 5000.0, 300.0]
    assert layers[1].attention.mask == BidirectionalWindow(8)
    assert [layer.attention_norm for layer in layers] == [False, True, True, True, True, True]
    assert family.read_config(family.write_config(config)) == config


def test_long_texts_see_their_neighbourhood() -> None:
    """With windows only, what is far away changes nothing."""
    family = find_family("modernbert")
    values = {
        **make_config().to_dict(),
        "local_attention": 8,
        "layer_types": ["sliding_attention"] * 2,
        "num_hidden_layers": 2,
        "architectures": ["ModernBertModel"],
    }
    network = randomise(family.read_config(values).build().double()).eval()
    ids = torch.arange(5, 35)[None]
    other = ids.clone()
    other[0, 20:] = 3
    with torch.no_grad():
        near, far = (network(one).last_hidden_state[0] for one in (ids, other))
    assert (near[:12] - far[:12]).abs().max() < 1e-12  # two layers reach 8 positions
    assert (near[12] - far[12]).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types must name .* for each of 5 layers"),
        ({"attention_dropout": 1.0}, "dropout is 1.0, but it must be at least 0 and below 1"),
        ({"classifier_pooling": "max"}, "classifier_pooling='max' is not supported"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_family("modernbert").read_config({**make_config().to_dict(), **changes})
