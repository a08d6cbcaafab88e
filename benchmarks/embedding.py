"""Sentence embeddings: all-MiniLM-L6-v2 on real sentences, beside sentence-transformers in the same run.

All sides embed the same sentences, in turns; every figure is the best of some. The part of the machine's limit is that
of a large matrix product in the same precision.

With ``--onnx-runtime`` a second peer runs the same network in ONNX Runtime, its layers fused by that library's own
optimizer; the two packages are no dependencies: ``pip install onnx onnxruntime``.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
from texts import sentences

MODEL = "all-minilm-l6-v2"


def flops_of(model: Any, texts: list[str]) -> float:
    """Of the matrix products: two for a weight and a token, and those of attention."""
    config = model.config
    layers, width = config.num_layers, config.hidden_size
    weights = sum(p.numel() for name, p in model.network.named_parameters() if "stack" in name and p.dim() == 2)
    lengths = [min(len(ids), 256) for ids in model.tokenizer.encode_batch(texts)]
    return sum(2 * weights * length + 4 * layers * width * length**2 for length in lengths)


def onnx_runtime(source: Path, folder: Path) -> Callable[[list[str]], Any]:
    """A function from texts to vectors: batches of 32 sorted by length, as the other peer makes them."""
    import numpy as np
    import onnxruntime
    import torch
    from onnxruntime.transformers.optimizer import optimize_model
    from tokenizers import Tokenizer
    from transformers import AutoModel

    bert = AutoModel.from_pretrained(source, attn_implementation="eager").eval()

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            real = attention_mask.unsqueeze(-1).to(hidden.dtype)
            return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1)

    example = (torch.full((2, 9), 5), torch.tensor([[1] * 9, [1] * 7 + [0] * 2]))
    names, free = ["input_ids", "attention_mask"], {0: "batch", 1: "columns"}
    plain, fused = folder / "plain.onnx", folder / "fused.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, and that the exporter without further packages is the old one
        torch.onnx.export(
            Embedder(),
            example,
            plain,
            input_names=names,
            output_names=["vectors"],
            dynamic_axes={**dict.fromkeys(names, free), "vectors": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    heads, width = bert.config.num_attention_heads, bert.config.hidden_size
    optimized = optimize_model(str(plain), model_type="bert", num_heads=heads, hidden_size=width)
    found = optimized.get_fused_operator_statistics()
    assert found["Attention"] == bert.config.num_hidden_layers, f"attention was not fused: {found}"
    optimized.save_model_to_file(str(fused))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(fused, settings, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()

    def embed(texts: list[str]) -> Any:
        ids = [one.ids for one in tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
        vectors = np.empty((len(ids), width), dtype=np.float32)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            longest = len(ids[rows[0]])
            given = np.array([ids[row] + [0] * (longest - len(ids[row])) for row in rows])
            real = np.array([[1] * len(ids[row]) + [0] * (longest - len(ids[row])) for row in rows])
            vectors[rows] = session.run(None, dict(zip(names, (given, real), strict=True)))[0]
        return vectors

    return embed


def main() -> None:
    parser = common.make_parser("embedding", __doc__)
    parser.set_defaults(model=MODEL)
    parser.add_argument("--sentences", type=int, default=2000, help="how many (%(default)s)")
    parser.add_argument("--onnx-runtime", action="store_true", help="also ONNX Runtime (see the top of this file)")
    options = parser.parse_args()
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if options.onnx_runtime and missing:
        parser.error(f"--onnx-runtime needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    count, rounds = (64, 1) if options.quick else (options.sentences, 3)
    machine = common.machine_facts()
    import numpy as np
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
    if options.onnx_runtime:
        with tempfile.TemporaryDirectory() as folder:
            other = onnx_runtime(Path(source), Path(folder))
        sides["ONNX Runtime float32"] = lambda: other(texts)
    vectors = {name: side() for name, side in sides.items()}  # warm, and compared below
    seconds = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            begin = time.perf_counter()
            side()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    reference = vectors["sentence-transformers float32"]
    peaks = {name: common.matmul_peak(name, 2048, seconds=0.5) for name in ("float32", "bfloat16")}
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
