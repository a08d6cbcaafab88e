"""Reading documents: every format, compressed too; order, fields, parts; and what is said of files that are wrong."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyformer.errors import ConfigError, DataError
from polyformer.training.data.reading import find_files, read_documents

ROWS: list[dict[str, Any]] = [
    {"text": "uno, dos\n«tres»", "label": 1},
    {"text": "quatre", "label": 0},
    {"text": "5 \U0001f600", "label": 1},
]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], Path]] = {
    "jsonl": write_lines,
    "json": write_json,
    "csv": write_table,
    "tsv": write_table,
    "parquet": write_parquet,
    "arrow": write_arrow,
}


def squeeze(path: Path, how: str) -> Path:
    if how == "":
        return path
    data = path.read_bytes()
    packed = gzip.compress(data) if how == ".gz" else pytest.importorskip("zstandard").compress(data)
    new = path.with_name(path.name + how)
    new.write_bytes(packed)
    path.unlink()
    return new


# What is read


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", WRITERS)
def test_every_table_gives_the_same_rows(tmp_path: Path, kind: str, compression: str) -> None:
    path = squeeze(WRITERS[kind](tmp_path / f"x.{kind}", ROWS), compression)
    rows = [{**row, "label": str(row["label"])} for row in ROWS] if kind in ("csv", "tsv") else ROWS
    assert list(read_documents(path)) == rows
    assert list(read_documents(str(path), fields={"body": "text"}, limit=2)) == [
        {"body": row["text"]} for row in rows[:2]
    ]
    assert list(read_documents(path, fields=["label"])) == [{"label": row["label"]} for row in rows]


def test_units_of_text(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffone\r\ntwo é\n\n \n three\nfour".encode())
    assert list(read_documents(path)) == [{"text": "one\ntwo é\n\n \n three\nfour", "path": str(path)}]
    assert [each["text"] for each in read_documents(path, unit="line")] == ["one", "two é", " three", "four"]
    assert [each["text"] for each in read_documents(path, unit="blank-line")] == ["one\ntwo é", " three\nfour"]
    assert [each["text"] for each in read_documents(squeeze(path, ".gz"), unit="line")][:2] == ["one", "two é"]


def test_a_name_without_a_format_needs_one(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "corpus", ROWS)
    with pytest.raises(DataError, match=r"corpus has no ending, which tells no format: say which, with format"):
        read_documents(path)
    assert list(read_documents(path, format="jsonl")) == ROWS
    with pytest.raises(ConfigError, match="no format 'json-lines': did you mean json"):
        read_documents(path, format="json-lines")


def test_python_in_the_encoding_that_it_declares(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\r\n".encode("latin-1"))
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "new.py").write_text("name = 'é'\n", encoding="utf-8")
    (tmp_path / "empty.py").touch()
    found = list(read_documents(tmp_path))
    assert [each["text"] for each in found] == ["# -*- coding: latin-1 -*-\nname = 'é'\n", "name = 'é'\n"]
    assert "split" not in found[1], "a folder of tests is no part of the data"
    (tmp_path / "old.py").write_bytes(b"# coding: ascii\nname = '\xe9'\n")
    with pytest.raises(DataError, match=r"old\.py is not in the encoding that it declares"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": "]"}]',
        '  [\n{"a": 1},\n\n{"a": "]"}\n]\n',
        '{"a": 1}\n{"a": "]"}',
        '{"a":\n1}\n\n{\n"a": "]"}\n',
    ],
)
def test_json_in_any_layout(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    assert list(read_documents(tmp_path / "x.json")) == [{"a": 1}, {"a": "]"}]


def test_json_beyond_a_piece(tmp_path: Path) -> None:
    """Values larger than what is read at once, whose characters of several bytes are cut anywhere."""
    rows = [{"text": "é\U0001f600" * size} for size in (1, 30_000, 3, 100_001)]
    write_json(tmp_path / "x.json", rows)
    assert list(read_documents(tmp_path / "x.json")) == rows


def test_several_compressed_members(tmp_path: Path) -> None:
    pieces = [json.dumps(row).encode() + b"\n" for row in ROWS]
    (tmp_path / "x.jsonl.gz").write_bytes(b"".join(map(gzip.compress, pieces)))
    assert list(read_documents(tmp_path / "x.jsonl.gz")) == ROWS
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "x.jsonl.zst").write_bytes(b"".join(map(zstandard.compress, pieces)))
    assert list(read_documents(tmp_path / "x.jsonl.zst")) == ROWS


# Folders


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/y.txt", "c.txt", "README.md", ".hidden.txt", "c/picture.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("" if name == "c.txt" else name)
    assert [each["text"] for each in read_documents(tmp_path)] == ["a/y.txt", "a/z.md", "b.txt"]
    assert [each["text"] for each in read_documents(tmp_path, glob="a/*.md")] == ["a/z.md"]
    assert [each["text"] for each in read_documents(f"{tmp_path}/*/y*")] == ["a/y.txt"]
    assert [each["text"] for each in read_documents([tmp_path / "b.txt", tmp_path / "a"])] == [
        "b.txt",
        "a/y.txt",
        "a/z.md",
    ]
    with pytest.raises(DataError, match=r"holds no file that fits x\*"):
        read_documents(tmp_path, glob="x*")
    with pytest.raises(DataError, match="no file fits the pattern"):
        read_documents(f"{tmp_path}/*/nothing*")


def test_several_formats_are_not_guessed(tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", ROWS)
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match=r"files of several formats \(1 jsonl, 1 text\): choose with format or glob"):
        read_documents(tmp_path)
    assert list(read_documents(tmp_path, format="jsonl")) == ROWS
    assert [each["text"] for each in read_documents(tmp_path, glob="*.txt")] == ["notes"]


def test_parts_as_a_hub_lays_them_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:1])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[1:2])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", ROWS[2:])
    (tmp_path / "README.md").write_text("a dataset")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [each["split"] for each in read_documents(tmp_path)] == ["test", "train", "train"]
    assert list(read_documents(tmp_path, split="train")) == [{**row, "split": "train"} for row in ROWS[:2]]
    assert list(read_documents(tmp_path, split="test", fields=["label"])) == [{"label": 1, "split": "test"}]
    with pytest.raises(DataError, match="has no part 'validation': it has test, train"):
        list(read_documents(tmp_path, split="validation"))
    folder = tmp_path / "other"
    write_lines(folder / "dev" / "a.jsonl", ROWS[:1])
    assert [each["split"] for each in read_documents(folder)] == ["validation"]


def test_parts_as_the_documents_say(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"text": "a", "split": "train"}, {"text": "b", "split": "test"}])
    assert list(read_documents(path, split="test", fields=["text"])) == [{"text": "b", "split": "test"}]
    path = write_lines(tmp_path / "y.jsonl", ROWS)
    with pytest.raises(
        DataError, match=r"y\.jsonl: part 'test' was asked for, but its documents have no field 'split'"
    ):
        list(read_documents(path, split="test"))


@pytest.mark.slow
def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(
        ROWS,
        features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
        ),
    )
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    assert list(read_documents(tmp_path / "one")) == ROWS
    datasets.DatasetDict({"train": saved, "test": saved.select([2])}).save_to_disk(tmp_path / "both")
    assert list(read_documents(tmp_path / "both", split="test")) == [{**ROWS[2], "split": "test"}]
    assert [each["split"] for each in read_documents(tmp_path / "both")] == ["train", "train", "train", "test"]
    assert find_files(tmp_path / "one").label_names() == {"label": ["no", "yes"]}
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json is missing or damaged"):
        read_documents(tmp_path / "one")


def test_pictures_in_tables_become_arrays(tmp_path: Path) -> None:
    from PIL import Image

    pyarrow = pytest.importorskip("pyarrow")
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    table = pyarrow.Table.from_pylist([{"image": {"bytes": stream.getvalue(), "path": None}, "label": 3}])
    info = {
        "info": {"features": {"image": {"_type": "Image"}, "label": {"names": list("abcd"), "_type": "ClassLabel"}}}
    }
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "x.parquet")
    (found,) = read_documents(tmp_path / "x.parquet")
    assert found["image"].dtype == np.uint8 and np.array_equal(found["image"], pixels)
    assert find_files(tmp_path / "x.parquet").label_names() == {"label": ["a", "b", "c", "d"]}


# Size


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 2000}) + "\n"
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", compresslevel=1) as file:
        for _ in range(5_000):
            file.write(line)
    (tmp_path / "x.json").write_text("[" + ",".join([line] * 5_000) + "]")
    write_parquet(tmp_path / "x.parquet", [{"text": str(number) + "x" * 2000} for number in range(5_000)])
    for name in ("x.jsonl.gz", "x.json", "x.parquet"):
        assert next(iter(read_documents(tmp_path / name)))
        tracemalloc.start()
        count = sum(len(each["text"]) >= 2000 for each in read_documents(tmp_path / name))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert count == 5_000
        assert peak < 5e6, f"{name}: {peak:,} bytes for 10 MB of text"


def test_one_line_of_50_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("w") as file:
        file.write('{"text": "short"}\n{"text": "' + "long " * 10_000_000 + '"}\n')
    assert [len(each["text"]) for each in read_documents(path)] == [5, 50_000_000]
    with pytest.raises(
        DataError, match=r"x\.jsonl, line 2 is longer than 1,000,000 bytes: .* max_document_bytes allows"
    ):
        list(read_documents(path, max_document_bytes=1_000_000))
    for name, limits in {
        "x.txt": "too long for one document: read it with unit='line'",
        "x.json": "a value is longer",
    }.items():
        new = path.rename(tmp_path / name) if path.exists() else (tmp_path / "x.txt").rename(tmp_path / name)
        with pytest.raises(DataError, match=limits):
            list(read_documents(new, max_document_bytes=1_000_000))


# What is wrong


@pytest.mark.parametrize("content", [b"", b"\n \n"])
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json", "x.csv", "x.py"])
def test_empty_files(tmp_path: Path, name: str, content: bytes) -> None:
    if name == "x.csv" and content:
        content = b"\n\n"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name} is empty: it holds no document"):
        list(read_documents(tmp_path / name))
    with pytest.raises(DataError, match=r"is empty|holds no document: its files are empty or blank"):
        list(read_documents(tmp_path))


def test_an_empty_file_among_others(tmp_path: Path) -> None:
    """A table of nothing is a broken download; a module of nothing is usual."""
    write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.jsonl").touch()
    with pytest.raises(DataError, match=r"b\.jsonl is empty"):
        list(read_documents(tmp_path))


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.csv", "x.json", "x.py"])
def test_binary_garbage(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe" * 3)
    with pytest.raises(
        DataError, match=rf"{name.replace('.', '[.]')}, line \d (is not UTF-8|holds a zero byte)|not in the enc"
    ):
        list(read_documents(tmp_path / name))


def test_bad_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"good\nbetter\nbad \xff\n")
    for unit in ("file", "line", "blank-line"):
        with pytest.raises(DataError, match=r"x\.txt, line 3 is not UTF-8 \(byte 0xff\)"):
            list(read_documents(tmp_path / "x.txt", unit=unit))
    (tmp_path / "x.json").write_bytes(b'[{"a": 1},\n{"a": "\xff"}]')
    with pytest.raises(DataError, match=r"x\.json, line 2 is not UTF-8"):
        list(read_documents(tmp_path / "x.json"))
    (tmp_path / "y.txt").write_bytes("text".encode("utf-16"))
    with pytest.raises(DataError, match="is UTF-16: convert it, with: iconv"):
        list(read_documents(tmp_path / "y.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": }\n', r"x\.jsonl, line 2 is not JSON \(Expecting value\)"),
        ("x.jsonl", '{"a": 1}\n\n[1]\n', r"x\.jsonl, line 3 is a list, not an object"),
        ("x.jsonl", '{"a": 1}\n"b"\n', r"x\.jsonl, line 2 is a string, not an object"),
        ("x.jsonl", '{"a": "\\ud83d"}\n', r"x\.jsonl, line 1 holds half a character"),
        ("x.jsonl", "[" * 200_000, r"x\.jsonl, line 1 is not JSON \(nested too deeply\)"),
        ("x.json", '[{"a": 1},\n{"a": }]', r"x\.json, line 2: Expecting value"),
        ("x.json", '[{"a": 1},\n{"a": 2}', r"x\.json, line 2: the list has no end"),
        ("x.json", "[{}, 12]", r"x\.json, line 1 is a number, not an object"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", r"x\.csv, line 3 has 3 fields, and the first row names 2"),
        ("x.csv", "a,a\n1,2\n", r"x\.csv, line 1 names 'a' twice"),
        ("x.csv", "a,\n1,2\n", r"x\.csv, line 1 has a field without a name"),
        ("x.csv", 'a,b\n1,"2\n', r"x\.csv, line 2: unexpected end of data"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_damaged_compression(tmp_path: Path, compression: str) -> None:
    rows = [{"text": str(np.random.default_rng(number).integers(2**62))} for number in range(5000)]
    path = squeeze(write_lines(tmp_path / "x.jsonl", rows), compression)
    whole = path.read_bytes()
    what = "damaged gzip data" if compression == ".gz" else "zstd data that is cut off"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(DataError, match=what):
        list(read_documents(path))
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 64]) + whole[middle + 64 :])
    with pytest.raises(DataError, match=r"is damaged|is not JSON|not UTF-8|zero byte"):
        list(read_documents(path))
    path.write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match=r"is damaged (gzip|zstd) data"):
        list(read_documents(path))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damaged_tables(tmp_path: Path, kind: str) -> None:
    path = WRITERS[kind](tmp_path / f"x.{kind}", ROWS)
    for content in (path.read_bytes()[:100], b"garbage" * 40, b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"x.{kind} is no {kind.capitalize()} file, or damaged"):
            list(read_documents(path))


def test_a_missing_field_names_the_nearest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"content": "a", "id": 1}, {"id": 2}])
    with pytest.raises(DataError, match=r"x\.jsonl, line 1 has no field 'contents': did you mean content\?"):
        list(read_documents(path, fields={"text": "contents"}))
    with pytest.raises(DataError, match=r"x\.jsonl, line 2 has no field 'content': it has id"):
        list(read_documents(path, fields=["content"]))
    with pytest.raises(ConfigError, match="fields must be names or a mapping of names, not the text 'content'"):
        list(read_documents(path, fields="content"))


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    write_lines(tmp_path / "corpus.jsonl", ROWS)
    with pytest.raises(
        DataError, match=r"there is no file, folder or sample set .*corpus\.json'; near it are corpus\.jsonl"
    ):
        read_documents(tmp_path / "corpus.json")
    with pytest.raises(DataError, match="near it are austen"):
        read_documents("austin")
    with pytest.raises(DataError, match="holds no file of a known format"):
        (tmp_path / "empty").mkdir()
        read_documents(tmp_path / "empty")


def test_options_that_cannot_be(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", ROWS)
    with pytest.raises(ConfigError, match="unit must be one of file, line, blank-line, not 'word'"):
        read_documents(path, unit="word")
    with pytest.raises(ConfigError, match="no option 'units' of files: did you mean unit"):
        read_documents(path, units="line")
    with pytest.raises(ConfigError, match="delimiter must be one character"):
        read_documents(path, delimiter="||")
    with pytest.raises(ConfigError, match="max_document_bytes must be a whole number from 1"):
        read_documents(path, max_document_bytes=0)
    with pytest.raises(ConfigError, match=r"glob chooses files of a folder, and .* is a file"):
        read_documents(path, glob="*.jsonl")
