"""How long a fresh process needs: to import, to show its help, to load a model and say its first token.

Every figure is of processes of their own, started in turns. Files have been read once before, so that all sides find
them in the system's memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common

PROMPT = "The capital of France is"
PYTHON = (sys.executable, "-c")
IMPORTS = {"bare": "pass", "ours": "import polyformer", "peer": "import transformers"}


def first_token(side: str, source: str, dtype: str) -> None:
    """Inside a fresh process: load the model, generate one token, say so."""
    if side == "ours":
        import polyformer

        model = polyformer.load(source, dtype=dtype, device="cpu")
        token = model.generate(PROMPT, max_new_tokens=1, temperature=0, ignore_eos=True).token_ids[0]
    else:
        from transformers import AutoTokenizer

        path = Path(source)
        folder, file = (path.parent, path.name) if path.suffix == ".gguf" else (path, None)
        options = {} if file is None else {"gguf_file": file}
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        network = common.load_peer(folder, dtype, gguf_file=file)
        inputs = tokenizer(PROMPT, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        output = network.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, do_sample=False)
        token = output[0, -1].item()
    common.answer(token=token, peak_bytes=common.memory_status()["peak"])


def in_turns(commands: dict[str, Sequence[str]], repetitions: int, *, warmups: int = 1) -> dict[str, list[common.Run]]:
    """The runs of every command, one after the other in turns."""
    for _ in range(warmups):
        for command in commands.values():
            common.run_fresh(command)
    runs: dict[str, list[common.Run]] = {name: [] for name in commands}
    for _ in range(repetitions):
        for name, command in commands.items():
            runs[name].append(common.run_fresh(command))
    return runs


def measure_imports(quick: bool) -> list[dict[str, Any]]:
    """Importing, with and without the time of the interpreter itself."""
    few, many = (1, 2) if quick else (3, 15)
    light = in_turns({name: (*PYTHON, IMPORTS[name]) for name in ("bare", "ours")}, many)
    heavy = in_turns({name: (*PYTHON, IMPORTS[name]) for name in ("bare", "peer")}, few)

    def seconds(runs: list[common.Run]) -> list[float]:
        return [run.seconds for run in runs]

    def above_bare(runs: dict[str, list[common.Run]], name: str) -> list[float]:
        return [one - bare for one, bare in zip(seconds(runs[name]), seconds(runs["bare"]), strict=True)]

    own = above_bare(light, "ours")
    return [
        entry("python -c pass", seconds(light["bare"])),
        entry("import polyformer, whole process", seconds(light["ours"])),
        entry("import polyformer, above the interpreter", own, target=0.050),
        entry("import transformers, above the interpreter", above_bare(heavy, "peer")),
    ]


def measure_help(quick: bool) -> dict[str, Any]:
    """The command line's help, as a person starts it."""
    script = Path(sys.executable).with_name("polyformer")
    command = (str(script), "--help") if script.exists() else (sys.executable, "-m", "polyformer", "--help")
    runs = in_turns({"help": command}, 2 if quick else 10)["help"]
    return entry("polyformer --help", [run.seconds for run in runs], target=0.400)


def entry(name: str, seconds: list[float], target: float | None = None) -> dict[str, Any]:
    """One line of the first table."""
    found: dict[str, Any] = {"name": name, "seconds": common.spread(seconds)}
    if target is not None:
        found |= {"target_seconds": target, "reached": found["seconds"]["median"] <= target}
    return found


def measure_first_token(path: Path, dtype: str, quick: bool) -> dict[str, Any]:
    """From the start of the process to its first token, on both sides."""
    script = str(Path(__file__).resolve())
    commands = {
        side: (sys.executable, script, "--first-token", side, "--model", str(path), "--dtype", dtype)
        for side in ("ours", "peer")
    }
    runs = in_turns(commands, 1 if quick else 4, warmups=0 if quick else 1)
    found: dict[str, Any] = {"sides": {}}
    for side, its in runs.items():
        found["sides"][side] = {
            "first_token_seconds": common.spread([run.first_line_seconds for run in its]),
            "process_seconds": common.spread([run.seconds for run in its]),
            "peak_bytes": common.spread([run.values["peak_bytes"] for run in its]),
            "token": its[0].values["token"],
        }
    tokens = {values["token"] for values in found["sides"].values()}
    times = {side: [run.first_line_seconds for run in its] for side, its in runs.items()}
    found["same_token"] = len(tokens) == 1
    found["ratio"] = common.ratios(times["peer"], times["ours"])
    found["target_ratio"] = 4.0
    found["reached"] = found["ratio"]["median"] >= found["target_ratio"]
    return found


def show(small: list[dict[str, Any]], first: dict[str, Any], name: str) -> None:
    """Print both tables."""
    rows = []
    for found in small:
        target = f"<= {found['target_seconds'] * 1e3:.0f}" if "target_seconds" in found else ""
        rows.append([found["name"], common.show(found["seconds"], ".0f", 1e3), target])
    common.print_table("Starting, in fresh processes", ["what", "milliseconds", "target"], rows)
    rows = []
    for side, label in (("ours", "polyformer"), ("peer", "transformers")):
        values = first["sides"][side]
        rows.append(
            [
                label,
                common.show(values["first_token_seconds"]),
                common.show(values["process_seconds"]),
                common.show(values["peak_bytes"], ".0f", 1 / 2**20),
            ]
        )
    columns = ["side", "first token, s", "whole process, s", "peak memory, MiB"]
    common.print_table(f"Load {name} and generate one token, in fresh processes", columns, rows)
    same = "the same token" if first["same_token"] else "NOT the same token"
    print(f"transformers took {common.show(first['ratio'])} times as long (target: >= 4); both gave {same}.\n")


def main() -> None:
    parser = common.make_parser("loading", __doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="of both (%(default)s)")
    parser.add_argument("--first-token", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options: argparse.Namespace = parser.parse_args()
    if options.first_token:
        return first_token(options.first_token, options.model, options.dtype)
    from polyformer.checkpoints.catalogue import resolve

    machine = common.machine_facts()
    path = resolve(options.model).path
    for file in [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]:
        file.read_bytes()
    small = [*measure_imports(options.quick), measure_help(options.quick)]
    first = measure_first_token(path, options.dtype, options.quick)
    name = common.model_name(options.model)
    show(small, first, f"{name} ({path.suffix.lstrip('.') or 'folder'}, to {options.dtype})")
    common.finish(
        {
            "benchmark": "loading",
            "quick": options.quick,
            "model": {"name": name, "dtype": options.dtype, "gguf": path.suffix == ".gguf"},
            "machine": machine,
            "starting": small,
            "first_token": first,
        },
        common.output_of("loading", options),
    )


if __name__ == "__main__":
    main()
