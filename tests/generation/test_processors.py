"""Every processor against transformers' own on the same logits, and the definitions of those that it does not have."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from polyformer.generation import processors
from polyformer.generation.sampling import Filters

VOCAB_SIZE = 211


def some_logits(dtype: torch.dtype = torch.float32, *, rows: int = 5, kind: str = "smooth") -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(rows, VOCAB_SIZE, generator=generator, dtype=dtype)
    if kind == "ties":
        logits = logits.round()
    if kind == "flat":
        logits = logits * 1e-3
    if kind == "banned":
        logits[:, ::3] = -math.inf
    if kind == "peaked":
        logits[:, 17] += 60
    return logits


def histories(rows: int = 5, length: int = 9) -> Tensor:
    return torch.randint(0, VOCAB_SIZE, (rows, length), generator=torch.Generator().manual_seed(8))


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
KINDS = pytest.mark.parametrize("kind", ["smooth", "ties", "flat", "banned", "peaked"])
NO_IDS = torch.zeros(5, 1, dtype=torch.long)


def check_equal(ours: Tensor, reference: Tensor, before: Tensor, original: Tensor) -> None:
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)
    assert torch.equal(before, original), "the input was changed"
    assert ours.dtype == before.dtype


@DTYPES
@KINDS
@pytest.mark.parametrize("value", [1e-4, 0.3, 1.0, 7.5])
def test_temperature(dtype: torch.dtype, kind: str, value: float) -> None:
    logits = some_logits(dtype, kind=kind)
    original = logits.clone()
    reference = theirs.TemperatureLogitsWarper(value)(NO_IDS, logits)
    assert torch.equal(processors.temperature(logits, value), reference)
    column = torch.full((5, 1), value, dtype=dtype)
    torch.testing.assert_close(processors.temperature(logits, column), reference, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits, original)


@DTYPES
@KINDS
@pytest.mark.parametrize("k", [1, 2, 50, VOCAB_SIZE, 10 * VOCAB_SIZE])
def test_top_k(dtype: torch.dtype, kind: str, k: int) -> None:
    logits = some_logits(dtype, kind=kind)
    original = logits.clone()
    check_equal(processors.top_k(logits, k), theirs.TopKLogitsWarper(k)(NO_IDS, logits), logits, original)


@DTYPES
@KINDS
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999999, 1.0])
def test_top_p(dtype: torch.dtype, kind: str, p: float) -> None:
    logits = some_logits(dtype, kind=kind)
    original = logits.clone()
    check_equal(processors.top_p(logits, p), theirs.TopPLogitsWarper(p)(NO_IDS, logits), logits, original)


@DTYPES
@KINDS
@pytest.mark.parametrize("p", [0.0, 1e-6, 0.05, 0.5, 1.0])
def test_min_p(dtype: torch.dtype, kind: str, p: float) -> None:
    logits = some_logits(dtype, kind=kind)
    original = logits.clone()
    check_equal(processors.min_p(logits, p), theirs.MinPLogitsWarper(p)(NO_IDS, logits), logits, original)


@DTYPES
@KINDS
@pytest.mark.parametrize("mass", [1e-6, 0.2, 0.7, 0.99999])
def test_typical(dtype: torch.dtype, kind: str, mass: float) -> None:
    logits = some_logits(dtype, kind=kind)
    original = logits.clone()
    check_equal(processors.typical(logits, mass), theirs.TypicalLogitsWarper(mass)(NO_IDS, logits), logits, original)


@DTYPES
@KINDS
@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_repetition_penalty(dtype: torch.dtype, kind: str, penalty: float) -> None:
    logits, ids = some_logits(dtype, kind=kind), histories()
    original = logits.clone()
    reference = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    check_equal(processors.repetition_penalty(logits, ids, penalty), reference, logits, original)
    column = torch.full((5, 1), penalty, dtype=dtype)
    check_equal(processors.repetition_penalty(logits, ids, column), reference, logits, original)


@pytest.mark.parametrize("name", ["repetition_penalty", "frequency_penalty", "presence_penalty"])
def test_penalties_ignore_padding(name: str) -> None:
    """Padding is no token: a padded row is the row alone, and token 0 is not touched."""
    penalty = getattr(processors, name)
    logits, ids = some_logits(), histories()
    padded = ids.clone()
    for row in range(5):
        padded[row, :row] = processors.PADDING
    together = penalty(logits, padded, 1.7)
    for row in range(5):
        alone = penalty(logits[row : row + 1], ids[row : row + 1, row:], 1.7)
        assert torch.equal(together[row : row + 1], alone)
    nothing = torch.full((5, 3), processors.PADDING)
    assert torch.equal(penalty(logits, nothing, 1.7), logits)


@DTYPES
def test_frequency_and_presence_penalties(dtype: torch.dtype) -> None:
    """mu[j] - count[j] * frequency - (count[j] > 0) * presence, counted by hand."""
    logits = some_logits(dtype)
    ids = torch.tensor([[3, 3, 3, 9], [1, 2, 1, 2], [5, 5, 5, 5], [0, 1, 2, 3], [7, 0, 0, 7]])
    frequency = processors.frequency_penalty(logits, ids, 0.25)
    presence = processors.presence_penalty(logits, ids, -1.5)
    for row, tokens in enumerate(ids.tolist()):
        for token in range(VOCAB_SIZE):
            count = tokens.count(token)
            assert float(frequency[row, token]) == pytest.approx(float(logits[row, token]) - 0.25 * count, abs=1e-6)
            assert float(presence[row, token]) == pytest.approx(
                float(logits[row, token]) + (1.5 if count else 0), abs=1e-6
            )


@DTYPES
def test_logit_bias(dtype: torch.dtype) -> None:
    bias = {3: 5.0, 200: -math.inf, 77: -2.25}
    logits = some_logits(dtype)
    vector = processors.bias_vector(bias, VOCAB_SIZE, dtype=dtype, device=logits.device)
    reference = theirs.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})(NO_IDS, logits)
    assert torch.equal(processors.logit_bias(logits, vector), reference)


WORDS = [[5], [7, 8], [7, 9], [1, 2, 3], [2, 3], [4, 4, 4, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]]


@DTYPES
def test_banned_words(dtype: torch.dtype) -> None:
    logits = some_logits(dtype)
    ids = torch.tensor([[9, 9, 1, 2], [4, 4, 4, 7], [4, 4, 4, 4], [0, 0, 0, 0], [2, 7, 1, 2]])
    reference = theirs.NoBadWordsLogitsProcessor(WORDS)(ids, logits)
    original = logits.clone()
    ours = processors.BannedWords(tuple(map(tuple, WORDS)))(logits, ids)
    check_equal(ours, reference, logits, original)
    assert not torch.equal(ours, logits)


def test_banned_words_with_short_and_padded_history() -> None:
    ban = processors.BannedWords(((7, 8), (5,), (0, 3)))
    logits = some_logits(rows=2)
    ids = torch.tensor([[processors.PADDING, 7], [processors.PADDING, 0]])
    ours = ban(logits, ids)
    assert sorted(torch.isinf(ours[0]).nonzero().flatten().tolist()) == [5, 8]
    assert sorted(torch.isinf(ours[1]).nonzero().flatten().tolist()) == [3, 5]
    empty = ban(logits, torch.zeros(2, 0, dtype=torch.long))
    assert torch.isinf(empty[0]).nonzero().flatten().tolist() == [5]


def test_forbid_holds_the_end_back() -> None:
    logits = some_logits()
    reference = theirs.MinNewTokensLengthLogitsProcessor(1, 4, [3, 9])(NO_IDS, logits)
    assert torch.equal(processors.forbid(logits, [3, 9]), reference)


FILTERS = [
    Filters(),
    Filters(top_k=1),
    Filters(top_k=20),
    Filters(top_k=20, top_p=0.8),
    Filters(top_k=20, top_p=1e-6),
    Filters(top_k=40, top_p=0.9, min_p=0.02, typical_p=0.8),
    Filters(top_k=10**6, top_p=0.5),
    Filters(top_p=0.3),
    Filters(top_p=0.95),
    Filters(top_p=0.9999),
    Filters(top_p=0.7, typical_p=0.5),
    Filters(min_p=0.1),
    Filters(typical_p=0.3),
]


@DTYPES
@KINDS
@pytest.mark.parametrize("filters", FILTERS)
def test_filters_in_transformers_order_and_short_list(dtype: torch.dtype, kind: str, filters: Filters) -> None:
    """All filters one after the other as transformers orders them; and the short list keeps the very same tokens."""
    logits = some_logits(dtype, kind=kind)
    chain = []
    if filters.top_k:
        chain.append(theirs.TopKLogitsWarper(filters.top_k))
    if filters.top_p < 1:
        chain.append(theirs.TopPLogitsWarper(filters.top_p))
    if filters.min_p:
        chain.append(theirs.MinPLogitsWarper(filters.min_p))
    if filters.typical_p < 1:
        chain.append(theirs.TypicalLogitsWarper(filters.typical_p))
    expected = theirs.LogitsProcessorList(chain)(NO_IDS, logits)
    torch.testing.assert_close(filters.apply(logits), expected, rtol=0, atol=1e-6)
    if kind == "ties" and filters.top_p < 1:
        return  # which of several equal tokens at the border belong to the nucleus is not defined
    values, ids = filters.candidates(logits)
    if ids is not None:
        assert bool((ids[:, 1:] > ids[:, :-1]).all()), "candidates must come in the order of ids"
        values = torch.full_like(logits, -math.inf).scatter(-1, ids, values)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-6)


def test_short_list_is_left_where_it_cannot_decide() -> None:
    some = torch.linspace(0, 400, 500)[None]
    some[0, 50:60] = 1000.0
    values, ids = Filters(top_k=3).candidates(some)
    assert ids is not None and ids[torch.isfinite(values)].tolist() == list(range(50, 60)), "ties in the list are kept"
    tied = torch.zeros(1, 500)
    assert Filters(top_k=3).candidates(tied)[1] is None
    assert int(torch.isfinite(Filters(top_k=3).candidates(tied)[0]).sum()) == 500, "a tie at the border keeps all"
    assert Filters(top_p=0.9).candidates(tied)[1] is None
    sharp = torch.linspace(0, 400, 500)[None]
    assert Filters(top_p=0.9).candidates(sharp)[1] is not None
