"""`polyformer generate` says what `Model.generate` gives, for every way of giving a prompt."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import polyformer
from polyformer.generation.prompts import few_shot_messages, few_shot_prompt
from polyformer.model import Model

GREEDY = ("--temperature", "0", "-m", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return polyformer.load(tiny_llama, device="cpu")


@pytest.fixture(scope="module")
def text(model: Model) -> str:
    """The greedy continuation of "the cat"."""
    return model.generate("the cat", temperature=0, max_new_tokens=8).text


def test_the_new_text_is_printed(run: Callable, tiny_llama: Path, text: str) -> None:
    assert run("generate", tiny_llama, "the cat", *GREEDY) == (0, text + "\n", "")


def test_streaming_prints_the_same(run: Callable, tiny_llama: Path, text: str) -> None:
    assert run("generate", tiny_llama, "the cat", "--stream", *GREEDY) == (0, text + "\n", "")


def test_the_prompt_may_come_from_anywhere(run: Callable, tiny_llama: Path, tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("the cat\n")
    assert run("generate", tiny_llama, "--prompt-file", file, *GREEDY).out == text + "\n"
    assert run("generate", tiny_llama, *GREEDY, stdin=b"the cat\n").out == text + "\n"
    assert run("generate", tiny_llama, "-", *GREEDY, stdin=b"the cat").out == text + "\n"
    assert run("generate", tiny_llama, "-f", "-", *GREEDY, stdin=b"the cat\r\n").out == text + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.txt", "the cat\n\na rat sat\n"),
        ("prompts.jsonl", '{"prompt": "the cat"}\n"a rat sat"\n'),
    ],
)
def test_many_prompts_of_a_file(run: Callable, tiny_llama: Path, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    from_file = run("generate", tiny_llama, "--prompts-file", tmp_path / name, "--json", *GREEDY)
    from_arguments = run("generate", tiny_llama, "the cat", "a rat sat", "--json", *GREEDY)
    assert from_file.code == 0 and from_file == from_arguments


def test_json_is_one_object_a_line(run: Callable, tiny_llama: Path, model: Model) -> None:
    result = run(
        "generate", tiny_llama, "the cat", "a", "--json", "--seed", "3", "-n", "2", "-m", "6", "--logprobs", "1"
    )
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["prompt"] for line in lines] == ["the cat", "a"]
    assert [line["index"] for line in lines] == [0, 1]
    expected = model.generate(["the cat", "a"], seed=3, n=2, max_new_tokens=6, logprobs=1)
    for line, samples in zip(lines, expected, strict=True):
        for shown, sample in zip(line["generations"], samples, strict=True):
            assert shown["text"] == sample.text
            assert shown["token_ids"] == sample.token_ids
            assert shown["finish_reason"] == sample.finish_reason
            assert len(shown["logprobs"]) == len(sample.token_ids)
            assert shown["logprobs"][0]["raw"] == pytest.approx(sample.logprobs[0].raw)


def test_several_texts_are_told_apart(run: Callable, tiny_llama: Path, text: str) -> None:
    result = run("generate", tiny_llama, "the cat", "a", *GREEDY)
    assert result.out.startswith(f"--- prompt 1\n{text}\n--- prompt 2\n")
    beams = run("generate", tiny_llama, "the cat", "--num-beams", "3", "-n", "2", "-m", "4")
    assert beams.out.startswith("--- prompt 1, text 1\n") and "--- prompt 1, text 2\n" in beams.out


def test_every_option_arrives(run: Callable, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option by its name and value, as `Model.generate` gets it."""
    seen: dict[str, object] = {}

    class Stop(polyformer.errors.PolyformerError):
        pass

    def spy(self: Model, prompts: object, **options: object) -> None:
        seen.update(options)
        raise Stop("seen")

    monkeypatch.setattr(Model, "generate", spy)
    given = {
        "--max-new-tokens": (7, 7),
        "--min-new-tokens": (2, 2),
        "--temperature": (0.7, 0.7),
        "--top-k": (5, 5),
        "--top-p": (0.9, 0.9),
        "--min-p": (0.1, 0.1),
        "--typical-p": (0.8, 0.8),
        "--seed": (0, 0),
        "--repetition-penalty": (1.1, 1.1),
        "--presence-penalty": (0.2, 0.2),
        "--frequency-penalty": (0.3, 0.3),
        "--logprobs": (0, 0),
        "--num-beams": (4, 4),
        "--length-penalty": (0.0, 0.0),
        "--num-beam-groups": (2, 2),
        "--diversity-penalty": (0.5, 0.5),
        "--penalty-alpha": (0.6, 0.6),
        "--guidance-scale": (1.5, 1.5),
        "--negative-prompt": ("no", "no"),
        "--stop": ("x", ["x"]),
        "--stop-token-id": (9, [9]),
        "--banned-word": ("rat", ["rat"]),
        "--logit-bias": ("5=-2.5", {5: -2.5}),
        "-n": (2, 2),
    }
    flags = {"--ignore-eos": True, "--early-stopping": True}
    arguments = [part for name, (value, _) in given.items() for part in (name, value)]
    assert run("generate", tiny_llama, "p", "--json", *arguments, *flags).err == "error: seen\n"
    other_names = {"stop_token_id": "stop_token_ids", "banned_word": "bad_words"}
    plain = {name.lstrip("-").replace("-", "_"): value for name, (_, value) in given.items()}
    expected = {other_names.get(name, name): value for name, value in plain.items()}
    assert seen == {**expected, "ignore_eos": True, "early_stopping": True}


def test_chat_puts_prompts_through_the_template(run: Callable, tiny_llama: Path, model: Model) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}]
    expected = model.chat(messages, temperature=0, max_new_tokens=8).text
    assert run("generate", tiny_llama, "--chat", "--system", "s", "hi", *GREEDY).out == expected + "\n"


def test_examples_come_before_the_prompt(run: Callable, tiny_llama: Path, tmp_path: Path, model: Model) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n\n{"input": "c", "output": "d"}\n')
    shots = [("a", "b"), ("c", "d")]
    plain = model.generate(few_shot_prompt(None, shots, "e"), temperature=0, max_new_tokens=8).text
    assert run("generate", tiny_llama, "e", "--examples", path, *GREEDY).out == plain + "\n"
    talk = model.chat(few_shot_messages("s", shots, "e"), temperature=0, max_new_tokens=8).text
    result = run("generate", tiny_llama, "e", "--examples", path, "--chat", "--system", "s", *GREEDY)
    assert result.out == talk + "\n"
    path.write_text('{"input": "a"}')
    result = run("generate", tiny_llama, "e", "--examples", path, *GREEDY)
    assert result.code == 2 and "line 1: expected an object with the strings input and output" in result.err


def test_without_a_tokenizer_texts_are_refused(run: Callable, tiny_without_tokenizer: Path) -> None:
    result = run("generate", tiny_without_tokenizer, "hi", *GREEDY)
    assert result.code == 2 and "has no tokenizer" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["p", "--temperature", "-1"], "temperature must be a number in [0, 100]; 0 is greedy, not -1.0"),
        (["p", "--top-p", "0"], "top_p"),
        (["p", "--logit-bias", "a=1"], "--logit-bias 'a=1': expected ID=VALUE"),
        (["p", "--system", "s"], "--system needs --chat"),
        (["p", "--logprobs", "2"], "--logprobs needs --json"),
        (["p", "q", "--stream"], "--stream writes a single text"),
        (["p", "--stream", "--json"], "--stream writes a single text"),
        (["p", "--prompt-file", "f"], "give the prompt in one way"),
        (["-", "-"], "standard input (-) can be one prompt only"),
        (["--prompt-file", "nowhere.txt"], "nowhere.txt cannot be read: No such file"),
        (["--prompts-file", "-"], "- holds no prompt"),
        (["the cat " * 200], "context is 128 tokens"),
        (["p", "--dtype", "flot32"], "did you mean 'float32'"),
        (["p", "--device", "tpuu"], "'tpuu' cannot be used"),
        (["p", "--revision", "main"], "only means something for a hub id"),
    ],
)
def test_mistakes_are_one_line(run: Callable, tiny_llama: Path, arguments: list[str], message: str) -> None:
    result = run("generate", tiny_llama, *arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1 and result.out == ""


def test_invalid_utf8_names_the_byte(run: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    result = run("generate", tiny_llama, "-", stdin=b"caf\xe9 au lait")
    assert result.code == 2
    assert result.err == (
        "error: standard input is not valid UTF-8: byte 0xe9 at offset 3; convert it first, for example with: "
        "iconv -f LATIN1 -t UTF-8\n"
    )
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe")
    assert (
        "p.txt is not valid UTF-8: byte 0xff at offset 0" in run("generate", tiny_llama, "-f", tmp_path / "p.txt").err
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ('{"text": "x"}', "line 1: expected a string or an object"),
        ("3", "line 1: expected"),
    ],
)
def test_a_wrong_line_of_a_prompts_file_is_named(
    run: Callable, tiny_llama: Path, tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    result = run("generate", tiny_llama, "--prompts-file", tmp_path / "p.jsonl")
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def damage_nothing_there(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])


def damage_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def damage_pickle(folder: Path) -> None:
    import os
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(folder / "pwned"),)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def damage_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing_there, "holds no weights"),
        (damage_truncated, "model.safetensors"),
        (damage_config(model_type="lama", architectures=None), "'lama' is not known"),
        (damage_config(hidden_act="sinus"), "hidden_act='sinus' is not supported"),
        (damage_config(num_attention_heads=0), "num_attention_heads is 0"),
        (damage_pickle, "pytorch_model.bin"),
        (damage_template, "chat template"),
    ],
)
def test_a_broken_model_is_one_line(
    run: Callable, tiny_copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(tiny_copy)
    result = run("generate", tiny_copy, "--chat", "hi", *GREEDY)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1 and result.out == ""
    assert not (tiny_copy / "pwned").exists()


def test_not_even_a_warning_of_a_library_stands_beside_the_error(tiny_copy: Path) -> None:
    damage_pickle(tiny_copy)
    command = [sys.executable, "-m", "polyformer", "generate", str(tiny_copy), "hi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.real
def test_smollm2_on_the_command_line(run: Callable, smollm2: Path) -> None:
    result = run("generate", "smollm2-135m-instruct", "The capital of France is", "--temperature", "0", "-m", "8")
    assert result.code == 0 and result.out.startswith(" Paris")
