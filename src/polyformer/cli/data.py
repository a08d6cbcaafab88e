"""`polyformer data`: sample sets by name, and a look into any data before a model is trained on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from polyformer.cli.progress import download_bar, work_bar

HELP = """Data to train on: sample sets by name, and what a file or folder holds.

\b
[bold]Examples[/bold]
polyformer data list
polyformer data pull austen
polyformer data show spam-assassin -n 2
polyformer data show my-texts/ --option unit=line
polyformer data show pairs.jsonl --split test --json
"""

app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")
# Characters of a field that are shown.
LONGEST = 500

AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs.")]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="data", help=HELP.split("\n")[0])


@app.command("list")
def list_samples(as_json: AsJson = False) -> None:
    """List the sample sets, their licences, and whether they are here already."""
    from polyformer.training.data import samples

    rows = [{**facts(sample), "here": samples.is_here(name)} for name, sample in samples.samples().items()]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    table.add_column("here")
    table.add_column("what it is")
    wide = console.width >= 120
    for title in ("licence", "splits") if wide else ():
        table.add_column(title)
    for row in rows:
        more = (row["licence"], ", ".join(row["splits"])) if wide else ()
        table.add_row(row["name"], "yes" if row["here"] else "no", row["description"], *more)
    console.print(table)


def facts(sample: Any) -> dict[str, Any]:
    return {
        "name": sample.name,
        "description": sample.description,
        "licence": sample.licence,
        "source": sample.source,
        "splits": list(sample.splits),
        "labels": list(sample.labels),
        "fields": dict(sample.fields),
        "options": dict(sample.options),
    }


@app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `polyformer data list`.")],
    as_json: AsJson = False,
) -> None:
    """Fetch a sample set into the cache, tell its licence, and print where it is."""
    from polyformer.training.data import samples

    sample = samples.find(name)
    typer.echo(f"licence of {name}: {sample.licence}", err=True)
    with download_bar() as progress:
        path = samples.pull(name, progress=progress)
    print(json.dumps({**samples.about(name), "path": str(path)}, ensure_ascii=False) if as_json else path)


@app.command("show")
def show(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A sample set, a file, a folder or a pattern.")],
    number: Annotated[int, typer.Option("-n", "--number", min=0, help="Documents to show.")] = 3,
    split: Annotated[str | None, typer.Option("--split", help="Only this part: train, validation or test.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="How files are read. Default: by their names.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Of the reader or the set; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the first documents of a source, how many there are in each part, its fields and its licence."""
    from polyformer.training.data import samples
    from polyformer.training.data.reading import find_files, is_sample, read_documents, reader_options

    about: dict[str, Any] = {"name": source}
    if is_sample(source):
        about = facts(samples.find(source))
        with download_bar() as progress:
            samples.pull(source, progress=progress)
    options = parse_options(option or [])
    documents = read_documents(source, split=split, format=format, **options)
    if not is_sample(source):
        about["labels"] = (
            find_files(source, format=format, options=reader_options(options)).label_names().get("label", [])
        )
    first: list[dict[str, Any]] = []
    counted = Counted()
    with work_bar("counting") as bar:
        for document in documents:
            if len(first) < number:
                first.append({name: printable(value) for name, value in document.items()})
            counted.add(document)
            if bar is not None and counted.documents % 1000 == 0:
                bar(counted.documents, None)
    if as_json:
        print(json.dumps({**about, **counted.facts(), "first": first}, indent=2, ensure_ascii=False))
    else:
        print_source(about, counted, first)


class Counted:
    """Documents, characters and parts, counted as they stream by."""

    def __init__(self) -> None:
        self.documents = 0
        self.characters: dict[str, int] = {}
        self.splits: dict[str, int] = {}

    def add(self, document: Mapping[str, Any]) -> None:
        self.documents += 1
        if "split" in document:
            self.splits[document["split"]] = self.splits.get(document["split"], 0) + 1
        for name, value in document.items():
            if name != "split":
                length = len(value) if isinstance(value, str) else 0
                self.characters[name] = self.characters.get(name, 0) + length

    def facts(self) -> dict[str, Any]:
        texts = {name: count for name, count in self.characters.items() if count}
        return {"documents": self.documents, "documents_in": self.splits, "characters": texts}


def parse_options(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE -> name and value; a value that is a whole number, true or false is taken as one.

    Raises:
        ConfigError: one has no "=".
    """
    from polyformer.errors import ConfigError

    options: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--option takes NAME=VALUE, not {text!r}")
        known = {"true": True, "false": False}
        options[name] = int(value) if value.lstrip("-").isdigit() else known.get(value, value)
    return options


def printable(value: Any) -> Any:
    """A value as JSON holds it; arrays (pictures) as their kind and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, Mapping):
        return {str(name): printable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable(each) for each in value]
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def print_source(about: Mapping[str, Any], counted: Counted, first: list[dict[str, Any]]) -> None:
    print(f"{about['name']}: {about['description']}" if "description" in about else about["name"])
    parts = ", ".join(f"{count:,} {name}" for name, count in counted.splits.items())
    print(f"documents: {counted.documents:,}" + (f" ({parts})" if parts else ""))
    descriptions = about.get("fields", {})
    for name, count in counted.characters.items():
        what = [descriptions[name]] if name in descriptions else []
        what += [f"{count:,} characters"] if count else []
        print(f"  {name}: {'; '.join(what)}" if what else f"  {name}")
    for key in ("labels", "source", "licence"):
        if about.get(key):
            value = about[key]
            print(f"{key}: {', '.join(value) if isinstance(value, list) else value}")
    for number, document in enumerate(first, 1):
        print(f"--- {number}")
        for name, value in document.items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            print(f"{name}: {text if len(text) <= LONGEST else text[:LONGEST] + f' … ({len(text):,} characters)'}")
