"""GGUF files: written by gguf-py, read here; and every way in which a file can be broken."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from polyformer.checkpoints.gguf import GGUFFile
from polyformer.errors import CheckpointError

PLAIN = {"f32": np.float32, "f16": np.float16, "f64": np.float64, "i8": np.int8, "i16": np.int16, "i32": np.int32}


def write_file(path: Path) -> dict[str, np.ndarray]:
    """A small file with every kind of metadata and several types of tensor. Returns the tensors as float32."""
    generator = np.random.default_rng(5)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.uint32", 4_000_000_000)
    writer.add_int8("a.int8", -7)
    writer.add_uint64("a.uint64", 2**63)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "größer 🦙")
    writer.add_array("a.strings", ["eins", "", "drei 🦙"])
    writer.add_array("a.integers", [3, -4, 5])
    writer.add_array("a.floats", [0.5, -1.5])
    writer.add_array("a.nested", [[1, 2], [3]])
    expected = {}
    for name, dtype in PLAIN.items():
        values = (generator.normal(size=(3, 5)) * 20).astype(dtype)
        writer.add_tensor(name, values)
        expected[name] = values
    values = generator.normal(size=(4, 64)).astype(np.float32)
    for kind in (gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.BF16):
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(kind.name, packed, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(packed, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.gguf"
    write_file(path)
    return path


def test_metadata_and_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    expected = write_file(path)
    with GGUFFile(path) as file:
        assert file.version == 3
        metadata = {key: value for key, value in file.metadata.items() if key.startswith("a.")}
        assert metadata == {
            "a.uint32": 4_000_000_000,
            "a.int8": -7,
            "a.uint64": 2**63,
            "a.float64": 0.1,
            "a.bool": True,
            "a.string": "größer 🦙",
            "a.strings": ["eins", "", "drei 🦙"],
            "a.integers": [3, -4, 5],
            "a.floats": [0.5, -1.5],
            "a.nested": [[1, 2], [3]],
        }
        assert file.metadata["general.architecture"] == "llama"
        assert file.names() == list(expected)
        loaded = {name: file.load(name) for name in file.names()}
        for name, values in expected.items():
            assert file.shape(name) == values.shape
            assert loaded[name].dtype == file.dtype(name)
        assert file.type_name("Q4_1") == "Q4_1"
        assert file.dtype("Q4_1") == torch.float32
        assert file.nbytes("Q4_1") == 4 * 2 * 20
    # The tensors outlive the file.
    for name, values in expected.items():
        assert np.array_equal(loaded[name].float().numpy(), values.astype(np.float32)), name


def test_asked_dtypes_and_copies(good: Path) -> None:
    file = GGUFFile(good)
    assert file.load("f32", torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(file.load("Q8_0", torch.bfloat16), file.load("Q8_0").bfloat16())
    assert file.load("i8", torch.bfloat16).dtype == torch.int8  # whole numbers stay whole
    mapped = file.load("f32")
    mapped[0, 0] = 123.0  # a private map: neither the file nor a later copy of another tensor sees it
    assert file.load("f32", keep_mapped=False)[0, 0] == 123.0
    assert GGUFFile(good).load("f32")[0, 0] != 123.0


def test_raw_blocks_are_the_stored_bytes(good: Path) -> None:
    file = GGUFFile(good)
    raw, kind = file.load_raw("Q4_1")
    assert kind == "Q4_1"
    assert raw.shape == (4, 2 * 20)
    theirs = next(tensor for tensor in gguf.GGUFReader(good).tensors if tensor.name == "Q4_1")
    assert np.array_equal(raw.numpy(), theirs.data)


def test_version_2(good: Path) -> None:
    """Version 3 added big-endian files and changed nothing else."""
    content = bytearray(good.read_bytes())
    content[4] = 2
    good.write_bytes(content)
    file = GGUFFile(good)
    assert file.version == 2
    assert file.metadata["a.strings"] == ["eins", "", "drei 🦙"]


def test_unknown_names_and_closed_files(good: Path) -> None:
    file = GGUFFile(good)
    with pytest.raises(CheckpointError, match="no tensor called nothing"):
        file.load("nothing")
    file.close()
    with pytest.raises(CheckpointError, match="closed"):
        file.load("f32")


def test_every_truncation_is_an_error(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    short = tmp_path / "short.gguf"
    for length in [*range(0, 400, 7), *range(400, len(content) - 1, 61)]:
        short.write_bytes(content[:length])
        if length > len(content) - 32:
            continue  # the rest is padding after the last tensor
        with pytest.raises(CheckpointError) as caught:
            GGUFFile(short)
        assert "short.gguf" in str(caught.value)
        assert "\n" not in str(caught.value)


def header(*, magic: bytes = b"GGUF", version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, keys)


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, sizes: list[int], kind: int, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "magic": (header(magic=b"PK\x03\x04"), "no GGUF file"),
    "version 1": (header(version=1), "version 1"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "absurd number of tensors": (header(tensors=2**60), "cut short"),
    "absurd number of keys": (header(keys=2**63), "cut short"),
    "absurd string": (header(keys=1) + struct.pack("<Q", 2**62) + b"x" * 40, "cut short"),
    "absurd array": (header(keys=1) + key("a", 9, struct.pack("<IQ", 4, 2**61)) + b"x" * 64, "cut short"),
    "absurd array of strings": (header(keys=1) + key("a", 9, struct.pack("<IQ", 8, 2**61)) + b"x" * 64, "cut short"),
    "absurd array of arrays": (header(keys=1) + key("a", 9, struct.pack("<IQ", 9, 2**61)) + b"x" * 64, "cut short"),
    "string beyond the end": (
        header(keys=1) + key("a", 9, struct.pack("<IQ", 8, 2) + text("ok") + struct.pack("<Q", 2**40)) + b"x" * 9,
        "cut short",
    ),
    "unknown value type": (header(keys=1) + key("a", 77, b"\0" * 16), "unknown value type 77"),
    "deep nesting": (header(keys=1) + key("a", 9, struct.pack("<IQ", 9, 1) * 9) + b"\0" * 99, "deep"),
    "not UTF-8": (header(keys=1) + key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe"), "not UTF-8"),
    "array not UTF-8": (
        header(keys=1) + key("a", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", 2) + b"\xff\xfe"),
        "item 0 .* is not UTF-8",
    ),
    "key twice": (header(keys=2) + key("a", 0, b"\1") * 2 + b"\0" * 9, "occurs twice"),
    "alignment": (header(keys=1) + key("general.alignment", 4, struct.pack("<I", 24)), "power of two"),
    "split file": (header(keys=1) + key("split.count", 2, struct.pack("<H", 3)), "3 parts"),
    "too many dimensions": (header(tensors=1) + tensor("t", [1] * 5, 0) + b"\0" * 99, "5 dimensions"),
    "unread type": (header(tensors=1) + tensor("blk.0.w", [256], 23) + b"\0" * 999, r"blk\.0\.w is of type IQ4_XS"),
    "unknown type": (header(tensors=1) + tensor("blk.0.w", [256], 99) + b"\0" * 999, "number 99"),
    "row of broken blocks": (header(tensors=1) + tensor("t", [48], 8) + b"\0" * 999, "rows of 48"),
    "absurd shape": (header(tensors=1) + tensor("t", [2**40, 2**40], 0) + b"\0" * 99, "cut short"),
    "absurd offset": (header(tensors=1) + tensor("t", [4], 0, 2**62) + b"\0" * 99, "cut short"),
    "tensor twice": (header(tensors=2) + tensor("t", [4], 0) * 2 + b"\0" * 99, "occurs twice"),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_broken_files(tmp_path: Path, case: str) -> None:
    content, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.gguf does not exist"):
        GGUFFile(tmp_path / "nowhere.gguf")


def test_random_damage_never_crashes(good: Path, tmp_path: Path) -> None:
    """Whatever a flipped byte does, it is either read or refused with the room's own error."""
    content = good.read_bytes()
    generator = np.random.default_rng(11)
    path = tmp_path / "damaged.gguf"
    read: Callable[[GGUFFile], object] = lambda file: [file.load(name) for name in file.names()]  # noqa: E731
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        for at in generator.integers(0, 900, size=2):
            damaged[at] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read(GGUFFile(path))
        except CheckpointError:
            refused += 1
    assert refused > 50
