"""Greedy search, sampling and streaming: against transformers, alone and in batches, with every kind of end."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from polyformer.core import DecoderOnly
from polyformer.errors import GenerationError
from polyformer.generation.generate import generate, stream, stream_events
from polyformer.generation.outputs import Generation, StreamEvent
from polyformer.generation.settings import GenerationSettings
from polyformer.tokenizers.text import TextTokenizer

CONTEXT = 96
GREEDY = GenerationSettings(temperature=0, max_new_tokens=20)

Prompts = list[list[int]]


def reference_tokens(reference: LlamaForCausalLM, prompts: Prompts, **options: Any) -> Prompts:
    """What transformers generates from a left-padded batch, cut after the end-of-text token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    options = {"do_sample": False, "pad_token_id": 0, **options}
    output = reference.generate(ids, attention_mask=mask, **options)[:, longest:].tolist()
    ends = options.get("eos_token_id") or []
    results = []
    for tokens in output:
        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
        results.append(tokens[: stop + 1])
    return results


def tokens_of(results: list[list[Generation]]) -> Prompts:
    return [generations[0].token_ids for generations in results]


def common_token(network: DecoderOnly, prompts: Prompts) -> int:
    """A token that greedy search writes at some, not all, of the rows' beginnings: a good end-of-text token."""
    return tokens_of(generate(network, prompts, GREEDY))[0][5]


def test_greedy_equals_transformers(network: DecoderOnly, reference: LlamaForCausalLM, prompts: Prompts) -> None:
    expected = reference_tokens(reference, prompts, max_new_tokens=20)
    assert tokens_of(generate(network, prompts, GREEDY)) == expected
    for prompt, tokens in zip(prompts, expected):
        assert tokens_of(generate(network, [prompt], GREEDY)) == [tokens]


def test_greedy_with_early_ends_equals_transformers(
    network: DecoderOnly, reference: LlamaForCausalLM, prompts: Prompts
) -> None:
    ends = [common_token(network, prompts), tokens_of(generate(network, prompts, GREEDY))[2][9]]
    expected = reference_tokens(reference, prompts, max_new_tokens=20, eos_token_id=ends)
    results = generate(network, prompts, GREEDY, eos_token_ids=ends)
    assert tokens_of(results) == expected
    assert len({len(tokens) for tokens in expected}) > 1, "some rows must end before others"
    for (generation,) in results:
        ended = generation.token_ids[-1] in ends
        assert generation.finish_reason == ("eos" if ended else "length")
        assert generation.stopped_by == (generation.token_ids[-1] if ended else None)
    ignoring = generate(network, prompts, GREEDY.replace(ignore_eos=True), eos_token_ids=ends)
    assert [len(tokens) for tokens in tokens_of(ignoring)] == [20] * 4


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.7},
        {"bad_words_ids": True},
        {"min_new_tokens": 12},
        {"sequence_bias": True},
        {"repetition_penalty": 1.2, "bad_words_ids": True, "min_new_tokens": 3, "sequence_bias": True},
    ],
)
def test_processed_greedy_equals_transformers(
    network: DecoderOnly, reference: LlamaForCausalLM, prompts: Prompts, options: dict[str, Any]
) -> None:
    """Penalties over left-padded rows, bans, bias and a minimum, in transformers' order."""
    options = dict(options)
    plain = tokens_of(generate(network, prompts, GREEDY))
    end = plain[0][5]
    ours: dict[str, Any] = {name: value for name, value in options.items() if name != "sequence_bias"}
    if "bad_words_ids" in options:
        words = [[plain[0][1]], plain[1][2:4], plain[2][0:3], [0, plain[3][0]], [prompts[3][-1], plain[3][0]]]
        options["bad_words_ids"] = ours["bad_words_ids"] = words
    if "sequence_bias" in options:
        ours["logit_bias"] = {plain[0][0]: -3.0, 11: 2.0, plain[3][1]: -math.inf}
        options["sequence_bias"] = {(token,): value for token, value in ours["logit_bias"].items()}
    expected = reference_tokens(reference, prompts, max_new_tokens=20, eos_token_id=[end], **options)
    assert expected != plain
    assert tokens_of(generate(network, prompts, GREEDY.replace(**ours), eos_token_ids=[end])) == expected


def test_guidance_equals_transformers(network: DecoderOnly, reference: LlamaForCausalLM, prompts: Prompts) -> None:
    """transformers reads the negative prompt with the batch it is given; each prompt alone, and all of ours at once."""
    negative = prompts[2][:5]
    for scale, given in ((1.8, negative), (0.4, negative), (3.0, None)):
        expected = []
        for prompt in prompts:
            ids = torch.tensor([negative]) if given else None
            options = {"guidance_scale": scale, "negative_prompt_ids": ids}
            expected += reference_tokens(reference, [prompt], max_new_tokens=15, **options)
        settings = GREEDY.replace(max_new_tokens=15, guidance_scale=scale, negative_prompt=given)
        assert tokens_of(generate(network, prompts, settings)) == expected
        unguided = GREEDY.replace(max_new_tokens=6)
        mixed = generate(network, prompts[:2] + prompts, [unguided] * 2 + [settings] * 4)
        assert tokens_of(mixed)[2:] == expected
        assert tokens_of(mixed)[:2] == tokens_of(generate(network, prompts[:2], unguided))


def test_guidance_with_samples(network: DecoderOnly, prompts: Prompts) -> None:
    settings = GenerationSettings(
        max_new_tokens=12, n=3, seed=4, guidance_scale=1.5, negative_prompt=prompts[1], stop_token_ids=range(40)
    )
    together = generate(network, prompts, settings)
    for prompt, generations in zip(prompts, together):
        assert generations == generate(network, [prompt], settings)[0]
    assert len({len(g.token_ids) for generations in together for g in generations}) > 1


SAMPLING = [
    {},
    {"temperature": 0.7, "top_k": 30},
    {"top_p": 0.8},
    {"top_k": 50, "top_p": 0.9, "min_p": 0.01},
    {"typical_p": 0.6, "temperature": 1.3},
    {"min_p": 0.1, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    {"bad_words_ids": [[3], [5, 6]], "logit_bias": {7: 4.0}, "min_new_tokens": 5},
    {"temperature": 0},
    {"guidance_scale": 1.4},
    {"n": 3, "top_k": 40},
    {"logprobs": 2, "top_p": 0.7},
]


def test_seed_alone_equals_seed_in_any_batch(network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts) -> None:
    """Every mixture of settings in one batch gives each request what it gets alone, in any order."""
    each = [GenerationSettings(max_new_tokens=8 + 3 * i, seed=i, **options) for i, options in enumerate(SAMPLING)]
    chosen = [prompts[i % 4] for i in range(len(each))]
    ends = list(range(20))
    alone = [
        generate(network, [prompt], settings, tokenizer=tokenizer, eos_token_ids=ends)[0]
        for prompt, settings in zip(chosen, each)
    ]
    together = generate(network, chosen, each, tokenizer=tokenizer, eos_token_ids=ends)
    backwards = generate(network, chosen[::-1], each[::-1], tokenizer=tokenizer, eos_token_ids=ends)[::-1]
    for one, two, three in zip(alone, together, backwards):
        for a, b, c in zip(one, two, three):
            assert (a.token_ids, a.text, a.finish_reason) == (b.token_ids, b.text, b.finish_reason)
            assert (a.token_ids, a.text, a.finish_reason) == (c.token_ids, c.text, c.finish_reason)
            for first, second in zip(a.logprobs or [], b.logprobs or []):
                assert first.raw == pytest.approx(second.raw, abs=1e-4)
                assert first.processed == pytest.approx(second.processed, abs=1e-4)


def test_seeds_and_samples_differ(network: DecoderOnly, prompts: Prompts) -> None:
    settings = GenerationSettings(max_new_tokens=10, seed=1, n=4)
    samples = generate(network, prompts[:1], settings)[0]
    assert len({tuple(sample.token_ids) for sample in samples}) == 4
    single = generate(network, prompts[:1], settings.replace(n=1))[0][0]
    assert single == samples[0], "the first of n samples is the sample of n=1"
    same_low_bits = generate(network, prompts[:1], settings.replace(n=1, seed=1 + 2**32))[0][0]
    assert same_low_bits != single
    torch.manual_seed(5)
    first = generate(network, prompts, settings.replace(seed=None))
    torch.manual_seed(5)
    assert generate(network, prompts, settings.replace(seed=None)) == first
    assert generate(network, prompts, settings.replace(seed=None)) != first


def test_prefill_in_chunks_and_int8_cache(network64: DecoderOnly, prompts: Prompts) -> None:
    expected = tokens_of(generate(network64, prompts, GREEDY))
    for chunk in (1, 2, 5, 11, 12, 100):
        assert tokens_of(generate(network64, prompts, GREEDY, prefill_chunk=chunk)) == expected
    rounded = generate(network64, prompts, GREEDY, cache_kind="int8")
    assert [len(tokens) for tokens in tokens_of(rounded)] == [20] * 4
    alone = [tokens_of(generate(network64, [prompt], GREEDY, cache_kind="int8"))[0] for prompt in prompts]
    assert tokens_of(rounded) == alone


def test_logprobs(network: DecoderOnly, prompts: Prompts) -> None:
    """Raw: log-softmax of a plain forward. Processed: temperature and top-k computed by hand."""
    settings = GenerationSettings(max_new_tokens=9, seed=3, temperature=0.8, top_k=5, logprobs=7)
    for prompt, (generation,) in zip(prompts, generate(network, prompts, settings)):
        full = torch.tensor([prompt + generation.token_ids])
        with torch.inference_mode():
            logits = network(full).logits[0, len(prompt) - 1 : -1]
        assert generation.logprobs is not None and len(generation.logprobs) == 9
        for step, (token, record) in enumerate(zip(generation.token_ids, generation.logprobs)):
            raw = logits[step].log_softmax(-1)
            best = logits[step].topk(7)
            kept = best.indices[:5]
            processed = (logits[step][kept] / 0.8).log_softmax(-1)
            assert record.token_id == token
            assert record.raw == pytest.approx(float(raw[token]), abs=1e-4)
            assert record.processed == pytest.approx(float(processed[kept.tolist().index(token)]), abs=1e-4)
            assert [pair[0] for pair in record.top_raw] == best.indices.tolist()
            assert [pair[1] for pair in record.top_raw] == pytest.approx(raw[best.indices].tolist(), abs=1e-4)
            assert [pair[0] for pair in record.top_processed] == kept.tolist()
    none = generate(network, prompts[:1], settings.replace(logprobs=0))[0][0].logprobs
    assert none is not None and none[0].top_raw == () and none[0].top_processed == ()
    assert generate(network, prompts[:1], settings.replace(logprobs=None))[0][0].logprobs is None


def test_stop_strings_cut_the_text_wherever_they_fall(
    network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts
) -> None:
    """For every substring of a text as the stop string: the text is what comes before, streamed or not."""
    letters = dict.fromkeys((*range(94), *range(260, 266)), 5.0)
    settings = GenerationSettings(max_new_tokens=24, seed=11, temperature=1.5, logit_bias=letters)
    whole = generate(network, prompts[:1], settings, tokenizer=tokenizer)[0][0]
    text = whole.text
    assert text is not None and len(text) > 10
    straddling = 0
    for start in range(0, len(text), 2):
        for length in (1, 2, 5):
            stop = text[start : start + length]
            if "\ufffd" in stop:
                continue
            stopping = settings.replace(stop=(stop, "never there"))
            generation = generate(network, prompts[:1], stopping, tokenizer=tokenizer)[0][0]
            assert generation.text == text[: text.find(stop)]
            assert (generation.finish_reason, generation.stopped_by) == ("stop", stop)
            straddling += len(stop) > 1
            events = list(stream_events(network, prompts[0], stopping, tokenizer=tokenizer))
            assert "".join(event.text or "" for event in events) == generation.text
            assert events[-1].generation == generation
            assert "".join(stream(network, prompts[0], stopping, tokenizer=tokenizer)) == generation.text
    assert straddling > 10


@pytest.mark.parametrize("options", [*SAMPLING[:8], {"penalty_alpha": 0.6, "top_k": 4}, {"stop": ("a", "\x10")}])
def test_stream_equals_generate(
    network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts, options: dict[str, Any]
) -> None:
    settings = GenerationSettings(max_new_tokens=25, seed=2, **options)
    for prompt in prompts:
        generation = generate(network, [prompt], settings, tokenizer=tokenizer)[0][0]
        events = list(stream_events(network, prompt, settings, tokenizer=tokenizer))
        assert [event.token_id for event in events] == generation.token_ids
        assert "".join(event.text or "" for event in events) == generation.text
        assert [event.generation for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].generation == generation
        pieces = list(stream(network, prompt, settings, tokenizer=tokenizer))
        assert "".join(pieces) == generation.text and all(pieces)


def test_stop_token_ids_and_text_without_the_end(
    network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts
) -> None:
    letters = GREEDY.replace(logit_bias=dict.fromkeys(range(94), 20.0))
    plain = generate(network, prompts, letters, tokenizer=tokenizer)[0][0]
    end = plain.token_ids[4]
    first = plain.token_ids.index(end)
    assert tokenizer.decode([end]) != ""
    stopping = letters.replace(stop_token_ids=[end])
    stopped = generate(network, prompts, stopping, tokenizer=tokenizer)[0][0]
    assert stopped.token_ids == plain.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stopped_by) == ("stop", end)
    assert stopped.text == tokenizer.decode(plain.token_ids[:first])
    assert "".join(stream(network, prompts[0], stopping, tokenizer=tokenizer)) == stopped.text


def test_min_new_tokens_holds_every_end_back(network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts) -> None:
    settings = GenerationSettings(max_new_tokens=16, seed=1, stop_token_ids=range(150), stop=("e", "\x05"))
    ends = range(150, 200)
    free = generate(network, prompts, settings, tokenizer=tokenizer, eos_token_ids=ends)
    assert min(len(g.token_ids) for (g,) in free) < 6
    held = generate(network, prompts, settings.replace(min_new_tokens=6), tokenizer=tokenizer, eos_token_ids=ends)
    for (generation,) in held:
        assert len(generation.token_ids) > 6
        assert not set(generation.token_ids[:6]) & set(range(200))


def test_context_limits(network: DecoderOnly, prompts: Prompts) -> None:
    long = [5] * (CONTEXT - 3)
    settings = GREEDY.replace(max_new_tokens=50)
    results = generate(network, [long, prompts[0]], settings)
    assert len(results[0][0].token_ids) == 3 and results[0][0].finish_reason == "length"
    assert len(results[1][0].token_ids) == 50
    beams = generate(network, [long, prompts[0]], GenerationSettings(max_new_tokens=50, num_beams=3))
    assert len(beams[0][0].token_ids) == 3 and len(beams[1][0].token_ids) == 50
    for length in (CONTEXT, CONTEXT + 40):
        with pytest.raises(GenerationError, match=rf"{length} tokens.*{CONTEXT} tokens"):
            generate(network, [prompts[0], [5] * length], settings)
    guided = settings.replace(guidance_scale=2, negative_prompt=[5] * CONTEXT)
    with pytest.raises(GenerationError, match=rf"negative_prompt.*{CONTEXT} tokens.*{CONTEXT} tokens"):
        generate(network, prompts, guided)
    guided = settings.replace(guidance_scale=2, negative_prompt=[5] * (CONTEXT - 7))
    assert len(generate(network, prompts[:1], guided)[0][0].token_ids) == 7


def test_empty_prompt(network: DecoderOnly, tokenizer: TextTokenizer) -> None:
    assert tokenizer.bos_token_id is not None
    started = generate(network, [[tokenizer.bos_token_id]], GREEDY, tokenizer=tokenizer)
    assert generate(network, [[]], GREEDY, tokenizer=tokenizer) == started
    with pytest.raises(GenerationError, match="prompt 0 is empty"):
        generate(network, [[]], GREEDY)
    assert generate(network, [], GREEDY) == []


def test_on_token_sees_every_token(network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts) -> None:
    seen: dict[tuple[int, int], list[StreamEvent]] = {}

    def on_token(event: StreamEvent) -> None:
        seen.setdefault((event.prompt_index, event.sample_index), []).append(event)

    settings = GenerationSettings(max_new_tokens=9, n=2, seed=1, stop_token_ids=range(50))
    results = generate(network, prompts, settings, tokenizer=tokenizer, on_token=on_token)
    assert len(seen) == 8
    for (prompt, sample), events in seen.items():
        generation = results[prompt][sample]
        assert [event.token_id for event in events] == generation.token_ids
        assert "".join(event.text or "" for event in events) == generation.text
        assert events[-1].generation == generation


def test_stream_can_be_closed_and_interrupted(network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts) -> None:
    """Leaving a stream in the middle leaves no trace: gradients work, and the next run gives the same text."""
    settings = GenerationSettings(max_new_tokens=30, seed=9)
    expected = generate(network, prompts[:1], settings, tokenizer=tokenizer)[0][0].text
    events = stream_events(network, prompts[0], settings, tokenizer=tokenizer)
    next(events)
    assert not torch.is_inference_mode_enabled(), "the caller's mode must not change between two tokens"
    events.close()  # type: ignore[attr-defined]
    with pytest.raises(StopIteration):
        next(events)
    with pytest.raises(KeyboardInterrupt):
        for _ in stream(network, prompts[0], settings, tokenizer=tokenizer):
            raise KeyboardInterrupt
    assert torch.is_grad_enabled()
    assert "".join(stream(network, prompts[0], settings, tokenizer=tokenizer)) == expected


def test_bad_calls(network: DecoderOnly, tokenizer: TextTokenizer, prompts: Prompts) -> None:
    cases: list[tuple[str, Any]] = [
        ("prompt 1 holds token 301.*0 to 300", lambda: generate(network, [[1], [301]], GREEDY)),
        ("prompt 0 holds token -1", lambda: generate(network, [[-1]], GREEDY)),
        ("prompt 0 must be a list of token ids", lambda: generate(network, ["text"], GREEDY)),  # type: ignore[list-item]
        ("prompt 0 must be a list of token ids", lambda: generate(network, [[1.5]], GREEDY)),  # type: ignore[list-item]
        ("4 prompts but 2 settings", lambda: generate(network, prompts, [GREEDY, GREEDY])),
        ("stop=.*needs a tokenizer", lambda: generate(network, prompts, GREEDY.replace(stop="x"))),
        ("logit_bias names token 400", lambda: generate(network, prompts, GREEDY.replace(logit_bias={400: 1.0}))),
        ("bad_words_ids names token 301", lambda: generate(network, prompts, GREEDY.replace(bad_words_ids=[[1, 301]]))),
        ("stop_token_ids names token 999", lambda: generate(network, prompts, GREEDY.replace(stop_token_ids=[999]))),
        ("prefill_chunk", lambda: generate(network, prompts, GREEDY, prefill_chunk=0)),
        ("cannot be streamed", lambda: stream(network, [1], GenerationSettings(num_beams=2), tokenizer=tokenizer)),
        ("without a tokenizer; stream_events", lambda: stream(network, [1], GREEDY, tokenizer=None)),
        ("cannot be streamed", lambda: stream(network, [1], GenerationSettings(n=2), tokenizer=tokenizer)),
        ("on_token", lambda: generate(network, [[1]], GenerationSettings(num_beams=2), on_token=print)),
    ]
    for words, call in cases:
        with pytest.raises(GenerationError, match=words):
            call()


@pytest.mark.parametrize("mode", [{"temperature": 0}, {}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 3}])
def test_nothing_left_to_choose(network: DecoderOnly, mode: dict[str, Any]) -> None:
    settings = GenerationSettings(logit_bias=dict.fromkeys(range(301), -math.inf), max_new_tokens=3, **mode)
    with pytest.raises(GenerationError, match=r"every token is forbidden|no text is possible"):
        generate(network, [[1, 2]], settings)


@pytest.mark.parametrize("mode", [{"temperature": 0}, {}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 3}])
def test_logits_that_are_not_numbers(reference: LlamaForCausalLM, network: DecoderOnly, mode: dict[str, Any]) -> None:
    import copy

    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.head.weight.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(GenerationError, match="NaN"):
        generate(broken, [[1, 2]], GenerationSettings(max_new_tokens=3, **mode))


def test_bfloat16_network(network: DecoderOnly, prompts: Prompts) -> None:
    import copy

    half = copy.deepcopy(network).bfloat16()
    for settings in (GREEDY, GenerationSettings(num_beams=3), GenerationSettings(penalty_alpha=0.5, top_k=3)):
        short = settings.replace(max_new_tokens=5)
        assert [len(tokens) for tokens in tokens_of(generate(half, prompts, short))] == [5] * 4


def test_finished_rows_leave_the_batch(network: DecoderOnly, prompts: Prompts) -> None:
    """A row that is done costs nothing: the network sees ever fewer rows."""
    sizes = []
    hook = network.register_forward_pre_hook(lambda module, arguments: sizes.append(arguments[0].shape[0]))
    try:
        each = [GREEDY.replace(max_new_tokens=count) for count in (3, 6, 2, 9)]
        generate(network, prompts, each)
    finally:
        hook.remove()
    assert sizes == [4, 4, 3, 2, 2, 2, 1, 1, 1]
