"""`polyformer eval`: how good a model is."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError

HELP = """Measure how good a model is on documents that it has not been trained on.

language: bits per character of texts. labels: accuracy and F1, of texts or pictures. translation: BLEU and chrF. \
summary: ROUGE, beside the first sentence's. infilling: lines of Python modules, written as they were. retrieval: \
whether pictures and their texts find each other.

\b
[bold]Examples[/bold]
polyformer eval runs/austen/model austen --split test
polyformer eval runs/spam-classify/model spam-assassin --split test --json
polyformer eval runs/verses/model bible-en-es --measure translation --split test --num-beams 4
polyformer eval runs/clip-emoji/model fluent-emoji --split test --field text=caption
"""


def register(app: typer.Typer) -> None:
    app.command("eval", help=HELP)(evaluate)


def evaluate(
    model: opt.ModelName,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A sample set (`polyformer data list`), a file, a folder.", show_default=False
        ),
    ],
    measure: Annotated[
        str | None,
        typer.Option(
            "--measure",
            help="language, labels, translation, summary, infilling or retrieval. Default: what the model is for.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this part: train, validation or test.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only so many documents.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=ITS-NAME", help="A field of the source under the name it is read by."),
    ] = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option("--source-option", metavar="NAME=VALUE", help="An option of the reader or the sample set."),
    ] = None,
    length: Annotated[int | None, typer.Option("--length", help="language: tokens of a window.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", help="language: tokens between windows.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", help="infilling: lines of each module.")] = None,
    suffix_first: opt.SuffixFirst = False,
    source_length: Annotated[
        int | None, typer.Option("--source-length", help="translation, summary: longer sources are cut to it.")
    ] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="translation, summary: words before each.")] = None,
    num_beams: opt.NumBeams = None,
    length_penalty: opt.LengthPenalty = None,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: opt.Temperature = None,
    seed: opt.Seed = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="So many examples are shown.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with examples.")] = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    from polyformer.evaluation.evaluate import MEASURES, check_options
    from polyformer.evaluation.evaluate import evaluate as measured

    options = opt.given(
        length=length,
        stride=stride,
        lines=lines,
        suffix_first=suffix_first or None,
        source_length=source_length,
        prefix=prefix,
        num_beams=num_beams,
        length_penalty=length_penalty,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    if measure in MEASURES:
        check_options(str(measure), options)  # before the model is loaded
    fields, reader = _pairs(field, "--field"), _pairs(source_option, "--source-option")
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    with work_bar("measuring") as progress:
        found = measured(
            loaded,
            source,
            measure,
            split=split,
            limit=limit,
            fields=fields,
            source_options={name: _value(value) for name, value in reader.items()},
            progress=progress,
            **options,
        )
    if as_json:
        inputs.print_json(**found.to_json())
        return
    print(f"{found.measure}, {found.documents:,} document{'s' if found.documents != 1 else ''}")
    width = max(map(len, found.values))
    for name, value in found.values.items():
        print(
            f"  {name:<{width}}  {value:,.4f}"
            if value != int(value) or value <= 1
            else f"  {name:<{width}}  {value:,.0f}"
        )
    for note in found.notes:
        print(f"  ({note})")
    for example in found.examples[:examples]:
        print("---")
        for name, one in example.items():
            print(f"{name}: {one}")


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"{option} is written NAME=VALUE, not {text!r}")
        found[name] = value
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
