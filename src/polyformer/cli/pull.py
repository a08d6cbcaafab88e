"""`polyformer pull`: fetch a model into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from polyformer.cli.progress import download_bar

HELP = """Fetch a model into the cache, verify it, and print where it is.

A download that broke off goes on where it stopped; a damaged file is fetched again. A model that is there already is \
not fetched twice.

\b
[bold]Examples[/bold]
polyformer pull smollm2-135m-instruct
polyformer pull gemma3-270m --accept-license
polyformer pull owner/name
polyformer pull owner/name-GGUF:*Q4_K_M.gguf
"""


def register(app: typer.Typer) -> None:
    app.command("pull", help=HELP)(pull)


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `polyformer models`, or a hub id.")],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You have read the model's terms and accept them.")
    ] = False,
) -> None:
    from polyformer.checkpoints.pull import pull as fetch

    with download_bar() as progress:
        path = fetch(name, progress=progress, accept_license=accept_license)
    print(path)
