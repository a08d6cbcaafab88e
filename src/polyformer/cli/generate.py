"""`polyformer generate`: continue one prompt or many."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.reading import InputError, read_examples, read_prompts, read_text
from polyformer.generation.prompts import few_shot_messages, few_shot_prompt

if TYPE_CHECKING:
    from polyformer.generation.generate import Generation
    from polyformer.model import Model

HELP = """Continue a prompt, or many at once.

The prompt comes from the arguments (several make a batch), from a file, or from standard input. Options left out keep \
the model's own defaults, then: temperature 1, every token a candidate. Only the new text is printed.

\b
[bold]Examples[/bold]
polyformer generate smollm2-135m-instruct "The capital of France is" -m 16 --temperature 0
polyformer generate smollm2-135m-instruct --chat "Write a poem about the sea."
polyformer generate model.gguf "Once upon a time" "It was raining" --seed 7 --json
polyformer generate ./my-model --prompts-file questions.jsonl --json > answers.jsonl
polyformer generate model.gguf "7+8" --examples sums.jsonl --stop $'\\n\\n'
cat story.txt | polyformer generate smollm2-135m-instruct - --top-p 0.9 --stop "THE END"
"""


def register(app: typer.Typer) -> None:
    app.command("generate", help=HELP)(generate)


def generate(
    model: opt.ModelName,
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Texts to continue; - is standard input.")
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", "-f", help="A file that is one prompt; - is standard input.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts-file", help="One prompt a line: text, or .jsonl with the key prompt.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put each prompt through the model's chat template.")] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="With --chat: the system prompt.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option("--examples", help="Few-shot: .jsonl of input and output pairs, shown before each prompt."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each prompt, a line each.")] = False,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print as it is written. Default: on a terminal.")
    ] = None,
    max_new_tokens: opt.MaxNewTokens = None,
    min_new_tokens: opt.MinNewTokens = None,
    stop: opt.Stop = None,
    stop_token_id: opt.StopTokenId = None,
    ignore_eos: opt.IgnoreEos = False,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    top_p: opt.TopP = None,
    min_p: opt.MinP = None,
    typical_p: opt.TypicalP = None,
    seed: opt.Seed = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    presence_penalty: opt.PresencePenalty = None,
    frequency_penalty: opt.FrequencyPenalty = None,
    logit_bias: opt.LogitBias = None,
    banned_word: opt.BannedWord = None,
    n: opt.Samples = None,
    logprobs: opt.Logprobs = None,
    num_beams: opt.NumBeams = None,
    length_penalty: opt.LengthPenalty = None,
    early_stopping: opt.EarlyStopping = False,
    num_beam_groups: opt.NumBeamGroups = None,
    diversity_penalty: opt.DiversityPenalty = None,
    penalty_alpha: opt.PenaltyAlpha = None,
    guidance_scale: opt.GuidanceScale = None,
    negative_prompt: opt.NegativePrompt = None,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    texts = gather_prompts(prompts or [], prompt_file, prompts_file)
    shots = read_examples(examples) if examples is not None else []
    settings = opt.given(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        stop=stop,
        stop_token_ids=stop_token_id,
        ignore_eos=ignore_eos,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=parse_logit_bias(logit_bias),
        bad_words=banned_word,
        n=n,
        logprobs=logprobs,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_beam_groups=num_beam_groups,
        diversity_penalty=diversity_penalty,
        penalty_alpha=penalty_alpha,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
    )
    if system is not None and not chat:
        raise InputError("--system needs --chat: a bare prompt has no system prompt")
    if logprobs is not None and not as_json:
        raise InputError("--logprobs needs --json: plain text has no room for them")
    one_text = len(texts) == 1 and (n or 1) == 1 and (num_beams or 1) == 1 and not as_json
    if stream and not one_text:
        raise InputError("--stream writes a single text: leave out --json, --num-beams, -n and all prompts but one")

    loaded = load(model, dtype=dtype, device=device, revision=revision)
    inputs = [chat_prompt(loaded, text, system, shots) if chat else plain_prompt(text, shots) for text in texts]
    if one_text and (sys.stdout.isatty() if stream is None else stream):
        for piece in loaded.stream(inputs[0], **settings):
            print(piece, end="", flush=True)
        print()
        return
    answers = loaded.generate(inputs, **settings)
    for number, (text, answer) in enumerate(zip(texts, answers)):
        results = answer if isinstance(answer, list) else [answer]
        print_json(number, text, results) if as_json else print_plain(number, results, len(texts))


def gather_prompts(prompts: list[str], prompt_file: Path | None, prompts_file: Path | None) -> list[str]:
    """The prompts, from the one place that a person named; from standard input where they named none."""
    named = [bool(prompts), prompt_file is not None, prompts_file is not None]
    if sum(named) > 1:
        raise InputError("give the prompt in one way: as arguments, with --prompt-file, or with --prompts-file")
    if prompts_file is not None:
        return read_prompts(prompts_file)
    if prompt_file is not None:
        return [read_text(prompt_file)]
    if not prompts:
        if sys.stdin.isatty():
            raise InputError('no prompt: write one after the model, for example "Once upon a time", or pipe one in')
        prompts = ["-"]
    if prompts.count("-") > 1:
        raise InputError("standard input (-) can be one prompt only")
    return [read_text(Path("-")) if prompt == "-" else prompt for prompt in prompts]


def plain_prompt(text: str, shots: list[tuple[str, str]]) -> str:
    return few_shot_prompt(None, shots, text) if shots else text


def chat_prompt(model: Model, text: str, system: str | None, shots: list[tuple[str, str]]) -> list[int]:
    return model.encode_chat(few_shot_messages(system, shots, text))


def parse_logit_bias(pairs: list[str] | None) -> dict[int, float] | None:
    """`["50256=-100", "11=2.5"]` -> `{50256: -100.0, 11: 2.5}`."""
    biases = {}
    for pair in pairs or []:
        token_id, _, value = pair.partition("=")
        try:
            biases[int(token_id)] = float(value)
        except ValueError:
            raise InputError(f"--logit-bias {pair!r}: expected ID=VALUE, for example 50256=-100") from None
    return biases or None


def print_json(number: int, prompt: str, results: list[Generation]) -> None:
    shown = [{key: value for key, value in asdict(result).items() if value is not None} for result in results]
    print(json.dumps({"index": number, "prompt": prompt, "generations": shown}, ensure_ascii=False), flush=True)


def print_plain(number: int, results: list[Generation], prompts: int) -> None:
    for sample, result in enumerate(results):
        if prompts > 1 or len(results) > 1:
            print(f"--- prompt {number + 1}" + (f", text {sample + 1}" if len(results) > 1 else ""))
        print(result.text if result.text is not None else " ".join(map(str, result.token_ids)), flush=True)
