"""`polyformer summarize`: shorter texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError, read_text

HELP = """Summarize texts of any length with an encoder-decoder (BART, PEGASUS, T5 …).

A text longer than the model reads is cut between sentences, and its pieces are summarized one after the other.

\b
[bold]Examples[/bold]
polyformer summarize ./bart-cnn --file article.txt
polyformer summarize ./flan-t5 --prefix "summarize: " --input-file texts.jsonl --json
"""


def register(app: typer.Typer) -> None:
    app.command("summarize", help=HELP)(summarize)


def summarize(
    model: opt.ModelName,
    texts: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    files: Annotated[
        list[Path] | None, typer.Option("--file", help="A file that is one text. May be given many times.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option("--prefix", help="Words before each text. Default: those in the model's files.")
    ] = None,
    num_beams: opt.NumBeams = None,
    length_penalty: opt.LengthPenalty = None,
    max_new_tokens: opt.MaxNewTokens = None,
    min_new_tokens: opt.MinNewTokens = None,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    if files and (texts or input_file is not None):
        raise InputError("give the texts in one way: as arguments, with --file, or with --input-file")
    given = [read_text(file) for file in files] if files else inputs.gather_texts(texts, input_file)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    options: dict[str, Any] = opt.given(
        num_beams=num_beams,
        length_penalty=length_penalty,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
    )
    with work_bar("summarizing") as progress:
        results = loaded.summarize(given, prefix=prefix, progress=progress, **options)
    for number, result in enumerate(results):
        if as_json:
            inputs.print_json(index=number, **result.to_json())
            continue
        if len(results) > 1:
            print(f"--- text {number + 1}")
        print(result.text)
