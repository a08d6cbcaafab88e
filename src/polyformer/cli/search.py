"""`polyformer search`: passages by meaning."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar

HELP = """Search texts by meaning: make an index of a folder once, then ask it.

\b
[bold]Examples[/bold]
polyformer search index all-minilm-l6-v2 ./novels ./novels-index
polyformer search query ./novels-index "a proposal of marriage is refused" --top-k 3
polyformer search query ./novels-index --input-file questions.txt --json
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="search", help=HELP.split("\n")[0])


@app.command("index")
def index(
    model: opt.ModelName,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of .txt, .md or .rst files; or one such file.")],
    output: Annotated[
        Path, typer.Argument(metavar="INDEX", help="A folder to write; an index there is brought up to date.")
    ],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Embed every file anew, whatever was there.")] = False,
    truncate: inputs.Truncate = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    """Make an index of the sentences of a folder of texts, or bring it up to date: only what changed is embedded."""
    from polyformer.tasks.search import SETTINGS_FILE, Index, read_files, require_free

    # What can be wrong is found before a model is loaded, let alone run.
    read_files(folder)
    require_free(output)
    old = Index.load(output) if (output / SETTINGS_FILE).is_file() and not rebuild else None
    name = _lasting_name(model, revision)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    with work_bar("embedding") as progress:
        made = Index.of_folder(loaded, folder, old=old, name=name, truncate=truncate, progress=progress)
    changes = made.changes
    if old is None or old.model != name or changes.new or changes.changed or changes.gone:
        made.save(output)
    if as_json:
        inputs.print_json(index=str(output), passages=len(made), files=len(made.files), **asdict(changes))
        return
    print(
        f"{output}: {len(made):,} passages of {len(made.files):,} files ({changes.new:,} new, {changes.changed:,} "
        f"changed, {changes.unchanged:,} unchanged, {changes.gone:,} gone)"
    )
    if changes.split:
        print(f"note: {changes.split:,} passages were longer than the model reads and were split", file=sys.stderr)


@app.command("query")
def query(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="What `polyformer search index` wrote.")],
    questions: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Passages for each question.")] = 5,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the index's model lies now. Default: where it lay.")
    ] = None,
    truncate: inputs.Truncate = False,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
) -> None:
    """Find the passages nearest in meaning to questions."""
    from polyformer.tasks.search import Index

    opened = Index.load(folder)
    given = inputs.gather_texts(questions, input_file, "question")
    name = model or opened.model
    loaded = load(name, dtype=dtype, device=device)
    found = opened.search(loaded, given, top_k=top_k, name=name, truncate=truncate)
    for question, hits in zip(given, found, strict=True):
        if as_json:
            inputs.print_json(question=question, hits=[hit.to_json() for hit in hits])
            continue
        if len(given) > 1:
            print(f"--- {question}")
        for hit in hits:
            print(f"{hit.score:.3f}  {hit.source}:{hit.line}  {hit.text}")


def _lasting_name(model: str, revision: str | None) -> str:
    """What finds the model again from any folder."""
    if Path(model).exists():
        return str(Path(model).resolve())
    return f"{model}@{revision}" if revision is not None else model
