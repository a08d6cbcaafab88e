"""The cache: whatever was fed, padded, cut and rearranged, the logits are those of each row alone without a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyformer import core
from polyformer.core import cache as cache_module
from polyformer.core.backends import attention_backend
from polyformer.core.cache import Int8Store
from polyformer.core.rotary import DynamicNTKScaling, LinearScaling, Llama3Scaling, LongRoPEScaling, YaRNScaling
from polyformer.errors import ConfigError

RESERVE = 3  # in these tests windows forget early, so that short sequences go through it many times


@pytest.fixture(autouse=True, scope="module")
def small_windows() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "_RESERVE", RESERVE)
        patch.setattr(cache_module, "_SLACK", 4)
        patch.setattr(cache_module, "_GROWTH", 5)
        yield


ROTARY = core.Rotary.Config(6)
WINDOW = core.SlidingWindow(5)

NETWORKS: dict[str, dict[str, Any]] = {
    "rotary": {"attention": {"positions": ROTARY}},
    "rotary interleaved, partial, Llama-3": {
        "attention": {
            "positions": core.Rotary.Config(4, base=100.0, interleaved=True, scaling=Llama3Scaling(4.0, 1.0, 4.0, 8))
        }
    },
    "rotary YaRN": {"attention": {"positions": replace(ROTARY, scaling=YaRNScaling(4.0, 8))}},
    "rotary linear": {"attention": {"positions": replace(ROTARY, scaling=LinearScaling(2.0))}},
    # Angles that depend on the length: one layer, see test_length_dependent_rotary_in_deep_networks.
    "rotary dynamic NTK": {"attention": {"positions": replace(ROTARY, scaling=DynamicNTKScaling(2.0, 6))}, "layers": 1},
    "rotary LongRoPE": {
        "attention": {"positions": replace(ROTARY, scaling=LongRoPEScaling((1.0, 1.5, 2.0), (3.0, 5.0, 9.0), 6, 1.2))},
        "layers": 1,
    },
    "learned": {"embedding": {"positions": core.Learned.Config(400, 16, offset=2)}},
    "sinusoidal": {"embedding": {"positions": core.Sinusoidal.Config(16)}},
    "ALiBi": {"stack": {"bias": core.ALiBi.Config(4)}},
    "T5 bias": {"stack": {"bias": core.RelativeBias.Config(4, num_buckets=8, max_distance=12)}},
    "Shaw": {"attention": {"positions": core.Relative.Config(6, max_distance=4, values=True)}},
    "Music Transformer": {
        "attention": {"positions": core.Relative.Config(6, max_distance=7, num_heads=4, causal=True)}
    },
    "sinks and soft cap": {"attention": {"positions": ROTARY, "sinks": True, "soft_cap": 2.0}},
    "window": {"attention": {"positions": ROTARY, "mask": WINDOW}},
    "window with sinks": {"attention": {"positions": ROTARY, "mask": core.SlidingWindow(4, sinks=2)}},
    "window, T5 bias": {"attention": {"mask": WINDOW}, "stack": {"bias": core.RelativeBias.Config(4, 8, 12)}},
    "window, Shaw": {"attention": {"mask": WINDOW, "positions": core.Relative.Config(6, 4, values=True)}},
    "block-local": {"attention": {"positions": ROTARY, "mask": core.BlockLocal(4)}},
    "local and global in turn": {
        "attention": [
            {"positions": ROTARY, "mask": WINDOW},
            {"positions": replace(ROTARY, base=500.0)},
            {"positions": ROTARY, "mask": core.BlockLocal(3)},
            {"mask": core.SlidingWindow(3, sinks=1)},
        ],
        "stack": {"bias": core.ALiBi.Config(4)},
    },
}


class Story:
    """A cache, and what should be in it: the tokens of every row."""

    def __init__(self, network: Any, kind: str, data: st.DataObject, capacity: int | None = None):
        self.network, self.kind, self.data = network, kind, data
        self.cache = network.new_cache(kind, capacity=capacity)
        self.rows: list[list[int]] = [[] for _ in range(data.draw(st.integers(1, 3), "rows"))]
        self.furthest = [0] * len(self.rows)

    def alone(self, row: list[int]) -> torch.Tensor:
        """The logits of one row by itself, in one piece. Eight bits round token by token: a new cache does the same."""
        cache = self.network.new_cache("int8") if self.kind == "int8" else None
        return self.network(torch.tensor([row]), cache=cache).logits[0]

    def feed(self, longest: int = 6) -> None:
        new = self.data.draw(st.integers(1, longest), "new columns")
        layout = st.lists(st.booleans(), min_size=new, max_size=new)
        padded = self.data.draw(st.booleans(), "padded")
        real = torch.tensor([self.data.draw(layout, "tokens") if padded else [True] * new for _ in self.rows])
        ids = torch.randint(29, real.shape, generator=torch.Generator().manual_seed(len(self.rows[0]) + new))
        mask = real if padded or self.data.draw(st.booleans(), "mask given") else None
        logits = self.network(ids, attention_mask=mask, cache=self.cache).logits
        for number, row in enumerate(self.rows):
            row += ids[number, real[number]].tolist()
            self.furthest[number] = max(self.furthest[number], len(row))
            count = int(real[number].sum())
            if count:
                expected = self.alone(row)[-count:]
                torch.testing.assert_close(logits[number, real[number]], expected, rtol=1e-10, atol=1e-10)
        assert self.cache.row_lengths().tolist() == [len(row) for row in self.rows]

    def trim(self) -> None:
        if self.data.draw(st.booleans(), "trim each row"):
            counts = [self.data.draw(st.integers(0, min(len(row), RESERVE + 2)), "trimmed") for row in self.rows]
            asked: Any = torch.tensor(counts)
        else:
            asked = self.data.draw(st.integers(0, min(len(row) for row in self.rows)), "trimmed")
            counts = [asked] * len(self.rows)
        after = [len(row) - count for row, count in zip(self.rows, counts)]
        try:
            self.cache.trim(asked)
        except ConfigError:
            # Only a window may refuse, and only beyond its reserve. The cache must then be as it was.
            assert any(mask.reach for mask in self.cache.masks)
            assert any(end < far - RESERVE for end, far in zip(after, self.furthest))
        else:
            self.rows = [row[:end] for row, end in zip(self.rows, after)]
        assert self.cache.row_lengths().tolist() == [len(row) for row in self.rows]

    def rearrange(self, count: int) -> list[int]:
        numbers = st.lists(st.integers(0, len(self.rows) - 1), min_size=count, max_size=count)
        chosen = self.data.draw(numbers, "rows chosen")
        self.rows = [list(self.rows[number]) for number in chosen]
        self.furthest = [self.furthest[number] for number in chosen]
        return chosen

    def reorder(self) -> None:
        self.cache.reorder(torch.tensor(self.rearrange(len(self.rows))))

    def select(self) -> None:
        self.cache.select(torch.tensor(self.rearrange(self.data.draw(st.integers(1, 3), "rows kept"))))

    def merge(self) -> None:
        """With a cache of another life, and with what this one was a moment ago."""
        if len(self.rows) > 4:
            return
        other = Story(self.network, self.kind, self.data, self.cache.capacity)
        other.feed(9)
        if self.data.draw(st.booleans(), "the other is trimmed"):
            other.trim()
        self.cache = self.cache.merge([other.cache])
        self.rows, self.furthest = self.rows + other.rows, self.furthest + other.furthest

    def run(self, steps: int) -> None:
        self.feed(12)
        actions = st.sampled_from([self.feed, self.trim, self.reorder, self.select, self.merge])
        for _ in range(self.data.draw(st.integers(0, steps), "steps")):
            self.data.draw(actions, "action")()
        self.feed()
        self.feed(1)


def story_settings(examples: int) -> Any:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_any_story_gives_the_logits_of_each_row_alone(name: str, make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(**NETWORKS[name]))

    @story_settings(14)
    @given(data=st.data(), capacity=st.sampled_from([None, 150]))
    @torch.no_grad()
    def check(data: st.DataObject, capacity: int | None) -> None:
        Story(network, "dense", data, capacity).run(7)

    check()


@pytest.mark.parametrize("name", ["rotary", "rotary LongRoPE", "window with sinks", "local and global in turn"])
def test_any_story_in_eight_bits(name: str, make_config: Any, random_module: Any) -> None:
    """Each token is rounded by itself: the order of events changes nothing, to the last digits."""
    network = random_module(make_config(**NETWORKS[name]))

    @story_settings(10)
    @given(data=st.data())
    @torch.no_grad()
    def check(data: st.DataObject) -> None:
        Story(network, "int8", data).run(6)

    check()


# ---------------------------------------------------------------------------------------------------------------
# One thing at a time


@torch.no_grad()
def run(network: Any, ids: torch.Tensor, cache: Any, pieces: list[int]) -> torch.Tensor:
    return torch.cat([network(piece, cache=cache).logits for piece in ids.split(pieces, dim=1)], dim=1)


def random_ids(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(29, (rows, columns), generator=torch.Generator().manual_seed(seed))


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


LONG = LongRoPEScaling((1.0, 1.5, 2.0), (3.0, 5.0, 9.0), 6, 1.2)


@torch.no_grad()
def test_length_dependent_rotary_in_deep_networks(make_config: Any, random_module: Any) -> None:
    """Exact while the angles stay the same, also beyond the switch; `rotary` says what lies between."""
    network = random_module(make_config({"positions": replace(ROTARY, scaling=LONG)}, layers=3))
    ids = random_ids(2, 20)
    assert_same(run(network, ids[:, :6], network.new_cache(), [2, 1, 3]), network(ids[:, :6]).logits)
    assert_same(run(network, ids, network.new_cache(), [9, 1, 1, 1, 5, 3])[:, 9:], network(ids).logits[:, 9:])
    across = run(network, ids, network.new_cache(), [4, 16])
    assert (across - network(ids).logits)[
        :, 4:
    ].abs().max() > 1e-3  # the documented limit, so that mending it is noticed

    network = random_module(make_config({"positions": replace(ROTARY, scaling=DynamicNTKScaling(2.0, 12))}, layers=3))
    assert_same(run(network, ids[:, :12], network.new_cache(), [5, 1, 6]), network(ids[:, :12]).logits)
    assert_same(run(network, ids, network.new_cache(), [20]), network(ids).logits)


@torch.no_grad()
def test_rows_of_a_batch_have_the_angles_of_their_own_length(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": replace(ROTARY, scaling=LONG)}, layers=3))
    ids, mask = random_ids(2, 9), torch.ones(2, 9, dtype=torch.bool)
    mask[0, :5] = False  # a short row beside a long one
    logits = network(ids, attention_mask=mask).logits
    assert_same(logits[0, 5:], network(ids[:1, 5:]).logits[0])
    assert_same(logits[1], network(ids[1:]).logits[0])


@torch.no_grad()
def test_padding_is_not_looked_at_whatever_it_holds(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(**NETWORKS["local and global in turn"]))
    mask = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 1, 1]])
    first, second = random_ids(2, 6, 1), random_ids(2, 6, 2)
    second = torch.where(mask.bool(), first, second)
    caches = [network.new_cache(), network.new_cache()]
    results = [network(ids, attention_mask=mask, cache=cache).logits for ids, cache in zip((first, second), caches)]
    assert torch.equal(results[0][mask.bool()], results[1][mask.bool()])
    assert results[0].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("name", ["rotary", "ALiBi", "window"])
def test_a_row_of_nothing_but_padding_gives_no_nan(
    name: str, backend: str, make_config: Any, random_module: Any
) -> None:
    network = random_module(make_config(**NETWORKS[name]))
    mask, ids = torch.tensor([[0, 0, 0], [1, 1, 1]]), random_ids(2, 4, 3)
    cache = network.new_cache()
    with attention_backend(backend):
        assert network(random_ids(2, 3), attention_mask=mask).logits.isfinite().all()
        assert network(random_ids(2, 3), attention_mask=mask, cache=cache).logits.isfinite().all()
        assert cache.row_lengths().tolist() == [0, 3]
        assert_same(network(ids, cache=cache).logits[0], network(ids[:1]).logits[0])


@torch.no_grad()
def test_prefix_language_model_with_a_cache(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": ROTARY, "mask": core.PrefixCausal()}))
    ids, lengths = random_ids(2, 9), torch.tensor([2, 4])
    cache = network.new_cache()
    pieces = [network(ids[:, :5], prefix_lengths=lengths, cache=cache).logits, network(ids[:, 5:], cache=cache).logits]
    assert_same(torch.cat(pieces, dim=1), network(ids, prefix_lengths=lengths).logits)


@torch.no_grad()
def test_reorder_with_a_common_prefix(make_config: Any, random_module: Any) -> None:
    """Beams share their prompt: its columns are not copied. Windows, whose columns move, are right all the same."""
    network = random_module(make_config(**NETWORKS["local and global in turn"]))
    prompt, tails = random_ids(1, 15), random_ids(4, 6, 1)
    cache = network.new_cache()
    network(prompt, cache=cache)
    cache.select(torch.zeros(4, dtype=torch.long))
    network(tails, cache=cache)
    dense = next(store for store in cache.stores if store.columns.reach is None)
    before = [buffer[:, :, :15].clone() for buffer in dense.buffers]
    rows = torch.tensor([2, 2, 0, 1])
    cache.reorder(rows, first_column=15)
    for buffer, old in zip(dense.buffers, before):
        assert torch.equal(buffer[:, :, :15], old)
    last = random_ids(4, 3, 2)
    whole = torch.cat([prompt.expand(4, -1), tails[rows], last], dim=1)
    assert_same(network(last, cache=cache).logits, network(whole).logits[:, -3:])


def test_reorder_leaves_the_columns_before_first_column_alone() -> None:
    """The promise saves the copying: the columns before are not touched even where the rows differ."""
    cache = core.Cache([core.Causal()])
    cache.advance(2, 4, torch.device("cpu"))
    keys = torch.arange(8.0).view(2, 1, 4, 1)
    cache.stores[0].append(keys, keys)
    cache.reorder(torch.tensor([1, 0]), first_column=3)
    assert cache.stores[0].read()[0].flatten().tolist() == [0, 1, 2, 7, 4, 5, 6, 3]


def test_gradients_flow_through_a_first_pass_with_a_cache(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": ROTARY}))
    ids = random_ids(2, 5)
    gradients = []
    for cache in (None, network.new_cache()):
        network.zero_grad()
        network(ids, cache=cache).logits.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for plain, cached in zip(*gradients):
        assert_same(cached, plain)


# ---------------------------------------------------------------------------------------------------------------
# Memory


@pytest.mark.parametrize("padded", [False, True])
def test_a_window_stays_bounded_over_many_steps(padded: bool) -> None:
    cache = core.Cache([core.SlidingWindow(5), core.SlidingWindow(4, sinks=2), core.BlockLocal(7)])
    cpu, steps = torch.device("cpu"), 5000
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]]) if padded else None

    def feed(new: int, attention_mask: torch.Tensor | None = None) -> None:
        spans = cache.advance(2, new, cpu, attention_mask)
        fresh = spans[0].queries[:, None, :, None].expand(2, -1, -1, 1).float()
        for store, span in zip(cache.stores, spans):
            keys, values = store.append(fresh, fresh)
            if attention_mask is None:  # what is kept is what the bookkeeping says: each vector holds its position
                real = (span.keys >= 0).expand(2, -1)
                assert torch.equal(keys[:, 0, :, 0][real], span.keys.expand(2, -1)[real].float())
                assert torch.equal(values, keys)

    feed(3, mask)
    for _ in range(steps):
        feed(1)
        for columns in cache.columns:
            bound = sum(columns.reach) + RESERVE + 4 + 1
            assert columns.used == columns.positions.shape[1] <= bound
            assert all(buffer.shape[2] <= bound for store in columns.stores for buffer in store.buffers)
    assert cache.row_lengths().tolist() == [steps + (1 if padded else 3), steps + 3]


@torch.no_grad()
def test_a_long_prompt_leaves_no_large_window_behind(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": ROTARY, "mask": WINDOW}))
    cache = network.new_cache()
    ids = random_ids(1, 300)
    pieces = run(network, ids, cache, [297, 1, 1, 1])
    assert_same(pieces, network(ids).logits)
    assert all(buffer.shape[2] < 20 for store in cache.stores for buffer in store.buffers)


@torch.no_grad()
def test_rows_whose_windows_lie_far_apart(make_config: Any, random_module: Any) -> None:
    """Together they keep more columns than one window has: each row has its tokens where the others have padding."""
    network = random_module(make_config({"positions": ROTARY, "mask": WINDOW}))
    rows, own = 6, 9
    mask = torch.zeros(rows, rows * own, dtype=torch.bool)
    for row in range(rows):
        mask[row, row * own : (row + 1) * own] = True
    ids, more = random_ids(rows, rows * own), random_ids(rows, 25, 1)
    cache = network.new_cache()
    network(ids, attention_mask=mask, cache=cache)
    pieces = run(network, more, cache, [1] * 20 + [5])
    for row in range(rows):
        whole = torch.cat([ids[row, mask[row]], more[row]])[None]
        assert_same(pieces[row], network(whole).logits[0, own:])


def test_small_prompts_do_not_pay_for_a_large_window() -> None:
    cache = core.Cache([core.SlidingWindow(4096)])
    cache.advance(1, 10, torch.device("cpu"))
    cache.stores[0].append(*torch.zeros(2, 1, 1, 10, 4))
    assert cache.nbytes <= 2 * 4 * 4 * (10 + 256)


def allocations(cache: Any, steps: int) -> int:
    """How many times the buffers of the first store change while ``steps`` tokens come one by one."""
    seen, vector = set(), torch.zeros(1, 1, 1, 2)
    for _ in range(steps):
        cache.advance(1, 1, torch.device("cpu"))
        cache.stores[0].append(vector, vector)
        seen.add((cache.stores[0].buffers[0].data_ptr(), cache.stores[0].buffers[0].shape[2]))
    return len(seen)


def test_dense_growth_is_amortised() -> None:
    """Each growth is by half, so that copying costs a constant per token."""
    cache = core.Cache([core.Causal()])
    assert allocations(cache, 4000) < 18
    assert cache.stores[0].buffers[0].shape[2] < 1.6 * 4000


def test_a_capacity_is_allocated_once_and_never_passed() -> None:
    cache = core.Cache([core.Causal()], capacity=50)
    assert allocations(cache, 50) == 1
    assert cache.stores[0].buffers[0].shape[2] == 50
    with pytest.raises(ConfigError, match=r"room for 50 tokens, and 50 \+ 1"):
        cache.advance(1, 1, torch.device("cpu"))
    cache.trim(10)
    assert allocations(cache, 10) == 1


@torch.no_grad()
def test_a_capacity_refused_leaves_every_layer_as_it_was(make_config: Any, random_module: Any) -> None:
    """Also the windows, which come first here and would have had room."""
    network = random_module(make_config([{"mask": WINDOW}, {"positions": ROTARY}]))
    ids = random_ids(1, 10)
    cache = network.new_cache(capacity=10)
    network(ids[:, :8], cache=cache)
    with pytest.raises(ConfigError, match="larger capacity"):
        network(ids[:, :3], cache=cache)
    assert_same(network(ids[:, 8:], cache=cache).logits, network(ids).logits[:, 8:])


@torch.no_grad()
def test_merged_capacity_is_the_largest(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": ROTARY}))
    ids = random_ids(1, 30)
    small, large = network.new_cache(capacity=10), network.new_cache(capacity=32)
    network(ids[:, :4], cache=small)
    network(ids[:, :29], cache=large)
    merged = small.merge([large])
    assert merged.capacity == 32
    assert_same(network(ids[:, 29:].expand(2, -1), cache=merged).logits[1], network(ids).logits[0, 29:])
    assert small.merge([network_cache_of(network, ids)]).capacity is None


def network_cache_of(network: Any, ids: torch.Tensor) -> Any:
    cache = network.new_cache()
    network(ids, cache=cache)
    return cache


# ---------------------------------------------------------------------------------------------------------------
# Eight bits


def test_eight_bits_round_to_the_nearest_level() -> None:
    vectors = torch.randn(3, 2, 50, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None]
    levels, scales = Int8Store._quantize(vectors)
    assert levels.dtype == torch.int8
    largest = vectors.abs().amax(-1, keepdim=True)
    error = (levels * scales - vectors).abs()
    assert (error <= largest / 254 * (1 + 1e-5)).all()
    at_largest = error.gather(-1, vectors.abs().argmax(-1, keepdim=True))
    assert (at_largest <= 1e-6 * largest).all()
    assert torch.equal(Int8Store._quantize(torch.zeros(1, 1, 1, 4))[0], torch.zeros(1, 1, 1, 4, dtype=torch.int8))


@torch.no_grad()
@pytest.mark.parametrize("name", ["rotary", "learned", "local and global in turn", "Shaw"])
def test_eight_bits_move_the_distribution_little(name: str, make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(**NETWORKS[name]))
    ids = random_ids(3, 40)
    exact = network(ids).logits.log_softmax(-1)
    rounded = run(network, ids, network.new_cache("int8"), [20, 1, 19]).log_softmax(-1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1)
    assert 0 < divergence.mean() < 2e-4
    assert divergence.max() < 2e-3


@torch.no_grad()
def test_eight_bits_take_little_memory(make_config: Any, random_module: Any) -> None:
    """head_dim bytes and a scale of four, for keys and for values, per head, token and layer."""
    network = random_module(make_config({"positions": ROTARY}), dtype=torch.bfloat16)
    cache = network.new_cache("int8", capacity=64)
    output = network(random_ids(2, 5), cache=cache)
    assert output.logits.dtype == torch.bfloat16
    assert cache.nbytes == 2 * 2 * 2 * 2 * 64 * (6 + 4)  # layers, keys and values, rows, key/value heads


# ---------------------------------------------------------------------------------------------------------------
# Refusals, and calls that fail halfway


@torch.no_grad()
def test_trim_refuses_what_a_window_has_forgotten(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(**NETWORKS["local and global in turn"]))
    ids = random_ids(2, 60)
    cache = network.new_cache()
    run(network, ids[:, :50], cache, [1] * 50)
    with pytest.raises(ConfigError, match="a sliding window of 5 tokens has forgotten"):
        cache.trim(RESERVE + 20)
    with pytest.raises(ConfigError, match="has forgotten"):
        cache.trim(torch.tensor([0, RESERVE + 20]))
    assert cache.row_lengths().tolist() == [50, 50]
    cache.trim(torch.tensor([0, RESERVE]))
    more = torch.stack([ids[0, 50:53], ids[1, 50 - RESERVE : 53 - RESERVE]])
    assert_same(network(more, cache=cache).logits[1], network(ids[1:, : 53 - RESERVE]).logits[0, -3:])


@torch.no_grad()
@pytest.mark.parametrize(
    ("count", "message"),
    [
        (6, "more tokens than the cache holds"),
        (torch.tensor([0, 6]), "more tokens than the cache holds"),
        (-1, "less than no token"),
        (torch.tensor([1, -1]), "less than no token"),
        (torch.tensor([1, 1, 1]), r"holds 2 rows, but the counts to trim are \[3\]"),
        (torch.tensor(1), r"holds 2 rows, but the counts to trim are \[\]"),
    ],
)
def test_impossible_trims(count: Any, message: str, make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": ROTARY}))
    cache = network.new_cache()
    ids = random_ids(2, 8)
    network(ids[:, :5], cache=cache)
    with pytest.raises(ConfigError, match=message):
        cache.trim(count)
    assert_same(network(ids[:, 5:], cache=cache).logits, network(ids).logits[:, 5:])


@torch.no_grad()
def test_other_refusals(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config({"positions": ROTARY}))
    with pytest.raises(ConfigError, match="cache kind 'fp8' is not known; known: dense, int8"):
        network.new_cache("fp8")
    with pytest.raises(ConfigError, match="capacity is 0"):
        network.new_cache(capacity=0)
    cache = network.new_cache()
    with pytest.raises(ConfigError, match="empty cache cannot be merged"):
        cache.merge([network.new_cache()])
    network(random_ids(2, 3), cache=cache)
    with pytest.raises(ConfigError, match="holds 2 rows, but the input has 3"):
        network(random_ids(3, 1), cache=cache)
    with pytest.raises(ConfigError, match="reorder needs 2 row numbers, but 3 were given"):
        cache.reorder(torch.tensor([0, 1, 1]))
    with pytest.raises(IndexError):
        cache.reorder(torch.tensor([0, 2]))
    quantized = network.new_cache("int8")
    network(random_ids(2, 3), cache=quantized)
    with pytest.raises(ConfigError, match="same network and kind"):
        cache.merge([quantized])
    assert cache.row_lengths().tolist() == [3, 3]


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dense", "int8"])
@pytest.mark.parametrize("name", ["rotary", "local and global in turn", "Shaw"])
@pytest.mark.parametrize("padded", [False, True])
def test_an_interrupted_call_changes_nothing(
    name: str, kind: str, padded: bool, make_config: Any, random_module: Any
) -> None:
    """Someone's Ctrl-C comes in the last layer, when the first ones have stored their keys and values."""
    network = random_module(make_config(**NETWORKS[name]))
    ids, mask = random_ids(2, 40), torch.ones(2, 40, dtype=torch.bool)
    if padded:
        mask[0, [0, 1, 16, 30]] = False
    expected = network(ids, attention_mask=mask, cache=network.new_cache(kind)).logits[mask]

    cache, results = network.new_cache(kind), []
    for piece, real in zip(ids.split(15, dim=1), mask.split(15, dim=1)):
        before = cache.row_lengths().tolist()
        hook = network.stack.layers[-1].feedforward.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            network(piece, attention_mask=real, cache=cache)
        hook.remove()
        assert cache.row_lengths().tolist() in (before, [0])
        if not results:  # a first call that failed does not even fix the number of rows
            with pytest.raises(IndexError):
                network(torch.full((3, 2), 29), cache=cache)
            assert cache.batch_size is None
        results.append(network(piece, attention_mask=real, cache=cache).logits)
    assert_same(torch.cat(results, dim=1)[mask], expected)


@torch.no_grad()
def test_a_sequence_too_long_for_its_positions_changes_nothing(make_config: Any, random_module: Any) -> None:
    network = random_module(make_config(embedding={"positions": core.Learned.Config(8, 16)}))
    ids = random_ids(1, 8)
    cache = network.new_cache()
    network(ids[:, :6], cache=cache)
    with pytest.raises(ConfigError, match="the sequence has 9 tokens, but this network has positions for 8"):
        network(ids[:, :3], cache=cache)
    assert_same(network(ids[:, 6:], cache=cache).logits, network(ids).logits[:, 6:])


# ---------------------------------------------------------------------------------------------------------------
# A source for cross-attention


def stack_with_source(make_config: Any, random_module: Any) -> Any:
    """Layers that look at a source of width 10."""
    cross = core.Attention.Config(16, 4, head_dim=6, source_size=10, mask=core.Bidirectional())
    config = make_config({"positions": ROTARY}).stack
    return random_module(replace(config, layers=tuple(replace(each, cross_attention=cross) for each in config.layers)))


@torch.no_grad()
def test_keys_and_values_of_a_source_are_made_once(make_config: Any, random_module: Any) -> None:
    stack = stack_with_source(make_config, random_module)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 16, dtype=torch.float64, generator=generator)
    source = torch.randn(2, 5, 10, dtype=torch.float64, generator=generator)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])
    span = core.Span.of(7)
    looked_at = core.Span(span.queries, core.Span.of(5, mask).keys, None)
    expected = stack(hidden, [span] * 2, source=source, source_span=looked_at).last_hidden_state

    cache = stack.new_cache()
    cache.set_source(5, hidden.device, mask)
    with pytest.raises(ConfigError, match="has a source already"):
        cache.set_source(5, hidden.device, mask)
    pieces = []
    for piece, given_source in zip(hidden.split([4, 1, 2], dim=1), (source, None, None)):
        spans = cache.advance(2, piece.shape[1], hidden.device)
        output = stack(piece, spans, cache=cache, source=given_source, source_span=cache.source_span())
        pieces.append(output.last_hidden_state)
    assert_same(torch.cat(pieces, dim=1), expected)

    cache.reorder(torch.tensor([1, 0]))
    cache.trim(3)
    joined = cache.merge([cache])
    joined.select(torch.tensor([3, 0]))  # each is row 1, then row 0, twice: 3 is row 0, 0 is row 1
    spans = joined.advance(2, 3, hidden.device)
    output = stack(hidden[:, 4:], spans, cache=joined, source_span=joined.source_span())
    assert_same(output.last_hidden_state, expected[:, 4:])


@pytest.mark.parametrize("wanted", [(), (1,)])
@torch.no_grad()
def test_rows_share_the_source_however_many_there_are_of_each(
    make_config: Any, random_module: Any, wanted: tuple[int, ...]
) -> None:
    stack = stack_with_source(make_config, random_module)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(3, 5, 10, dtype=torch.float64, generator=generator)
    prompts = torch.randn(3, 2, 16, dtype=torch.float64, generator=generator)
    written = torch.randn(6, 2, 16, dtype=torch.float64, generator=generator)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])

    def run(cache: core.Cache, hidden: torch.Tensor, source: torch.Tensor | None = None) -> core.Output:
        spans = cache.advance(len(hidden), hidden.shape[1], hidden.device)
        options = {"source": source, "source_span": cache.source_span(), "output_attentions": wanted}
        return stack(hidden, spans, cache=cache, **options)

    def prompted(chosen: slice) -> core.Cache:
        cache = stack.new_cache()
        cache.set_source(5, texts.device, mask[chosen])
        run(cache, prompts[chosen], texts[chosen])
        return cache

    cache = prompted(slice(0, 3))
    cache.select(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]))
    assert cache.rows_per_source == (3, 3, 3)
    cache.select(torch.tensor([0, 1, 2, 4, 6, 8]))  # the samples of some texts have ended
    assert cache.rows_per_source == (3, 1, 2)
    text_of = [0, 0, 0, 1, 2, 2]
    run(cache, written[:, :1])
    moved = [2, 0, 1, 3, 5, 4]
    cache.reorder(torch.tensor(moved))
    assert cache.rows_per_source == (3, 1, 2)
    for kept in ([0, 1, 2, 3, 4, 5], [0, 1, 3, 4, 5], [2, 4], [5, 0, 5]):
        here = cache.merge([])
        here.select(torch.tensor(kept))
        rows = [moved[row] for row in kept]
        output = run(here, written[rows, 1:])
        for place, row in enumerate(rows):
            own = prompted(slice(text_of[row], text_of[row] + 1))
            run(own, written[row : row + 1, :1])
            expected = run(own, written[row : row + 1, 1:])
            assert_same(output.last_hidden_state[place], expected.last_hidden_state[0])
            for layer in wanted:
                assert_same(output.cross_attentions[layer][place], expected.cross_attentions[layer][0])
        assert len(here.source.stores[0].buffers[0]) == len(here.rows_per_source)
    assert cache.merge([here]).rows_per_source == (3, 1, 2, 1, 1, 1)
