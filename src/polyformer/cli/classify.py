"""`polyformer classify`: labels for texts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar

HELP = """Give texts the labels a model was trained on, or labels of your own.

With --label, a model that tells entailment (one trained on natural language inference) chooses among your labels.

\b
[bold]Examples[/bold]
polyformer classify ./spam-filter --input-file mails.jsonl --json
polyformer classify ./nli-model "The match went to penalties." --label sports --label politics
"""


def register(app: typer.Typer) -> None:
    app.command("classify", help=HELP)(classify)


def classify(
    model: opt.ModelName,
    texts: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", "-l", help="A label of your own. Give it once for each label.")
    ] = None,
    multi_label: Annotated[
        bool | None,
        typer.Option("--multi-label/--single-label", help="Several labels may fit. Default: as the model was trained."),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help='What a label of your own becomes: "This example is {}."')
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="Only so many labels.")] = None,
    truncate: inputs.Truncate = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    given = inputs.gather_texts(texts, input_file)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    options: dict[str, Any] = opt.given(labels=label, multi_label=multi_label, template=template, top_k=top_k)
    if truncate:
        options["truncate"] = True
    with work_bar("classifying") as progress:
        results = loaded.classify(given, progress=progress, **options)
    for text, result in zip(given, results, strict=True):
        if as_json:
            inputs.print_json(text=text, labels=[one.to_json() for one in result])
        else:
            shown = ", ".join(f"{one.label} {one.score:.3f}" for one in result)
            print(shown if len(given) == 1 else f"{shown}\t{text}")
