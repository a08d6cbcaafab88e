"""`polyformer models`: what can be had by name, and what is in the cache."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from polyformer.checkpoints.disk import readable_size

HELP = """List the models that have a name here, and those in the cache.

\b
[bold]Examples[/bold]
polyformer models
polyformer models --json
polyformer models --sizes     the public sizes that polyformer.build("name") makes, with random weights
"""


def register(app: typer.Typer) -> None:
    app.command("models", help=HELP)(models)


def models(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list instead of a table.")] = False,
    sizes: Annotated[bool, typer.Option("--sizes", help="The named public sizes instead: no weights.")] = False,
) -> None:
    if sizes:
        list_sizes(as_json)
        return
    from polyformer.checkpoints.catalogue import ENTRIES, list_models
    from polyformer.checkpoints.pull import find_cached

    cached = {model.name: model for model in list_models()}
    paths: dict[str, Any] = {model.name: model.path for model in cached.values()}
    paths.update({name: find_cached(entry) for name, entry in ENTRIES.items() if entry.packaged})
    rows = [
        {
            "name": entry.name,
            "parameters": entry.parameters,
            "bytes": entry.nbytes,
            "licence": entry.licence,
            "licence_url": entry.licence_url,
            "must_accept": entry.must_accept,
            "description": entry.description,
            "path": str(paths[entry.name]) if paths.get(entry.name) else None,
        }
        for entry in ENTRIES.values()
    ]
    rows += [
        {"name": model.name, "bytes": model.nbytes, "description": "from a hub", "path": str(model.path)}
        for model in cached.values()
        if model.name not in ENTRIES
    ]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        print_table(rows)


def list_sizes(as_json: bool) -> None:
    from polyformer.families.sizes import SIZES

    if as_json:
        keys = ("name", "family", "published", "source")
        print(json.dumps([{key: getattr(size, key) for key in keys} for size in SIZES.values()], indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "family", box=SIMPLE_HEAD)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("published in")
    for size in SIZES.values():
        table.add_row(size.name, size.family, size.published, size.source)
    Console().print(table)


def _millions(count: int) -> str:
    return f"{count / 1e6:.0f}M" if count >= 10_000_000 else f"{count / 1e6:.1f}M"


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    wide = console.width >= 150
    table = Table(box=SIMPLE_HEAD)
    table.add_column("name", no_wrap=True)
    for title in ("parameters", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("cached", "licence", *(["what it is"] if wide else [])):
        table.add_column(title)
    for row in rows:
        parameters = _millions(row["parameters"]) if "parameters" in row else ""
        licence = row.get("licence", "") + (" (to be accepted)" if row.get("must_accept") else "")
        cached = "yes" if row["path"] else "no"
        table.add_row(
            row["name"],
            parameters,
            readable_size(row["bytes"]),
            cached,
            licence,
            *([row["description"]] if wide else []),
        )
    console.print(table)
