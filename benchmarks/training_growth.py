"""How the speed and the memory of training grow with the size of the network, the context and the processes.

Every run is `polyformer train` with a recipe, in a process of its own: a LLaMA network on the novels of Jane Austen as
bytes. Tokens per second are of the median step, the first two left out; memory is the most that one process held.
All are compared with one peak, measured at the beginning; attention counts as if it were not causal. With two
processes, each has half of the threads and half of the rows (FSDP2 over gloo).

    python benchmarks/training_growth.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        parameters: a name for the size.
        hidden: width of the network; heads are 64 wide, or as many as there are where the width is smaller.
        layers: how many.
        context: tokens of a row.
        tokens: of a step.
        processes: that share the step.
    """

    parameters: str
    hidden: int
    layers: int
    context: int = 256
    tokens: int = 2048
    processes: int = 1

    def recipe(self, steps: int) -> dict[str, Any]:
        """The recipe as values."""
        return {
            "name": "growth",
            "model": {
                "family": "llama",
                "config": {
                    "hidden_size": self.hidden,
                    "num_hidden_layers": self.layers,
                    "num_attention_heads": max(2, self.hidden // 64),
                    "intermediate_size": self.hidden * 8 // 3,
                    "max_position_embeddings": self.context,
                    "tie_word_embeddings": True,
                },
            },
            "tokenizer": {"train": "byte"},
            "data": {"train": [{"source": "austen", "split": "train"}], "length": self.context},
            "objective": {"name": "causal-lm"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-4},
            "training": {
                "steps": steps,
                "batch_size": self.tokens // self.context,
                "log_every": 1,
                "precision": "float32",
            },
        }


SIZES = (
    Point("1M", 128, 5),
    Point("3M", 256, 4),
    Point("10M", 384, 6),
    Point("30M", 512, 10),
    Point("100M", 768, 14),
)
CONTEXTS = tuple(Point("10M", 384, 6, context, 4096) for context in (256, 512, 1024, 2048, 4096))
PROCESSES = tuple(Point("10M", 384, 6, 256, 4096, processes) for processes in (1, 2))
QUICK = (Point("tiny", 32, 1, 32, 64), Point("tiny", 32, 1, 32, 64, 2))


def measure(point: Point, steps: int, cores: int, peak: float) -> dict[str, Any]:
    """Train for so many steps and read the journal.

    Args:
        peak: FLOP/s of the machine.

    Raises:
        SystemExit: the run failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = folder / "recipe.json"  # JSON is YAML too
        recipe.write_text(json.dumps(point.recipe(steps)))
        train = ["polyformer", "train", str(recipe), "--output", str(folder / "run")]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // point.processes))}
        command = [sys.executable, "-m", *train]
        if point.processes > 1:
            shared = ["torch.distributed.run", "--standalone", f"--nproc-per-node={point.processes}"]
            command = [sys.executable, "-m", *shared, "-m", *train]
        with (folder / "output").open("w+") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                output.seek(0)
                raise SystemExit(f"the run {point} failed with status {process.returncode}:\n{output.read()}")
        return {**vars(point), **read_journal(folder / "run", point, peak), "peak_memory_bytes": memory_of(usage)}


def read_journal(run: Path, point: Point, peak: float) -> dict[str, Any]:
    """Speed, and the part of the machine's peak that it is."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    begin = next(line for line in lines if line.get("event") == "begin")
    steps = [line for line in lines if line.get("event") == "train"]
    pairs = list(itertools.pairwise(steps))[1:]
    seconds = statistics.median(after["seconds"] - before["seconds"] for before, after in pairs)
    flops = steps[-1]["flops"] / steps[-1]["tokens"]
    return {
        "count": begin["parameters"],
        "tokens_per_second": round(point.tokens / seconds, 1),
        "step_seconds": round(seconds, 4),
        "flops_per_token": round(flops),
        "utilization": round(flops * point.tokens / seconds / peak, 3),
        "losses": [round(line["loss"], 6) for line in steps],
    }


def peak_of_machine(seconds: float) -> float:
    """FLOP/s in float32. In a process of its own: what this one takes would count as the memory of those it begins."""
    program = (
        "import json, torch; from polyformer.training.peak import measured_peak; "
        f"print(json.dumps({{'peak': measured_peak(torch.device('cpu'), torch.float32, {seconds})}}))"
    )
    return float(common.run_fresh([sys.executable, "-c", program]).values["peak"])


def memory_of(usage: resource.struct_rusage) -> int:
    """The most that the process, or one that it began, held at once, in bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def draw(results: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Tokens per second and memory, over the parameters and over the context."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(2, 2, figsize=(10, 6.6), layout="constrained")
    columns = (
        ("size", "count", "parameters", "256 tokens of context"),
        ("context", "context", "context, tokens", "10M"),
    )
    for place, (title, key, label, beside) in enumerate(columns):
        found = results[title]
        where = [one[key] for one in found]
        speeds, memory = all_axes[0][place], all_axes[1][place]
        speeds.plot(where, [one["tokens_per_second"] for one in found], marker="o")
        speeds.set(
            title=f"By {title} ({beside})", ylabel="tokens per second", yscale="log" if title == "size" else "linear"
        )
        memory.plot(where, [one["peak_memory_bytes"] / 2**20 for one in found], marker="o", color="tab:orange")
        memory.set(ylabel="peak memory, MiB", xlabel=f"{label} (logarithmic)")
        for axes in (speeds, memory):
            axes.set_xscale("log")
            axes.set_xticks(
                where, [f"{one['context']:,}" if title == "context" else one["parameters"] for one in found]
            )
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
        memory.set_ylim(0, 1.1 * max(one["peak_memory_bytes"] for one in found) / 2**20)
        if title == "context":
            speeds.set_ylim(bottom=0)
        else:
            ticks = [number * 10**power for power in range(1, 6) for number in (1, 2, 5)]
            low, high = speeds.get_ylim()
            speeds.set_yticks([tick for tick in ticks if low <= tick <= high])
            speeds.yaxis.set_major_formatter("{x:,.0f}")
            speeds.set_yticks([], minor=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(path)
    pyplot.close(figure)


def main() -> None:
    parser = common.make_parser("training_growth", __doc__)
    parser.add_argument("--steps", type=int, default=8, help="of every run (%(default)s)")
    options: argparse.Namespace = parser.parse_args()
    machine = common.machine_facts()
    groups = {"size": SIZES, "context": CONTEXTS, "processes": PROCESSES}
    if options.quick:
        groups, options.steps = {"processes": QUICK}, 4
    peak = peak_of_machine(1 if options.quick else 5)
    results: dict[str, Any] = {}
    for title, points in groups.items():
        results[title] = found = []
        for point in points:
            found.append(measure(point, options.steps, machine["cores"], peak))
        rows = [
            [
                f"{one['count']:,}",
                f"{one['context']:,}",
                str(one["processes"]),
                f"{one['tokens_per_second']:,.0f}",
                f"{one['utilization']:.0%}",
                f"{one['peak_memory_bytes'] / 2**20:,.0f}",
            ]
            for one in found
        ]
        columns = ("parameters", "context", "processes", "tokens/s", "of peak", "memory of a process, MiB")
        common.print_table(f"By {title}", columns, rows)
    path = common.output_of("training_growth", options)
    if path is not None and not options.quick:
        draw(results, path.with_suffix(".png"))
    common.finish({"machine": machine, "peak_flops_per_second": peak, "steps": options.steps, **results}, path)


if __name__ == "__main__":
    main()
