"""Contrastive search against the paper's equation, written slowly and without a cache."""

from __future__ import annotations

import pytest
import torch

from polyformer.core import DecoderOnly
from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings

Prompts = list[list[int]]


def paper(
    network: DecoderOnly, prompt: list[int], alpha: float, k: int, steps: int, ends: tuple[int, ...]
) -> list[int]:
    """Su et al. 2022, equation 2: every candidate is read with the whole text before it, one at a time."""
    text = list(prompt)
    for _ in range(steps):
        with torch.inference_mode():
            probabilities = network(torch.tensor([text])).logits[0, -1].softmax(-1)
            scored = []
            for token in probabilities.topk(k).indices.tolist():
                hidden = network(torch.tensor([[*text, token]])).last_hidden_state[0]
                similar = torch.cosine_similarity(hidden[-1:], hidden[:-1], dim=-1).max()
                scored.append((float((1 - alpha) * probabilities[token] - alpha * similar), token))
        text.append(max(scored)[1])
        if text[-1] in ends:
            break
    return text[len(prompt) :]


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.1, 8), (1.0, 5), (0.35, 2)])
def test_equals_the_paper(network64: DecoderOnly, prompts: Prompts, alpha: float, k: int) -> None:
    """A batch of different lengths (padded), with rows that end early: each as the paper has it."""
    plain = paper(network64, prompts[0], alpha, k, 14, ())
    ends = (plain[6],)
    expected = [paper(network64, prompt, alpha, k, 14, ends) for prompt in prompts]
    settings = GenerationSettings(penalty_alpha=alpha, top_k=k, max_new_tokens=14)
    results = generate(network64, prompts, settings, eos_token_ids=ends)
    assert [g.token_ids for (g,) in results] == expected
    assert len({len(tokens) for tokens in expected}) > 1
    greedy = generate(network64, prompts, GenerationSettings(temperature=0, max_new_tokens=14), eos_token_ids=ends)
    if alpha > 0.3:
        assert [g.token_ids for (g,) in greedy] != expected


def test_long_text_outgrows_the_buffer(network64: DecoderOnly, prompts: Prompts) -> None:
    settings = GenerationSettings(penalty_alpha=0.5, top_k=3, max_new_tokens=80)
    (generation,) = generate(network64, prompts[1:2], settings)[0]
    assert generation.token_ids == paper(network64, prompts[1], 0.5, 3, 80, ())


def test_alone_in_a_mixture(network: DecoderOnly, prompts: Prompts) -> None:
    """Different alphas and processors share a batch; every request gets what it gets alone."""
    each = [
        GenerationSettings(penalty_alpha=0.6, top_k=4, max_new_tokens=9),
        GenerationSettings(penalty_alpha=0.2, top_k=4, max_new_tokens=5, repetition_penalty=1.5),
        GenerationSettings(penalty_alpha=0.4, top_k=4, max_new_tokens=11, bad_words_ids=[[7], [8, 9]], logprobs=3),
        GenerationSettings(penalty_alpha=0.6, top_k=6, max_new_tokens=7, frequency_penalty=2.0),
    ]
    together = generate(network, prompts, each, prefill_chunk=3)
    for prompt, settings, (generation,) in zip(prompts, each, together):
        alone = generate(network, [prompt], settings)[0][0]
        assert alone.token_ids == generation.token_ids
    records = together[2][0].logprobs
    assert records is not None and len(records) == 11
    with torch.inference_mode():
        full = network(torch.tensor([prompts[2] + together[2][0].token_ids])).logits[0].log_softmax(-1)
    for step, record in enumerate(records):
        assert record.raw == pytest.approx(float(full[len(prompts[2]) - 1 + step, record.token_id]), abs=1e-4)


def test_more_candidates_than_tokens_and_forbidden_candidates(network: DecoderOnly) -> None:
    allowed = [3, 50, 90]
    bias = {token: -torch.inf for token in range(301) if token not in allowed}
    settings = GenerationSettings(penalty_alpha=0.9, top_k=10_000, max_new_tokens=8, logit_bias=bias)
    (generation,) = generate(network, [[1, 2, 3]], settings)[0]
    assert set(generation.token_ids) <= set(allowed)
