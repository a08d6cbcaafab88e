"""How much memory loading takes, as a multiple of the weights in the dtype that was asked for.

Each load is a process of its own. What it held before (the interpreter, the imported libraries) is subtracted from its
highest resident memory, in which mapped files count as far as they have been read.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

TARGET = 1.15
PROMPT = [1, 2, 3, 4]


@dataclass(frozen=True)
class Case:
    """A file and the dtype it is loaded in."""

    name: str
    path: Path
    dtype: str


def cases(model: str, folder: Path, quick: bool) -> Iterator[Case]:
    """What is loaded: copies of the model in two dtypes, and the model itself if it is a GGUF file."""
    import polyformer
    from polyformer.checkpoints.catalogue import resolve

    source = resolve(model).path
    for stored in ("float32", "bfloat16"):
        polyformer.load(source, dtype=stored, device="cpu").save(folder / stored)
    pairs = [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("float32", "float32"), ("bfloat16", "float32")]
    for stored, asked in pairs[:2] if quick else pairs:
        yield Case(f"safetensors, {stored} -> {asked}", folder / stored, asked)
    if source.suffix == ".gguf":
        for asked in ("bfloat16", "float32"):
            yield Case(f"GGUF -> {asked}", source, asked)


def load_and_report(side: str, path: Path, dtype: str) -> None:
    """Inside a fresh process: load, generate one token, and say what memory each took."""
    network, run, before = (load_ours if side == "ours" else load_peer)(path, dtype)
    loaded = common.memory_status()
    weights = sum(parameter.nbytes for parameter in network.parameters())
    run()
    used = common.memory_status()
    common.answer(
        weight_bytes=weights,
        before_bytes=before["now"],
        loading_peak_bytes=loaded["peak"] - before["now"],
        first_token_peak_bytes=used["peak"] - before["now"],
        after_first_token_bytes=used["now"] - before["now"],
    )


def load_ours(path: Path, dtype: str) -> tuple[Any, Callable[[], object], dict[str, int]]:
    """The network, what generates a token with it, and the memory before it was loaded."""
    import torch

    from polyformer.checkpoints.loading import open_checkpoint
    from polyformer.generation.generate import generate
    from polyformer.generation.settings import GenerationSettings

    settings = GenerationSettings(max_new_tokens=1, temperature=0)
    before = fresh_peak()
    with open_checkpoint(path) as checkpoint:
        network: Any = checkpoint.load(dtype=getattr(torch, dtype))
    return network, lambda: generate(network.pack(), [PROMPT], settings), before


def load_peer(path: Path, dtype: str) -> tuple[Any, Callable[[], object], dict[str, int]]:
    """The same for transformers."""
    import torch
    from transformers.models.llama import modeling_llama  # it is imported while loading otherwise

    assert modeling_llama
    file = path.name if path.suffix == ".gguf" else None
    ids = torch.tensor([PROMPT])
    before = fresh_peak()
    network = common.load_peer(path if file is None else path.parent, dtype, gguf_file=file)
    return network, lambda: network.generate(input_ids=ids, max_new_tokens=1, do_sample=False), before


def fresh_peak() -> dict[str, int]:
    """The memory now, from which the highest is counted anew."""
    forget_peak()
    return common.memory_status()


def forget_peak() -> None:
    """Let the highest resident memory start again from the present one, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure(case: Case, repetitions: int) -> dict[str, Any]:
    """Load on both sides in turns."""
    script = str(Path(__file__).resolve())
    found: dict[str, Any] = {"name": case.name, "dtype": case.dtype, "target": TARGET, "sides": {}}
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(repetitions):
        for side, values in runs.items():
            command = (sys.executable, script, "--load", side, "--model", str(case.path), "--dtype", case.dtype)
            values.append(common.run_fresh(command).values)
    for side, values in runs.items():
        weights = values[0]["weight_bytes"]
        found["sides"][side] = {
            "weight_bytes": weights,
            "loading": common.spread([one["loading_peak_bytes"] / weights for one in values]),
            "first_token": common.spread([one["first_token_peak_bytes"] / weights for one in values]),
            "after_first_token": common.spread([one["after_first_token_bytes"] / weights for one in values]),
        }
    found["reached"] = found["sides"]["ours"]["loading"]["max"] <= TARGET
    return found


def show(results: list[dict[str, Any]], name: str) -> None:
    """Print the table."""
    rows = []
    for found in results:
        row = [found["name"], f"{found['sides']['ours']['weight_bytes'] / 2**20:,.1f}"]
        for what in ("loading", "first_token"):
            row += [f"{found['sides'][side][what]['max']:.2f}" for side in ("ours", "peer")]
        rows.append([*row, f"<= {TARGET}"])
    columns = [
        "file -> memory",
        "weights, MiB",
        "ours, loading",
        "transformers, loading",
        "ours, to first token",
        "transformers, to first token",
        "target, loading",
    ]
    common.print_table(f"Peak memory of loading {name}, as a multiple of the weights' bytes", columns, rows)
    print(
        "Highest of all repetitions. Tensors that stay in a mapped file count once they are read, which the first\n"
        "token does; packing the weights for 16-bit decoding belongs to the first token as well.\n"
    )


def main() -> None:
    parser = common.make_parser("memory", __doc__)
    parser.add_argument("--load", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    options: argparse.Namespace = parser.parse_args()
    if options.load:
        return load_and_report(options.load, Path(options.model), options.dtype)
    machine = common.machine_facts()
    name = common.model_name(options.model)
    with tempfile.TemporaryDirectory() as folder:
        every = cases(options.model, Path(folder), options.quick)
        results = [measure(case, 1 if options.quick else 2) for case in every]
    show(results, name)
    common.finish(
        {
            "benchmark": "memory",
            "quick": options.quick,
            "model": {"name": name},
            "machine": machine,
            "results": results,
        },
        common.output_of("memory", options),
    )


if __name__ == "__main__":
    main()
