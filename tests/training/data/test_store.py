"""A store gives back what was put in, is whole or not there, and takes little memory to make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from polyformer.errors import DataError
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.data import store as store_file
from polyformer.training.data.store import TokenStore, build_store, cached_store, fingerprint

Make = Callable[..., TokenStore]


def test_documents_come_back(make_store: Make, tokenizer: TextTokenizer) -> None:
    texts = ["a single man", "", "of a good\nfortune ", "日本 🙂"]
    store = make_store(texts)
    assert len(store) == 4 and store.columns == ("input_ids",)
    for number, text in enumerate(texts):
        ids = store[number]["input_ids"]
        assert ids.dtype == np.int64 and ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_token_id]
        assert tokenizer.decode(ids.tolist()) == text
    assert store[-1]["input_ids"].tolist() == store[3]["input_ids"].tolist()
    assert store.token_count == sum(len(tokenizer.encode(text)) + 1 for text in texts)
    with pytest.raises(IndexError):
        store[4]


@settings(max_examples=25)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=20), batch=st.integers(1, 30)
)
def test_any_texts_in_any_batches(
    texts: list[str], batch: int, tokenizer: TextTokenizer, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("stores") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_file, "_BATCH_CHARACTERS", batch)
        store = build_store(({"text": text} for text in texts), tokenizer, folder, append_eos=False)
    assert [tokenizer.decode(store[place]["input_ids"].tolist()) for place in range(len(store))] == texts


def test_several_fields_and_all_that_is_kept(make_store: Make, tokenizer: TextTokenizer) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    documents = [
        {
            "source": f"man {number}",
            "target": "wife " * number,
            "label": number,
            "score": number / 2,
            "flags": [1.0, 0.0, number / 3],
            "list": list(range(number)),
            "name": f"line\n{number} é",
            "image": pictures[number],
            "ignored": object(),
        }
        for number in range(3)
    ]
    keep = ("label", "score", "flags", "list", "name", "image")
    store = make_store(documents, fields=("source", "target"), keep=keep, append_eos=False)
    for number, document in enumerate(documents):
        found = store[number]
        assert set(found) == {"source_ids", "target_ids", *keep}
        assert found["source_ids"].tolist() == tokenizer.encode(document["source"])
        assert found["target_ids"].tolist() == tokenizer.encode(document["target"])
        assert type(found["label"]) is int and found["label"] == number
        assert type(found["score"]) is float and found["score"] == number / 2
        assert found["flags"].tolist() == document["flags"] and found["list"].tolist() == document["list"]
        assert found["name"] == document["name"]
        assert found["image"].dtype == np.uint8 and (found["image"] == pictures[number]).all()


def test_words_keep_their_places(make_store: Make, tokenizer: TextTokenizer) -> None:
    store = make_store(
        [{"words": ["single", "man"], "tags": [3, 4]}], fields=("words",), keep=("tags",), append_eos=False
    )
    assert store[0]["input_ids"].tolist() == tokenizer.encode("single man")
    assert store[0]["word_starts"].tolist() == [0, len(tokenizer.encode("single"))]


def test_no_tokenizer_is_needed_for_pictures(tmp_path: Path) -> None:
    documents = [{"image": np.full((2, 2), number, np.uint8), "label": number} for number in range(3)]
    store = build_store(documents, None, tmp_path / "pictures", fields=(), keep=("image", "label"))
    assert store[2]["image"].tolist() == [[2, 2], [2, 2]] and store[2]["label"] == 2 and store.token_count == 0


@pytest.mark.parametrize(("tokens", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_take_as_little_room_as_they_can(tokens: int, dtype: type, tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({f"w{number}": number for number in range(tokens)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    store = build_store([{"text": f"w1 w{tokens - 1}"}], TextTokenizer(backend), tmp_path / "one", append_eos=False)
    assert store.tokens().numbers.dtype == dtype and store[0]["input_ids"].tolist() == [1, tokens - 1]
    assert store.vocab_size == tokens


@pytest.mark.slow
def test_several_processes_write_the_same(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_file, "_BATCH_CHARACTERS", 50)
    documents = [{"text": f"truth {number} " * 5, "label": number} for number in range(40)]
    alone, together = (make_store(iter(documents), keep=("label",), workers=workers) for workers in (1, 2))
    for path in sorted(alone.folder.iterdir()):
        assert path.read_bytes() == (together.folder / path.name).read_bytes()


def test_progress_is_told(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_file, "_BATCH_DOCUMENTS", 2)
    told: list[Any] = []
    make_store(["a"] * 5, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, None), (4, None), (5, None)]


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "settings", "message"),
    [
        ([], {}, "there are no documents"),
        ([{"text": "a"}, {"body": "b"}], {}, "document 1 has no field 'text'; it has body"),
        ([{"text": None}], {}, "document 0 has no field 'text'"),
        ([{"text": "a"}, {"text": 3}], {}, "'text' of document 1 is int, not a text"),
        ([{"text": "a"}, {"text": ["b"]}], {}, "document 1 is a list, but those before are texts"),
        ([{"text": ["a"]}, {"text": "b"}], {}, "document 1 is a text, but those before are lists of words"),
        ([{"text": "a"}, {"text": "\udc80"}], {}, "'text' of document 1: a text is not valid Unicode"),
        ([{"text": "a"}, "b"], {}, "document 1 is str, not a dict"),
        ([{"text": "a", "label": 1}, {"text": "a", "label": 0.5}], {"keep": ("label",)}, "document 1 is 0.5, but"),
        (
            [{"text": "a", "label": 1}, {"text": "a", "label": "b"}],
            {"keep": ("label",)},
            "'label' of document 1 is str",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "a", "label": 1}],
            {"keep": ("label",)},
            "document 1 is int, but .* str",
        ),
        ([{"text": "a", "label": [1]}, {"text": "a", "label": ["b"]}], {"keep": ("label",)}, "document 1 is list, but"),
        ([{"text": "a", "label": object()}], {"keep": ("label",)}, "'label' of the first document is object"),
        ([{"text": "a", "label": [[1], [1, 2]]}], {"keep": ("label",)}, "lists of different lengths"),
        ([{"text": "a"}], {"fields": ()}, "at least one field"),
        ([{"text": "a"}], {"fields": ("text", "caption")}, "two columns .* 'input_ids'"),
        ([{"text": "a"}], {"workers": 0}, "workers must be at least 1"),
    ],
)
def test_a_mistake_is_named_and_leaves_nothing(
    documents: list[Any], settings: dict[str, Any], message: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        build_store(documents, tokenizer, tmp_path / "one", **settings)
    assert not list(tmp_path.iterdir())


def test_pictures_of_two_sizes_are_refused(tmp_path: Path) -> None:
    documents = [{"image": np.zeros((2, 2, 3), np.uint8)}, {"image": np.zeros((2, 3, 3), np.uint8)}]
    with pytest.raises(DataError, match=r"document 1 is ndarray of shape \[2, 3, 3\], .* make all of one size"):
        build_store(documents, None, tmp_path / "one", fields=(), keep=("image",))


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    with pytest.raises(DataError, match="append_eos"):
        build_store([{"text": "a"}], TextTokenizer(tokenizer.backend), tmp_path / "one")
    with pytest.raises(DataError, match="there is no tokenizer"):
        build_store([{"text": "a"}], None, tmp_path / "one")


def test_an_error_of_the_documents_passes_and_leaves_nothing(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    def documents() -> Iterator[dict[str, str]]:
        yield {"text": "a"}
        raise FileNotFoundError("of the reader")

    with pytest.raises(FileNotFoundError, match="of the reader"):
        build_store(documents(), tokenizer, tmp_path / "one")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_told_and_leaves_nothing(
    tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def open_full(path: Path, *arguments: Any, **options: Any) -> Any:
        return opened(Path("/dev/full") if path.name == "input_ids.bin" else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(DataError, match=r"cannot write .*input_ids.bin of a store: No space left"):
        build_store([{"text": "a"}], tokenizer, tmp_path / "one")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_not_touched(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(DataError, match="exists already"):
        build_store([{"text": "a"}], tokenizer, tmp_path / "mine")
    with pytest.raises(DataError, match="not a store of tokens"):
        TokenStore.open(tmp_path / "mine")
    with pytest.raises(DataError, match="is no folder"):
        TokenStore.open(tmp_path / "nothing")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("harm", ["shorter", "missing", "half json", "other format", "unknown kind"])
def test_a_damaged_store_is_refused(harm: str, make_store: Make) -> None:
    folder = make_store(["a single man", "in want"]).folder
    meta, ids = folder / "meta.json", folder / "input_ids.bin"
    if harm == "shorter":
        ids.write_bytes(ids.read_bytes()[:-1])
    elif harm == "missing":
        ids.unlink()
    elif harm == "half json":
        meta.write_text(meta.read_text()[:40])
    else:
        text = meta.read_text()
        found = ('"format": 1', '"format": 99') if harm == "other format" else ('"kind": "tokens"', '"kind": "tapes"')
        assert found[0] in text
        meta.write_text(text.replace(*found))
    with pytest.raises(DataError, match="again"):
        TokenStore.open(folder)


def test_a_column_that_is_not_there(make_store: Make) -> None:
    store = make_store([{"text": "a", "label": 1}], keep=("label",))
    with pytest.raises(DataError, match="no column 'labels'; it has input_ids, label"):
        store.column("labels")
    with pytest.raises(DataError, match="does not hold token ids"):
        store.tokens("label")


# --- tokenized once -------------------------------------------------------------------------------------------------


def test_what_was_tokenized_is_not_tokenized_again(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    calls = 0

    def read() -> Iterator[dict[str, str]]:
        nonlocal calls
        calls += 1
        yield {"text": "a single man"}

    first = cached_store(tmp_path, ["file", 12], read, tokenizer)
    again = cached_store(tmp_path, ["file", 12], read, tokenizer, workers=1, progress=lambda done, total: None)
    assert first.folder == again.folder and calls == 1
    others = [
        cached_store(tmp_path, ["file", 13], read, tokenizer),
        cached_store(tmp_path, ["file", 12], read, tokenizer, append_eos=False),
        cached_store(tmp_path, ["file", 12], read, _with_another_token(tokenizer)),
    ]
    assert len({store.folder for store in [first, *others]}) == 4 and calls == 4


def _with_another_token(tokenizer: TextTokenizer) -> TextTokenizer:
    backend = Tokenizer.from_str(tokenizer.backend.to_str())
    backend.add_tokens(["another"])
    return TextTokenizer(backend, tokenizer.settings)


def test_what_a_killed_process_left_is_swept_away(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    name = fingerprint(tokenizer, "data")
    leftover = tmp_path / f".{name}.x1y2z3.tmp"
    leftover.mkdir(parents=True)
    (leftover / "input_ids.bin").write_bytes(b"half")
    cached_store(tmp_path, "data", lambda: [{"text": "a"}], tokenizer)
    assert not leftover.exists()


def test_a_store_under_a_wrong_name_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    first = cached_store(tmp_path, "one", lambda: [{"text": "a"}], tokenizer)
    shutil.copytree(first.folder, tmp_path / fingerprint(tokenizer, "two"))
    with pytest.raises(DataError, match="made of something else"):
        cached_store(tmp_path, "two", lambda: [{"text": "b"}], tokenizer)


UNGUARDED = """
import sys
from tokenizers import Tokenizer
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.data.store import build_store
tokenizer = TextTokenizer(Tokenizer.from_file(sys.argv[1]))
build_store([{"text": "a"}], tokenizer, sys.argv[2], append_eos=False, workers=2)
"""


@pytest.mark.slow
def test_a_program_that_cannot_start_processes_is_told_why(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "program.py").write_text(UNGUARDED)
    command = [sys.executable, "program.py", "tokenizer.json", "store"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "DataError: a process that tokenizes has died" in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_folder_that_cannot_be_made(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot keep stores in"):
        cached_store(tmp_path / "file", "data", lambda: [{"text": "a"}], tokenizer)
    with pytest.raises(DataError, match="cannot write a store to"):
        build_store([{"text": "a"}], tokenizer, tmp_path / "file" / "store")


RACE = """
import sys, time
from tokenizers import Tokenizer
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings
from polyformer.training.data.store import cached_store
tokenizer = TextTokenizer(Tokenizer.from_file(sys.argv[1]), TokenizerSettings(special_tokens={"eos": "<end>"}))
def read():
    print("reads", flush=True)
    time.sleep(0.5)
    yield {"text": "a single man"}
print(len(cached_store(sys.argv[2], "data", read, tokenizer)))
"""


@pytest.mark.slow
def test_processes_that_start_together_tokenize_once(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    command = [sys.executable, "-c", RACE, str(tmp_path / "tokenizer.json"), str(tmp_path / "stores")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = "".join(process.communicate()[0] for process in running)
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(said.split()) == ["1", "1", "1", "reads"]


# --- memory ---------------------------------------------------------------------------------------------------------

MEMORY = """
import json, sys
from tokenizers import Tokenizer
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings
from polyformer.training.data.store import build_store
tokenizer = TextTokenizer(Tokenizer.from_file(sys.argv[1]), TokenizerSettings(special_tokens={"eos": "<end>"}))
def documents(count):
    for number in range(count):
        yield {"text": f"truth universally acknowledged {number} single man in possession of a good fortune " * 60}
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
build_store(documents(500), tokenizer, sys.argv[2] + "/small")
small = peak()
store = build_store(documents(3_000), tokenizer, sys.argv[2] + "/large")
print(json.dumps({"growth": peak() - small, "characters": 3_000 * 5_000, "bytes": store.tokens().numbers.nbytes}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_does_not_grow_with_the_data(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "tokenizer.json"), str(tmp_path)]
    said = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert said["bytes"] > 6_000_000
    assert said["growth"] < 4_000_000, said  # of 15 MB of text
