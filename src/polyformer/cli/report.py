"""`polyformer report`: the page of a training run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = """Make the report of a training run: one HTML file with its result, curves and samples.

Training writes it at the end; this makes it again, also while the run is going on or after it was broken off. The \
file needs neither network nor script, so it can be sent as it is.

\b
[bold]Examples[/bold]
polyformer report runs/novels
polyformer report runs/novels -o novels.html
"""


def register(app: typer.Typer) -> None:
    app.command("report", help=HELP)(report)


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Where the run is.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Default: report.html in the run's folder.")
    ] = None,
) -> None:
    from polyformer.cli.reading import InputError
    from polyformer.training.report import write_report
    from polyformer.training.run_folder import RunFolder

    if output is not None and output.is_dir():
        raise InputError(f"{output} is a folder: name a file")
    print(write_report(RunFolder(folder), output))
