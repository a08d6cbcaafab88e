"""`polyformer chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.reading import decode
from polyformer.errors import PolyformerError

if TYPE_CHECKING:
    from polyformer.model import Conversation

HELP = """Talk with a model. It remembers the conversation.

[bold]Ctrl-C[/bold] stops an answer and keeps the conversation; [bold]Ctrl-D[/bold] or /exit leaves. Lines that begin \
with a slash are commands: /help lists them. When standard input is not a terminal, every line of it is one message.

\b
[bold]Examples[/bold]
polyformer chat smollm2-135m-instruct
polyformer chat smollm2-135m-instruct --system "Answer in one sentence." --temperature 0.6
echo "What is a transformer?" | polyformer chat smollm2-135m-instruct -m 100
"""

COMMANDS = """\
/help          this list
/reset         forget the conversation, keep the system prompt
/system TEXT   set the system prompt and begin anew (without TEXT: show it)
/save FILE     write the conversation as JSON
/exit          leave (Ctrl-D does, too)
End a line with \\ to write on in the next one. Ctrl-C stops an answer."""


def register(app: typer.Typer) -> None:
    app.command("chat", help=HELP)(chat)


def chat(
    model: opt.ModelName,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="The system prompt.")] = None,
    max_new_tokens: opt.MaxNewTokens = 512,
    stop: opt.Stop = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    typical_p: opt.TypicalP = None,
    seed: opt.Seed = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    presence_penalty: opt.PresencePenalty = None,
    frequency_penalty: opt.FrequencyPenalty = None,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    settings = opt.given(
        max_new_tokens=max_new_tokens,
        stop=stop,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    conversation = loaded.conversation(system=system, **settings)
    talk_in_terminal(conversation, model) if sys.stdin.isatty() else talk_in_pipe(conversation)


def talk_in_pipe(conversation: Conversation) -> None:
    """Every line of standard input is a message; an error ends the conversation."""
    for line in sys.stdin.buffer:
        message = decode(line, "standard input").rstrip("\r\n")
        if message.strip():
            answer(conversation, message)


def talk_in_terminal(conversation: Conversation, name: str) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  (input() then edits the line and remembers earlier ones)
    note(f"{name}. /help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.")
    answering = stopped = False
    while True:
        # Ctrl-C may be pressed at any moment, twice too: what is said about it is said inside the try again.
        try:
            if stopped:
                stopped = False
                print()
                note("stopped; the conversation goes on." if answering else "Ctrl-D or /exit leaves.")
            answering = False
            message = read_message()
            answering = True
            if message.startswith("/"):
                if not obey(conversation, message):
                    return
            elif message.strip():
                answer(conversation, message)
        except KeyboardInterrupt:
            stopped = True
        except EOFError:
            print()
            return
        except PolyformerError as error:
            note(f"error: {error}")


def read_message() -> str:
    """One message; a line that ends with a backslash goes on in the next one."""
    lines = [input("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(input("  "))
    return "\n".join(lines)


def answer(conversation: Conversation, message: str) -> None:
    dropped = conversation.dropped
    try:
        with closing(conversation.ask(message)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print()
    finally:
        if conversation.dropped > dropped:
            count = conversation.dropped
            note(f"The conversation outgrew the model's context: its oldest {count} messages were left out.")


def obey(conversation: Conversation, line: str) -> bool:
    """Carry out a slash command; False to leave."""
    command, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if command in ("/exit", "/quit"):
        return False
    if command == "/help":
        note(COMMANDS)
    elif command == "/reset":
        conversation.reset()
        note("The conversation begins anew.")
    elif command == "/system" and not rest:
        note(conversation.system if conversation.system is not None else "There is no system prompt.")
    elif command == "/system":
        conversation.reset(system=rest)
        note("The system prompt is set; the conversation begins anew.")
    elif command == "/save" and rest:
        save(conversation, Path(rest))
    elif command == "/save":
        note("error: name a file, for example /save talk.json")
    else:
        note(f"error: there is no command {command}; /help lists them")
    return True


def save(conversation: Conversation, path: Path) -> None:
    try:
        conversation.save(path)
    except OSError as error:
        note(f"error: {path} cannot be written: {error.strerror or error}")
    else:
        note(f"Saved to {path}.")


def note(text: str) -> None:
    """What is not the model's is said on standard error, dimmed on a terminal."""
    styled = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "NO_COLOR" not in os.environ
    dim, plain = ("\033[2m", "\033[0m") if styled else ("", "")
    print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)
