"""The recurrent encoder-decoder: attention by hand, and what must not change its results."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polyformer
from polyformer.baselines import RecurrentTranslator
from polyformer.errors import ConfigError
from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings

CLOSE: Any = {"rtol": 1e-10, "atol": 1e-10}
VOCABULARY = 13


def test_attention_by_hand(translator: Any, random_ids: Any) -> None:
    """Luong et al., 2015, equations 5 to 8, for one source and one target."""
    source, target = random_ids(1, 6), random_ids(1, 4, seed=2)
    output = translator(source, decoder_input_ids=target)
    states = output.encoder.last_hidden_state[0]
    start = torch.tanh(translator.start.weight @ states.mean(0) + translator.start.bias).view(1, 2, 8)
    first = (start, torch.zeros_like(start))[: 2 if translator.config.cell == "lstm" else 1]
    inner = tuple(part.transpose(0, 1).contiguous() for part in first)
    embedded = translator.embedding.tokens.weight[target] * 8**0.5
    hidden, _ = translator.decoder.cells(embedded, inner if len(inner) > 1 else inner[0])
    expected = []
    for state in hidden[0]:
        weights = torch.stack([state @ translator.attention.key.weight @ one for one in states]).softmax(0)
        context = (weights[:, None] * states).sum(0)
        expected.append(torch.tanh(translator.attention.output.weight @ torch.cat([context, state])))
    torch.testing.assert_close(output.last_hidden_state[0], torch.stack(expected), **CLOSE)
    logits = torch.stack(expected) @ translator.embedding.tokens.weight.T + translator.head.bias
    torch.testing.assert_close(output.logits[0], logits, **CLOSE)


def test_encoder_reads_both_ways(translator: Any, random_ids: Any) -> None:
    """A state depends on every token before and behind it; those of a backward recurrence are those of the source
    turned round."""
    source = random_ids(1, 7)
    states = translator.encode(source).last_hidden_state
    for changed in (0, 6):
        other = source.clone()
        other[0, changed] = (other[0, changed] + 1) % VOCABULARY
        differs = (translator.encode(other).last_hidden_state - states).abs().amax(-1)[0] > 1e-9
        assert differs.all()


def padded(rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, row in enumerate(rows):
        part = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, part], mask[number, part] = row, True
    return ids, mask


@pytest.mark.parametrize("left", [False, True])
def test_padding_changes_nothing(translator: Any, random_ids: Any, left: bool) -> None:
    sources = [random_ids(length, seed=length) for length in (4, 9, 1)]
    targets = [random_ids(length, seed=20 + length) for length in (6, 2, 5)]
    (source, source_mask), (target, target_mask) = padded(sources, left), padded(targets, left)
    logits = translator(
        source, attention_mask=source_mask, decoder_input_ids=target, decoder_attention_mask=target_mask
    ).logits
    for row, there in enumerate(target_mask):
        alone = translator(sources[row][None], decoder_input_ids=targets[row][None]).logits[0]
        torch.testing.assert_close(logits[row, there], alone, **CLOSE)


def test_read_in_pieces(translator: Any, random_ids: Any) -> None:
    source, target = random_ids(3, 5), random_ids(3, 8, seed=2)
    whole = translator(source, decoder_input_ids=target)
    cache, pieces = translator.new_cache(), []
    for number, part in enumerate(target.split([3, 1, 4], dim=1)):
        given = source if number == 0 else None
        pieces.append(translator(given, decoder_input_ids=part, cache=cache).logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole.logits, **CLOSE)
    with pytest.raises(ConfigError, match="holds a source already"):
        translator(source, decoder_input_ids=target[:, :1], cache=cache)
    hidden = translator(source, decoder_input_ids=target, with_logits=False)
    assert hidden.logits is None
    torch.testing.assert_close(translator.score(hidden.last_hidden_state), whole.logits, **CLOSE)


def test_generation(translator: Any, random_ids: Any) -> None:
    """Greedy is the likeliest token at each step, wide beams find the likeliest target, rows do not disturb each
    other."""
    sources = [random_ids(length, seed=length) for length in (4, 9, 1)]
    ids, mask = padded(sources, left=False)
    reader = translator.with_source(translator.encode(ids, attention_mask=mask).last_hidden_state, mask)
    starts = [[1], [1], [1]]
    greedy = generate(reader, starts, GenerationSettings(max_new_tokens=5, temperature=0))
    beams = generate(reader, starts, GenerationSettings(max_new_tokens=3, num_beams=VOCABULARY**2, length_penalty=0.0))
    targets = torch.tensor([[1, *rest] for rest in product(range(VOCABULARY), repeat=3)])
    for source, (best,), (first, *_) in zip(sources, greedy, beams):
        text = [1]
        for _ in range(5):
            text.append(int(translator(source[None], decoder_input_ids=torch.tensor([text])).logits[0, -1].argmax()))
        assert best.token_ids == text[1:]
        many = source.expand(len(targets), -1)
        scores = translator(many, decoder_input_ids=targets).logits.log_softmax(-1)[:, :-1]
        sums = scores.gather(-1, targets[:, 1:, None]).sum((1, 2))
        assert first.token_ids == targets[sums.argmax(), 1:].tolist()


def test_saved_and_loaded(translator: Any, random_ids: Any, tmp_path: Path) -> None:
    model = polyformer.build(translator.config, dtype="float64", seed=1)
    model.network.load_state_dict(translator.state_dict())
    model.save(tmp_path / "model")
    again = polyformer.load(tmp_path / "model", device="cpu")
    assert again.config == translator.config
    assert again.capabilities == ("generate", "stream")
    source = random_ids(6).tolist()
    expected = [1]
    for _ in range(4):
        target = torch.tensor([expected])
        logits = translator(torch.tensor([source]), decoder_input_ids=target).logits
        expected.append(int(logits[0, -1].argmax()))
    assert again.generate(source, max_new_tokens=4, temperature=0).token_ids == expected[1:]
    assert list(again.stream(source, max_new_tokens=4, temperature=0)) == expected[1:]


def test_shared_embedding(random_ids: Any) -> None:
    network = RecurrentTranslator.Config(VOCABULARY, VOCABULARY, 8, shared_embedding=True).build()
    assert network.embedding.tokens is network.encoder.embedding.tokens
    apart = RecurrentTranslator.Config(VOCABULARY, VOCABULARY, 8).build()
    difference = sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in network.parameters())
    assert difference == VOCABULARY * 8


def test_what_cannot_be_is_refused(translator: Any, random_ids: Any) -> None:
    with pytest.raises(ConfigError, match="input_ids are missing"):
        translator(decoder_input_ids=random_ids(1, 2))
    with pytest.raises(ConfigError, match="decoder_input_ids are missing"):
        translator(random_ids(1, 2))
    with pytest.raises(ConfigError, match="the target has 1 rows, but the source 2"):
        translator(random_ids(2, 3), decoder_input_ids=random_ids(1, 2))
    with pytest.raises(ConfigError, match="must be even"):
        RecurrentTranslator.Config(5, 5, 7)
    with pytest.raises(ConfigError, match="a shared embedding needs one vocabulary"):
        RecurrentTranslator.Config(5, 6, 8, shared_embedding=True)
