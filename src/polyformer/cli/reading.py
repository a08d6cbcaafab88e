"""Reading prompts from files and from standard input, with errors that name the byte that is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from polyformer.errors import PolyformerError


class InputError(PolyformerError, ValueError):
    """What a person gave the command line cannot be read."""


def decode(data: bytes, where: str) -> str:
    """
    Raises:
        InputError: `data` is not UTF-8; says at which byte and how to mend it.
    """
    if (binary := data.find(0)) >= 0:
        raise InputError(
            f"{where} is a binary file or UTF-16, no text in UTF-8 (byte 0x00 at offset {binary}): name a text, or "
            "convert it first, for example with: iconv -f UTF-16 -t UTF-8"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where} is not valid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}; convert it first, "
            "for example with: iconv -f LATIN1 -t UTF-8"
        ) from None


def read_text(path: Path) -> str:
    """The whole of a text file, `-` being standard input, without one line end at its very end.

    Raises:
        InputError: there is no such file, it cannot be read, or it is not UTF-8.
    """
    if str(path) == "-":
        text = decode(sys.stdin.buffer.read(), "standard input")
    else:
        try:
            text = decode(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    return text.removesuffix("\n").removesuffix("\r")


def read_prompts(path: Path, key: str = "prompt") -> list[str]:
    """One prompt a line: plain text, or in a `.jsonl` file a string or an object with the key "prompt".

    Args:
        key: what the key is called, and with it what is read ("text").

    Raises:
        InputError: as `read_text`, or a line of the `.jsonl` file is neither; it is named by its number.
    """
    lines = _lines(path)
    if not lines:
        raise InputError(f"{path} holds no {key}: write one a line")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_prompt_of(line, f"{path} line {number}", key) for number, line in lines]


def read_examples(path: Path) -> list[tuple[str, str]]:
    """Worked examples: one JSON object a line with the texts "input" and "output".

    Raises:
        InputError: as `read_text`, or a line is something else; it is named by its number.
    """
    examples = []
    for number, line in _lines(path):
        value = parse_json(line, f"{path} line {number}")
        shown, answer = (value.get("input"), value.get("output")) if isinstance(value, dict) else (None, None)
        if not isinstance(shown, str) or not isinstance(answer, str):
            example = '{"input": "2+2", "output": "4"}'
            raise InputError(f"{path} line {number}: expected an object with the strings input and output: {example}")
        examples.append((shown, answer))
    return examples


def _lines(path: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, numbered. Only line ends end a line, not the other separators of Unicode."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.removesuffix("\r")) for number, line in lines if line.strip()]


def _prompt_of(line: str, where: str, key: str) -> str:
    value = parse_json(line, where)
    prompt = value.get(key) if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise InputError(
            f'{where}: expected a string or an object with the string "{key}", for example {{"{key}": "Hi"}}'
        )
    return prompt


def parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
