"""`polyformer search`: passages by meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError

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
    output: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder to write; an index there is replaced.")],
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    """Make an index of the sentences of a folder of texts."""
    from polyformer.tasks.search import Index, read_folder

    if not folder.exists():
        raise InputError(f"{folder} does not exist: name a folder of texts")
    passages = read_folder(folder)
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    with work_bar("embedding") as progress:
        made = Index.build(loaded, passages, name=model, progress=progress)
    made.save(output)
    print(f"{output}: {len(made):,} passages of {len({passage.source for passage in passages}):,} files")


@app.command("query")
def query(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="What `polyformer search index` wrote.")],
    questions: inputs.Texts = None,
    input_file: inputs.InputFile = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Passages for each question.")] = 5,
    model: Annotated[
        str | None, typer.Option("--model", help="Where the index's model lies now. Default: where it lay.")
    ] = None,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
) -> None:
    """Find the passages nearest in meaning to questions."""
    from polyformer.tasks.search import Index

    opened = Index.load(folder)
    given = inputs.gather_texts(questions, input_file, "question")
    loaded = load(model or opened.model, dtype=dtype, device=device)
    for question, hits in zip(given, opened.search(loaded, given, top_k=top_k), strict=True):
        if as_json:
            inputs.print_json(question=question, hits=[hit.to_json() for hit in hits])
            continue
        if len(given) > 1:
            print(f"--- {question}")
        for hit in hits:
            print(f"{hit.score:.3f}  {hit.source}:{hit.line}  {hit.text}")
