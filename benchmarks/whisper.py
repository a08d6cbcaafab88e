"""Whisper on real speech: word error rate and real-time factor, beside faster-whisper and transformers.

The clips are the voice prompts of a telephone server (`sounds.py`), whose text is known. faster-whisper reads the same
file of weights; it is no dependency, so it runs in an environment of its own:

    python -m venv peers && peers/bin/pip install faster-whisper
    python benchmarks/whisper.py --peer-python peers/bin/python

Real-time factor: seconds of work for a second of speech; lower is faster. Rates of words are after the usual
normalization of case, punctuation, numbers and spelling (Radford et al., 2022, appendix C), all clips taken together.

With `--encode-once` each side keeps what its encoder made of a clip for the searches after the first: error rates of
many clips in little more than half the time, and no real-time factors.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
from sounds import Clip, clips

MODELS = {"whisper-base": ("en", "es", "fr"), "whisper-tiny.en": ("en",)}

# Runs with the peer's Python: reads a request as JSON, answers with one line of JSON.
PEER = """
import json, sys, time
request = json.load(sys.stdin)
from faster_whisper import WhisperModel
model = WhisperModel(request["folder"], device="cpu", compute_type=request["precision"], cpu_threads=request["threads"])
encode, known = model.encode, {}
def encode_once(features):
    key = features.tobytes()
    if key not in known:
        known[key] = encode(features)
    return known[key]
if request["encode_once"]:
    model.encode = encode_once
answers = []
for beams in request["beams"]:
    options = {"language": request["language"], "beam_size": beams, "best_of": 5}
    list(model.transcribe(request["files"][0], **options)[0])
    begin, texts = time.perf_counter(), []
    for file in request["files"]:
        segments, _ = model.transcribe(file, **options)
        texts.append("".join(segment.text for segment in segments).strip())
    answers.append({"seconds": time.perf_counter() - begin, "texts": texts})
print(json.dumps(answers))
"""


def word_errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Words to change, leave out or put in, at the least (Levenshtein, 1966)."""
    row = list(range(len(heard) + 1))
    for number, word in enumerate(said, start=1):
        before, row[0] = row[0], number
        for place, other in enumerate(heard, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
    return row[-1]


def word_error_rate(said: Sequence[str], heard: Sequence[str], language: str) -> float:
    """Errors in all texts together for a word that is said, in per cent."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    normalize = EnglishTextNormalizer({}) if language == "en" else BasicTextNormalizer()
    pairs = [(normalize(a).split(), normalize(b).split()) for a, b in zip(said, heard, strict=True)]
    return 100 * sum(word_errors(*pair) for pair in pairs) / sum(len(pair[0]) for pair in pairs)


def ours(
    model_name: str,
    files: list[str],
    language: str,
    precision: str,
    beams: Sequence[int],
    batch: int,
    *,
    encode_once: bool,
) -> list[dict[str, Any]]:
    """An answer for each number of beams."""
    import polyformer

    model = polyformer.load(model_name, dtype=precision, device="cpu")
    if encode_once:
        model.network.encode = remembering(model.network.encode)
    answers = []
    for number in beams:
        options = {"language": language, "num_beams": number, "batch_size": batch}
        model.transcribe(files[:1], **options)
        begin = time.perf_counter()
        results = model.transcribe(files, **options)
        answers.append({"seconds": time.perf_counter() - begin, "texts": [result.text for result in results]})
    return answers


def remembering(encode: Callable[..., Any]) -> Callable[..., Any]:
    """An encoder that keeps what it made of each window."""
    import torch

    known: dict[bytes, torch.Tensor] = {}

    def encode_once(*, input_features: torch.Tensor) -> Any:
        keys = [window.float().numpy().tobytes() for window in input_features]
        new = [place for place, key in enumerate(keys) if key not in known]
        if new:
            made = encode(input_features=input_features[new]).last_hidden_state
            known.update({keys[place]: states.clone() for place, states in zip(new, made, strict=True)})
        return SimpleNamespace(last_hidden_state=torch.stack([known[key] for key in keys]))

    return encode_once


def faster_whisper(
    python: str,
    model_name: str,
    files: list[str],
    language: str,
    precision: str,
    beams: Sequence[int],
    *,
    encode_once: bool,
) -> list[dict[str, Any]]:
    """An answer for each number of beams."""
    import torch

    from polyformer.checkpoints.catalogue import resolve

    source = resolve(model_name).path
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("model.bin", "config.json", "tokenizer.json"):
            (folder / file).symlink_to(source / file)
        (folder / "vocabulary.json").write_text(json.dumps(_vocabulary(source)))
        request = {
            "folder": str(folder),
            "files": files,
            "language": language,
            "precision": precision,
            "beams": list(beams),
            "encode_once": encode_once,
            "threads": torch.get_num_threads(),
        }
        done = subprocess.run(
            [python, "-c", PEER], input=json.dumps(request), capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"faster-whisper failed: {done.stderr.strip().splitlines()[-1:]}")
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _vocabulary(source: Path) -> list[str]:
    """The tokens in the order of their ids, filled up to the rows of the table."""
    from polyformer.checkpoints.ctranslate2 import CTranslate2File

    with CTranslate2File(source / "model.bin") as file:
        rows = file.shape("decoder/embeddings/weight")[0]
    description = json.loads((source / "tokenizer.json").read_text())
    tokens = {number: token for token, number in description["model"]["vocab"].items()}
    tokens.update({token["id"]: token["content"] for token in description["added_tokens"]})
    return [tokens.get(number, f"<|{number}|>") for number in range(rows)]


# Of its documentation for long recordings; it compresses token ids, where 1.35 stands for the 2.4 of a text.
TRANSFORMERS_OPTIONS: dict[str, Any] = {
    "return_timestamps": True,
    "condition_on_prev_tokens": True,
    "temperature": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}


def transformers_whisper(
    model_name: str, files: list[str], language: str, precision: str, batch: int
) -> dict[str, dict[str, Any]]:
    """On batches of clips of like length, longest first as ours, in two ways: its own sequential algorithm, where it
    draws one sample at a temperature above 0 and the others draw five; and one greedy pass over the first window, with
    timestamps, that tries nothing again and is therefore no match for long or doubtful recordings."""
    import torch
    from transformers import WhisperForConditionalGeneration

    import polyformer
    from polyformer.tokenizers.audio_files import read_sound

    model = polyformer.load(model_name, dtype=precision, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        peer = WhisperForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, precision)).eval()
    tokenizer, processor = model.tokenizer, model.audio_processor
    peer.generation_config.max_length = peer.config.max_target_positions  # as published; 20 tokens otherwise
    end = peer.generation_config.pad_token_id = tokenizer.token_to_id("<|endoftext|>")
    options = dict(TRANSFORMERS_OPTIONS)
    if model.generation_defaults.others["is_multilingual"]:
        options.update(language=language, task="transcribe")

    def frames(file: str) -> Any:
        samples = read_sound(file, processor.rate)
        return processor.log_mel(samples, padding=processor.window)[:, : max(1, len(samples) // processor.hop)]

    def read(rows: torch.Tensor) -> list[str]:
        return [tokenizer.decode([token for token in row if token < end]).strip() for row in rows.tolist()]

    def hear(some: list[str]) -> list[str]:
        sounds = [frames(file) for file in some]
        # Only above a window does it ask the mask where each clip ends.
        columns = max(processor.frames + 1, *(sound.shape[1] for sound in sounds))
        features = torch.stack([torch.nn.functional.pad(sound, (0, columns - sound.shape[1])) for sound in sounds])
        mask = torch.stack([torch.arange(columns) < sound.shape[1] for sound in sounds]).long()
        torch.manual_seed(0)
        return read(peer.generate(features.to(peer.dtype), attention_mask=mask, **options))

    def hear_once(some: list[str]) -> list[str]:
        windows = torch.stack([processor(read_sound(file, processor.rate)) for file in some])
        chosen = {name: options[name] for name in ("language", "task", "return_timestamps") if name in options}
        return read(peer.generate(windows.to(peer.dtype), do_sample=False, **chosen))

    def timed(hears: Callable[[list[str]], list[str]]) -> dict[str, Any]:
        hears(files[:1])
        texts: dict[str, str] = {}
        begin = time.perf_counter()
        order = sorted(files, key=lambda file: -Path(file).stat().st_size)
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            texts.update(zip(some, hears(some), strict=True))
        return {"seconds": time.perf_counter() - begin, "texts": [texts[file] for file in files]}

    return {"transformers": timed(hear), "transformers, one pass": timed(hear_once)}


def measure(options: argparse.Namespace, name: str, language: str) -> list[dict[str, Any]]:
    import soundfile

    given: list[Clip] = clips(language)
    if options.clips:
        given = given[:: max(1, len(given) // options.clips)][: options.clips]
    files, said = [str(clip.path) for clip in given], [clip.text for clip in given]
    seconds = sum(soundfile.info(file).duration for file in files)
    rows = []

    def add(side: str, precision: str, beams: int, run: dict[str, Any]) -> None:
        row = {
            "model": name,
            "language": language,
            "side": side,
            "precision": precision,
            "beams": beams,
            "clips": len(files),
            "speech_seconds": round(seconds, 1),
            "word_error_rate": round(word_error_rate(said, run["texts"], language), 2),
            "real_time_factor": None if options.encode_once else round(run["seconds"] / seconds, 4),
        }
        rows.append(row)
        if options.texts is not None:
            with options.texts.open("a", encoding="utf-8") as file:
                for path, spoken, heard in zip(files, said, run["texts"], strict=True):
                    line = {"side": side, "precision": precision, "beams": beams, "model": name}
                    file.write(json.dumps({**line, "clip": Path(path).stem, "said": spoken, "heard": heard}) + "\n")
        print(json.dumps(row), file=sys.stderr, flush=True)

    once = options.encode_once
    for precision in options.precisions:
        runs = ours(name, files, language, precision, options.beams, options.batch, encode_once=once)
        for beams, run in zip(options.beams, runs, strict=True):
            add("polyformer", precision, beams, run)
    if options.peer_python:
        runs = faster_whisper(options.peer_python, name, files, language, "float32", options.beams, encode_once=once)
        for beams, run in zip(options.beams, runs, strict=True):
            add("faster-whisper", "float32", beams, run)
    if options.transformers:
        for precision in options.precisions:
            runs = transformers_whisper(name, files, language, precision, options.batch)
            for side, run in runs.items():
                add(side, precision, 1, run)
    return rows


def main() -> None:
    parser = common.make_parser("whisper", __doc__)
    parser.set_defaults(model=None)
    parser.add_argument("--language", action="append", help="en, es or fr (those the model knows)")
    parser.add_argument("--clips", type=int, help="only so many clips of each language, spread over all")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="(1 5)")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], help="of ours and transformers'")
    parser.add_argument("--batch", type=int, default=8, help="clips at once (%(default)s)")
    parser.add_argument("--peer-python", help="a Python that has faster-whisper; left out, it is not measured")
    parser.add_argument("--encode-once", action="store_true", help="error rates only: see the top of this file")
    parser.add_argument("--texts", type=Path, help="a .jsonl file to which everything heard is appended")
    parser.add_argument("--transformers", action="store_true", help="also transformers, in two ways (greedy)")
    options = parser.parse_args()
    if options.quick:
        options.clips, options.beams = options.clips or 8, [1]
    machine = common.machine_facts()
    names = [options.model] if options.model else list(MODELS)
    rows = [
        row
        for name in names
        for language in options.language or MODELS.get(name, ("en",))
        for row in measure(options, name, language)
    ]
    columns = ("model", "language", "side", "precision", "beams", "clips", "word_error_rate", "real_time_factor")
    common.print_table("Speech", columns, [[str(row[column]) for column in columns] for row in rows])
    if not options.peer_python:
        print("faster-whisper was not measured: give --peer-python (see the top of this file).")
    common.finish({"machine": machine, "runs": rows}, common.output_of("whisper", options))


if __name__ == "__main__":
    main()
