"""Semantic search over the sentences of Jane Austen's six novels: making the index, saving, opening and asking it."""

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
    options = parser.parse_args()
    machine = common.machine_facts()
    import polyformer
    from polyformer.tasks.search import Index, read_folder

    model = polyformer.load(options.model, dtype=options.dtype, device="cpu")
    passages = read_folder(novels())
    if options.quick:
        passages = passages[::100]
    begin = time.perf_counter()
    index = Index.build(model, passages, name=options.model)
    built = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "index"
        begin = time.perf_counter()
        index.save(folder)
        saved = time.perf_counter() - begin
        nbytes = sum(path.stat().st_size for path in folder.iterdir())
        begin = time.perf_counter()
        index = Index.load(folder)
        opened = time.perf_counter() - begin
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
        "passages": len(passages),
        "build_seconds": round(built, 1),
        "passages_per_second": round(len(passages) / built, 1),
        "save_seconds": round(saved, 3),
        "open_seconds": round(opened, 3),
        "index_bytes": nbytes,
        "question_milliseconds": round(1000 * statistics.median(times), 1),
    }
    common.print_table("The index", ("what", "value"), [[name, f"{value:,}"] for name, value in result.items()])
    common.finish(
        {"machine": machine, "model": options.model, "dtype": options.dtype, **result, "found": found},
        common.output_of("search", options),
    )


if __name__ == "__main__":
    main()
