"""`polyformer translate`: texts in another language."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar

HELP = """Translate texts with an encoder-decoder (Marian, mBART, T5 …).

\b
[bold]Examples[/bold]
polyformer translate ./opus-mt-en-es "Good morning."
polyformer translate ./mbart "Good morning." --from en_XX --to es_XX
polyformer translate ./t5 --prefix "translate English to German: " --input-file lines.txt --json
"""


def register(app: typer.Typer) -> None:
    app.command("translate", help=HELP)(translate)


def translate(
    model: opt.ModelName,
    texts: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    source_language: Annotated[
        str | None, typer.Option("--from", help="Language of the texts, for models of many languages.")
    ] = None,
    target_language: Annotated[
        str | None, typer.Option("--to", help="Language wanted, for models of many languages.")
    ] = None,
    prefix: Annotated[str, typer.Option("--prefix", help="Words before each text that say what to do.")] = "",
    num_beams: opt.NumBeams = None,
    length_penalty: opt.LengthPenalty = None,
    max_new_tokens: opt.MaxNewTokens = None,
    truncate: inputs.Truncate = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    given = inputs.gather_texts(texts, input_file)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    options: dict[str, Any] = opt.given(
        num_beams=num_beams, length_penalty=length_penalty, max_new_tokens=max_new_tokens
    )
    with work_bar("translating") as progress:
        results = loaded.translate(
            given,
            source_language=source_language,
            target_language=target_language,
            prefix=prefix,
            truncate=truncate,
            progress=progress,
            **options,
        )
    for text, result in zip(given, results, strict=True):
        inputs.print_json(source=text, **result.to_json()) if as_json else print(result.text)
