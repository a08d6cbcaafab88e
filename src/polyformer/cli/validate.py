"""`polyformer validate`: is a checkpoint whole, known and loadable? Answered without loading it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from polyformer.cli.progress import download_bar
from polyformer.errors import CheckpointError

if TYPE_CHECKING:
    from polyformer.checkpoints.validate import Report

HELP = """Check a checkpoint without loading it: files, config, tokenizer, weights, memory.

Only headers are read, so it takes seconds for a model of any size. What is wrong is said exactly: a missing file, an \
option that is not supported, the names and shapes of weights that do not fit. Exit code 2 if it cannot be loaded.

\b
[bold]Examples[/bold]
polyformer validate ./my-model
polyformer validate model.gguf --json
polyformer validate smollm2-135m-instruct
"""

STYLES = {"ok": "green", "note": "yellow", "failed": "bold red", "skipped": "dim"}


def register(app: typer.Typer) -> None:
    app.command("validate", help=HELP)(validate)


def validate(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A folder, a .gguf file, or the name of a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    from polyformer.checkpoints.catalogue import resolve
    from polyformer.checkpoints.validate import validate as check

    with download_bar() as progress:
        place = resolve(path, progress=progress).path
    report = check(place)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_table(report)
    if not report.ok:
        failed = ", ".join(check.name for check in report.checks if check.status == "failed")
        raise CheckpointError(f"{path} cannot be loaded: {failed} failed")


def print_table(report: Report) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD)
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("what was found", overflow="fold")
    for check in report.checks:
        table.add_row(check.name, Text(check.status, style=STYLES[check.status]), Text("\n".join(check.details)))
    Console().print(table)
