"""The `polyformer` command: its subcommands, and how every error becomes one line and an exit code.

Exit codes: 0 done; 2 the person asked for something that cannot be (one line on stderr says what and what to do);
1 the machine failed (disk full, broken pipe); 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

import polyformer
from polyformer.cli import chat, convert, generate, models, pull, validate
from polyformer.errors import PolyformerError

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
for command in (generate, chat, models, pull, validate, convert):
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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line on `arguments` (default: those of the process) and leave with its exit code."""
    try:
        code = app(arguments, standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        _complain("stopped")
        code = 130
    except typer.Abort:
        _complain("stopped")
        code = 130
    except PolyformerError as error:
        _complain(f"error: {error}")
        code = 2
    except BrokenPipeError:
        # The reader (head, less) left. Python would complain again when it flushes at exit, so give it a place to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        _complain(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        code = 1
    except _USAGE_ERROR as error:
        context = getattr(error, "ctx", None)
        command = "polyformer" if context is None else context.command_path
        _complain(f"error: {error.format_message().rstrip('.')} ({command} --help explains)")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


# The command line parser's own error for a wrong option or argument; typer exports only this subclass of it.
_USAGE_ERROR = typer.BadParameter.__mro__[1]


def _complain(line: str) -> None:
    sys.stdout.flush()
    print(line, file=sys.stderr)
