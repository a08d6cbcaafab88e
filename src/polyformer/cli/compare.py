"""`polyformer compare`: training runs side by side."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

HELP = """Compare training runs: one table, and pictures of the loss against parameters, arithmetic and time.

Probes say what the architectures can do: how far back a token is recalled (new networks learn it), how far back the \
gradient of a loss reaches (in the trained networks), and how training speed goes with the length of the rows.

\b
[bold]Examples[/bold]
polyformer compare runs/transformer runs/lstm runs/cnn -o comparison
polyformer compare runs/* --ngram 5 -o comparison
polyformer compare runs/* --probes recall,gradients,throughput -o comparison --json
"""


def register(app: typer.Typer) -> None:
    app.command("compare", help=HELP)(compare)


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Runs.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where table and pictures go.", show_default=False)
    ],
    probes: Annotated[
        str, typer.Option("--probes", help="Of recall, gradients and throughput, with commas between.")
    ] = "",
    ngram: Annotated[
        int | None,
        typer.Option("--ngram", metavar="N", min=1, help="Also count n-grams up to N on the data of the first run."),
    ] = None,
    recall_distances: Annotated[
        str, typer.Option("--recall-distances", help="Steps back that recall is tried at.")
    ] = "1,2,4,8,16,32,64,128,256",
    recall_steps: Annotated[int, typer.Option("--recall-steps", help="Steps of learning to recall.")] = 1000,
    contexts: Annotated[
        str, typer.Option("--contexts", help="Lengths of rows that throughput is measured at.")
    ] = "128,256,512,1024,2048",
    text: Annotated[
        Path | None,
        typer.Option("--text", metavar="FILE", help="For gradients. Default: each network writes its own."),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda … Default: cuda if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    from polyformer.cli.reading import InputError, read_text
    from polyformer.core.placement import parse_device
    from polyformer.training import comparison
    from polyformer.training.counted import count_run, counted_folder
    from polyformer.training.probes import RecallTask

    if output.is_file():
        raise InputError(f"{output} is a file: name a folder")
    settings = comparison.ProbeSettings(
        task=RecallTask(distances=_numbers(recall_distances, "--recall-distances"), steps=recall_steps),
        contexts=_numbers(contexts, "--contexts"),
        text=None if text is None else read_text(text),
        device=parse_device(device),
    )
    chosen = [probe.strip() for probe in probes.split(",") if probe.strip()]
    runs = comparison.read_runs(folders)
    if ngram is not None:
        counted = counted_folder(output, ngram)
        _say(f"counting {ngram}-grams")
        count_run(folders[0], ngram, counted, overwrite=True)
        runs = comparison.read_runs([*folders, counted])
    found = comparison.compare(runs, output, probes=chosen, settings=settings, say=_say)
    print(json.dumps(found.to_json(), ensure_ascii=False) if as_json else comparison.table(found))


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from polyformer.cli.reading import InputError

    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise InputError(f"{option} takes whole numbers of at least 1 with commas between, not {text!r}")
    return numbers


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
