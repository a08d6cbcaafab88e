"""Folders of training runs, made without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polyformer


def write_run(
    folder: Path,
    config: Any,
    *,
    losses: tuple[float, ...] = (3.0, 2.5, 2.25),
    seconds_per_step: float = 0.5,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """A run of 20 steps between two evaluations, 64 tokens each, with random weights. Gives its summary."""
    model = polyformer.build(config, seed=1)
    model.save(folder / "model")
    (folder / "recipe.yaml").write_text("name: made\n", encoding="utf-8")
    if tokenizer is not None:
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    events: list[dict[str, Any]] = []
    for step in range(10, 20 * len(losses) + 1, 10):
        spent = {"tokens": 64 * step, "seconds": seconds_per_step * step, "flops": 1e6 * step}
        events.append({"event": "train", "step": step, "loss": 9.0, "tokens_per_second": 100.0 + step, **spent})
        if step % 20 == 0:
            events.append({"event": "evaluation", "step": step, "loss": losses[step // 20 - 1]})
    text = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    last = 20 * len(losses)
    summary = {
        "folder": str(folder),
        "parameters": model.num_parameters,
        "tokens": 64 * last,
        "seconds": seconds_per_step * last,
        "flops": 1e6 * last,
        "evaluation": {"loss": losses[-1]},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return summary
