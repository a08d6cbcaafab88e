"""`polyformer fill-mask`: guess masked words."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar

HELP = """Guess the masked words of texts.

\b
[bold]Examples[/bold]
polyformer fill-mask ./bert "Paris is the [MASK] of France."
polyformer fill-mask ./bert "The [MASK] is blue." --target sky --target sea --json
"""


def register(app: typer.Typer) -> None:
    app.command("fill-mask", help=HELP)(fill_mask)


def fill_mask(
    model: opt.ModelName,
    texts: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Guesses for each masked word.")] = 5,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="Only these words compete. May be given many times.")
    ] = None,
    truncate: inputs.Truncate = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    given = inputs.gather_texts(texts, input_file)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    with work_bar("filling masks") as progress:
        results = loaded.fill_mask(given, top_k=top_k, targets=target, truncate=truncate, progress=progress)
    for text, result in zip(given, results, strict=True):
        places: list[Any] = result if isinstance(result[0], list) else [result]
        if as_json:
            inputs.print_json(text=text, masks=[[guess.to_json() for guess in guesses] for guesses in places])
            continue
        for guesses in places:
            for guess in guesses:
                print(f"{guess.score:6.1%}  {guess.token:16}  {guess.text}")
            print()
