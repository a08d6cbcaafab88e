"""Beam search from a source, as in summarizing: t5-small and bart-base with random weights, beside transformers.

Both sides start from the same token ids with the same weights and write the same number of tokens: no text ends early.
Speed does not depend on what the weights are, and no public ones of these sizes lie in a package registry.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import common
import torch

import polyformer

MODELS = ("t5-small", "bart-base")
TARGET = 1.5


def polyformer_side(model: Any, sources: list[list[int]], beams: int, count: int) -> Callable[[], list[list[int]]]:
    def write() -> list[list[int]]:
        made = model.generate(sources, num_beams=beams, max_new_tokens=count, ignore_eos=True)
        return [one.token_ids for one in made]

    return write


def transformers_side(network: Any, sources: list[list[int]], beams: int, count: int) -> Callable[[], list[list[int]]]:
    settings = network.generation_config
    settings.eos_token_id = settings.forced_eos_token_id = settings.forced_bos_token_id = None
    settings.pad_token_id = 0
    network.config.eos_token_id = None
    ids = torch.tensor(sources)
    mask = torch.ones_like(ids)

    @torch.inference_mode()
    def write() -> list[list[int]]:
        made = network.generate(
            input_ids=ids, attention_mask=mask, num_beams=beams, max_new_tokens=count, do_sample=False
        )
        return made[:, 1:].tolist()

    return write


def measure(name: str, dtypes: list[str], batch: int, columns: int, count: int, rounds: int) -> dict[str, Any]:
    from transformers import AutoModelForSeq2SeqLM

    with tempfile.TemporaryDirectory() as folder:
        polyformer.build(name, seed=0, device="cpu").save(folder)
        ours = {dtype: polyformer.load(folder, dtype=dtype, device="cpu") for dtype in dtypes}
        peers = {dtype: AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=getattr(torch, dtype)) for dtype in dtypes}
    vocab_size = ours[dtypes[0]].config.vocab_size
    generator = torch.Generator().manual_seed(0)
    sources = torch.randint(3, vocab_size, (batch, columns), generator=generator).tolist()
    calls = {("Polyformer", dtype): polyformer_side(model, sources, 4, count) for dtype, model in ours.items()}
    calls |= {
        ("transformers", dtype): transformers_side(network.eval(), sources, 4, count)
        for dtype, network in peers.items()
    }
    written = {key: call() for key, call in calls.items()}  # warm, and compared
    for key, texts in written.items():
        if any(len(text) != count for text in texts):
            raise SystemExit(f"{key[0]} wrote {[len(text) for text in texts]} tokens instead of {count}")
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            begin = time.perf_counter()
            call()
            seconds[key].append(time.perf_counter() - begin)
    fastest = min((key for key in calls if key[0] == "transformers"), key=lambda key: statistics.median(seconds[key]))
    rows = []
    for (side, dtype), times in seconds.items():
        same = statistics.median(b / a for a, b in zip(times, seconds["transformers", dtype]))
        best = statistics.median(b / a for a, b in zip(times, seconds[fastest]))
        rows.append(
            {
                "side": side,
                "dtype": dtype,
                "tokens_per_second": round(batch * count / statistics.median(times), 1),
                "ratio_same_dtype": round(same, 2),
                "ratio_to_fastest_peer": round(best, 2),
            }
        )
    first = dtypes[0]
    equal = sum(a == b for a, b in zip(written["Polyformer", first], written["transformers", first]))
    return {"model": name, "fastest_peer": fastest[1], f"equal_texts_{first}": f"{equal} of {batch}", "runs": rows}


def main() -> None:
    parser = common.make_parser("summarization", __doc__)
    parser.set_defaults(model=None)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="(float32 bfloat16)")
    parser.add_argument("--batch", type=int, default=4, help="sources at once (%(default)s)")
    parser.add_argument("--columns", type=int, default=512, help="tokens of a source (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a summary (%(default)s)")
    options = parser.parse_args()
    rounds = 3
    if options.quick:
        options.columns, options.tokens, rounds = 16, 4, 1
    machine = common.machine_facts()
    results = [
        measure(name, options.dtypes, options.batch, options.columns, options.tokens, rounds)
        for name in ([options.model] if options.model else MODELS)
    ]
    columns = ("side", "dtype", "tokens_per_second", "ratio_same_dtype", "ratio_to_fastest_peer")
    for result in results:
        common.print_table(
            f"{result['model']}: 4 beams, {options.batch} sources of {options.columns} tokens, {options.tokens} tokens",
            columns,
            [[str(row[column]) for column in columns] for row in result["runs"]],
        )
    facts = {name: getattr(options, name) for name in ("batch", "columns", "tokens")}
    common.finish(
        {"machine": machine, "beams": 4, **facts, "target": TARGET, "models": results},
        common.output_of("summarization", options),
    )


if __name__ == "__main__":
    main()
