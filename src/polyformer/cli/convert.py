"""`polyformer convert`: write a model in the layout that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.reading import InputError

HELP = """Write a model as a folder that transformers loads: config.json, safetensors, tokenizer.

\b
[bold]Examples[/bold]
polyformer convert model.gguf ./model-folder
polyformer convert smollm2-135m-instruct ./smollm2 --dtype bfloat16
"""


def register(app: typer.Typer) -> None:
    app.command("convert", help=HELP)(convert)


def convert(
    source: opt.ModelName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Written; must be new or empty.")],
    dtype: opt.DataType = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write into FOLDER even if files are there.")] = False,
    revision: opt.Revision = None,
) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder} is not empty: choose another folder, or add --overwrite")
    load(source, dtype=dtype, device="cpu", revision=revision).save(folder)
    print(folder)
