"""Reading documents: every format, compressed too; order, fields, parts; and what is said of files that are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from polyformer.errors import ConfigError, DataError
from polyformer.training.data.reading import read_documents

ROWS = [{"text": "uno, dos\n«tres»", "label": 1}, {"text": "quatre", "label": 0}, {"text": "5 \U0001f600", "label": 1}]


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_json_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", ROWS)
    assert list(read_documents(path)) == ROWS
    assert list(read_documents(path, fields={"body": "text"}, limit=2)) == [{"body": row["text"]} for row in ROWS[:2]]
    with gzip.open(tmp_path / "y.jsonl.gz", "wb") as file:
        file.write(path.read_bytes())
    assert list(read_documents(tmp_path / "y.jsonl.gz")) == ROWS


def test_units_of_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\r\ntwo é\n\n \n three\nfour".encode())
    name = str(path)
    assert list(read_documents(path)) == [{"text": "one\ntwo é\n\n \n three\nfour", "path": name}]
    assert [each["text"] for each in read_documents(path, unit="line")] == ["one", "two é", " three", "four"]
    assert [each["text"] for each in read_documents(path, unit="blank-line")] == ["one\ntwo é", " three\nfour"]
    with pytest.raises(ConfigError, match="unit must be one of file, line, blank-line, not 'word'"):
        list(read_documents(path, unit="word"))
    with pytest.raises(ConfigError, match="no option 'units' of files: did you mean unit"):
        list(read_documents(path, units="line"))


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files(tmp_path: Path, content: bytes) -> None:
    for name in ("x.txt", "x.jsonl", "x.csv"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is empty"):
            list(read_documents(tmp_path / name))
