"""Beam search token for token against transformers; diverse beam search against a plain reference from the paper."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from polyformer.core import DecoderOnly
from polyformer.errors import GenerationError
from polyformer.generation.beam import Finished
from polyformer.generation.generate import generate
from polyformer.generation.outputs import Generation
from polyformer.generation.settings import GenerationSettings
from polyformer.tokenizers.text import TextTokenizer

Prompts = list[list[int]]
STEPS = 12


def reference_beams(
    reference: LlamaForCausalLM, prompts: Prompts, n: int, **options: Any
) -> list[list[tuple[list[int], float]]]:
    """transformers' n best (tokens up to the end, score) for each prompt of a left-padded batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = reference.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        pad_token_id=0,
        num_return_sequences=n,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    ends = options.get("eos_token_id") or []
    results = []
    for tokens, score in zip(output.sequences[:, longest:].tolist(), output.sequences_scores.tolist()):
        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        results.append((tokens[: stop + 1], score))
    return [results[start : start + n] for start in range(0, len(results), n)]


def check_same(results: list[list[Generation]], expected: list[list[tuple[list[int], float]]]) -> None:
    assert [[g.token_ids for g in each] for each in results] == [[tokens for tokens, _ in each] for each in expected]
    for each, reference_each in zip(results, expected):
        for generation, (_, score) in zip(each, reference_each):
            assert generation.score == pytest.approx(score, abs=2e-5, rel=1e-6)


@pytest.fixture(scope="module")
def ends(network: DecoderOnly, prompts: Prompts) -> list[int]:
    """End-of-text tokens that beams really meet, early and late."""
    plain = generate(network, prompts, GenerationSettings(num_beams=4, max_new_tokens=STEPS, n=4))
    return [plain[0][1].token_ids[4], plain[2][0].token_ids[7], plain[1][2].token_ids[1]]


@pytest.mark.parametrize("num_beams", [2, 4, 7])
@pytest.mark.parametrize("length_penalty", [1.0, 0.0, -1.5, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("how_many_ends", [0, 1, 3])
def test_beam_search_equals_transformers(
    network: DecoderOnly,
    reference: LlamaForCausalLM,
    prompts: Prompts,
    ends: list[int],
    num_beams: int,
    length_penalty: float,
    early_stopping: bool | str,
    how_many_ends: int,
) -> None:
    """All prompts, left-padded in one batch, and all beams returned: tokens and scores."""
    options: dict[str, Any] = {
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        "max_new_tokens": STEPS,
    }
    eos = ends[:how_many_ends]
    expected = reference_beams(reference, prompts, num_beams, eos_token_id=eos or None, **options)
    settings = GenerationSettings(n=num_beams, **options)
    results = generate(network, prompts, settings, eos_token_ids=eos)
    check_same(results, expected)
    if how_many_ends == 3:
        assert any(g.finish_reason == "eos" for each in results for g in each), "beams must end before the limit"
    for prompt, each in zip(prompts, results):
        alone = generate(network, [prompt], settings, eos_token_ids=eos)[0]
        assert [g.token_ids for g in alone] == [g.token_ids for g in each]


def test_fewer_than_all_beams(network: DecoderOnly, prompts: Prompts, ends: list[int]) -> None:
    settings = GenerationSettings(num_beams=5, n=5, max_new_tokens=STEPS)
    every = generate(network, prompts, settings, eos_token_ids=ends)
    for n in (1, 3):
        assert generate(network, prompts, settings.replace(n=n), eos_token_ids=ends) == [each[:n] for each in every]
    scores = [[g.score for g in each] for each in every]
    assert all(score is not None for each in scores for score in each)
    assert scores == [sorted(each, reverse=True) for each in scores]  # type: ignore[type-var]


def test_processors_equal_transformers(
    network: DecoderOnly, reference: LlamaForCausalLM, prompts: Prompts, ends: list[int]
) -> None:
    """Penalties, bans, bias and a minimum act on the log-probabilities of beams as in transformers."""
    words = [[ends[0]], [12, 14], [*list(prompts[0][-1:]), 33]]
    first = generate(network, prompts, GenerationSettings(num_beams=3, max_new_tokens=STEPS))
    words.append(first[2][0].token_ids[2:5])
    bias = {first[3][0].token_ids[0]: -4.0, 17: 1.5}
    common: dict[str, Any] = {
        "num_beams": 3,
        "max_new_tokens": STEPS,
        "min_new_tokens": 4,
        "repetition_penalty": 1.35,
        "bad_words_ids": words,
    }
    expected = reference_beams(
        reference,
        prompts,
        3,
        eos_token_id=ends[1:],
        sequence_bias={(token,): value for token, value in bias.items()},
        **common,
    )
    results = generate(network, prompts, GenerationSettings(n=3, logit_bias=bias, **common), eos_token_ids=ends[1:])
    check_same(results, expected)
    assert [g.token_ids for g in results[2]] != [g.token_ids for g in first[2]]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_ends_more_likely_than_anything_else(
    network: DecoderOnly, reference: LlamaForCausalLM, prompts: Prompts, ends: list[int], early_stopping: bool | str
) -> None:
    """Every beam's best continuations all end: there must be enough candidates for the beams to go on."""
    bias = dict.fromkeys(ends, 3.0)
    common: dict[str, Any] = {"num_beams": 4, "max_new_tokens": 6, "early_stopping": early_stopping}
    common["length_penalty"] = 1.4
    expected = reference_beams(
        reference, prompts, 4, eos_token_id=ends, sequence_bias={(token,): 3.0 for token in ends}, **common
    )
    settings = GenerationSettings(n=4, logit_bias=bias, **common)
    check_same(generate(network, prompts, settings, eos_token_ids=ends), expected)


def test_when_a_group_is_done() -> None:
    """The three stopping rules on numbers worked out by hand; two finished texts of score -2 and -3."""

    def done(early_stopping: bool | str, length_penalty: float, best_running: float, texts: int = 2) -> bool:
        finished = Finished(2)
        for score in (-3.0, -2.0)[:texts]:
            finished.add(score, [1])
        settings = GenerationSettings(num_beams=2, length_penalty=length_penalty, early_stopping=early_stopping)
        finished.update_done(best_running, 4, 10, settings)
        return finished.done

    assert not done(False, 1.0, -11.9) and done(False, 1.0, -12.1), "-12 / 4 = -3"
    assert done(True, 1.0, -1.0), "enough texts"
    assert not done(True, 1.0, -99.0, texts=1), "not enough texts"
    assert not done("never", 1.0, -29.9) and done("never", 1.0, -30.1), "-30 / 10 = -3: as long as it may get"
    assert not done("never", 0.0, -2.9) and done("never", 0.0, -3.1), "length does not matter"
    assert not done("never", -1.0, -0.7) and done("never", -1.0, -0.8), "-0.75 x 4 = -3: shorter is better"
    assert not done(False, 1.0, -1e8, texts=1)


def test_limits_of_each_prompt(network: DecoderOnly, prompts: Prompts) -> None:
    """Requests with other settings are searched in batches of their own, and come back in order."""
    each = [GenerationSettings(num_beams=2 + i % 2, max_new_tokens=3 + i) for i in range(4)]
    together = generate(network, prompts, each)
    for prompt, settings, result in zip(prompts, each, together):
        assert [g.token_ids for g in result] == [g.token_ids for g in generate(network, [prompt], settings)[0]]


def test_beam_search_finds_the_best_text(network: DecoderOnly) -> None:
    """With as many beams as there are beginnings, the search is exhaustive over two tokens."""
    allowed = [5, 9, 40, 77, 130, 200]
    bias = {token: -math.inf for token in range(301) if token not in allowed}
    settings = GenerationSettings(num_beams=6, n=6, max_new_tokens=2, logit_bias=bias, early_stopping="never")
    found = generate(network, [[3, 8]], settings)[0]
    scored = []
    for pair in itertools.product(allowed, repeat=2):
        with torch.inference_mode():
            log_probabilities = network(torch.tensor([[3, 8, *pair]])).logits[0].log_softmax(-1)
        scored.append((float(log_probabilities[1, pair[0]] + log_probabilities[2, pair[1]]) / 2, list(pair)))
    best = sorted(scored, reverse=True)[:6]
    assert [g.token_ids for g in found] == [tokens for _, tokens in best]
    assert [g.score for g in found] == pytest.approx([score for score, _ in best], abs=1e-5)


def test_stop_strings_end_beams(network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts) -> None:
    """A beam ends where its text holds a stop string; the text is cut there, and the token ids are those of the end."""
    letters = dict.fromkeys((*range(94), *range(260, 266)), 5.0)
    settings = GenerationSettings(num_beams=4, n=4, max_new_tokens=STEPS, logit_bias=letters)
    plain = generate(network, prompts, settings, tokenizer=tokenizer)
    text = plain[0][0].text
    assert text is not None
    stop = text[3:5]
    stopped = generate(network, prompts, settings.replace(stop=stop), tokenizer=tokenizer)
    reasons = [g.finish_reason for each in stopped for g in each]
    assert "stop" in reasons
    for each in stopped:
        for generation in each:
            whole = tokenizer.decode(generation.token_ids)
            if generation.finish_reason == "stop":
                assert generation.stopped_by == stop
                assert generation.text == whole[: whole.index(stop)]
                assert stop not in tokenizer.decode(generation.token_ids[:-1])
            else:
                assert generation.text == whole and stop not in whole
    one_token = generate(network, prompts, settings.replace(stop_token_ids=[40]), tokenizer=tokenizer)
    as_text = generate(network, prompts, settings.replace(stop=tokenizer.decode([40])), tokenizer=tokenizer)
    assert any(g.finish_reason == "stop" for each in one_token for g in each)
    best = [(each[0].text, each[0].finish_reason) for each in one_token]
    assert best == [(each[0].text, each[0].finish_reason) for each in as_text]


# --- Diverse beam search ---------------------------------------------------------------------------------------------


def diverse_reference(
    network: DecoderOnly, prompt: list[int], settings: GenerationSettings, ends: list[int]
) -> list[tuple[float, list[int]]]:
    """Algorithm 1 of Vijayakumar et al. 2018 with plain lists and no cache: (score, tokens), best first.

    A group stops with as many finished texts as beams: at once (early_stopping), or when its best running beam, at its
    present length, is worse than the worst of them.
    """
    size = settings.num_beams // settings.num_beam_groups
    running = [[(0.0, [])] for _ in range(settings.num_beam_groups)]  # type: ignore[var-annotated]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in running]
    done = [False] * len(running)
    for step in range(1, settings.max_new_tokens + 1):
        taken: list[int] = []
        for group, beams in enumerate(running):
            if done[group]:
                continue
            continuations = []
            for total, tokens in beams:
                with torch.inference_mode():
                    logits = network(torch.tensor([prompt + tokens])).logits[0, -1]
                log_probabilities = logits.log_softmax(-1).tolist()
                for token, value in enumerate(log_probabilities):
                    penalty = settings.diversity_penalty * taken.count(token)
                    continuations.append((total + value - penalty, [*tokens, token]))
            continuations.sort(key=lambda pair: -pair[0])
            last = step == settings.max_new_tokens
            for total, tokens in continuations[:size]:
                if tokens[-1] in ends or last:
                    finished[group].append((total / step**settings.length_penalty, tokens))
            finished[group].sort(key=lambda pair: -pair[0])
            del finished[group][size:]
            running[group] = [pair for pair in continuations if pair[1][-1] not in ends][:size]
            taken += [tokens[-1] for _, tokens in running[group]]
            full = len(finished[group]) == size
            possible = running[group][0][0] / step**settings.length_penalty
            hopeless = full and possible <= finished[group][-1][0]
            done[group] = last or hopeless or (full and settings.early_stopping is True)
    return sorted((pair for group in finished for pair in group), key=lambda pair: -pair[0])


@pytest.mark.parametrize(("num_beams", "groups"), [(4, 2), (4, 4), (6, 3), (6, 2)])
@pytest.mark.parametrize("diversity_penalty", [0.3, 5.0])
@pytest.mark.parametrize("early_stopping", [False, True])
def test_diverse_beam_search_equals_the_paper(
    network64: DecoderOnly,
    prompts: Prompts,
    ends: list[int],
    num_beams: int,
    groups: int,
    diversity_penalty: float,
    early_stopping: bool,
) -> None:
    ends = [*ends, *range(0, 300, 60)]
    settings = GenerationSettings(
        early_stopping=early_stopping,
        num_beams=num_beams,
        num_beam_groups=groups,
        diversity_penalty=diversity_penalty,
        n=num_beams,
        max_new_tokens=7,
        length_penalty=2.0 if early_stopping else 0.8,
    )
    results = generate(network64, prompts, settings, eos_token_ids=ends)
    for prompt, each in zip(prompts, results):
        expected = diverse_reference(network64, prompt, settings, ends)[:num_beams]
        assert sorted(g.token_ids for g in each) == sorted(tokens for _, tokens in expected)
        assert [g.score for g in each] == pytest.approx([score for score, _ in expected], abs=1e-9)
    assert any(g.finish_reason == "eos" for each in results for g in each)


def test_diversity_makes_groups_differ(network: DecoderOnly, prompts: Prompts) -> None:
    settings = GenerationSettings(num_beams=4, n=4, max_new_tokens=6, num_beam_groups=4, diversity_penalty=100.0)
    for each in generate(network, prompts, settings):
        for step in range(6):
            assert len({g.token_ids[step] for g in each}) == 4, "a penalty this high lets no two groups agree"


def test_what_cannot_be_searched(network: DecoderOnly) -> None:
    forbidden = dict.fromkeys(range(1, 301), -math.inf)
    only_one = GenerationSettings(num_beams=3, n=3, max_new_tokens=2, logit_bias=forbidden)
    found = generate(network, [[4]], only_one)[0]
    assert [g.token_ids for g in found] == [[0, 0]], "only one text exists"
    with pytest.raises(GenerationError, match=r"no text is possible|every token is forbidden"):
        generate(network, [[4]], only_one.replace(logit_bias={**forbidden, 0: -math.inf}))
