"""Speed of generation: decoding, prefill and beam search, beside transformers on the same weights in the same process.

Both sides start from the same token ids and give the same number of tokens: no text ends early.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import common
import torch

import polyformer
from polyformer.generation.settings import GenerationSettings

PROMPT_TOKENS = 8
KL_LIMIT = 0.1  # in nats: far above what rounding does, far below what a wrong weight does


@dataclass(frozen=True)
class Sizes:
    """How much is done: tokens, and repetitions of every timing."""

    decode: int = 128
    batch: int = 8
    prefill: int = 512
    beam: int = 64
    repetitions: int = 4


QUICK = Sizes(decode=4, batch=2, prefill=16, beam=3, repetitions=1)


def complete(texts: list[list[int]], count: int) -> list[list[int]]:
    """The texts, each of so many tokens.

    Raises:
        SystemExit: one is shorter, so that speeds could not be compared.
    """
    for tokens in texts:
        if len(tokens) != count:
            raise SystemExit(f"{len(tokens)} tokens were generated instead of {count}")
    return texts


class Peer:
    """transformers' side. Texts never end early, as ours with ``ignore_eos``: no end token is set at all, so that
    nothing looks for one."""

    def __init__(self, network: Any):
        self.network = network
        network.config.eos_token_id = None
        network.generation_config.eos_token_id = None
        network.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], count: int, *, num_beams: int = 1) -> list[list[int]]:
        ids = torch.tensor(prompts)
        mask = torch.ones_like(ids)
        output = self.network.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=count, do_sample=False, num_beams=num_beams
        )
        return complete(output[:, ids.shape[1] :].tolist(), count)

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        return self.network(input_ids=ids, use_cache=True, logits_to_keep=keep).logits


class Ours:
    """Polyformer's side."""

    def __init__(self, model: polyformer.Model):
        self.model = model
        self.network = model.network.pack()

    def generate(self, prompts: Sequence[Sequence[int]], count: int, *, num_beams: int = 1) -> list[list[int]]:
        settings = GenerationSettings(max_new_tokens=count, temperature=0, ignore_eos=True, num_beams=num_beams)
        return complete([generation.token_ids for generation in self.model.generate(list(prompts), settings)], count)

    @torch.inference_mode()
    def prefill(self, ids: torch.Tensor, keep: int = 1) -> torch.Tensor:
        return self.network(ids, cache=self.network.new_cache(), logits_to_keep=keep).logits


class Costs:
    """What the network must at least read and compute.

    Attributes:
        weight_bytes: all weights.
        step_bytes: weights that one decoding step reads, whatever the batch: all but an embedding that is not the
            head's too, of which a step reads a few rows.
        cache_bytes: keys and values of one token.
        token_flops: of one token of a prompt, in the layers' matrices.
        attention_flops: of one pair of tokens that look at each other, in all layers.
        head_flops: of the head, which works for the last token only.
    """

    def __init__(self, model: polyformer.Model):
        network = model.network
        table = network.embedding.tokens.weight
        tied = network.config.head.tied
        total, element = sum(parameter.numel() for parameter in network.parameters()), table.element_size()
        self.weight_bytes = total * element
        self.step_bytes = self.weight_bytes - (0 if tied else table.numel() * element)
        self.head_flops = 2 * network.config.vocab_size * network.config.hidden_size
        in_layers = sum(parameter.numel() for parameter in network.stack.parameters())
        self.token_flops = 2 * in_layers
        layers = [layer.attention for layer in network.config.stack.layers]
        self.attention_flops = sum(4 * layer.num_heads * layer.head_dim for layer in layers)
        self.cache_bytes = sum(2 * layer.num_key_value_heads * layer.head_dim * element for layer in layers)

    def decode_bytes(self, rows: int, prompt: int, new: int) -> float:
        """Of one step, on average: the weights once, and every row's cache."""
        return self.step_bytes + rows * self.cache_bytes * (prompt + new / 2)

    def prefill_flops(self, tokens: int) -> float:
        """Of reading a prompt: a token looks at itself and those before it."""
        pairs = tokens * (tokens + 1) / 2
        return tokens * self.token_flops + pairs * self.attention_flops + self.head_flops


def check_agreement(ours: Ours, peer: Peer, ids: list[int], decode: int) -> dict[str, Any]:
    """How far the two sides say the same.

    Raises:
        SystemExit: they are not the same model.
    """
    row = torch.tensor([ids])
    mine, theirs = (side.prefill(row, len(ids))[0].float().log_softmax(-1) for side in (ours, peer))
    divergence = (theirs.exp() * (theirs - mine)).sum(-1)
    prompt = ids[:PROMPT_TOKENS]
    (first,), (second,) = ours.generate([prompt], decode), peer.generate([prompt], decode)
    equal = next((place for place, pair in enumerate(zip(first, second)) if pair[0] != pair[1]), decode)
    found = {
        "positions": len(ids),
        "kl_mean": divergence.mean().item(),
        "kl_max": divergence.max().item(),
        "top1_equal": (mine.argmax(-1) == theirs.argmax(-1)).double().mean().item(),
        "greedy_tokens_equal": equal,
        "greedy_tokens": decode,
    }
    print(
        f"Same weights: KL divergence {found['kl_mean']:.1e} nats on average over {len(ids)} positions "
        f"(largest {found['kl_max']:.1e}), the likeliest token is the same at {found['top1_equal']:.1%}; "
        f"greedy, the first {equal} of {decode} tokens are equal",
        flush=True,
    )
    if found["kl_mean"] > KL_LIMIT:
        raise SystemExit("the two sides do not give the same logits: there is nothing to compare")
    return found


@dataclass(frozen=True)
class Work:
    """One line of the table.

    Attributes:
        name: what is done.
        target: the ratio to reach.
        tokens: how many one repetition gives.
        run: does it on one side.
        bytes_per_token: that must be read; None where computing is the limit.
        flops_per_token: that must be computed; None where reading is the limit.
    """

    name: str
    target: float
    tokens: int
    run: Callable[[Any], object]
    bytes_per_token: float | None = None
    flops_per_token: float | None = None


def works(costs: Costs, ids: list[int], sizes: Sizes) -> list[Work]:
    """What is measured."""
    row = torch.tensor([ids[: sizes.prefill]])
    many = [ids[start : start + PROMPT_TOKENS] for start in range(sizes.batch)]

    def bytes_per_token(rows: int, new: int, given: int) -> float:
        return costs.decode_bytes(rows, PROMPT_TOKENS, new) / given

    return [
        Work(
            f"decode {sizes.decode}, batch 1",
            1.3,
            sizes.decode,
            lambda side: side.generate(many[:1], sizes.decode),
            bytes_per_token(1, sizes.decode, 1),
        ),
        Work(
            f"decode {sizes.decode}, batch {sizes.batch}",
            1.3,
            sizes.decode * sizes.batch,
            lambda side: side.generate(many, sizes.decode),
            bytes_per_token(sizes.batch, sizes.decode, sizes.batch),
        ),
        Work(
            f"prefill {sizes.prefill}",
            1.0,
            sizes.prefill,
            lambda side: side.prefill(row),
            flops_per_token=costs.prefill_flops(sizes.prefill) / sizes.prefill,
        ),
        Work(
            f"beam search 4, {sizes.beam} new",
            1.5,
            sizes.beam,
            lambda side: side.generate(many[:1], sizes.beam, num_beams=4),
            bytes_per_token(4, sizes.beam, 1),
        ),
    ]


def measure(work: Work, ours: Ours, peer: Peer, limits: dict[str, Any], sizes: Sizes, dtype: str) -> dict[str, Any]:
    """Time one line of the table."""
    prefill = work.flops_per_token is not None
    times = common.interleave(
        {"ours": lambda: work.run(ours), "peer": lambda: work.run(peer)},
        sizes.repetitions * (2 if prefill and sizes is not QUICK else 1),
    )
    speeds = {side: [work.tokens / seconds for seconds in times[side]] for side in times}
    ratio = common.ratios(times["peer"], times["ours"])
    found: dict[str, Any] = {
        "name": work.name,
        "tokens": work.tokens,
        "tokens_per_second": {side: common.spread(values) for side, values in speeds.items()},
        "ratio": ratio,
        "target": work.target,
        "reached": ratio["median"] >= work.target,
    }
    for side, values in speeds.items():
        speed = statistics.median(values)
        of: dict[str, float] = {}
        if work.flops_per_token is not None:
            of["matmul_peak"] = work.flops_per_token * speed / limits["matmul_flops"].get(dtype, float("nan"))
        if work.bytes_per_token is not None:
            read = work.bytes_per_token * speed
            of["memory_reads"] = read / limits["read_bytes_per_second"]
            of["model_size_reads"] = read / limits["model_size_read_bytes_per_second"]
        found.setdefault("of_limit", {})[side] = of
    return found


def show(results: list[dict[str, Any]], title: str) -> None:
    """Print the table."""
    rows = []
    for found in results:
        speeds = [common.show(found["tokens_per_second"][side], ",.1f") for side in ("ours", "peer")]
        limits = [" / ".join(f"{part:.0%}" for part in found["of_limit"][side].values()) for side in ("ours", "peer")]
        rows.append([found["name"], *speeds, common.show(found["ratio"]), f">= {found['target']}", *limits])
    columns = ["work", "ours, tokens/s", "transformers", "ratio", "target", "ours of limit", "transformers of limit"]
    common.print_table(title, columns, rows)
    print(
        "Median (lowest..highest). Ratios are taken pair by pair. Of the limit: decoding of the memory reads over a\n"
        "large buffer / over one of the model's size; prefill of the peak of matrix products.\n"
    )


def main() -> None:
    parser = common.make_parser("generation", __doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of both (%(default)s)")
    options: argparse.Namespace = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    machine = common.machine_facts()
    model = polyformer.load(options.model, dtype=options.dtype, device="cpu")
    common.check_context(model, max(sizes.prefill, PROMPT_TOKENS + max(sizes.decode, sizes.beam)))
    costs = Costs(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        peer = Peer(common.load_peer(folder, options.dtype))
        ours = Ours(model)
        limits = common.measure_limits(costs.weight_bytes, quick=options.quick)
        ids = common.text_ids(model, max(sizes.prefill, PROMPT_TOKENS + sizes.batch))
        agreement = check_agreement(ours, peer, ids[: sizes.prefill], sizes.decode)
        lines = works(costs, ids, sizes)
        results = [measure(work, ours, peer, limits, sizes, options.dtype) for work in lines]
    name = common.model_name(options.model)
    show(results, f"{name} in {options.dtype}, {common.threads(machine)}, {machine['processor']}")
    common.finish(
        {
            "benchmark": "generation",
            "quick": options.quick,
            "model": {"name": name, "dtype": options.dtype, "weight_bytes": costs.weight_bytes},
            "machine": machine,
            "limits": limits,
            "agreement": agreement,
            "results": results,
        },
        common.output_of("generation", options),
    )


if __name__ == "__main__":
    main()
