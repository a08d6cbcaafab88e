"""Texts from files and standard input: exactly what is there, or an error that says where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyformer.cli.reading import InputError, decode, read_examples, read_prompts, read_text


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"a\n", "a"), (b"a\r\n", "a"), (b"a\n\n", "a\n"), (b"", ""), (b" a ", " a "), ("é🦙".encode(), "é🦙")],
)
def test_only_one_line_end_is_taken_off(tmp_path: Path, data: bytes, text: str) -> None:
    (tmp_path / "p").write_bytes(data)
    assert read_text(tmp_path / "p") == text


@pytest.mark.parametrize(
    ("data", "byte", "offset"),
    [(b"\xff", "ff", 0), (b"abc\xe9", "e9", 3), ("é".encode()[:1], "c3", 0), (b"a\x80", "80", 1)],
)
def test_the_wrong_byte_is_named(data: bytes, byte: str, offset: int) -> None:
    with pytest.raises(InputError, match=f"here is not valid UTF-8: byte 0x{byte} at offset {offset}; .*iconv"):
        decode(data, "here")


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


def test_prompts_are_lines_and_blank_lines_are_none(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes('one\u2028\x0c\r\n \n{"prompt": "two"}\n'.encode())
    assert read_prompts(tmp_path / "p.txt") == ["one\u2028\x0c", '{"prompt": "two"}']
    (tmp_path / "p.jsonl").write_text('"one\\ntwo"\n{"prompt": "", "id": 3}\n')
    assert read_prompts(tmp_path / "p.jsonl") == ["one\ntwo", ""]
    (tmp_path / "e.txt").write_text("\n\n")
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(tmp_path / "e.txt")


def test_examples_are_pairs(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    path.write_text('{"input": "1+1", "output": "2"}\n\n{"input": "", "output": "", "more": 1}\n')
    assert read_examples(path) == [("1+1", "2"), ("", "")]
    path.write_text('{"input": "1+1", "output": "2"}\n{"input": 1, "output": "2"}\n')
    with pytest.raises(InputError, match="line 2: expected an object with the strings input and output"):
        read_examples(path)
