from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from polyformer import core
from polyformer.core.masks import Span
from polyformer.errors import ConfigError

START, END = 2, 28
IDS = torch.tensor([[3, 7, 28, 1, 1], [5, 9, 4, 11, 28]])
REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
TARGET = torch.tensor([[2, 6, 7, 8], [2, 9, 10, 11]])
NORM, FEEDFORWARD = core.LayerNorm.Config(16), core.FeedForward.Config(16, 20, bias=True)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def stack(mask: Any, count: int, source_size: int | None = None) -> Any:
    cross = source_size and core.Attention.Config(16, 4, 2, source_size=source_size, mask=core.Bidirectional())
    layer = core.Layer.Config(core.Attention.Config(16, 4, mask=mask), FEEDFORWARD, NORM, cross_attention=cross or None)
    return core.Stack.Config((layer,) * count, NORM)


TOKENS = core.TokenEmbedding.Config(29, 16, core.Learned.Config(9, 16))
TEXT = core.EncoderDecoder.Config(
    core.Encoder.Config(TOKENS, stack(core.Bidirectional(), 2)),
    core.Decoder.Config(TOKENS, stack(core.Causal(), 3, 16)),
    core.Head.Config(16, 29, bias=True),
    decoder_start_token_id=START,
)
SOUND = replace(
    TEXT,
    encoder=core.Encoder.Config(
        core.FrameEmbedding.Config(16, 5, core.Sinusoidal.Config(16)), stack(core.Bidirectional(), 2)
    ),
)
PICTURES = replace(
    TEXT,
    encoder=core.Encoder.Config(core.PatchEmbedding.Config(16, (2, 2), (4, 6)), stack(core.Bidirectional(), 2)),
    decoder=core.Decoder.Config(TOKENS, stack(core.Causal(), 3, 12)),
    bridge=core.Linear.Config(16, 12, bias=True),
)
CLASSIFIER = replace(
    TEXT,
    head=None,
    task="sequence-classification",
    pooling=core.Pooling.Config("last_end", end_token_id=END),
    sequence_head=core.SequenceHead.Config(16, 3),
)
ANSWERS = replace(TEXT, head=None, task="question-answering", token_head=core.TokenHead.Config(16, 2))
READERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "text": (TEXT, {"input_ids": IDS}),
    "sound": (SOUND, {"input_features": random(2, 5, 9)}),
    "pictures through a bridge": (PICTURES, {"pixel_values": random(2, 3, 4, 6)}),
}


def count_projections(network: Any) -> list[str]:
    """A list that grows whenever keys or values of the source are made."""
    calls: list[str] = []
    for layer in network.decoder.stack.layers:
        for name in ("key", "value"):
            getattr(layer.cross_attention, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize("name", READERS)
def test_from_source_to_logits(name: str, random_module: Any) -> None:
    """Encoder, bridge, decoder layers and head, put together by hand."""
    config, given = READERS[name]
    network = random_module(config)
    states = network.encoder(**given).last_hidden_state
    if network.bridge is not None:
        states = states @ network.bridge.weight.T + network.bridge.bias
    table = network.decoder.embedding.tokens.weight
    hidden = table[TARGET] + network.decoder.embedding.positions.weight[:4]
    for layer in network.decoder.stack.layers:
        over = Span.over(Span.of(states.shape[1]))
        hidden, _, _ = layer(hidden, Span.of(4), source=states, source_span=over)
    hidden = network.decoder.stack.norm(hidden)
    output = network(**given, decoder_input_ids=TARGET)
    assert_same(output.last_hidden_state, hidden)
    assert_same(output.logits, hidden @ table.T + network.head.bias)
    assert_same(output.encoder_last_hidden_state, states)
    assert_same(network.encode(**given).last_hidden_state, states)
    assert_same(network.with_source(states)(TARGET).logits, output.logits)
    kept = network(**given, decoder_input_ids=TARGET, logits_to_keep=1)
    assert_same(kept.logits, output.logits[:, -1:])


def test_padding_of_source_and_target_does_not_change_results(random_module: Any) -> None:
    network = random_module(TEXT)
    for real, written in ((REAL, [[0, 0, 1, 1], [1, 1, 1, 1]]), (REAL.flip(1), [[1, 1, 1, 0], [0, 1, 1, 1]])):
        ids, mask = IDS if real is REAL else IDS.flip(1), torch.tensor(written)
        output = network(ids, attention_mask=real, decoder_input_ids=TARGET, decoder_attention_mask=mask)
        for row in range(2):
            seen = mask[row].bool()
            alone = network(ids[row, real[row].bool()][None], decoder_input_ids=TARGET[row, seen][None])
            assert_same(output.logits[row, seen], alone.logits[0])


def test_states_and_weights_of_both_sides(random_module: Any) -> None:
    """Of the encoder where its two layers have these numbers too."""
    network = random_module(TEXT)

    def layers(wanted: Any) -> tuple[list[int], list[int], list[int]]:
        output = network(IDS, decoder_input_ids=TARGET, output_attentions=wanted)
        found = (output.attentions, output.cross_attentions, output.encoder.attentions)
        return tuple([] if part is None else sorted(part) for part in found)  # type: ignore[return-value]

    assert layers(True) == ([0, 1, 2], [0, 1, 2], [0, 1])
    assert layers((0,)) == ([0], [0], [0])
    assert layers((2,)) == ([2], [2], [])
    assert layers((-1,)) == ([2], [2], [1])
    assert layers(()) == ([], [], [])
    output = network(IDS, decoder_input_ids=TARGET, output_attentions=True, output_hidden_states=True)
    assert output.attentions[0].shape == (2, 4, 4, 4)
    assert output.cross_attentions[0].shape == (2, 4, 4, 5)
    assert (len(output.hidden_states), len(output.encoder.hidden_states)) == (4, 3)
    with pytest.raises(ConfigError, match="there is no layer 3"):
        layers((3,))


@pytest.mark.parametrize("name", READERS)
def test_the_source_is_read_once(name: str, random_module: Any) -> None:
    """Its keys and values are made at the first call with a cache, and later calls give the same without it."""
    config, given = READERS[name]
    network = random_module(config)
    whole = network(**given, decoder_input_ids=TARGET).logits
    calls, cache = count_projections(network), network.new_cache()
    first = network(**given, decoder_input_ids=TARGET[:, :2], cache=cache)
    assert (calls.count("key"), calls.count("value")) == (3, 3)
    steps = [network(decoder_input_ids=TARGET[:, column : column + 1], cache=cache) for column in (2, 3)]
    assert len(calls) == 6
    assert_same(torch.cat([first.logits, *(step.logits for step in steps)], dim=1), whole)
    assert first.encoder is not None and steps[0].encoder is None
    assert steps[0].encoder_last_hidden_state is None
    source_name = next(iter(given))
    with pytest.raises(ConfigError, match=f"the cache holds a source already: leave {source_name} out"):
        network(**given, decoder_input_ids=TARGET[:, :1], cache=cache)


def test_beams_share_a_source(random_module: Any) -> None:
    """Three neighbours look at one row of keys and values; then they change places and sources."""
    network = random_module(TEXT)
    states = network.encode(IDS, attention_mask=REAL).last_hidden_state
    decoder, cache = network.with_source(states, REAL), network.new_cache()
    calls = count_projections(network)
    decoder(TARGET[:, :1], cache=cache)
    cache.select(torch.tensor([0, 0, 0, 1, 1, 1]))
    targets = torch.arange(6 * 3).view(6, 3)
    result = decoder(targets, cache=cache).logits
    assert len(calls) == 6
    assert all(store.buffers[0].shape[0] == 2 for store in cache.cross_stores)
    assert all(store.buffers[0].shape[0] == 6 for store in cache.stores)
    sources = torch.tensor([0, 0, 0, 1, 1, 1])
    written = torch.cat([TARGET[sources, :1], targets], dim=1)
    assert_same(result, decoder.select(sources)(written).logits[:, 1:])
    order = torch.tensor([2, 0, 0, 4, 5, 3])
    cache.reorder(order)
    follow = network(decoder_input_ids=targets[:, :1], cache=cache).logits
    whole = torch.cat([written[order], targets[:, :1]], dim=1)
    assert_same(follow, decoder.select(sources)(whole).logits[:, -1:])
    assert len(calls) == 6 + 2 * 6  # the two comparisons without a cache


def test_a_decoder_with_its_source(random_module: Any) -> None:
    network = random_module(TEXT)
    states = network.encode(IDS, attention_mask=REAL).last_hidden_state
    decoder = network.with_source(states, REAL)
    assert (decoder.config, decoder.device, decoder.dtype) == (network.config, network.device, torch.float64)
    expected = network(IDS, attention_mask=REAL, decoder_input_ids=TARGET).logits
    assert_same(decoder(TARGET).logits, expected)
    assert_same(decoder.select(torch.tensor([1, 0, 1]))(TARGET[[1, 0, 1]]).logits, expected[[1, 0, 1]])
    cache = decoder.new_cache(capacity=4)
    assert cache.capacity == 4
    steps = [decoder(TARGET[:, column : column + 1], cache=cache).logits for column in range(4)]
    assert_same(torch.cat(steps, dim=1), expected)
    with pytest.raises(ConfigError, match=r"a source must be \[batch, columns, size\] and its attention_mask "):
        network.with_source(states, REAL[:, :4])
    with pytest.raises(ConfigError, match="this network has no head over the vocabulary: it writes nothing"):
        random_module(CLASSIFIER).with_source(states)


def test_a_cache_is_as_it_was_after_an_error(random_module: Any) -> None:
    """A target longer than its table of positions: the source is not held to be read."""
    network, cache = random_module(TEXT), random_module(TEXT).new_cache()
    with pytest.raises(ConfigError, match="the sequence has 12 tokens, but this network has positions for 9"):
        network(IDS, decoder_input_ids=TARGET.repeat(1, 3), cache=cache)
    assert not cache.has_source
    output = network(IDS, decoder_input_ids=TARGET, cache=cache)
    assert_same(output.logits, network(IDS, decoder_input_ids=TARGET).logits)


def test_a_shared_embedding_is_the_same_parameter(random_module: Any) -> None:
    shared, apart = random_module(replace(TEXT, shared_embedding=True)), random_module(TEXT)
    assert shared.decoder.embedding.tokens.weight is shared.encoder.embedding.tokens.weight
    assert shared.decoder.embedding.positions.weight is not shared.encoder.embedding.positions.weight
    assert apart.decoder.embedding.tokens.weight is not apart.encoder.embedding.tokens.weight
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (apart, shared)]
    assert sizes[0] - sizes[1] == 29 * 16
    apart.load_state_dict(shared.state_dict())
    for network in (shared, apart):
        network(IDS, decoder_input_ids=TARGET).logits.square().sum().backward()
    ends = [apart.encoder.embedding.tokens.weight.grad, apart.decoder.embedding.tokens.weight.grad]
    assert_same(shared.encoder.embedding.tokens.weight.grad, ends[0] + ends[1])


def test_classification_reads_the_source_once_more_moved_right(random_module: Any) -> None:
    """BART: the decoder gets the start token and the source without its last one; the state under the last end token
    is pooled."""
    network = random_module(CLASSIFIER)
    ids = torch.tensor([[3, 28, 7, 4, 28], [28, 9, 4, 11, 28]])
    output = network(ids)
    moved = torch.tensor([[START, 3, 28, 7, 4], [START, 28, 9, 4, 11]])
    hidden = network.decoder(moved, source=core.Source(output.encoder_last_hidden_state)).last_hidden_state
    assert_same(output.last_hidden_state, hidden)
    assert_same(output.pooler_output, hidden[:, 4])
    linear = network.sequence_head.linear
    assert_same(output.logits, hidden[:, 4] @ linear.weight.T + linear.bias)
    assert_same(network(ids, decoder_input_ids=moved).logits, output.logits)
    assert network.config.num_labels == 3


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_labels_of_a_sequence(side: str, random_module: Any) -> None:
    network = random_module(CLASSIFIER)
    ids, real = IDS.clone(), REAL.clone()
    if side == "left":
        ids[0], real[0] = ids[0].roll(2), real[0].roll(2)
    logits = network(ids, attention_mask=real).logits
    for row, seen in enumerate(real.bool()):
        assert_same(logits[row], network(ids[row, seen][None]).logits[0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_does_not_change_labels_of_tokens(side: str, random_module: Any) -> None:
    network = random_module(ANSWERS)
    ids, real = IDS.clone(), REAL.clone()
    if side == "left":
        ids[0], real[0] = ids[0].roll(2), real[0].roll(2)
    logits = network(ids, attention_mask=real).logits
    for row, seen in enumerate(real.bool()):
        assert_same(logits[row, seen], network(ids[row, seen][None]).logits[0])


def test_a_target_of_another_length_cannot_be_judged(random_module: Any) -> None:
    network = random_module(CLASSIFIER)
    with pytest.raises(ConfigError, match=r"as long as input_ids \(5 columns\), but have 4"):
        network(IDS, decoder_input_ids=TARGET)


def test_no_room_for_a_target_leaves_no_source_behind(random_module: Any) -> None:
    network = random_module(TEXT)
    cache = network.new_cache(capacity=2)
    with pytest.raises(ConfigError):
        network(IDS, decoder_input_ids=TARGET, cache=cache)
    assert not cache.has_source
    network(IDS, decoder_input_ids=TARGET[:, :2], cache=cache)


def test_attentions_of_a_layer_that_only_the_decoder_has(random_module: Any) -> None:
    output = random_module(TEXT)(IDS, decoder_input_ids=TARGET, output_attentions=(-3,))
    assert set(output.attentions) == {0} and not output.encoder.attentions


def test_labels_of_tokens(random_module: Any) -> None:
    network = random_module(ANSWERS)
    output, linear = network(IDS), network.token_head.linear
    assert output.logits.shape == (2, 5, 2)
    assert_same(output.logits, output.last_hidden_state @ linear.weight.T + linear.bias)
    assert output.pooler_output is None
    assert network.config.num_labels == 2 and TEXT.num_labels is None


def test_what_a_config_says() -> None:
    assert (TEXT.vocab_size, TEXT.hidden_size, TEXT.num_layers) == (29, 16, 3)
    network = replace(TEXT, head=None, task="features").build()
    assert network(IDS, decoder_input_ids=TARGET).logits is None


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (TEXT, {"decoder_input_ids": TARGET}, "this encoder reads input_ids, but nothing was given"),
        (TEXT, {"input_ids": IDS}, "decoder_input_ids are missing: .* at first the start token 2"),
        (
            replace(CLASSIFIER, decoder_start_token_id=None),
            {"input_ids": IDS},
            "this network has no decoder_start_token_id: give decoder_input_ids",
        ),
        (TEXT, {"input_ids": IDS, "decoder_input_ids": TARGET, "logits_to_keep": -1}, "logits_to_keep is -1"),
        (TEXT, {"input_ids": IDS, "decoder_input_ids": TARGET[0]}, r"input_ids must be \[batch, new\]"),
        (
            TEXT,
            {"input_ids": IDS, "decoder_input_ids": TARGET, "decoder_attention_mask": REAL},
            r"attention_mask is \[2, 5\], but input_ids are \[2, 4\]",
        ),
    ],
)
def test_bad_arguments(config: Any, given: Any, message: str, random_module: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        random_module(config)(**given)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (TEXT, {"task": "translation"}, "task 'translation' is not one of generation, features, "),
        (
            PICTURES,
            {"bridge": core.Linear.Config(10, 12)},
            "the bridge takes vectors of 10, but the encoder gives 16",
        ),
        (PICTURES, {"bridge": None}, "decoder layer 0 takes a source of 12, but gets 16"),
        (TEXT, {"bridge": core.Linear.Config(16, 12)}, "decoder layer 0 takes a source of 16, but gets 12"),
        (
            TEXT,
            {"decoder": core.Decoder.Config(TOKENS, stack(core.Causal(), 2))},
            "no layer of the decoder has cross-attention, so the source would not matter",
        ),
        (SOUND, {"shared_embedding": True}, "a shared embedding needs an encoder and a decoder with the same"),
        (
            TEXT,
            {"shared_embedding": True, "encoder": replace(TEXT.encoder, embedding=replace(TOKENS, vocab_size=30))},
            "a shared embedding needs an encoder and a decoder with the same vocabulary and width",
        ),
        (TEXT, {"head": core.Head.Config(16, 30)}, "the head must take the decoder's states and score the decoder's"),
        (TEXT, {"head": core.Head.Config(12, 29)}, "the head must take the decoder's states and score the decoder's"),
        (CLASSIFIER, {"pooling": None}, "a sequence head scores the pooled vector: give a pooling"),
    ],
)
def test_impossible_configs(config: Any, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(config, **changes)


def test_a_decoder_of_one_width() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.attention is made for vectors of 16, but the embedding's have"):
        core.Decoder.Config(core.TokenEmbedding.Config(29, 12), stack(core.Causal(), 1, 16))


@pytest.mark.parametrize("name", [*READERS, "classifier"])
def test_every_parameter_learns(name: str, random_module: Any) -> None:
    config, given = READERS.get(name, (CLASSIFIER, {"input_ids": IDS, "decoder_input_ids": IDS}))
    network = random_module(config)
    network(**{"decoder_input_ids": TARGET, **given}).logits.square().sum().backward()
    for label, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-8, label


@pytest.mark.parametrize("config", [TEXT, SOUND, PICTURES, CLASSIFIER, ANSWERS])
def test_written_and_read_back(config: Any) -> None:
    assert core.Config.from_dict(config.to_dict()) == config
