"""Sentence embeddings: all-MiniLM-L6-v2 on real sentences, beside sentence-transformers in the same run.

Both sides embed the same sentences, in turns; every figure is the best of some. The part of the machine's limit is that
of a large matrix product in the same precision.
"""

from __future__ import annotations

import time
from typing import Any

import common
from texts import sentences

MODEL = "all-minilm-l6-v2"


def peak(dtype: Any) -> float:
    """FLOP/s of a large matrix product."""
    import torch

    left, right = torch.randn(2, 2048, 2048).to(dtype)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - begin)
    return 2 * 2048**3 / best


def flops_of(model: Any, texts: list[str]) -> float:
    """Of the matrix products: two for a weight and a token, and those of attention."""
    config = model.config
    layers, width = config.num_layers, config.hidden_size
    weights = sum(p.numel() for name, p in model.network.named_parameters() if "stack" in name and p.dim() == 2)
    lengths = [min(len(ids), 256) for ids in model.tokenizer.encode_batch(texts)]
    return sum(2 * weights * length + 4 * layers * width * length**2 for length in lengths)


def main() -> None:
    parser = common.make_parser("embedding", __doc__)
    parser.set_defaults(model=MODEL)
    parser.add_argument("--sentences", type=int, default=2000, help="how many (%(default)s)")
    options = parser.parse_args()
    count, rounds = (64, 1) if options.quick else (options.sentences, 3)
    machine = common.machine_facts()
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer

    import polyformer
    from polyformer.checkpoints.catalogue import resolve

    texts = sentences(count)
    source = resolve(options.model).path
    models = {name: polyformer.load(source, dtype=name, device="cpu") for name in ("float32", "bfloat16")}
    peer = SentenceTransformer(str(source), device="cpu")
    flops = flops_of(models["float32"], texts)

    sides = {
        "Polyformer float32": lambda: models["float32"].embed(texts, truncate=True),
        "Polyformer bfloat16": lambda: models["bfloat16"].embed(texts, truncate=True),
        "sentence-transformers float32": lambda: peer.encode(texts, batch_size=32),
    }
    vectors = {name: side() for name, side in sides.items()}  # warm, and compared below
    seconds = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            begin = time.perf_counter()
            side()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    reference = vectors["sentence-transformers float32"]
    peaks = {name: peak(getattr(torch, name)) for name in ("float32", "bfloat16")}
    rows = []
    for name, took in seconds.items():
        unit = vectors[name] / np.linalg.norm(vectors[name], axis=1, keepdims=True)
        rows.append(
            {
                "side": name,
                "sentences_per_second": round(count / took, 1),
                "ratio": round(seconds["sentence-transformers float32"] / took, 2),
                "of_peak": round(flops / took / peaks[name.split()[-1]], 3),
                "least_cosine": round(float((unit * reference).sum(1).min()), 6),
            }
        )
    columns = ("side", "sentences_per_second", "ratio", "of_peak", "least_cosine")
    common.print_table(f"{count:,} sentences", columns, [[str(row[column]) for column in columns] for row in rows])
    common.finish({"machine": machine, "sentences": count, "runs": rows}, common.output_of("embedding", options))


if __name__ == "__main__":
    main()
