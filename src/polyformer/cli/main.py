"""The `polyformer` command: its subcommands, and how every error becomes one line and an exit code.

Exit codes: 0 done; 2 the person asked for something that cannot be (one line on stderr says what and what to do);
1 the machine failed (disk full, broken pipe); 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

import polyformer
from polyformer.cli import (
    answer,
    caption,
    chat,
    classify,
    compare,
    convert,
    data,
    embed,
    evaluate,
    fill_mask,
    generate,
    infill,
    models,
    pull,
    report,
    scale,
    search,
    summarize,
    tag,
    tokenizer,
    train,
    transcribe,
    translate,
    validate,
)
from polyformer.errors import PolyformerError, TruncationWarning

app = typer.Typer(
    name="polyformer",
    help="One transformer, many forms: run, talk to, check and convert generative transformers.",
    epilog="Begin with: polyformer pull smollm2-135m-instruct, then: polyformer chat smollm2-135m-instruct",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    generate,
    chat,
    embed,
    search,
    fill_mask,
    classify,
    tag,
    answer,
    translate,
    summarize,
    transcribe,
    caption,
    infill,
    data,
    tokenizer,
    train,
    report,
    evaluate,
    compare,
    scale,
    models,
    pull,
    validate,
    convert,
):
    command.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polyformer {polyformer.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


# The parser's own error for a wrong option or argument; typer exports only this subclass of it.
_USAGE_ERROR: Any = typer.BadParameter.__mro__[1]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line on `arguments` (default: those of the process) and leave with its exit code."""
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                # Those of the libraries are for programmers: python -W default shows them.
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", TruncationWarning)
                warnings.showwarning = _note
            code = app(arguments, prog_name="polyformer", standalone_mode=False) or 0  # typer gives 130 for Ctrl-C
        if code == 130:
            _complain("stopped")
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped")
        code = 130
    except PolyformerError as error:
        _complain(f"error: {error}")
        code = 2
    except OSError as error:
        _complain(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        code = 1
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = "polyformer" if context is None else context.command_path
        _complain(f"error: {error.format_message().rstrip('.')} ({command} --help explains)")
        code = 2
    _flush()
    sys.exit(code)


def _note(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A warning that is for everyone; takes what `warnings.showwarning` takes."""
    _complain(f"note: {message}")


def _complain(line: str) -> None:
    print(line, file=sys.stderr)


def _flush() -> None:
    """Write what is left. Where the reader (head, less) has gone, leave quietly instead of complaining at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
