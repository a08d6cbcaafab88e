"""`polyformer infill`: what belongs into the gap of a text."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError

MARK = "<fill>"
HELP = f"""Fill the gap in a text, with a code model that was trained to fill in the middle.

The gap is where the text says {MARK}. The whole text is printed, gap filled; with --middle only what the model wrote.

\b
[bold]Examples[/bold]
polyformer infill MODEL $'def area(radius):\\n    return{MARK}\\n\\nprint(area(2))\\n'
polyformer infill MODEL - --truncate < module_with_gap.py > module.py
"""


def register(app: typer.Typer) -> None:
    app.command("infill", help=HELP)(infill)


def infill(
    model: opt.ModelName,
    texts: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    mark: Annotated[str, typer.Option("--mark", help="What stands for the gap.")] = MARK,
    middle: Annotated[bool, typer.Option("--middle", help="Print only what the model wrote.")] = False,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    num_beams: opt.NumBeams = None,
    stop: opt.Stop = None,
    seed: opt.Seed = None,
    suffix_first: opt.SuffixFirst = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Leave out what is far from the gap, where the text is too long.")
    ] = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    if not mark:
        raise InputError("--mark is empty: give what stands for the gap")
    given = inputs.gather_texts(texts, input_file)
    gaps = [_gap(text, mark, number) for number, text in enumerate(given)]
    options: dict[str, Any] = opt.given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_beams=num_beams,
        stop=stop,
        seed=seed,
    )
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    with work_bar("filling in") as progress:
        results = loaded.infill(gaps, suffix_first=suffix_first, truncate=truncate, progress=progress, **options)
    for one in results:
        if as_json:
            inputs.print_json(**one.to_json())
        else:
            text = one.middle if middle else one.text
            sys.stdout.write(text if text.endswith("\n") else text + "\n")


def _gap(text: str, mark: str, number: int) -> tuple[str, str]:
    count = text.count(mark)
    if count != 1:
        where = "it is nowhere" if count == 0 else f"it stands there {count} times"
        raise InputError(f"text {number} must say {mark} once, where the gap is, but {where}")
    before, _, after = text.partition(mark)
    return before, after
