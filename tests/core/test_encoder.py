from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from polyformer import core
from polyformer.core.masks import Span
from polyformer.core.packing import can_pack
from polyformer.errors import ConfigError

IDS = torch.arange(14).view(2, 7)
TYPES = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0]])
NORM = core.LayerNorm.Config(16)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def reading(mask: Any = None, count: int = 2, **options: Any) -> Any:
    """A stack of bidirectional layers."""
    attention = core.Attention.Config(16, 4, mask=mask or core.Bidirectional(), bias=True)
    feedforward = core.FeedForward.Config(16, 20, bias=True)
    return core.Stack.Config((core.Layer.Config(attention, feedforward, NORM, **options),) * count, NORM)


TEXT = core.Encoder.Config(core.TokenEmbedding.Config(29, 16, core.Learned.Config(9, 16), token_types=2), reading())
PICTURES = core.Encoder.Config(core.PatchEmbedding.Config(16, (2, 2), (4, 6), mask_token=True), reading())
SOUND = core.Encoder.Config(core.FrameEmbedding.Config(16, 5, core.Learned.Config(9, 16)), reading())
FIRST = core.Pooling.Config("first", transform=core.Transform.Config(16, 12, "tanh"))
MASKED = core.MaskedTokenHead.Config(core.Transform.Config(16, 16, "gelu", NORM), core.Head.Config(16, 29, bias=True))
LABELS = core.SequenceHead.Config(16, 3)
TAGS = core.TokenHead.Config(16, 3)
READERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (TEXT, {"input_ids": IDS, "token_type_ids": TYPES}),
    "pictures": (
        PICTURES,
        {"pixel_values": random(2, 3, 4, 6), "masked_patches": torch.tensor([[0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 1, 0]])},
    ),
    "sound": (SOUND, {"input_features": random(2, 5, 13)}),
}


def embedded(encoder: Any, given: dict[str, Any]) -> torch.Tensor:
    if "input_ids" in given:
        return encoder.embedding(given["input_ids"], torch.arange(7)[None], given.get("token_type_ids"))
    return encoder.embedding(*given.values())


# ---------------------------------------------------------------------------------------------------------------
# Encoders


@pytest.mark.parametrize("name", READERS)
def test_an_encoder_is_an_embedding_and_layers_that_see_everything(name: str, random_module: Any) -> None:
    config, given = READERS[name]
    encoder = random_module(config)
    hidden = embedded(encoder, given)
    states = [hidden]
    for layer in encoder.stack.layers:
        hidden, _, _ = layer(hidden, Span.of(hidden.shape[1]))
        states.append(hidden)
    states[-1] = encoder.stack.norm(hidden)
    output = encoder(**given, output_hidden_states=True, output_attentions=(-1,))
    assert_same(output.last_hidden_state, states[-1])
    assert len(output.hidden_states) == 3
    for ours, expected in zip(output.hidden_states, states, strict=True):
        assert_same(ours, expected)
    assert list(output.attentions) == [1]
    assert (output.attentions[1] > 0).all()
    plain = encoder(**given)
    assert plain.hidden_states is plain.attentions is plain.logits is plain.cache is None
    assert_same(plain.last_hidden_state, states[-1])


@pytest.mark.parametrize("name", READERS)
def test_layers_that_are_not_there(name: str, random_module: Any) -> None:
    config, given = READERS[name]
    encoder = random_module(config)
    assert sorted(encoder(**given, output_attentions=True).attentions) == [0, 1]
    with pytest.raises(ConfigError, match="there is no layer 2: this network has layers 0 to 1"):
        encoder(**given, output_attentions=(2,))


def test_what_a_config_says() -> None:
    known = [(c.input_name, c.vocab_size, c.max_positions, c.num_layers) for c in (TEXT, PICTURES, SOUND)]
    assert known == [("input_ids", 29, 9, 2), ("pixel_values", None, None, 2), ("input_features", None, None, 2)]
    endless = replace(TEXT, embedding=replace(TEXT.embedding, positions=core.Sinusoidal.Config(16)))
    assert endless.max_positions is None
    narrow = core.TokenEmbedding.Config(29, 10, projection=core.Linear.Config(10, 16))
    assert core.Encoder.Config(narrow, reading()).hidden_size == 16


@pytest.mark.parametrize("bias", [None, core.RelativeBias.Config(4, 8, 16, True), core.ALiBi.Config(4)])
@pytest.mark.parametrize("mask", [core.Bidirectional(), core.BidirectionalWindow(2)], ids=["all", "window"])
def test_padding_does_not_change_results(mask: Any, bias: Any, random_module: Any) -> None:
    config = core.Encoder.Config(TEXT.embedding, replace(reading(mask), bias=bias))
    encoder = random_module(config)
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    output = encoder(IDS, attention_mask=real, token_type_ids=TYPES).last_hidden_state
    for row, seen in enumerate(real.bool()):
        alone = encoder(IDS[row, seen][None], token_type_ids=TYPES[row, seen][None])
        assert_same(output[row, seen], alone.last_hidden_state[0])
    with_ones = encoder(IDS, attention_mask=torch.ones_like(IDS), token_type_ids=TYPES)
    assert_same(with_ones.last_hidden_state, encoder(IDS, token_type_ids=TYPES).last_hidden_state)


def test_tokens_look_at_later_ones_as_far_as_their_window_reaches(random_module: Any) -> None:
    encoder = random_module(core.Encoder.Config(TEXT.embedding, reading(core.BidirectionalWindow(2))))
    weights = encoder(IDS, output_attentions=True).attentions[1]
    near = (torch.arange(7)[:, None] - torch.arange(7)).abs() <= 2
    assert torch.equal(weights > 0, near.expand_as(weights))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("text", {}, "this encoder reads input_ids, but nothing was given"),
        ("text", {"pixel_values": random(2, 3, 4, 6)}, "reads input_ids, but pixel_values was given"),
        (
            "pictures",
            {"input_ids": IDS, "pixel_values": random(2, 3, 4, 6)},
            "reads pixel_values, but input_ids and pixel_values was given",
        ),
        ("sound", {"input_ids": IDS}, "reads input_features, but input_ids was given"),
        (
            "text",
            {"input_ids": IDS, "masked_patches": torch.ones(2, 6)},
            "masked_patches are for pictures, but this encoder reads text",
        ),
        (
            "sound",
            {"input_features": random(2, 5, 13), "masked_patches": torch.ones(2, 6)},
            "masked_patches are for pictures, but this encoder reads sound",
        ),
        (
            "pictures",
            {"pixel_values": random(2, 3, 4, 6), "attention_mask": torch.ones(2, 7)},
            "attention_mask, document_ids and token_type_ids are for text, but this encoder reads pixel_values",
        ),
        (
            "sound",
            {"input_features": random(2, 5, 13), "token_type_ids": IDS},
            "attention_mask, document_ids and token_type_ids are for text, but this encoder reads input_features",
        ),
        ("text", {"input_ids": IDS[0]}, r"input_ids must be \[batch, new\], but they are \[7\]"),
        ("text", {"input_ids": IDS, "attention_mask": torch.ones(2, 6)}, r"attention_mask is \[2, 6\]"),
        ("text", {"input_ids": IDS.repeat(1, 2)}, "the sequence has 14 tokens, but this network has positions for 9"),
    ],
)
def test_bad_arguments(name: str, given: Any, message: str, random_module: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        random_module(READERS[name][0])(**given)


CROSS = core.Attention.Config(16, 4, source_size=16, mask=core.Bidirectional())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: replace(TEXT, stack=reading(cross_attention=CROSS)), "layer 0 has cross-attention: an encoder has no"),
        (
            lambda: replace(TEXT, embedding=core.TokenEmbedding.Config(29, 12)),
            r"layers\.0\.attention is made for vectors of 16, but the embedding's have 12",
        ),
        (
            lambda: replace(TEXT, embedding=replace(TEXT.embedding, norm=core.LayerNorm.Config(12))),
            "norm is made for vectors of 12",
        ),
        (
            lambda: replace(SOUND, embedding=replace(SOUND.embedding, positions=core.Sinusoidal.Config(12))),
            "positions is made for vectors of 12",
        ),
        (
            lambda: core.EncoderOnly.Config(TEXT, "translation"),
            "task 'translation' is not one of features, masked-lm, pretraining, ",
        ),
        (
            lambda: core.EncoderOnly.Config(TEXT, sequence_head=LABELS),
            "a sequence head scores the pooled vector: give a pooling",
        ),
        (
            lambda: core.EncoderOnly.Config(PICTURES, masked_head=MASKED),
            "a masked head scores tokens, but this encoder does not read text",
        ),
        (
            lambda: core.EncoderOnly.Config(TEXT, masked_head=MASKED, token_head=TAGS),
            "a network has a masked head or a token head, not both",
        ),
    ],
)
def test_impossible_configs(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change()


# ---------------------------------------------------------------------------------------------------------------
# With something on top


@pytest.mark.parametrize("name", READERS)
def test_without_heads_there_are_only_states(name: str, random_module: Any) -> None:
    config, given = READERS[name]
    network = random_module(core.EncoderOnly.Config(config))
    output = network(**given, output_hidden_states=True, output_attentions=(0,))
    assert_same(output.last_hidden_state, network.encoder(**given).last_hidden_state)
    assert output.logits is output.pooler_output is output.sequence_logits is None
    assert len(output.hidden_states) == 3 and list(output.attentions) == [0]
    assert network.config.num_labels is None
    assert (network.config.vocab_size, network.config.num_layers) == (config.vocab_size, 2)
    assert network.config.hidden_size == 16


def test_masked_tokens_are_scored_with_the_table(random_module: Any) -> None:
    network = random_module(core.EncoderOnly.Config(TEXT, "masked-lm", masked_head=MASKED))
    output, head = network(IDS), network.masked_head
    expected = head.transform(output.last_hidden_state) @ network.encoder.embedding.tokens.weight.T + head.head.bias
    assert_same(output.logits, expected)
    assert [name for name in network.state_dict() if "masked_head.head" in name] == ["masked_head.head.bias"]


def test_pretraining_scores_tokens_and_the_sequence(random_module: Any) -> None:
    """The sequence head reads the pooled vector, not the states."""
    config = core.EncoderOnly.Config(
        TEXT, "pretraining", FIRST, masked_head=MASKED, sequence_head=core.SequenceHead.Config(12, 2)
    )
    network = random_module(config)
    output = network(IDS)
    linear = network.sequence_head.linear
    pooled = network.pooling.transform.linear
    vector = (output.last_hidden_state[:, 0] @ pooled.weight.T + pooled.bias).tanh()
    assert_same(output.pooler_output, vector)
    assert_same(output.sequence_logits, vector @ linear.weight.T + linear.bias)
    assert_same(output.logits, network.masked_head(output.last_hidden_state, network.encoder.embedding.tokens.weight))


@pytest.mark.parametrize("name", READERS)
def test_labels_of_a_sequence_are_the_logits(name: str, random_module: Any) -> None:
    encoder, given = READERS[name]
    pooling = core.Pooling.Config("mean")
    config = core.EncoderOnly.Config(encoder, "sequence-classification", pooling, sequence_head=LABELS)
    network = random_module(config)
    output, linear = network(**given), network.sequence_head.linear
    assert_same(output.logits, output.last_hidden_state.mean(1) @ linear.weight.T + linear.bias)
    assert output.sequence_logits is None
    assert config.num_labels == 3


def test_labels_of_tokens(random_module: Any) -> None:
    network = random_module(core.EncoderOnly.Config(TEXT, "token-classification", token_head=TAGS))
    output, linear = network(IDS), network.token_head.linear
    assert_same(output.logits, output.last_hidden_state @ linear.weight.T + linear.bias)
    assert network.config.num_labels == 3


def test_replaced_tokens_have_one_score_each(random_module: Any) -> None:
    head = core.TokenHead.Config(16, 1, core.Transform.Config(16, 16, "gelu"))
    network = random_module(core.EncoderOnly.Config(TEXT, "replaced-token-detection", token_head=head))
    output = network(IDS)
    assert_same(output.logits, network.token_head(output.last_hidden_state)[:, :, 0])


def test_choices_are_scored_one_by_one(random_module: Any) -> None:
    """[batch, choices, columns]: ids, masks and types of every choice stay together."""
    config = core.EncoderOnly.Config(TEXT, "multiple-choice", FIRST, sequence_head=core.SequenceHead.Config(12, 1))
    network = random_module(config)
    single = random_module(replace(config, task="sequence-classification"))
    ids = torch.arange(2 * 3 * 5).view(2, 3, 5) % 29
    types, mask = ids % 2, torch.ones_like(ids)
    mask[0, 1, 3:] = mask[1, 2, :2] = 0
    scores = network(ids, attention_mask=mask, token_type_ids=types).logits
    assert scores.shape == (2, 3)
    for row in range(2):
        for choice in range(3):
            seen = mask[row, choice].bool()
            alone = single(ids[row, choice, seen][None], token_type_ids=types[row, choice, seen][None])
            assert_same(scores[row, choice], alone.logits[0, 0])
    assert_same(network(ids).logits, single(ids.flatten(0, 1)).logits.view(2, 3))
    with pytest.raises(ConfigError, match=r"takes input_ids \[batch, choices, columns\], but they are \[2, 5\]"):
        network(ids[:, 0])


@pytest.mark.parametrize("method", ["first", "last", "mean", "last_end", "largest_id"])
def test_padding_does_not_change_the_pooled_vector(method: str, random_module: Any) -> None:
    pooling = core.Pooling.Config(method, end_token_id=12)
    network = random_module(core.EncoderOnly.Config(TEXT, pooling=pooling))
    ids = torch.tensor([[12, 28, 3, 12, 4, 12, 1], [5, 12, 7, 12, 28, 12, 12]])
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    pooled = network(ids, attention_mask=real).pooler_output
    for row, seen in enumerate(real.bool()):
        assert_same(pooled[row], network(ids[row, seen][None]).pooler_output[0])


def test_attention_pooling_skips_padding(random_module: Any) -> None:
    pooling = core.AttentionPooling.Config(CROSS, NORM, core.FeedForward.Config(16, 20))
    network = random_module(core.EncoderOnly.Config(TEXT, pooling=pooling))
    real = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    pooled = network(IDS, attention_mask=real).pooler_output
    for row, seen in enumerate(real.bool()):
        assert_same(pooled[row], network(IDS[row, seen][None]).pooler_output[0])


NETWORKS = {
    "pretraining": core.EncoderOnly.Config(
        TEXT, "pretraining", FIRST, masked_head=MASKED, sequence_head=core.SequenceHead.Config(12, 2), max_positions=9
    ),
    "pictures": core.EncoderOnly.Config(
        PICTURES, "sequence-classification", core.Pooling.Config("mean_patches"), sequence_head=LABELS
    ),
    "sound": core.EncoderOnly.Config(SOUND, "token-classification", token_head=TAGS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name: str, random_module: Any) -> None:
    network = random_module(NETWORKS[name])
    output = network(**READERS[name.replace("pretraining", "text")][1])
    loss = (output.logits**2).sum()
    if output.sequence_logits is not None:
        loss = loss + (output.sequence_logits**2).sum()
    loss.backward()
    for label, parameter in network.named_parameters():
        # A bias of the keys moves all scores of a row alike: its gradient is zero.
        if not label.endswith("key.bias"):
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, label


@pytest.mark.parametrize("name", NETWORKS)
def test_written_and_read_back(name: str) -> None:
    assert core.Config.from_dict(NETWORKS[name].to_dict()) == NETWORKS[name]


@pytest.mark.skipif(not can_pack(torch.empty(1, 1, dtype=torch.bfloat16)), reason="this CPU has no 16-bit instructions")
@torch.inference_mode()
def test_packed_for_inference(random_module: Any) -> None:
    """The same numbers to the last rounding, the head over the table too; and the plain weights come back."""
    network = random_module(NETWORKS["pretraining"], dtype=torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    plain = network(IDS).logits.double().log_softmax(-1)
    packed = network.pack()(IDS).logits.double().log_softmax(-1)
    assert network.masked_head.head.joint is not None
    assert float((plain.exp() * (plain - packed)).sum(-1).max()) < 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
