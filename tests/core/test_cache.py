"""The cache: whatever was fed, padded, cut and rearranged, the logits are those of each row alone without a cache."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyformer import core
from polyformer.core import cache as cache_module
from polyformer.core.cache import Int8Store, Store
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
        """The logits of one row by itself, in one piece. Eight bits round each token by itself: a new cache does the same."""
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
