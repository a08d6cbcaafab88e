"""`polyformer scale`: how the loss of a recipe goes with size and data, and what size is best for a budget."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from polyformer.training.scaling import Interval, Scaling

HELP = """Train a grid of sizes and lengths from one recipe, fit a scaling law, and say what size is best for a budget.

The recipe's network is scaled in width and depth, and trained with the recipe's schedule for each number of tokens. \
The law L(N, D) = E + A/N^alpha + B/D^beta is fitted to the held-out losses, with its uncertainty. Runs that are \
finished are not repeated: the same command goes on where it was stopped. Tables are printed; scaling.json, loss.png \
and budgets.png are written beside the runs.

\b
[bold]Examples[/bold]
polyformer scale recipe.yaml --sizes 0.3M,1M,3M --tokens 1M,2M,4M
polyformer scale recipe.yaml --sizes 1M,3M,10M --tokens 10M,30M,100M --budget 1e17 --budget 1e18
polyformer scale recipe.yaml --sizes 1M,3M,10M --tokens 10M,30M,100M --learning-rates 3e-3,2e-3,1e-3
torchrun --nproc-per-node 2 -m polyformer scale recipe.yaml --sizes 1M,3M,10M --tokens 10M,30M,100M
"""


def register(app: typer.Typer) -> None:
    app.command("scale", help=HELP)(scale)


def scale(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)],
    sizes: Annotated[
        str, typer.Option("--sizes", metavar="N,N,N", help="Parameters, without embeddings.", show_default=False)
    ],
    tokens: Annotated[str, typer.Option("--tokens", metavar="D,D,D", help="Tokens of each run.", show_default=False)],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.NAME=VALUE]...", help="Values in place of the recipe's.", show_default=False),
    ] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option("--learning-rates", metavar="R,R,R", help="One for each size. Default: the recipe's for all."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of all runs. Default: runs/NAME-scale.")
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            metavar="FLOP",
            help="Of training; repeatable. Default: the largest run's, and 10 and 100 times.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train everything anew.")] = False,
    device: Annotated[str | None, typer.Option("--device", help="cpu, cuda … Default: cuda if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what scaling.json holds.")] = False,
) -> None:
    from polyformer.cli.training_display import Display
    from polyformer.training import scaling
    from polyformer.training.parallel import is_first_process, process_device, process_group, said_once
    from polyformer.training.recipe import read_recipe

    with said_once():
        scaling.require_matplotlib()
        parsed = read_recipe(recipe, changes or ())
        budgets = [number for text in budget or () for number in scaling.read_numbers(text, "--budget")]
        rates = None if learning_rates is None else scaling.read_numbers(learning_rates, "--learning-rates")
        asked = {"sizes": scaling.read_numbers(sizes, "--sizes"), "tokens": scaling.read_numbers(tokens, "--tokens")}
        runs = scaling.plan(parsed, asked["sizes"], asked["tokens"], rates)
    folder = output or Path("runs") / f"{parsed.name}-scale"
    stopped: scaling.Stopped | None = None
    results = []
    with process_group(parsed.parallel, process_device(device)) as group:
        try:
            results = scaling.run_grid(
                runs, folder, overwrite=overwrite, observers=[Display()], device=device, group=group, tell=_tell
            )
        except scaling.Stopped as error:
            stopped = error
    if stopped is not None:
        if is_first_process():
            _tell(str(stopped))
        raise typer.Exit(stopped.exit_code)
    if not is_first_process():
        return
    learned = scaling.learn(results, budgets or None, seed=parsed.seed)
    files = scaling.write(learned, folder, {"recipe": str(recipe), **asked, "learning_rates": rates})
    if as_json:
        print(json.dumps(learned.to_dict(), indent=2, ensure_ascii=False))
    else:
        print_tables(learned)
    for warning in learned.warnings:
        _tell(f"note: {warning}")
    _tell("written: " + ", ".join(map(str, files)))


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def print_tables(learned: Scaling) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from polyformer.training.charts import readable

    def table(*columns: str) -> Any:
        made = Table(box=SIMPLE_HEAD)
        for column in columns:
            made.add_column(column, justify="right")
        return made

    console, fit = Console(), learned.fit
    runs = table("parameters", "layers x width", "tokens", "held-out loss", "by the law", "foretold by the others")
    for result, fitted, foretold in zip(learned.results, fit.fitted, fit.foretold):
        shape = f"{result.depth} x {result.width}"
        losses = (f"{result.loss:.4f}", f"{fitted:.4f}", f"{foretold:.4f}")
        runs.add_row(f"{result.parameters:,}", shape, f"{result.tokens:,}", *losses)
    console.print(runs)
    law = learned.to_dict()["law"]
    words = ", ".join(f"{name} {one['value']:.4g} ({one['low']:.4g} to {one['high']:.4g})" for name, one in law.items())
    level = f"{fit.interval(lambda law: law.irreducible).level:.0%}"
    print(f"L(N, D) = E + A/N^alpha + B/D^beta with {words}; ranges hold {level}")
    print(f"each run foretold by the others: {(fit.errors**2).mean() ** 0.5:.2%} off (root mean square)")
    if not learned.optima:
        return
    best = table("budget, FLOP", "best parameters", "tokens", "loss")
    for one in learned.optima:
        cells = (_range(interval, readable) for interval in (one.parameters, one.tokens, one.loss))
        best.add_row(f"{one.budget:.3g}", *cells)
    console.print(best)


def _range(interval: Interval, show: Any) -> str:
    high = show(interval.high) if interval.high < float("inf") else "without end"
    return f"{show(interval.value)}\n({show(interval.low)} to {high})"
