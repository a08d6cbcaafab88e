"""What the commands for tasks share: texts from the command line or a file, and results as lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from polyformer.cli.reading import InputError, read_prompts, read_text

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

Texts = Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts; - is standard input.")]
InputFile = Annotated[
    Path | None,
    typer.Option(
        "--input-file", "-i", help="Many texts: one a line, or .jsonl with the key text; - is standard input."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for each input, a line each.")]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Cut texts that are longer than the model reads; otherwise an error.")
]


def gather_texts(
    texts: list[str] | None, input_file: Path | None, what: str = "text", *, for_files: str = "--input-file"
) -> list[str]:
    """The texts, from the one place that a person named; from standard input where they named none.

    Args:
        for_files: the option that reads what is in a file, for those who wrote its name where a text is expected.

    Raises:
        InputError: both places, none with a terminal as standard input, or a blank text.
    """
    if texts and input_file is not None:
        raise InputError(f"give the {what}s in one way: as arguments, or with --input-file")
    if input_file is not None:
        return read_prompts(input_file, key="text")
    if not texts:
        if sys.stdin.isatty():
            raise InputError(f"no {what}: write one after the model, name a file with --input-file, or pipe one in")
        texts = ["-"]
    if texts.count("-") > 1:
        raise InputError("standard input (-) can be one text only")
    for text in texts:
        if _is_file(text):
            print(
                f"note: {text!r} itself is read as a {what}, though there is such a file: {for_files} reads what is in "
                "it",
                file=sys.stderr,
            )
    found = [read_text(Path("-")) if text == "-" else text for text in texts]
    for number, text in enumerate(found):
        if not text.strip():
            raise InputError(f"{what} {number} is blank: there is nothing to read")
    return found


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name can be, or with a character that none can have
        return False


def gather_pictures(names: list[str] | None, input_file: Path | None) -> list[str]:
    """Files of pictures, from the one place that a person named; a folder stands for the pictures in it.

    Raises:
        InputError: both places or none, or a folder without a picture.
    """
    if bool(names) == (input_file is not None):
        raise InputError("name pictures, or a file that lists them with --input-file, and not both")
    if input_file is not None:
        return read_prompts(input_file, key="image")
    found = []
    for name in names or ():
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURE_SUFFIXES)
            if not inside:
                raise InputError(f"{name} holds no picture; known: {' '.join(PICTURE_SUFFIXES)}")
            found += [str(file) for file in inside]
        else:
            found.append(name)
    return found


def print_json(**values: Any) -> None:
    print(json.dumps(values, ensure_ascii=False), flush=True)
