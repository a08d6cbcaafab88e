"""transformers' GPT-2 on the novels by a plain loop: as large as recipes/austen.yaml's network, on the same rows.

    polyformer train recipes/austen.yaml
    python benchmarks/peers/gpt2.py runs/austen -o runs/gpt2
    polyformer eval runs/gpt2 austen --split test

The loop is what one writes first: AdamW, a warm-up and a cosine, clipping at 1. Tokenizer, rows and their order are
those of the run that is named; the number of its steps, too. The folder loads in transformers and in polyformer.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from polyformer.objectives import CausalLM
from polyformer.tokenizers.loading import load_tokenizer
from polyformer.training.data.loader import Loader
from polyformer.training.datasets import KINDS, prepare
from polyformer.training.recipe import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run of recipes/austen.yaml")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--hidden-size", type=int, default=320)
    options = parser.parse_args()
    recipe = read_recipe(options.run / "recipe.yaml")
    steps = json.loads((options.run / "summary.json").read_text())["steps"]
    tokenizer = load_tokenizer(options.run / "tokenizer")
    assert tokenizer is not None
    data = prepare(recipe.data, KINDS["tokens"], tokenizer)
    loader = Loader(data.train, CausalLM(), batch_size=recipe.training.batch_size, seed=recipe.seed)

    torch.manual_seed(recipe.seed)
    end = tokenizer.eos_token_id
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.vocab_size,
            n_positions=recipe.data.length,
            n_embd=options.hidden_size,
            n_layer=6,
            n_head=5,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=end,
            eos_token_id=end,
        )
    ).train()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {steps} steps of {recipe.training.batch_size} rows", file=sys.stderr)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.95),
    )
    warm_up = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))),
    )
    begin, tokens = time.perf_counter(), 0
    for number in range(steps):
        ids = loader.step(number)[0]["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += ids.numel()
        if number % 20 == 0 or number == steps - 1:
            speed = tokens / (time.perf_counter() - begin)
            print(f"step {number + 1}/{steps}  loss {loss.item():.4f}  {speed:,.0f} tokens/s", file=sys.stderr)
    seconds = time.perf_counter() - begin
    model.save_pretrained(options.output)
    tokenizer.save(options.output)
    print(json.dumps({"parameters": count, "steps": steps, "tokens": tokens, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
