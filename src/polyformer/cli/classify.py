"""`polyformer classify`: labels for texts and pictures."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError

HELP = """Give texts or pictures the labels a model was trained on, or labels of your own.

A model of pictures takes files or folders of them. With --label, a model that tells entailment (one trained on
natural language inference) chooses among your labels for texts, and CLIP or SigLIP for pictures.

\b
[bold]Examples[/bold]
polyformer classify ./spam-filter --input-file mails.jsonl --json
polyformer classify ./nli-model "The match went to penalties." --label sports --label politics
polyformer classify ./vit photo.jpg
polyformer classify ./clip photos/ --label "a cat" --label "a dog"
"""


def register(app: typer.Typer) -> None:
    app.command("classify", help=HELP)(classify)


def classify(
    model: opt.ModelName,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Texts (- is standard input), or files of pictures.")
    ] = None,
    input_file: inputs.InputFile = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="A label of your own. Give it once for each label.")
    ] = None,
    multi_label: Annotated[
        bool | None,
        typer.Option("--multi-label/--single-label", help="Several labels may fit. Default: as the model was trained."),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--template",
            help='What a label of your own becomes: "This example is {}.", of a picture "This is a photo of {}."',
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="Only so many labels.")] = None,
    truncate: inputs.Truncate = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    pictures = "embed_images" in loaded.capabilities
    given = inputs.gather_pictures(texts, input_file) if pictures else inputs.gather_texts(texts, input_file)
    if pictures and truncate:
        raise InputError("--truncate is for texts, but this model reads pictures: leave it out")
    options: dict[str, Any] = opt.given(labels=label, multi_label=multi_label, template=template, top_k=top_k)
    if truncate:
        options["truncate"] = True
    with work_bar("classifying") as progress:
        results = loaded.classify(given, progress=progress, **options)
    for text, result in zip(given, results, strict=True):
        if as_json:
            inputs.print_json(**{"image" if pictures else "text": text}, labels=[one.to_json() for one in result])
        else:
            shown = ", ".join(f"{one.label} {one.score:.3f}" for one in result)
            print(shown if len(given) == 1 else f"{shown}\t{text}")
