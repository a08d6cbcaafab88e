"""The front door, on a tiny random Llama that transformers wrote, and on SmolLM2."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import polyformer
from polyformer.errors import CapabilityError, CheckpointError, ConfigError, GenerationError, PolyformerError
from polyformer.generation.settings import GenerationSettings
from polyformer.model import GenerationDefaults, Model

GREEDY = {"temperature": 0, "max_new_tokens": 12}
PROMPT = "the cat sat"


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return polyformer.load(tiny_llama, device="cpu")


@pytest.fixture(scope="module")
def reference(tiny_llama: Path):  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)


# --- loading --------------------------------------------------------------------------------------------------------


def test_load_keeps_the_files_dtype_and_describes_itself(model: Model) -> None:
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")
    assert model.family.name == "llama"
    assert model.context_length == 128
    assert model.config is model.network.config
    assert not model.network.training
    assert "llama" in repr(model) and f"{model.num_parameters:,}" in repr(model)


def test_number_of_parameters_is_the_references(model: Model, reference) -> None:  # type: ignore[no-untyped-def]
    assert model.num_parameters == reference[0].num_parameters()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("float64", torch.float64),
        ("bf16", torch.bfloat16),
        (torch.float16, torch.float16),
        ("torch.float32", torch.float32),
        (None, torch.float32),
    ],
)
def test_dtype_is_what_was_asked(tiny_llama: Path, asked: object, expected: torch.dtype) -> None:
    model = polyformer.load(str(tiny_llama), dtype=asked, device="cpu")  # type: ignore[arg-type]
    assert {parameter.dtype for parameter in model.network.parameters()} == {expected}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dtype": "flaot32"}, "did you mean 'float32'"),
        ({"dtype": "int8"}, "choose float32, bfloat16, float16 or float64"),
        ({"device": "cudda"}, "'cudda' cannot be used"),
        ({"device": "cuda:77"}, "'cuda:77' cannot be used"),
        ({"quantize": "int4"}, "quantize='int4' is not offered yet"),
        ({"revision": "main"}, "only means something for a hub id"),
    ],
)
def test_load_refuses_what_it_cannot_do(tiny_llama: Path, option: dict[str, str], message: str) -> None:
    with pytest.raises(PolyformerError, match=message) as caught:
        polyformer.load(tiny_llama, **option)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_unknown_architecture_names_the_nearest(tiny_copy: Path) -> None:
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "model_type": "lama", "architectures": ["LamaLM"]}))
    with pytest.raises(ConfigError, match=r"'lama' is not known.*llama"):
        polyformer.load(tiny_copy)


def test_unsupported_option_is_named(tiny_copy: Path) -> None:
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "hidden_act": "sinus"}))
    with pytest.raises(ConfigError, match="hidden_act='sinus' is not supported"):
        polyformer.load(tiny_copy)


def test_wrong_shapes_are_refused(tiny_copy: Path) -> None:
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 56}))
    with pytest.raises(CheckpointError, match=r"mlp\.down_proj\.weight"):
        polyformer.load(tiny_copy)


def test_a_folder_without_a_config_says_so(tiny_copy: Path) -> None:
    (tiny_copy / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        polyformer.load(tiny_copy)


def test_truncated_weights_are_refused(tiny_copy: Path) -> None:
    weights = tiny_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        polyformer.load(tiny_copy)


def test_a_missing_name_gives_the_nearest() -> None:
    with pytest.raises(CheckpointError, match="did you mean smollm2-135m-instruct"):
        polyformer.load("smollm2-135m-instuct")


# --- generating -----------------------------------------------------------------------------------------------------


def test_greedy_equals_the_reference(model: Model, reference) -> None:  # type: ignore[no-untyped-def]
    network, tokenizer = reference
    inputs = tokenizer(PROMPT, return_tensors="pt")
    expected = network.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs.input_ids.shape[1] :].tolist()
    result = model.generate(PROMPT, **GREEDY)
    assert result.token_ids == expected
    assert result.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert result.finish_reason == "length"


def test_prompts_of_every_form_are_the_same_prompt(model: Model) -> None:
    assert model.tokenizer is not None
    ids = model.tokenizer.encode(PROMPT)
    expected = model.generate(PROMPT, **GREEDY)
    assert model.generate(ids, **GREEDY) == expected
    assert model.generate(torch.tensor(ids), **GREEDY) == expected
    assert model.generate(torch.tensor([ids, ids]), **GREEDY) == [expected, expected]
    assert model.generate([PROMPT], **GREEDY) == [expected]
    assert model.generate([ids, PROMPT], **GREEDY) == [expected, expected]
    assert model.generate(torch.tensor(ids).numpy(), **GREEDY) == expected
    assert model.generate([torch.tensor(ids), torch.tensor(ids).numpy()], **GREEDY) == [expected, expected]
    assert model.generate(list(torch.tensor(ids).numpy()), **GREEDY) == expected
    assert model.generate([], **GREEDY) == []


def test_a_batch_gives_what_each_prompt_gives_alone(model: Model) -> None:
    prompts = [PROMPT, "a", "the rat and the mat and the cat"]
    options = {"seed": 3, "max_new_tokens": 9}
    assert model.generate(prompts, **options) == [model.generate(prompt, **options) for prompt in prompts]


def test_n_gives_a_list(model: Model) -> None:
    several = model.generate(PROMPT, n=3, seed=0, max_new_tokens=5)
    assert len(several) == 3 and len({tuple(one.token_ids) for one in several}) > 1
    assert [len(row) for row in model.generate([PROMPT, "a"], n=2, seed=0, max_new_tokens=2)] == [2, 2]


def test_stream_equals_generate(model: Model) -> None:
    for options in (GREEDY, {"seed": 5, "max_new_tokens": 20}):
        assert "".join(model.stream(PROMPT, **options)) == model.generate(PROMPT, **options).text


def test_int8_cache_is_used(model: Model) -> None:
    result = model.generate(PROMPT, cache_kind="int8", **GREEDY)
    assert len(result.token_ids) == 12
    with pytest.raises(PolyformerError, match="int9"):
        model.generate(PROMPT, cache_kind="int9", **GREEDY)


def test_stop_and_bad_words_are_texts(model: Model) -> None:
    free = model.generate(PROMPT, **GREEDY)
    assert model.tokenizer is not None
    words = {token: model.tokenizer.decode([token]) for token in free.token_ids[1:]}
    token, word = next(
        item for item in words.items() if item[1].isascii() and model.tokenizer.encode(item[1]) == [item[0]]
    )
    assert token not in model.generate(PROMPT, bad_words=[word], **GREEDY).token_ids
    stopped = model.generate(PROMPT, stop=word, **GREEDY)
    assert stopped.finish_reason == "stop" and stopped.stopped_by == word
    assert stopped.text == free.text[: free.text.index(word)]


def test_negative_prompt_is_a_text(model: Model) -> None:
    assert model.tokenizer is not None
    options = {"guidance_scale": 3.0, **GREEDY}
    by_text = model.generate(PROMPT, negative_prompt="the rat", **options)
    by_ids = model.generate(PROMPT, negative_prompt=model.tokenizer.encode("the rat"), **options)
    assert by_text == by_ids
    assert by_text.token_ids != model.generate(PROMPT, **GREEDY).token_ids


def test_settings_made_beforehand(model: Model) -> None:
    settings = GenerationSettings(temperature=0, max_new_tokens=12)
    assert model.generate(PROMPT, settings) == model.generate(PROMPT, **GREEDY)
    assert len(model.generate(PROMPT, settings, max_new_tokens=2).token_ids) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature must be a number in"),
        ({"temprature": 1}, "did you mean temperature"),
        ({"bad_words": "a"}, "bad_words must be a list of texts"),
        ({"bad_words": ["a"], "bad_words_ids": [[1]]}, "not both"),
        ({"logit_bias": {99999: 1.0}}, "token 99999"),
    ],
)
def test_wrong_options_are_refused(model: Model, options: dict[str, object], message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        model.generate(PROMPT, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(GenerationError, match=message):
        model.stream(PROMPT, **options)


def test_a_prompt_longer_than_the_context_is_refused(model: Model) -> None:
    with pytest.raises(GenerationError, match=r"context is 128 tokens"):
        model.generate([5] * 128)
    assert len(model.generate([5] * 127, **GREEDY).token_ids) == 1  # what fits is written


@pytest.mark.parametrize("prompt", [[1.5], [None], [True], None, 7, [[1.5]], [5, "a"], [[[1]]], torch.tensor(3)])
def test_a_prompt_of_something_else_is_refused(model: Model, prompt: object) -> None:
    with pytest.raises(GenerationError, match="prompt"):
        model.generate(prompt)  # type: ignore[arg-type]


# --- what the model's own files say ---------------------------------------------------------------------------------


def write_generation_config(folder: Path, **values: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps(values))


def test_end_tokens_of_the_generation_config_end_a_text(tiny_copy: Path, model: Model) -> None:
    free = model.generate(PROMPT, **GREEDY)
    end = free.token_ids[4]
    write_generation_config(tiny_copy, eos_token_id=[0, end])
    own = polyformer.load(tiny_copy, device="cpu")
    result = own.generate(PROMPT, **GREEDY)
    assert result.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    assert result.finish_reason == "eos"
    assert own.generate(PROMPT, ignore_eos=True, **GREEDY).token_ids == free.token_ids


def test_sampling_defaults_of_the_generation_config(tiny_copy: Path) -> None:
    write_generation_config(tiny_copy, do_sample=True, temperature=0.5, top_k=7, repetition_penalty=1.3, max_length=3)
    own = polyformer.load(tiny_copy, device="cpu")
    assert own.generation_defaults.options == {"temperature": 0.5, "top_k": 7, "repetition_penalty": 1.3}
    asked = {"seed": 1, "max_new_tokens": 10}
    full = {"temperature": 0.5, "top_k": 7, "repetition_penalty": 1.3, **asked}
    assert own.generate(PROMPT, **asked) == own.generate(PROMPT, GenerationSettings(**full))
    # what a call gives goes before; searches that do not sample take the penalty only
    assert own.generate(PROMPT, temperature=2.0, **asked) == own.generate(
        PROMPT, GenerationSettings(**{**full, "temperature": 2.0})
    )
    assert own.generate(PROMPT, **GREEDY) == own.generate(PROMPT, GenerationSettings(repetition_penalty=1.3, **GREEDY))
    assert len(own.generate(PROMPT, num_beams=3, max_new_tokens=4).token_ids) == 4


def test_without_do_sample_the_files_sampling_values_mean_nothing(tmp_path: Path) -> None:
    write_generation_config(tmp_path, temperature=0.5, top_p=0.3)
    assert GenerationDefaults.read(tmp_path / "generation_config.json").options == {}


@pytest.mark.parametrize("text", ["{", "[1]", '{"eos_token_id": "two"}', '{"eos_token_id": [true]}'])
def test_a_damaged_generation_config_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        GenerationDefaults.read(path)


# --- scoring --------------------------------------------------------------------------------------------------------


def test_score_is_the_references(model: Model, reference) -> None:  # type: ignore[no-untyped-def]
    network, tokenizer = reference
    ids = tokenizer("the cat sat on the mat", return_tensors="pt").input_ids
    logprobs = network(ids).logits.detach().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    score = model.score("the cat sat on the mat")
    assert score.token_ids == ids[0, 1:].tolist()
    assert score.logprobs == pytest.approx(logprobs.tolist(), abs=1e-4)
    assert score.logprob == pytest.approx(float(logprobs.sum()), abs=1e-3)
    assert score.perplexity == pytest.approx(math.exp(-float(logprobs.mean())), rel=1e-3)
    continued = model.score(ids[0, 3:].tolist(), prompt=ids[0, :3].tolist())
    assert continued.logprobs == pytest.approx(score.logprobs[2:], abs=1e-4)


def test_a_long_text_is_scored_in_pieces(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [5 + 3 * number for number in range(30)]
    whole = model.score(ids).logprobs
    monkeypatch.setattr("polyformer.model._SCORED_AT_ONCE", 7)
    assert model.score(ids).logprobs == pytest.approx(whole, abs=1e-4)


def test_score_refuses_nothing_and_too_much(model: Model) -> None:
    with pytest.raises(GenerationError, match="no token 9999: the ids are 0 to 319"):
        model.score([5, 9999])
    with pytest.raises(GenerationError, match="nothing to score"):
        model.score([5])
    with pytest.raises(GenerationError, match="context of 128"):
        model.score([5] * 129)


# --- chatting -------------------------------------------------------------------------------------------------------


def test_chat_uses_the_template(model: Model, reference) -> None:  # type: ignore[no-untyped-def]
    messages = [{"role": "system", "content": "be a rat"}, {"role": "user", "content": "hi"}]
    expected = reference[1].apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert model.encode_chat(messages) == expected
    assert model.chat(messages, **GREEDY) == model.generate(expected, **GREEDY)


def test_a_model_without_a_template_says_what_it_can(tiny_copy: Path) -> None:
    (tiny_copy / "chat_template.jinja").unlink()
    own = polyformer.load(tiny_copy, device="cpu")
    for refused in (lambda: own.chat([{"role": "user", "content": "hi"}]), lambda: own.conversation()):
        with pytest.raises(CapabilityError, match=r"cannot chat: it has no chat template.*generate, stream, score"):
            refused()


def test_a_conversation_remembers(model: Model) -> None:
    talk = model.conversation(system="be a cat", **GREEDY)
    first = "".join(talk.ask("hi"))
    so_far = [
        {"role": "system", "content": "be a cat"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": first},
    ]
    assert talk.messages == so_far
    expected = model.chat([*so_far, {"role": "user", "content": "and"}], **GREEDY).text
    assert "".join(talk.ask("and")) == expected
    talk.reset()
    assert talk.messages == so_far[:1]
    talk.reset(system="be a rat")
    assert talk.messages == [{"role": "system", "content": "be a rat"}]


def test_an_answer_that_is_broken_off_is_remembered_as_far_as_it_went(model: Model) -> None:
    talk = model.conversation(**GREEDY)
    whole = "".join(talk.ask("hi"))
    talk.reset()
    answer = talk.ask("hi")
    begun = next(answer)
    answer.close()
    assert whole.startswith(begun) and begun != whole
    assert talk.messages[-1] == {"role": "assistant", "content": begun}


def test_a_conversation_that_outgrows_the_context_leaves_out_the_oldest(model: Model) -> None:
    talk = model.conversation(system="s", **GREEDY)
    for number in range(6):
        assert "".join(talk.ask(f"the cat {number}"))
    assert talk.dropped > 0 and talk.dropped % 2 == 0
    assert len(talk.messages) == 13
    with pytest.raises(GenerationError, match="context is 128; shorten"):
        next(talk.ask("the cat " * 200))
    assert len(talk.messages) == 13


def test_a_conversation_is_saved(model: Model, tmp_path: Path) -> None:
    talk = model.conversation(**GREEDY)
    "".join(talk.ask("hi"))
    talk.save(tmp_path / "talk.json")
    assert json.loads((tmp_path / "talk.json").read_text()) == talk.messages
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


# --- what it cannot do ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fill_mask", "classify", "tag", "transcribe"])
def test_other_kinds_of_work_are_refused(model: Model, name: str) -> None:
    with pytest.raises(CapabilityError, match=f"cannot {name}; it can generate, stream, score, chat"):
        getattr(model, name)("anything")


def test_without_a_tokenizer_it_takes_and_gives_ids(tiny_without_tokenizer: Path, model: Model) -> None:
    own = polyformer.load(tiny_without_tokenizer, device="cpu")
    assert own.tokenizer is None and "token ids" in repr(own)
    ids = [261, 270]
    result = own.generate(ids, **GREEDY)
    assert result.text is None
    assert result.token_ids == model.generate(ids, **GREEDY).token_ids
    assert list(own.stream(ids, **GREEDY)) == result.token_ids
    with pytest.raises(CapabilityError, match="has no tokenizer: give token ids"):
        own.generate("the cat")
    with pytest.raises(CapabilityError, match="cannot chat: it has no tokenizer"):
        own.chat([{"role": "user", "content": "hi"}])
    with pytest.raises(GenerationError, match="needs a tokenizer"):
        own.generate(ids, stop="x")


# --- saving ---------------------------------------------------------------------------------------------------------


def test_save_writes_what_transformers_loads(model: Model, reference, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model.save(tmp_path / "saved")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    expected = reference[0].state_dict()
    saved = network.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    assert tokenizer(PROMPT).input_ids == reference[1](PROMPT).input_ids
    assert network.generation_config.eos_token_id in (0, [0])
    again = polyformer.load(tmp_path / "saved", device="cpu")
    assert again.generate(PROMPT, **GREEDY) == model.generate(PROMPT, **GREEDY)


def test_what_generation_does_to_the_weights_is_not_seen(tiny_llama: Path, tmp_path: Path) -> None:
    """16-bit weights are packed for generation; scores, the state dict and saved files are those of the plain ones."""
    own = polyformer.load(tiny_llama, dtype="bfloat16", device="cpu")
    before = {name: tensor.clone() for name, tensor in own.network.state_dict().items()}
    score = own.score(PROMPT)
    first = own.generate(PROMPT, **GREEDY)
    assert own.score(PROMPT).logprobs == pytest.approx(score.logprobs, abs=0.05)
    assert own.device == torch.device("cpu") and own.dtype == torch.bfloat16
    own.generate(PROMPT, **GREEDY)
    own.save(tmp_path / "saved")
    saved = polyformer.load(tmp_path / "saved", device="cpu")
    for network in (own.network, saved.network):
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert saved.generate(PROMPT, **GREEDY) == first


def test_save_keeps_the_generation_defaults(tiny_copy: Path, tmp_path: Path) -> None:
    write_generation_config(tiny_copy, eos_token_id=[0, 7], do_sample=True, temperature=0.5)
    own = polyformer.load(tiny_copy, device="cpu")
    own.save(tmp_path / "saved")
    assert polyformer.load(tmp_path / "saved").generation_defaults == own.generation_defaults


# --- real weights ---------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_smollm2_knows_the_capital_of_france(smollm2: Path) -> None:
    model = polyformer.load("smollm2-135m-instruct", dtype="float32", device="cpu")
    assert model.family.name == "llama"
    assert model.num_parameters == 134_515_008
    assert model.context_length == 8192
    result = model.generate("The capital of France is", max_new_tokens=8, temperature=0)
    assert result.text.startswith(" Paris")
    answer = model.chat(
        [{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=24, temperature=0
    )
    assert "Paris" in answer.text and answer.finish_reason == "eos"


@pytest.mark.real
def test_a_quantized_file_is_computed_in_bfloat16_where_there_are_instructions(smollm2: Path) -> None:
    from polyformer.core.placement import has_bfloat16

    model = polyformer.load(smollm2, device="cpu")
    assert model.dtype == (torch.bfloat16 if has_bfloat16(torch.device("cpu")) else torch.float32)
    assert model.generate("The capital of France is", max_new_tokens=4, temperature=0).text.startswith(" Paris")
