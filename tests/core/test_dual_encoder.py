from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from polyformer import core
from polyformer.errors import ConfigError

IDS = torch.tensor([[3, 7, 28, 0, 0], [0, 0, 5, 28, 3]])
REAL = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
PICTURES = torch.randn(3, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NORM, FEEDFORWARD = core.LayerNorm.Config(16), core.FeedForward.Config(16, 20, bias=True)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def layers(mask: Any) -> Any:
    attention = core.Attention.Config(16, 4, mask=mask, bias=True)
    return core.Stack.Config((core.Layer.Config(attention, FEEDFORWARD, NORM),) * 2, NORM)


TEXT = core.Tower.Config(
    core.Encoder.Config(core.TokenEmbedding.Config(29, 16, core.Learned.Config(5, 16)), layers(core.Causal())),
    core.Pooling.Config("end", end_token_id=28),
    core.Linear.Config(16, 10),
)
IMAGE = core.Tower.Config(
    core.Encoder.Config(core.PatchEmbedding.Config(16, (2, 2), (4, 6)), layers(core.Bidirectional())),
    core.AttentionPooling.Config(
        core.Attention.Config(16, 4, source_size=16, mask=core.Bidirectional()), NORM, FEEDFORWARD
    ),
    core.Linear.Config(16, 10, bias=True),
)
PAIR = core.DualEncoder.Config(TEXT, IMAGE, logit_scale=2.0, logit_bias=-1.0, max_positions=5)


def test_a_tower_pools_then_projects(random_module: Any) -> None:
    tower = random_module(TEXT)
    vectors, output = tower(IDS, attention_mask=REAL)
    hidden = tower.encoder(IDS, attention_mask=REAL).last_hidden_state
    pooled = torch.stack([hidden[0, 2], hidden[1, 3]])
    assert_same(output.pooler_output, pooled)
    assert_same(output.last_hidden_state, hidden)
    assert_same(vectors, pooled @ tower.projection.weight.T)
    vectors, output = random_module(replace(TEXT, projection=None))(IDS, attention_mask=REAL)
    assert vectors is output.pooler_output


def test_an_end_token_in_the_padding_is_none(random_module: Any) -> None:
    """CLIP pads with its end token: only a real one ends a text."""
    tower = random_module(TEXT)
    padded = torch.tensor([[28, 3, 7, 28, 28]])
    real = torch.tensor([[0, 1, 1, 1, 0]])
    vectors, _ = tower(padded, attention_mask=real)
    assert_same(vectors, tower(padded[:, 1:4])[0])


@pytest.mark.parametrize("bias", [None, -1.0])
def test_how_well_a_text_fits_a_picture(bias: float | None, random_module: Any) -> None:
    """exp(scale) times the cosine of the two vectors, plus the bias, one pair after the other."""
    network = random_module(replace(PAIR, logit_bias=bias))
    assert ("logit_bias" in network.state_dict()) == (bias is not None)
    output = network(IDS, pixel_values=PICTURES, attention_mask=REAL)
    texts, _ = network.text(IDS, attention_mask=REAL)
    pictures, _ = network.image(pixel_values=PICTURES)
    assert output.logits_per_text.shape == (2, 3)
    for row, text in enumerate(texts):
        assert_same(output.text_embeds[row], text / (text @ text).sqrt())
        for column, picture in enumerate(pictures):
            cosine = (text @ picture) / ((text @ text) * (picture @ picture)).sqrt()
            expected = cosine * math.exp(network.logit_scale.item()) + (0 if bias is None else network.logit_bias)
            assert_same(output.logits_per_text[row, column], expected)
            assert_same(output.logits_per_image[column, row], expected)
    assert_same(output.image_embeds, pictures / pictures.square().sum(1, keepdim=True).sqrt())


def test_the_learned_numbers_start_from_those_of_the_config() -> None:
    network = PAIR.build()
    assert (network.logit_scale.item(), network.logit_bias.item()) == (2.0, -1.0)
    assert network.logit_scale.shape == network.logit_bias.shape == ()


def test_padding_does_not_change_a_text(random_module: Any) -> None:
    network = random_module(PAIR)
    embeds = network(IDS, attention_mask=REAL).text_embeds
    for row, seen in enumerate(REAL.bool()):
        assert_same(embeds[row], network(IDS[row, seen][None]).text_embeds[0])


def test_one_kind_of_input_gives_one_half(random_module: Any) -> None:
    network = random_module(PAIR)
    both = network(IDS, pixel_values=PICTURES, attention_mask=REAL)
    text, image = network(IDS, attention_mask=REAL), network(pixel_values=PICTURES)
    assert torch.equal(text.text_embeds, both.text_embeds) and torch.equal(image.image_embeds, both.image_embeds)
    assert text.image_embeds is text.image_output is text.logits_per_text is text.logits_per_image is None
    assert image.text_embeds is image.text_output is image.logits_per_text is image.logits_per_image is None


def test_states_and_weights_of_both_towers(random_module: Any) -> None:
    network = random_module(PAIR)
    options: dict[str, Any] = {"output_hidden_states": True, "output_attentions": (-1,)}
    output = network(IDS, pixel_values=PICTURES, **options)
    assert output.text_output.attentions[1].shape == (2, 4, 5, 5)
    assert output.image_output.attentions[1].shape == (3, 4, 7, 7)
    assert len(output.text_output.hidden_states) == len(output.image_output.hidden_states) == 3
    plain = network(IDS, pixel_values=PICTURES)
    for part in (plain.text_output, plain.image_output):
        assert part.hidden_states is None and part.attentions is None


def test_a_tower_alone(random_module: Any) -> None:
    text = random_module(core.DualEncoder.Config(text=TEXT))
    image = random_module(core.DualEncoder.Config(image=IMAGE))
    assert_same(text(IDS, attention_mask=REAL).text_embeds.square().sum(1), torch.ones(2).double())
    assert_same(image(pixel_values=PICTURES).image_embeds.square().sum(1), torch.ones(3).double())
    assert all(name.startswith("text.") for name in text.state_dict())
    assert all(name.startswith("image.") for name in image.state_dict())
    assert (text.config.vocab_size, image.config.vocab_size) == (29, None)


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (PAIR, {}, "give input_ids, pixel_values or both"),
        (PAIR, {"attention_mask": REAL}, "give input_ids, pixel_values or both"),
        (
            core.DualEncoder.Config(image=IMAGE),
            {"input_ids": IDS, "pixel_values": PICTURES},
            "this network has no text tower: leave input_ids out",
        ),
        (
            core.DualEncoder.Config(text=TEXT),
            {"input_ids": IDS, "pixel_values": PICTURES},
            "this network has no picture tower: leave pixel_values out",
        ),
        (PAIR, {"input_ids": torch.zeros(2, 3, dtype=torch.long)}, "a sequence has no end token 28"),
        (PAIR, {"input_ids": IDS.repeat(1, 2)}, "the sequence has 10 tokens, but this network has positions for 5"),
    ],
)
def test_bad_arguments(config: Any, given: Any, message: str, random_module: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        random_module(config)(**given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a dual encoder needs at least one tower"),
        ({"text": TEXT, "image": IMAGE}, "logit_scale is for two towers: give it with both"),
        ({"text": TEXT, "logit_scale": 2.0}, "logit_scale is for two towers: .* leave it out with one"),
        ({"image": IMAGE, "logit_scale": 2.0}, "logit_scale is for two towers: .* leave it out with one"),
    ],
)
def test_impossible_configs(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        core.DualEncoder.Config(**options)


def test_every_parameter_learns(random_module: Any) -> None:
    network = random_module(PAIR)
    network(IDS, pixel_values=PICTURES, attention_mask=REAL).logits_per_text.square().sum().backward()
    for label, parameter in network.named_parameters():
        # A bias of the keys moves all scores of a row alike: its gradient is zero.
        if not label.endswith("key.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, label


def test_written_and_read_back() -> None:
    assert core.Config.from_dict(PAIR.to_dict()) == PAIR
