"""Real weights: SmolLM2-135M-Instruct gives the numbers that transformers computes from the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf_files import load_gguf
from proof import close
from transformers import AutoModelForCausalLM, AutoTokenizer

# The beginning of Alice's Adventures in Wonderland (Carroll, 1865).
TEXT = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once
or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, "and what
is the use of a book," thought Alice "without pictures or conversations?"

So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid),
whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when
suddenly a White Rabbit with pink eyes ran close by her. There was nothing so very remarkable in that; nor did Alice
think it so very much out of the way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!" (when she
thought it over afterwards, it occurred to her that she ought to have wondered at this, but at the time it all seemed
quite natural); but when the Rabbit actually took a watch out of its waistcoat-pocket, and looked at it, and then
hurried on, Alice started to her feet, for it flashed across her mind that she had never before seen a rabbit with
either a waistcoat-pocket, or a watch to take out of it."""


@pytest.mark.real
def test_logits_equal_transformers(smollm2: Path) -> None:
    """In float32, from the same Q4_1 and Q8_0 blocks: 1e-4 of the largest logit, and the same best token at 200
    positions of real text."""
    network = load_gguf(smollm2)
    reference = AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :200]
    assert ids.shape == (1, 200)
    with torch.no_grad():
        ours = network(ids).logits
        theirs = reference(ids, use_cache=False).logits
    close(ours, theirs, 1e-4, "logits of SmolLM2")
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))
    loss = torch.nn.functional.cross_entropy(ours[0, :-1], ids[0, 1:])
    assert loss < 4.0  # 3.42; chance would be ln 49,152 = 10.8
