"""`polyformer validate`: is a checkpoint whole, known and loadable? Answered without loading it."""

from __future__ import annotations

import typer

HELP = """Check a checkpoint without loading it.

\b
[bold]Examples[/bold]
polyformer validate ./my-model
polyformer validate model.gguf --json
"""


def register(app: typer.Typer) -> None:
    app.command("validate", help=HELP)(validate)


def validate(path: str) -> None:
    raise NotImplementedError(path)
