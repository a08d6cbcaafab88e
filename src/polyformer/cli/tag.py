"""`polyformer tag`: names in texts."""

from __future__ import annotations

from typing import Annotated

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar

HELP = """Find persons, places and whatever else a model was trained to tag, in whole words with their places.

\b
[bold]Examples[/bold]
polyformer tag ./ner-model "Ada Lovelace lived in London."
polyformer tag ./ner-model --input-file articles.jsonl --json > entities.jsonl
"""


def register(app: typer.Typer) -> None:
    app.command("tag", help=HELP)(tag)


def tag(
    model: opt.ModelName,
    texts: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    strategy: Annotated[
        str, typer.Option("--strategy", help="The label of a word of several tokens: first, average or max.")
    ] = "first",
    words: Annotated[bool, typer.Option("--words", help="Every word by itself, not whole names.")] = False,
    stride: Annotated[
        int | None,
        typer.Option("--stride", help="Read texts of any length, in windows that share so many tokens."),
    ] = None,
    truncate: inputs.Truncate = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    given = inputs.gather_texts(texts, input_file)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    with work_bar("tagging") as progress:
        results = loaded.tag(
            given, strategy=strategy, grouped=not words, stride=stride, truncate=truncate, progress=progress
        )
    for number, (text, entities) in enumerate(zip(given, results, strict=True)):
        if as_json:
            inputs.print_json(text=text, entities=[entity.to_json() for entity in entities])
            continue
        if len(given) > 1:
            print(f"--- text {number + 1}")
        for entity in entities:
            print(f"{entity.start:6}-{entity.end:<6} {entity.label:10} {entity.score:.3f}  {entity.text}")
