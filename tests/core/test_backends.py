"""Each backend against the equations, with everything it can do; and who is chosen when."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn import functional

from polyformer import core
from polyformer.core import backends, packing, products
from polyformer.core.backends import BACKENDS, Scoring, attend, attention_backend
from polyformer.errors import ConfigError

BATCH, HEADS, SHARED, SIZE = 2, 4, 2, 6
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.fixture(autouse=True)
def flex_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On the CPU flex attention's own equations run: neither traced nor with a warning that they are slow."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True, raising=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def random(*shape: int) -> torch.Tensor:
    seed = hash(shape) % 1000
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tensors(new: int, columns: int, shared: int = SHARED) -> list[torch.Tensor]:
    return [
        random(BATCH, HEADS, new, SIZE),
        random(BATCH, shared, columns, SIZE),
        random(BATCH, shared, columns, 6) + 1,
    ]


def mask_of(new: int, columns: int, rows: int) -> torch.Tensor:
    """Random, but everyone sees the first."""
    mask = random(rows, 1, new, columns + 1)[..., 1:] > 0
    mask[..., 0] = True
    return mask


def scorings(new: int, columns: int) -> dict[str, Scoring]:
    mask, one_mask = mask_of(new, columns, BATCH), mask_of(new, columns, 1)
    bias, one_bias, narrow = (
        random(BATCH, HEADS, new, columns),
        random(1, HEADS, new, columns),
        random(1, 1, new, columns),
    )
    hidden = bias.masked_fill(~mask, -math.inf)
    return {
        "plain": Scoring(0.4),
        "mask": Scoring(0.4, mask),
        "one mask": Scoring(0.4, one_mask),
        "bias": Scoring(0.7, bias=bias),
        "one bias": Scoring(0.4, bias=one_bias),
        "bias of one head": Scoring(0.4, bias=narrow),
        "mask and bias": Scoring(0.4, mask, bias=bias),
        "mask and one bias": Scoring(0.4, mask, bias=one_bias),
        "one mask and bias": Scoring(0.4, one_mask, bias=bias),
        "masked bias": Scoring(0.4, bias=hidden),
        "soft cap": Scoring(0.9, soft_cap=1.5),
        "soft cap, mask, bias": Scoring(0.9, mask, bias=bias, soft_cap=1.5),
        "sinks": Scoring(0.4, sinks=random(HEADS)),
        "sinks, soft cap, mask, bias": Scoring(0.4, mask, bias=bias, soft_cap=2.0, sinks=random(HEADS)),
        **({"causal": Scoring(0.4, causal=True)} if new == columns else {}),
        **({"causal, soft cap": Scoring(0.4, causal=True, soft_cap=1.0)} if new == columns else {}),
    }


NAMES = list(scorings(3, 3))


def by_hand(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring) -> tuple[Any, Any]:
    """Query by query, key by key."""
    batch, heads, new, _ = queries.shape
    group, columns = heads // keys.shape[1], keys.shape[2]
    weights = torch.zeros(batch, heads, new, columns, dtype=torch.float64)
    result = torch.zeros(batch, heads, new, values.shape[3], dtype=torch.float64)
    full = (batch, heads, new, columns)
    mask = None if scoring.mask is None else scoring.mask.expand(full)
    bias = None if scoring.bias is None else scoring.bias.expand(full)
    for b in range(batch):
        for h in range(heads):
            for i in range(new):
                numbers = []
                for j in range(columns):
                    score = scoring.scale * (queries[b, h, i] @ keys[b, h // group, j]).item()
                    if scoring.soft_cap is not None:
                        score = scoring.soft_cap * math.tanh(score / scoring.soft_cap)
                    score += 0 if bias is None else bias[b, h, i, j].item()
                    hidden = (mask is not None and not mask[b, h, i, j]) or (scoring.causal and j > i)
                    numbers.append(0.0 if hidden else math.exp(score))
                total = sum(numbers) + (0 if scoring.sinks is None else math.exp(scoring.sinks[h].item()))
                for j in range(columns):
                    weights[b, h, i, j] = numbers[j] / total
                    result[b, h, i] += numbers[j] / total * values[b, h // group, j]
    return result, weights


def can(backend: str, scoring: Scoring, shared: int = HEADS) -> bool:
    fused = scoring.soft_cap is None and scoring.sinks is None
    products = fused and scoring.bias is None and not scoring.causal and shared == HEADS
    return {"fused": fused, "products": products, "flex": scoring.sinks is None, "reference": True}[backend]


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-10, atol=1e-10)


def moved(scoring: Scoring, device: str) -> Scoring:
    values = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in vars(scoring).items()
    }
    return Scoring(**values)


@torch.no_grad()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["fused", "products", "reference", "flex", None])
@pytest.mark.parametrize("shared", [1, 2, 4])
def test_every_backend_is_exact(backend: str | None, name: str, shared: int, device: str) -> None:
    if backend == "flex" and device == "cuda":
        pytest.skip("flex attention's kernels know no float64")
    for new, columns in ((3, 3), (1, 5), (2, 5), (1, 1)):
        scoring = scorings(new, columns).get(name)
        if scoring is None:
            continue
        given = tensors(new, columns, shared)
        on_device = [tensor.to(device) for tensor in given]
        if backend is not None and not can(backend, scoring, shared):
            with (
                attention_backend(backend),
                pytest.raises(ConfigError, match=f"the {backend} attention backend (cannot|knows neither)"),
            ):
                attend(*on_device, moved(scoring, device))
            continue
        with attention_backend(backend):
            result, none = attend(*on_device, moved(scoring, device))
        expected, weights = by_hand(*given, scoring)
        assert_same(result, expected)
        assert none is None or backend in ("reference", None)
        if backend in ("reference", None):
            again, seen = attend(*on_device, moved(scoring, device), need_weights=True)
            assert_same(again, expected)
            assert_same(seen, weights)


@pytest.mark.parametrize("name", [name for name in NAMES if can("fused", scorings(3, 3)[name])])
@pytest.mark.parametrize("new", [1, 3])
def test_gradients_of_fused_and_reference_are_equal(name: str, new: int) -> None:
    scoring = scorings(new, 3).get(name)
    if scoring is None:
        pytest.skip("a causal square has as many queries as keys")
    probe, found = random(BATCH, HEADS, new, 6), []
    for backend in ("fused", "reference"):
        given = [tensor.requires_grad_() for tensor in tensors(new, 3)]
        with attention_backend(backend):
            result, _ = attend(*given, scoring)
        found.append(torch.autograd.grad((result * probe).sum(), given))
    for fused, reference in zip(*found):
        torch.testing.assert_close(fused, reference, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("name", ["mask", "bias", "mask and one bias", "masked bias", "soft cap", "sinks"])
def test_low_precision(name: str, backend: str, dtype: torch.dtype) -> None:
    scoring = scorings(3, 5)[name]
    if not can(backend, scoring):
        return
    given = [tensor.to(dtype) for tensor in tensors(3, 5)]
    rounded = {key: value.to(dtype) for key, value in vars(scoring).items() if isinstance(value, torch.Tensor)}
    rounded = {key: value for key, value in rounded.items() if key in ("bias", "sinks")}
    with attention_backend(backend):
        result, _ = attend(*given, Scoring(**{**vars(scoring), **rounded}))
    assert result.dtype == dtype
    expected, _ = by_hand(*[tensor.double() for tensor in given], Scoring(**{**vars(scoring), **rounded}))
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_huge_scores_do_not_overflow() -> None:
    queries, keys, values = tensors(3, 5)
    for backend in ("fused", "reference"):
        with attention_backend(backend):
            result, _ = attend(queries * 1e3, keys * 1e3, values, Scoring(1.0))
        assert result.isfinite().all()


def test_dropout() -> None:
    """Each weight is kept with probability 1 - p and grown by 1 / (1 - p); without dropout nothing is drawn."""
    columns, chance = 400, 0.3
    values = torch.eye(columns, dtype=torch.float64).expand(2, 1, -1, -1)
    queries, keys = torch.zeros(2, 3, 7, 6).double(), torch.zeros(2, 1, columns, 6).double()
    for backend in ("fused", "reference"):
        torch.manual_seed(0)
        with attention_backend(backend):
            weights, _ = attend(queries, keys, values, Scoring(1.0, dropout=chance))
        kept = weights != 0
        assert kept.double().mean().item() == pytest.approx(
            1 - chance, abs=4 * (chance * (1 - chance) / kept.numel()) ** 0.5
        )
        assert_same(weights[kept], torch.full_like(weights[kept], 1 / columns / (1 - chance)))
        before = torch.get_rng_state()
        with attention_backend(backend):
            attend(queries, keys, values, Scoring(1.0))
        assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(0)
    result, weights = attend(queries, keys, values, Scoring(1.0, dropout=chance), need_weights=True)
    assert_same(result, weights)  # the weights that come back are those that were used


# ---------------------------------------------------------------------------------------------------------------
# Who is chosen


def test_the_choice() -> None:
    queries = tensors(3, 3)[0]
    wide = torch.zeros(1, 1, 2, 16)
    cuda = mock.Mock(is_cuda=True, device=torch.device("cuda"), dtype=torch.bfloat16, shape=wide.shape)
    keys = tensors(3, 3)[1]

    def choose(queries: Any, scoring: Scoring, need_weights: bool) -> str:
        return backends._choose(queries, keys, scoring, need_weights)

    assert choose(queries, Scoring(1.0), False) == "fused"
    assert choose(queries, Scoring(1.0, dropout=0.1, bias=queries), False) == "fused"
    assert choose(queries, Scoring(1.0), True) == "reference"
    assert choose(queries, Scoring(1.0, soft_cap=1.0), False) == "reference"
    assert choose(cuda, Scoring(1.0), False) == "fused"
    assert choose(cuda, Scoring(1.0, soft_cap=1.0), False) == "flex"
    assert choose(cuda, Scoring(1.0, soft_cap=1.0), True) == "reference"
    assert choose(cuda, Scoring(1.0, soft_cap=1.0, dropout=0.1), False) == "reference"
    assert choose(cuda, Scoring(1.0, soft_cap=1.0, sinks=wide), False) == "reference"
    learned = Scoring(1.0, soft_cap=1.0, bias=wide.clone().requires_grad_())
    assert choose(cuda, learned, False) == "reference"
    for changed in ({"dtype": torch.float64}, {"shape": (1, 1, 1, 16)}, {"shape": (1, 1, 2, 8)}, {"is_cuda": False}):
        other = mock.Mock(**{"is_cuda": True, "dtype": torch.bfloat16, "shape": wide.shape, **changed})
        assert choose(other, Scoring(1.0, soft_cap=1.0), False) == "reference"


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 9, 40, 80, 4_000_000])
@pytest.mark.parametrize("mask_rows", [0, 1, BATCH])
def test_products_in_pieces(at_once: int, mask_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few scores may lie in memory at once: heads, rows and queries one after the other."""
    monkeypatch.setattr(products, "_SCORES_AT_ONCE", at_once)
    given = tensors(5, 7, HEADS)
    scoring = Scoring(0.4, mask_of(5, 7, mask_rows) if mask_rows else None)
    with attention_backend("products"):
        result, _ = attend(*given, scoring)
    assert_same(result, by_hand(*given, scoring)[0])
    for_all = Scoring(0.4, mask_of(1, 7, BATCH))
    with attention_backend("products"):
        result, _ = attend(*given, for_all)
    assert_same(result, by_hand(*given, Scoring(0.4, for_all.mask.expand(BATCH, 1, 5, 7)))[0])


def test_when_products_learn() -> None:
    """On a CPU in 16 bits, whatever is hidden, shared heads too."""
    queries, keys, values = (tensor.bfloat16().requires_grad_() for tensor in tensors(5, 5, SHARED))
    for scoring in (Scoring(0.4, causal=True), Scoring(0.4, both_ways=True), Scoring(0.4, mask_of(5, 5, BATCH))):
        assert backends._choose(queries, keys, scoring, False) == "products"
        exact = [tensor.detach().double().requires_grad_() for tensor in (queries, keys, values)]
        with attention_backend("reference"):
            expected, _ = attend(*exact, scoring)
        result, _ = attend(queries, keys, values, scoring)
        weight = torch.randn(expected.shape, dtype=torch.float64)
        found = torch.autograd.grad((result.double() * weight).sum(), (queries, keys, values))
        for one, other in zip(found, torch.autograd.grad((expected * weight).sum(), exact), strict=True):
            assert (one.double() - other).norm() <= 0.02 * other.norm()
    causal = Scoring(0.4, causal=True)
    with torch.no_grad():
        assert backends._choose(queries, keys, causal, False) == "fused"
    for others in (
        (queries.float(), keys.float(), causal),
        (queries[:, :, :1], keys, causal),
        (queries, keys, Scoring(0.4, causal=True, dropout=0.1)),
        (queries, keys, Scoring(0.4, bias=torch.zeros(1, 1, 5, 5))),
    ):
        assert backends._choose(*others, False) == "fused"
    with mock.patch.object(torch.compiler, "is_compiling", return_value=True):
        assert backends._choose(queries, keys, causal, False) == "fused"


@torch.no_grad()
@pytest.mark.parametrize("at_once", [9, 4_000_000])
@pytest.mark.parametrize("mask_rows", [0, 1, BATCH])
def test_products_one_by_one(at_once: int, mask_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long sequences in float32 where MKL is slow."""
    monkeypatch.setattr(packing, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(products, "_LONG", 5)
    monkeypatch.setattr(backends, "_SHORT", 4)
    monkeypatch.setattr(products, "_SCORES_AT_ONCE", at_once)
    given = [tensor.float() for tensor in tensors(5, 7, HEADS)]
    scoring = Scoring(0.4, mask_of(5, 7, mask_rows) if mask_rows else None, both_ways=True)
    assert backends._choose(given[0], given[1], scoring, False) == "products"
    with mock.patch.object(products, "product", wraps=products.product) as product:
        result, _ = attend(*given, scoring)
    assert product.call_count >= 2 * BATCH * HEADS
    expected, _ = by_hand(*(tensor.double() for tensor in given), scoring)
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=1e-5)
    monkeypatch.setattr(packing, "mkl_is_slow", lambda: False)
    assert backends._choose(given[0], given[1], scoring, False) == "fused"


@pytest.mark.parametrize("mask", [False, True])
def test_when_products_are_chosen(mask: bool) -> None:
    """On a CPU, both ways, without gradients: as exact as bfloat16 is."""
    queries, keys, values = (tensor.bfloat16() for tensor in tensors(5, 7, HEADS))
    scoring = Scoring(0.4, mask_of(5, 7, BATCH) if mask else None, both_ways=True)
    long = torch.zeros(BATCH, HEADS, 129, SIZE)
    for chosen in (
        (queries, keys),
        (queries[:, :, :1], keys),
        (queries, long.bfloat16()),
        (queries.float(), keys.float()),
    ):
        assert backends._choose(*chosen, scoring, False) == "products"
    exact, _ = by_hand(*(tensor.double() for tensor in (queries, keys, values)), scoring)
    result, _ = attend(queries, keys, values, scoring)
    assert result.dtype == torch.bfloat16
    assert (result.double() - exact).abs().max() <= 0.02 * exact.abs().max()
    for others in (
        (queries.double(), keys.double(), scoring),
        (queries.float(), long, scoring),
        (queries, keys[:, :2], scoring),
        (queries, keys, Scoring(0.4)),
        (queries, keys, Scoring(0.4, causal=True)),
        (queries, keys, Scoring(0.4, dropout=0.1, both_ways=True)),
        (queries, keys, Scoring(0.4, bias=torch.zeros(1, 1, 5, 7), both_ways=True)),
    ):
        assert backends._choose(*others, False) == "fused"


@pytest.mark.parametrize(
    ("backend", "scoring", "need_weights", "message"),
    [
        ("products", Scoring(1.0, causal=True), False, "the products attention backend knows neither biases"),
        ("fused", Scoring(1.0), True, "the fused attention backend cannot return weights"),
        ("flex", Scoring(1.0), True, "the flex attention backend cannot return weights"),
        ("flex", Scoring(1.0, dropout=0.1), False, "the flex attention backend cannot return weights, drop out"),
    ],
)
def test_the_impossible_is_refused(backend: str, scoring: Scoring, need_weights: bool, message: str) -> None:
    with attention_backend(backend), pytest.raises(ConfigError, match=message):
        attend(*tensors(3, 3), scoring, need_weights=need_weights)


def test_flex_has_no_gradients_on_the_cpu() -> None:
    given = [tensor.requires_grad_() for tensor in tensors(3, 3)]
    with attention_backend("flex"), pytest.raises(ConfigError, match="no gradients on the CPU"):
        attend(*given, Scoring(1.0))


def test_the_block_ends_and_nests() -> None:
    capped = Scoring(1.0, soft_cap=1.0)
    with attention_backend("fused"):
        with attention_backend(None):
            attend(*tensors(3, 3), capped)
        with pytest.raises(ConfigError):
            attend(*tensors(3, 3), capped)
    attend(*tensors(3, 3), capped)
    with pytest.raises(RuntimeError, match="inside"), attention_backend("fused"):
        raise RuntimeError("inside")
    attend(*tensors(3, 3), capped)


def test_an_unknown_backend_lists_the_known() -> None:
    with (
        pytest.raises(ConfigError, match=f"'flash' is not known; known: {', '.join(BACKENDS)}"),
        attention_backend("flash"),
    ):
        pass


def test_weights_of_chosen_layers_leave_the_others_fused(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": core.Rotary.Config(6)}, layers=4))
    ids = torch.arange(10).view(2, 5)
    with attention_backend("reference"):
        everything = network(ids, output_attentions=True)
    with mock.patch.object(
        functional, "scaled_dot_product_attention", wraps=functional.scaled_dot_product_attention
    ) as spy:
        plain = network(ids)
        assert spy.call_count == 4
        spy.reset_mock()
        some = network(ids, output_attentions=(1, -1))
        assert spy.call_count == 2
        spy.reset_mock()
        network(ids, output_attentions=True)
        assert spy.call_count == 0
    assert sorted(some.attentions) == [1, 3]
    assert plain.attentions is None
    assert_same(some.logits, everything.logits.detach())
    assert_same(plain.logits, everything.logits.detach())
    for number in (1, 3):
        assert_same(some.attentions[number], everything.attentions[number].detach())


@torch.no_grad()
@pytest.mark.parametrize("backend", ["fused", "reference", "flex"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"attention": {"positions": core.Rotary.Config(6)}},
        {"attention": {"mask": core.SlidingWindow(3, sinks=1)}},
        {"attention": {"mask": core.BlockLocal(3)}, "stack": {"bias": core.ALiBi.Config(4)}},
        {"stack": {"bias": core.RelativeBias.Config(4)}},
        {"attention": {"positions": core.Relative.Config(6, 3)}, "stack": {"bias": core.ALiBi.Config(4)}},
    ],
    ids=["rotary", "window", "block-local and ALiBi", "T5 bias", "relative and ALiBi"],
)
def test_whole_networks(backend: str, padded: bool, options: Any, make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(**options))
    ids, mask = torch.arange(21).view(3, 7), torch.ones(3, 7, dtype=torch.bool)
    if padded:
        mask[0, :3], mask[1, 2:4], mask[2, 5:] = False, False, False
    expected = network(ids, attention_mask=mask).logits
    with attention_backend(backend):
        result = network(ids, attention_mask=mask).logits
        cache = network.new_cache()
        pieces = [
            network(piece, attention_mask=real, cache=cache).logits
            for piece, real in zip(ids.split([4, 1, 2], 1), mask.split([4, 1, 2], 1))
        ]
    assert_same(result[mask], expected[mask])
    assert_same(torch.cat(pieces, dim=1)[mask], expected[mask])
