"""`polyformer answer`: the part of a text that answers a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError, read_text

HELP = """Find the answer to questions in a text of any length.

\b
[bold]Examples[/bold]
polyformer answer ./qa-model "Where did she live?" --context "Ada Lovelace lived in London."
polyformer answer ./qa-model --input-file questions.txt --context-file article.txt --json
"""


def register(app: typer.Typer) -> None:
    app.command("answer", help=HELP)(answer)


def answer(
    model: opt.ModelName,
    questions: Annotated[list[str] | None, typer.Argument(metavar="QUESTION")] = None,
    input_file: inputs.InputFile = None,
    context: Annotated[str | None, typer.Option("--context", "-c", help="The text to look in.")] = None,
    context_file: Annotated[
        Path | None, typer.Option("--context-file", help="A file with it; - is standard input.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="So many different answers.")] = 1,
    impossible: Annotated[
        bool, typer.Option("--impossible", help="The answer may be that the text does not say.")
    ] = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    if (context is None) == (context_file is None):
        raise InputError("give the text to look in with --context or with --context-file")
    text = read_text(context_file) if context_file is not None else context
    given = inputs.gather_texts(questions, input_file, "question")
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    with work_bar("answering") as progress:
        results = loaded.answer(given, text or "", top_k=top_k, impossible=impossible, progress=progress)
    for question, result in zip(given, results, strict=True):
        answers = result if isinstance(result, list) else [result]
        if as_json:
            inputs.print_json(question=question, answers=[one.to_json() for one in answers])
            continue
        for one in answers:
            print(f"{one.score:.3f}  {one.start}-{one.end}  {one.text or '(the text does not say)'}")
