"""How the time of a decoding step and the memory grow with the context, from 128 to 8,192 tokens.

Polyformer with its dense and its int8 cache, and transformers, each in a process of its own. They take turns: at every
length all of them fill their caches (in chunks) and then decode a few tokens, several times over. A step is one forward
pass for one token and the choice of the likeliest: what any decoding must do, without the loop around it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import common

SIDES = {"dense": "polyformer, dense cache", "int8": "polyformer, int8 cache", "transformers": "transformers"}
CHUNK = 512


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192)
    steps: int = 10
    repetitions: int = 3


QUICK = Sizes(lengths=(16, 32, 64), steps=2, repetitions=1)


# --- inside the workers ---------------------------------------------------------------------------------------------


class Decoder(Protocol):
    """A network with a cache."""

    def feed(self, ids: Any) -> Any:
        """Read ids [1, new]; the logits of the last one [vocab_size]."""

    def forget(self, count: int) -> None:
        """Take the last tokens out of the cache."""

    def cache_bytes(self) -> int:
        """What keys and values take, room for later ones included."""


class OurDecoder:
    """Polyformer, with either cache."""

    def __init__(self, folder: Path, dtype: str, kind: str):
        import polyformer

        self.network = polyformer.load(folder, dtype=dtype, device="cpu").network.pack()
        self.cache = self.network.new_cache(kind)

    def feed(self, ids: Any) -> Any:
        return self.network(ids, cache=self.cache, logits_to_keep=1).logits[0, -1]

    def forget(self, count: int) -> None:
        self.cache.trim(count)

    def cache_bytes(self) -> int:
        return self.cache.nbytes


class PeerDecoder:
    """transformers, with the cache that its ``generate`` takes."""

    def __init__(self, folder: Path, dtype: str):
        from transformers import DynamicCache

        self.network = common.load_peer(folder, dtype)
        self.cache = DynamicCache(config=self.network.config)

    def feed(self, ids: Any) -> Any:
        output = self.network(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return output.logits[0, -1]

    def forget(self, count: int) -> None:
        self.cache.crop(-count)

    def cache_bytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


def serve(side: str, folder: Path, dtype: str) -> None:
    """Answer requests: ``fill`` the cache with token ids, or ``decode`` so many steps, which are then forgotten."""
    import torch

    decoder: Decoder = PeerDecoder(folder, dtype) if side == "transformers" else OurDecoder(folder, dtype, side)
    logits: Any = None
    common.answer(ready=True)
    with torch.inference_mode():
        for request in common.requests():
            if "fill" in request:
                start = time.perf_counter()
                for ids in torch.tensor([request["fill"]]).split(CHUNK, dim=1):
                    logits = decoder.feed(ids)
                common.answer(seconds=time.perf_counter() - start)
                continue
            seconds, tokens = decode(decoder, logits, request["decode"])
            size = decoder.cache_bytes()
            decoder.forget(request["decode"])
            memory = common.memory_status()
            common.answer(seconds=seconds, tokens=tokens, cache_bytes=size, memory_bytes=memory["now"])


def decode(decoder: Decoder, logits: Any, steps: int) -> tuple[list[float], list[int]]:
    """Greedy steps: the seconds of each, and the tokens."""
    seconds: list[float] = []
    tokens: list[int] = []
    for _ in range(steps):
        start = time.perf_counter()
        token = logits.argmax()
        logits = decoder.feed(token.reshape(1, 1))
        tokens.append(int(token))
        seconds.append(time.perf_counter() - start)
    return seconds, tokens


# --- in the process that asks ---------------------------------------------------------------------------------------


def measure(workers: dict[str, common.Worker], ids: Sequence[int], sizes: Sizes) -> list[dict[str, Any]]:
    """Every length, one after the other; the last step at each makes the context exactly that long."""
    results: list[dict[str, Any]] = []
    filled = 0
    for length in sizes.lengths:
        wanted = length - sizes.steps
        fills = {side: worker.ask(fill=list(ids[filled:wanted]))["seconds"] for side, worker in workers.items()}
        answers: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
        for repetition in range(sizes.repetitions + 1):
            for side, worker in workers.items():
                answered = worker.ask(decode=sizes.steps)
                if repetition:  # the first one warms up
                    answers[side].append(answered)
        found: dict[str, Any] = {"context": length, "sides": {}}
        for side, those in answers.items():
            found["sides"][side] = {
                "step_seconds": common.spread([second for one in those for second in one["seconds"]]),
                "fill_tokens_per_second": (wanted - filled) / fills[side],
                "cache_bytes": max(one["cache_bytes"] for one in those),
                "memory_bytes": max(one["memory_bytes"] for one in those),
            }
        first = answers["transformers"][0]["tokens"]
        found["same_tokens"] = {side: those[0]["tokens"] == first for side, those in answers.items()}
        results.append(found)
        filled = wanted
        times = (f"{found['sides'][side]['step_seconds']['median'] * 1e3:.1f}" for side in workers)
        print(f"{length:,} tokens: {' / '.join(times)} ms a token", flush=True)
    return results


def show(results: list[dict[str, Any]], title: str) -> None:
    """Print the tables."""
    columns = ["context", *SIDES.values()]

    def table(what: str, cell: Any) -> None:
        rows = [[f"{found['context']:,}", *(cell(found["sides"][side]) for side in SIDES)] for found in results]
        common.print_table(f"{title}: {what}", columns, rows)

    table("milliseconds a token (smallest..largest step)", lambda side: common.show(side["step_seconds"], ".1f", 1e3))
    table("cache, MiB", lambda side: f"{side['cache_bytes'] / 2**20:,.1f}")
    table("resident memory of the process, MiB", lambda side: f"{side['memory_bytes'] / 2**20:,.0f}")
    for side in ("dense", "int8"):
        same = sum(found["same_tokens"][side] for found in results)
        print(f"{SIDES[side]}: the decoded tokens are those of transformers at {same} of {len(results)} lengths")


def plot(results: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw time, cache and memory over the context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullLocator

    lengths = [found["context"] for found in results]
    panels = (
        ("Time of one decoding step", "milliseconds per token", lambda side: side["step_seconds"]["median"] * 1e3),
        ("Keys and values", "cache, MiB", lambda side: side["cache_bytes"] / 2**20),
        ("The whole process", "resident memory, MiB", lambda side: side["memory_bytes"] / 2**20),
    )
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(14, 4.6), layout="constrained")
    for axes, (heading, label, value) in zip(all_axes, panels):
        highest = 0.0
        for (side, name), marker in zip(SIDES.items(), "osD"):
            values = [value(found["sides"][side]) for found in results]
            highest = max(highest, *values)
            axes.plot(lengths, values, marker=marker, label=name)
        axes.set_title(heading)
        axes.set_xlabel("context, tokens (logarithmic)")
        axes.set_ylabel(label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
        axes.set_ylim(0, 1.1 * highest)
        axes.grid(alpha=0.3)
    all_axes[0].legend()
    figure.suptitle(title)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
    pyplot.close(figure)


def run(options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """Start the workers, measure, and end them."""
    import polyformer

    machine = common.machine_facts()
    model = polyformer.load(options.model, dtype=options.dtype, device="cpu")
    common.check_context(model, sizes.lengths[-1])
    ids = common.text_ids(model, sizes.lengths[-1])
    script = str(Path(__file__).resolve())
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        del model
        workers: dict[str, common.Worker] = {}
        try:
            for side in SIDES:
                command = (sys.executable, script, "--serve", side, "--model", folder, "--dtype", options.dtype)
                workers[side] = common.Worker(command)
            for worker in workers.values():
                worker.ready()
            results = measure(workers, ids, sizes)
        finally:
            for worker in workers.values():
                worker.close()
    return {
        "benchmark": "context",
        "quick": options.quick,
        "model": {"name": common.model_name(options.model), "dtype": options.dtype},
        "machine": machine,
        "steps": sizes.steps * sizes.repetitions,
        "results": results,
    }


def main() -> None:
    parser = common.make_parser("context", __doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of both (%(default)s)")
    parser.add_argument("--no-plot", action="store_true", help="no picture beside the JSON file")
    parser.add_argument("--serve", choices=tuple(SIDES), help=argparse.SUPPRESS)
    options: argparse.Namespace = parser.parse_args()
    if options.serve:
        return serve(options.serve, Path(options.model), options.dtype)
    output = common.output_of("context", options)
    draws = output is not None and not options.no_plot
    if draws and importlib.util.find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install 'polyformer[plot]', or give --no-plot")
    result = run(options, QUICK if options.quick else Sizes())
    machine = result["machine"]
    title = f"{result['model']['name']} in {options.dtype}, {common.threads(machine)}, {machine['processor']}"
    show(result["results"], title)
    if draws:
        assert output is not None
        output.parent.mkdir(parents=True, exist_ok=True)
        plot(result["results"], title, output.with_suffix(".png"))
        print(f"Drawn in {output.with_suffix('.png').name}, beside {output.name}.\n")
    common.finish(result, output)


if __name__ == "__main__":
    main()
