"""Semantic search over the sentences of Jane Austen's six novels, whole: making the index, saving, opening and asking
it, and bringing it up to date after one novel changed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import common
from texts import novels

MODEL = "all-minilm-l6-v2"
QUESTIONS = (
    "a proposal of marriage is refused",
    "someone is proud of a large income",
    "a ball and who danced with whom",
    "an accident by the sea",
    "a young woman reads too many gothic novels",
)


def main() -> None:
    parser = common.make_parser("search", __doc__)
    parser.set_defaults(model=MODEL)
    parser.add_argument("--dtype", default="bfloat16", help="of the model (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write the index there too, to ask it more")
    options = parser.parse_args()
    machine = common.machine_facts()
    import torch

    import polyformer
    from polyformer.tasks.search import Index

    model = polyformer.load(options.model, dtype=options.dtype, device="cpu")
    with tempfile.TemporaryDirectory() as name:
        texts, folder = Path(name) / "novels", Path(name) / "index"
        texts.mkdir()
        for path in sorted(novels().glob("*.txt")):
            text = path.read_text(encoding="utf-8")
            (texts / path.name).write_text(text[:20_000] if options.quick else text, encoding="utf-8")
        model.embed("to warm up")
        begin = time.perf_counter()
        index = Index.of_folder(model, texts, name=options.model)
        built = time.perf_counter() - begin
        split = index.changes.split
        begin = time.perf_counter()
        index.save(folder)
        saved = time.perf_counter() - begin
        if options.keep is not None:
            index.save(options.keep)
        nbytes = sum(path.stat().st_size for path in folder.iterdir())
        begin = time.perf_counter()
        index = Index.load(folder)
        opened = time.perf_counter() - begin
        begin = time.perf_counter()
        same = Index.of_folder(model, texts, old=index, name=options.model)
        unchanged = time.perf_counter() - begin
        assert same.passages == index.passages and same.changes.unchanged == len(same.files)
        with (texts / "persuasion.txt").open("a", encoding="utf-8") as file:
            file.write("\n\nA sentence that Jane Austen did not write.\n")
        begin = time.perf_counter()
        changed = Index.of_folder(model, texts, old=index, name=options.model)
        updated = time.perf_counter() - begin
        assert (changed.changes.changed, changed.changes.unchanged) == (1, len(same.files) - 1)
    times, found = [], {}
    for question in QUESTIONS:
        begin = time.perf_counter()
        hits = index.search(model, question, top_k=3)
        times.append(time.perf_counter() - begin)
        found[question] = [hit.to_json() for hit in hits]
        print(f"\n{question}")
        for hit in hits:
            print(f"  {hit.score:.3f}  {hit.source}:{hit.line}  {hit.text[:160]}")
    result = {
        "files": len(index.files),
        "passages": len(index),
        "split": split,
        "build_seconds": round(built, 1),
        "passages_per_second": round(len(index) / built, 1),
        "save_seconds": round(saved, 3),
        "open_seconds": round(opened, 3),
        "index_bytes": nbytes,
        "nothing_changed_seconds": round(unchanged, 1),
        "one_novel_changed_seconds": round(updated, 1),
        "question_milliseconds": round(1000 * statistics.median(times), 1),
    }
    common.print_table("The index", ("what", "value"), [[name, f"{value:,}"] for name, value in result.items()])
    common.finish(
        {
            "machine": machine,
            "model": options.model,
            "dtype": options.dtype,
            "torch_threads": torch.get_num_threads(),
            **result,
            "found": found,
        },
        common.output_of("search", options),
    )


if __name__ == "__main__":
    main()
