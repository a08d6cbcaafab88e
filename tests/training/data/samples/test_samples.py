"""Sample sets: how they are found, fetched whole or not at all, and read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyformer.checkpoints.disk import DiskFullError
from polyformer.checkpoints.transfer import ProgressCallback, UnreachableError
from polyformer.errors import ConfigError, DataError
from polyformer.training.data import samples
from polyformer.training.data.reading import read_documents
from polyformer.training.data.samples.base import Sample
from polyformer.training.data.samples.storing import SPLITS, read_stored, store


class Source:
    """A sample set made on the spot, which counts how often it is fetched."""

    def __init__(self) -> None:
        self.fetched = 0
        self.error: Exception | None = None

    def fetch(self, folder: Path, progress: ProgressCallback) -> dict[str, str]:
        self.fetched += 1
        assert not list(folder.iterdir())
        (folder / "half").write_text("done")
        if self.error is not None:
            raise self.error
        progress("made", 1, 1)
        store(folder, ({"text": f"text {number}", "split": SPLITS[number % 3]} for number in range(9)))
        return {"made": "1.0"}

    @staticmethod
    def read(folder: Path, loud: bool = False) -> Iterator[dict[str, Any]]:
        for document in read_stored(folder):
            yield {**document, "text": document["text"].upper()} if loud else document

    def sample(self, revision: int = 1) -> Sample:
        return Sample(
            "made", "a set", "CC0", "here", {"text": "some"}, self.fetch, self.read, SPLITS, revision=revision,
            options={"loud": "in capitals"},
        )  # fmt: skip


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Source:
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path))
    made = Source()
    monkeypatch.setattr(samples, "samples", lambda: {"made": made.sample()})
    return made


def test_fetched_once_and_read(source: Source, tmp_path: Path) -> None:
    assert not samples.is_here("made")
    seen: list[tuple[str, int, int | None]] = []
    folder = samples.pull("made", progress=lambda *report: seen.append(report))
    assert folder == tmp_path / "data" / "made" and samples.is_here("made")
    assert seen == [("made", 1, 1)]
    about = samples.about("made")
    assert about == {"name": "made", "licence": "CC0", "source": "here", "versions": {"made": "1.0"}, "revision": 1}
    documents = list(samples.read("made"))
    assert [document["text"] for document in documents] == [f"text {number}" for number in range(9)]
    assert [document["text"] for document in samples.read("made", split="test", loud=True)] == [
        "TEXT 2",
        "TEXT 5",
        "TEXT 8",
    ]
    assert source.fetched == 1
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"made", ".made.lock"}


def test_read_as_any_source(source: Source) -> None:
    assert len(list(read_documents("made"))) == 9
    found = list(read_documents("made", split="train", fields={"body": "text"}, limit=2, loud=True))
    assert found == [{"body": "TEXT 0", "split": "train"}, {"body": "TEXT 3", "split": "train"}]
    with pytest.raises(DataError, match="made, document 1 has no field 'texts': did you mean text"):
        list(read_documents("made", fields=["texts"]))
    with pytest.raises(ConfigError, match="made is a sample set, which has no format"):
        read_documents("made", format="jsonl")
    with pytest.raises(ConfigError, match="made has no option 'quiet': it takes loud"):
        read_documents("made", quiet=True)
    with pytest.raises(DataError, match="made has no part 'dev': it has train, validation, test"):
        read_documents("made", split="dev")
    with pytest.raises(DataError, match="no sample set is called 'mad': did you mean made"):
        samples.find("mad")


@pytest.mark.parametrize("error", [UnreachableError("no network"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_nothing_is_left_of_a_failure(source: Source, tmp_path: Path, error: Exception) -> None:
    source.error = error
    with pytest.raises(DiskFullError if isinstance(error, OSError) and error.errno == 28 else type(error)):
        samples.pull("made")
    assert {path.name for path in (tmp_path / "data").iterdir()} <= {".made.lock"}
    source.error = None
    assert (samples.pull("made") / "documents.jsonl").is_file()


def test_an_earlier_revision_is_made_again(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    (samples.pull("made") / "old").touch()
    monkeypatch.setattr(samples, "samples", lambda: {"made": source.sample(revision=2)})
    assert not samples.is_here("made")
    assert not (samples.pull("made") / "old").exists() and source.fetched == 2
    assert samples.about("made")["revision"] == 2
    samples.pull("made")
    assert source.fetched == 2


def test_what_a_killed_process_left_is_removed(source: Source, tmp_path: Path) -> None:
    for name in (".made.abc", ".made-too.abc"):
        (tmp_path / "data" / name / "made").mkdir(parents=True)
    samples.pull("made")
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"made", ".made.lock", ".made-too.abc"}


def test_a_folder_that_was_not_finished_is_replaced(source: Source, tmp_path: Path) -> None:
    (tmp_path / "data" / "made").mkdir(parents=True)
    (tmp_path / "data" / "made" / "documents.jsonl").write_text("{}\n")
    assert len(list(samples.read("made"))) == 9


def test_every_set_says_what_it_is() -> None:
    known = samples.samples()
    assert {
        "austen", "python-stdlib", "python-functions", "bible-en-es", "debian-descriptions", "spam-assassin",
        "fashion-mnist", "digits", "fluent-emoji", "openmoji", "tabler-icons", "easy-vqa", "chorales", "cmudict",
        "human-eval", "chitchat", "asterisk-sounds-en", "asterisk-sounds-es", "asterisk-sounds-fr",
    } == set(known)  # fmt: skip
    for name, sample in known.items():
        assert sample.name == name and sample.licence and sample.source and sample.fields
        assert set(sample.splits) <= set(SPLITS) and "split" not in sample.fields
        assert bool(sample.labels) == ("label" in sample.fields)
        assert "\n" not in sample.description


def test_documents_lie_as_lines(tmp_path: Path) -> None:
    documents = [{"text": "é\n\u2028", "list": [1, 2.5]}, {"text": ""}]
    assert store(tmp_path, documents) == 2
    assert list(read_stored(tmp_path)) == documents
    assert len((tmp_path / "documents.jsonl").read_bytes().split(b"\n")) == 3
    assert json.loads((tmp_path / "documents.jsonl").read_text(encoding="utf-8").split("\n")[0]) == documents[0]


# The real ones: what they must hold. A set that is not in the cache yet is fetched.

COUNTS = {
    "austen": (6, {"train": 5, "test": 1}),
    "bible-en-es": (30_866, {"train": 27_888, "validation": 1_783, "test": 1_195}),
    "spam-assassin": (6_046, {"train": 4_831, "validation": 608, "test": 607}),
    "fashion-mnist": (70_000, {"train": 60_000, "test": 10_000}),
    "digits": (1_797, {"train": 1_434, "validation": 181, "test": 182}),
    "easy-vqa": (48_248, {"train": 38_575, "test": 9_673}),
    "cmudict": (135_166, {"train": 108_234, "validation": 13_395, "test": 13_537}),
    "human-eval": (164, {"test": 164}),
    "chitchat": (7_168, {"train": 5_682, "validation": 765, "test": 721}),
    "chorales": (328, {"train": 254, "validation": 34, "test": 40}),
    "asterisk-sounds-en": (568, {"train": 460, "validation": 46, "test": 62}),
    "fluent-emoji": (3_174, {"train": 2_535, "validation": 323, "test": 316}),
    "openmoji": (4_495, {"train": 3_539, "validation": 504, "test": 452}),
    "tabler-icons": (5_233, {"train": 4_190, "validation": 602, "test": 441}),
    # These follow the machine: its release of Debian, its Python.
    "debian-descriptions": (40_000, {}),
    "python-stdlib": (400, {}),
    "python-functions": (4_000, {}),
    "asterisk-sounds-es": (450, {}),
    "asterisk-sounds-fr": (450, {}),
}


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", COUNTS)
def test_real_sets(name: str) -> None:
    sample = samples.find(name)
    total, parts = COUNTS[name]
    counts: dict[str, int] = {}
    for document in samples.read(name, **({"size": 8} if "size" in sample.options else {})):
        assert set(document) == {*sample.fields, "split"}
        counts[document["split"]] = counts.get(document["split"], 0) + 1
        if sample.labels:
            assert 0 <= document["label"] < len(sample.labels)
    if parts:
        assert counts == parts and sum(counts.values()) == total
    else:
        assert sum(counts.values()) >= total and set(counts) == set(sample.splits)
