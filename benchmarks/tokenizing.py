"""Text to rows of token ids: tokens a second on one core, and how memory grows with the data.

Each measurement is a process of its own that tokenizes documents into a store, and then reads every packed row once in
shuffled order. The peer is the tokenizer's own batch encoding (one thread of the `tokenizers` library) into a file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
from memory import fresh_peak

TARGET = 1e6
"""Tokens a second of a core, tokenizing, writing and packing."""
VOCABULARY = 8192
LENGTH = 512
KINDS = ("bpe", "wordpiece", "unigram")
MIB = 2**20


def novels(folder: Path) -> None:
    """The chapters of the six novels, a file each."""
    from texts import novels as fetched

    chapters = []
    for path in sorted(fetched().glob("*.txt")):
        chapters += re.split(r"\n(?=\s*chapter\b)", path.read_text(encoding="utf-8"), flags=re.IGNORECASE)
    write(folder, chapters)


def code(folder: Path) -> None:
    """Python's own standard library, a file each: text whose words come back less often."""
    library = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in paths)
    write(folder, [text for text in texts if text.strip()])


def licence(folder: Path) -> None:
    """A text that is always at hand, for --quick."""
    write(folder, common.TEXT_FILE.read_text(encoding="utf-8").split("\n\n"))


def write(folder: Path, texts: list[str]) -> None:
    folder.mkdir()
    (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")


def repeated(texts: list[str], characters: int) -> Iterator[dict[str, str]]:
    """The texts again and again, until there are so many characters."""
    while True:
        for text in texts:
            yield {"text": text}
            characters -= len(text)
            if characters <= 0:
                return


# --- inside a fresh process -----------------------------------------------------------------------------------------


def measure(side: str, folder: Path, tokenizer_folder: Path, characters: int) -> None:
    """Make a store of the texts in a folder and read it; or, of the peer, only encode and write."""
    from polyformer.tokenizers.loading import load_tokenizer

    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    tokenizer = load_tokenizer(tokenizer_folder)
    assert tokenizer is not None
    tokenizer.encode("to warm up")
    with tempfile.TemporaryDirectory() as name:
        run: Callable[..., dict[str, Any]] = ours if side == "ours" else peer
        common.answer(**run(tokenizer, repeated(texts, characters), Path(name)))


def ours(tokenizer: Any, documents: Iterator[dict[str, str]], folder: Path) -> dict[str, Any]:
    import numpy as np

    from polyformer.training.data.order import Shuffled
    from polyformer.training.data.packing import PackedTokens
    from polyformer.training.data.store import build_store

    before = fresh_peak()["now"]
    clock = Clock()
    store = build_store(documents, tokenizer, folder / "store", append_eos=tokenizer.eos_token_id is not None)
    built = clock.lap()
    peak = common.memory_status()["peak"] - before
    rows = PackedTokens(store, min(LENGTH, store.token_count))
    total = 0
    for start in range(0, len(rows), 1024):
        _, indices = Shuffled(len(rows), 0).rows(np.arange(start, min(start + 1024, len(rows))))
        for index in indices.tolist():
            total += len(rows[index]["input_ids"])
    read = clock.lap()
    return {
        "tokens": store.token_count,
        "build_seconds": built,
        "read_seconds": read,
        "read_tokens": total,
        "build_peak_bytes": peak,
    }


def peer(tokenizer: Any, documents: Iterator[dict[str, str]], folder: Path) -> dict[str, Any]:
    import numpy as np

    clock, tokens, batch, size = Clock(), 0, [], 0
    with (folder / "ids.bin").open("wb") as file:

        def flush() -> int:
            found = tokenizer.backend.encode_batch_fast(batch, add_special_tokens=False)
            arrays = [np.array(encoding.ids, np.uint16) for encoding in found]
            for array in arrays:
                file.write(array.tobytes())
            return sum(map(len, arrays))

        for document in documents:
            batch.append(document["text"])
            size += len(document["text"])
            if size >= MIB:
                tokens += flush()
                batch, size = [], 0
        if batch:
            tokens += flush()
    return {"tokens": tokens, "build_seconds": clock.lap()}


class Clock:
    """Seconds of the processor and of the wall since it was made or last asked."""

    def __init__(self) -> None:
        self._start = time.process_time(), time.perf_counter()

    def lap(self) -> dict[str, float]:
        now = time.process_time(), time.perf_counter()
        found = {"processor": now[0] - self._start[0], "wall": now[1] - self._start[1]}
        self._start = now
        return found


# --- what is measured -----------------------------------------------------------------------------------------------


def compare(
    name: str, folder: Path, tokenizer: Path, characters: int, repetitions: int, peer_too: bool
) -> dict[str, Any]:
    """Both sides in turns; tokens a second of the processor's time, which other programs do not shorten."""
    script = str(Path(__file__).resolve())
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(repetitions):
        for side in ("ours", "peer") if peer_too else ("ours",):
            command = [sys.executable, script, "--measure", side, str(folder), str(tokenizer), str(characters)]
            runs[side].append(common.run_fresh(command).values)
    mine = runs["ours"]
    building = [one["build_seconds"]["processor"] / one["tokens"] for one in mine]
    packing = [one["read_seconds"]["processor"] / one["read_tokens"] for one in mine]
    found: dict[str, Any] = {
        "name": name,
        "tokenizer": tokenizer.name,
        "megabytes": characters / 1e6,
        "tokens": mine[0]["tokens"],
        "tokens_per_second": common.spread([1 / (build + pack) for build, pack in zip(building, packing)]),
        "tokenizing": common.spread([1 / seconds for seconds in building]),
        "packing": common.spread([1 / seconds for seconds in packing]),
        "wall_tokens_per_second": common.spread([one["tokens"] / one["build_seconds"]["wall"] for one in mine]),
        "build_peak_bytes": common.spread([one["build_peak_bytes"] for one in mine]),
        "target": TARGET,
    }
    if peer_too:
        theirs = [one["build_seconds"]["processor"] / one["tokens"] for one in runs["peer"]]
        found["peer_tokenizing"] = common.spread([1 / seconds for seconds in theirs])
        found["ratio"] = common.ratios(theirs, building)
    found["reached"] = found["tokens_per_second"]["median"] >= TARGET
    return found


def train(folder: Path, texts: Path, kinds: tuple[str, ...], vocabulary: int) -> list[Path]:
    """Tokenizers trained on some texts, a folder each."""
    from polyformer.tokenizers.training import train_tokenizer

    documents = json.loads((texts / "texts.json").read_text(encoding="utf-8"))
    random.Random(0).shuffle(documents)
    some = documents[: max(1, len(documents) // 4)]
    for kind in kinds:
        train_tokenizer(iter(some), kind, vocabulary).save(folder / kind)
    return [folder / kind for kind in kinds]


def show(results: list[dict[str, Any]]) -> None:
    """Print the table."""
    rows = [
        [
            f"{found['name']}, {found['tokenizer']}",
            f"{found['megabytes']:.1f}",
            common.show(found["tokens_per_second"], factor=1e-6),
            f"{found['tokenizing']['median'] / 1e6:.2f}",
            f"{found['packing']['median'] / 1e6:.1f}",
            f"{found['peer_tokenizing']['median'] / 1e6:.2f}" if "peer_tokenizing" in found else "",
            f"{found['ratio']['median']:.1f}" if "ratio" in found else "",
            f"{found['build_peak_bytes']['max'] / MIB:,.0f}",
        ]
        for found in results
    ]
    columns = [
        "text, tokenizer",
        "MB",
        "both, M/s",
        "tokenizing",
        "packing",
        "peer, tokenizing",
        "ratio",
        "memory, MiB",
    ]
    common.print_table(
        "Millions of tokens a second of one core's time (the peer only tokenizes), and memory above the start",
        columns,
        rows,
    )


def main() -> None:
    parser = common.make_parser("tokenizing", __doc__)
    parser.set_defaults(model=None)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, default=3, help="of each measurement (%(default)s)")
    options: argparse.Namespace = parser.parse_args()
    if options.measure:
        side, texts, tokenizer, characters = options.measure
        return measure(side, Path(texts), Path(tokenizer), int(characters))
    if options.model is not None:
        parser.error("this benchmark trains its tokenizers itself: leave --model out")
    machine = common.machine_facts()
    repetitions = 1 if options.quick else options.repetitions
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.quick:
            licence(folder / "licence")
            tokenizers = train(folder, folder / "licence", ("bpe",), 512)
            results.append(compare("licence", folder / "licence", tokenizers[0], 20_000, 1, True))
        else:
            novels(folder / "novels")
            code(folder / "code")
            tokenizers = train(folder, folder / "novels", KINDS, VOCABULARY)
            for tokenizer in tokenizers:
                results.append(compare("novels once", folder / "novels", tokenizer, 3_900_000, repetitions, True))
            (of_code,) = train(folder / "of code", folder / "code", ("bpe",), VOCABULARY)
            results.append(compare("code once", folder / "code", of_code, 10_000_000, repetitions, True))
            for characters in (10_000_000, 100_000_000):
                results.append(compare("novels", folder / "novels", tokenizers[0], characters, repetitions, False))
    show(results)
    common.finish(
        {"benchmark": "tokenizing", "quick": options.quick, "length": LENGTH, "machine": machine, "results": results},
        common.output_of("tokenizing", options),
    )


if __name__ == "__main__":
    main()
