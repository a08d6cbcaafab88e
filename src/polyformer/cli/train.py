"""`polyformer train`: a recipe becomes a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from polyformer.training.trainer import Observer

HELP = """Train a model as a recipe says: from scratch or from given weights.

The recipe is checked before anything starts. Ctrl-C ends the run after the step it is in and saves its state;
--resume goes on from the last state, also after a crash, with the very losses the run would have had.

\b
[bold]Examples[/bold]
polyformer train recipe.yaml
polyformer train recipe.yaml training.steps=200 optimizer.learning_rate=1e-3
polyformer train recipe.yaml --resume
polyformer train recipe.yaml --check
torchrun --nproc-per-node 2 -m polyformer train recipe.yaml
"""


def register(app: typer.Typer) -> None:
    app.command("train", help=HELP)(train)


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.NAME=VALUE]...", help="Values in place of the recipe's.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The run's folder. Default: the recipe's, or runs/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in that folder.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda … Default: cuda if there is one.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Check the recipe, say what it means, train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    from polyformer.training.parallel import is_first_process, said_once
    from polyformer.training.recipe import read_recipe
    from polyformer.training.run import check_recipe
    from polyformer.training.run import train as run

    with said_once():
        parsed = read_recipe(recipe, changes or ())
    if check:
        facts = check_recipe(parsed)
        print(json.dumps(facts, ensure_ascii=False) if as_json else _lines(facts))
        return
    summary = run(parsed, output=output, resume=resume, overwrite=overwrite, device=device, observers=[_display()])
    if not is_first_process():
        raise typer.Exit(summary.exit_code)
    if as_json:
        print(json.dumps(summary.to_json(), ensure_ascii=False))
    elif summary.ended == "stopped":
        print(f"stopped after step {summary.step}; go on with: polyformer train {recipe} --resume", file=sys.stderr)
    else:
        print(_lines(summary.to_json()))
    if summary.ended == "stopped":
        raise typer.Exit(summary.exit_code)


def _lines(values: dict[str, Any], indent: str = "") -> str:
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}:", _lines(value, indent + "  ")]
        else:
            shown = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
            lines.append(f"{indent}{name}: {shown:.6g}" if isinstance(value, float) else f"{indent}{name}: {shown}")
    return "\n".join(lines)


def _display() -> Observer:
    from polyformer.cli.training_display import Display

    return Display()
