"""`polyformer caption`: what pictures show, in words."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar

HELP = """Say what pictures show, or with TrOCR what is written on them.

\b
[bold]Examples[/bold]
polyformer caption ./vit-gpt2 photo.jpg
polyformer caption ./vit-gpt2 photos/ --num-beams 4 --json
polyformer caption ./trocr line.png
"""


def register(app: typer.Typer) -> None:
    app.command("caption", help=HELP)(caption)


def caption(
    model: opt.ModelName,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE", help="Files of pictures, or folders of them.")
    ] = None,
    input_file: inputs.InputFile = None,
    num_beams: opt.NumBeams = None,
    length_penalty: opt.LengthPenalty = None,
    max_new_tokens: opt.MaxNewTokens = None,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    given = inputs.gather_pictures(images, input_file)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    options: dict[str, Any] = opt.given(
        num_beams=num_beams, length_penalty=length_penalty, max_new_tokens=max_new_tokens
    )
    with work_bar("captioning") as progress:
        results = loaded.caption(given, progress=progress, **options)
    for name, result in zip(given, results, strict=True):
        if as_json:
            inputs.print_json(image=name, **result.to_json())
        else:
            print(result.text if len(given) == 1 else f"{name}\t{result.text}")
