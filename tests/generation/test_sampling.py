"""Drawing: the right distribution, one number for each token, and nothing from the neighbours."""

from __future__ import annotations

import math

import pytest
import torch

from polyformer.errors import GenerationError
from polyformer.generation.sampling import RandomStream, Sampler, draw
from polyformer.generation.settings import GenerationSettings


def test_draw_inverts_the_cumulative_distribution() -> None:
    """Every uniform number on a fine grid lands on the token whose interval holds it; impossible tokens never come."""
    probabilities = torch.tensor([0.0, 0.125, 0.0, 0.5, 0.25, 0.125, 0.0], dtype=torch.float64)
    uniforms = torch.arange(0, 1, 1 / 64, dtype=torch.float64) + 1 / 128
    expected = [1] * 8 + [3] * 32 + [4] * 16 + [5] * 8
    logits = probabilities.log().expand(64, -1)
    assert draw(logits, uniforms).tolist() == expected
    assert draw(logits.float() + 30, uniforms).tolist() == expected, "a constant changes nothing"


def test_draw_at_the_ends() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0, -math.inf]]).expand(2, -1)
    assert draw(logits, torch.tensor([0.0, math.nextafter(1, 0)], dtype=torch.float64)).tolist() == [1, 2]
    for size in (3, 1000, 50_000):
        wide = torch.randn(20, size, generator=torch.Generator().manual_seed(size))
        wide[:, -1] = -math.inf
        last = torch.full((20,), math.nextafter(1, 0), dtype=torch.float64)
        assert bool((draw(wide, last) < size - 1).all())


def test_draw_frequencies() -> None:
    """Chi-squared over 20,000 draws; the bound is the 1 - 1e-6 quantile for 9 degrees of freedom."""
    torch.manual_seed(0)
    logits = torch.randn(10) * 1.5
    uniforms = torch.rand(20_000, dtype=torch.float64)
    counts = torch.bincount(draw(logits.expand(20_000, -1), uniforms), minlength=10)
    expected = logits.softmax(-1) * 20_000
    assert float(((counts - expected) ** 2 / expected).sum()) < 46.0


@pytest.mark.parametrize(("value", "message"), [(-math.inf, "every token is forbidden"), (math.nan, "NaN")])
def test_bad_logits(value: float, message: str) -> None:
    logits = torch.zeros(2, 5)
    logits[1] = value
    with pytest.raises(GenerationError, match=message):
        draw(logits, torch.zeros(2, dtype=torch.float64))
    for settings in (GenerationSettings(temperature=0), GenerationSettings()):
        with pytest.raises(GenerationError, match=message):
            Sampler([settings] * 2, [RandomStream(1)] * 2).choose(logits)


def test_streams() -> None:
    first = [RandomStream(5).next() for _ in range(2)]
    assert first[0] == first[1]
    stream = RandomStream(5)
    drawn = [stream.next() for _ in range(1000)]
    assert drawn[0] == first[0] and len(set(drawn)) == 1000 and all(0 <= number < 1 for number in drawn)
    starts = {RandomStream(seed, sample).next() for seed in (0, 1, 5, 5 + 2**32, 2**64 - 1) for sample in range(4)}
    assert len(starts) == 20


SETTINGS = [
    GenerationSettings(temperature=0),
    GenerationSettings(),
    GenerationSettings(temperature=0.5, top_k=7),
    GenerationSettings(temperature=2.0, top_k=7),
    GenerationSettings(top_p=0.4),
    GenerationSettings(typical_p=0.4, min_p=0.01),
]


def test_a_row_chooses_alone_as_among_others() -> None:
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(2)) * 2
    alone = [
        int(Sampler([settings], [RandomStream(row)]).choose(logits[row : row + 1])[0])
        for row, settings in enumerate(SETTINGS)
    ]
    sampler = Sampler(SETTINGS, [RandomStream(row) for row in range(6)])
    assert sampler.choose(logits).tolist() == alone
    order = [4, 0, 3]
    chosen = Sampler(SETTINGS, [RandomStream(row) for row in range(6)]).select(order).choose(logits[order])
    assert chosen.tolist() == [alone[row] for row in order]


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.zeros(1, 50)
    logits[0, [7, 9, 30]] = 4.0
    assert Sampler(SETTINGS[:1], [RandomStream(0)]).choose(logits).tolist() == [7]


def test_greedy_draws_no_number() -> None:
    stream = RandomStream(3)
    Sampler(SETTINGS[:1], [stream]).choose(torch.randn(1, 20))
    assert stream.next() == RandomStream(3).next()


def test_log_probabilities_are_those_of_the_choice() -> None:
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(2)) * 2
    sampler = Sampler(SETTINGS, [RandomStream(row) for row in range(6)])
    for row, chosen in enumerate(sampler.choose(logits).tolist()):
        log_probabilities = sampler.log_probabilities(row, logits)
        assert math.isfinite(float(log_probabilities[chosen]))
        assert float(log_probabilities.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert int(torch.isfinite(sampler.log_probabilities(2, logits)).sum()) == 7
    assert torch.equal(sampler.log_probabilities(0, logits), logits[0].log_softmax(-1))
