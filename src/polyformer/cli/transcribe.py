"""`polyformer transcribe`: speech to text."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError

HELP = """Write down what is said in recordings (wav, flac, mp3, ogg …) of any length.

\b
[bold]Examples[/bold]
polyformer transcribe whisper-base talk.mp3
polyformer transcribe whisper-base film.wav --format srt --output-dir subtitles
polyformer transcribe whisper-base *.wav --language es --json > transcripts.jsonl
polyformer transcribe whisper-base interview.ogg --task translate --word-timestamps --format json
"""

KINDS = ("txt", "srt", "vtt", "tsv", "json")


def register(app: typer.Typer) -> None:
    app.command("transcribe", help=HELP)(transcribe)


def transcribe(
    model: opt.ModelName,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recordings.")],
    language: Annotated[
        str | None, typer.Option("--language", "-l", help="en or english, … Default: the model listens.")
    ] = None,
    task: Annotated[str, typer.Option("--task", help="transcribe, or translate into English.")] = "transcribe",
    kind: Annotated[str, typer.Option("--format", "-f", help=f"Of the text: {', '.join(KINDS)}.")] = "txt",
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Write a file for each recording into this folder.")
    ] = None,
    word_timestamps: Annotated[
        bool, typer.Option("--word-timestamps", help="Also find where each word is spoken (json).")
    ] = False,
    num_beams: Annotated[int, typer.Option("--num-beams", help="Beams of the search; 1 is greedy.")] = 1,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Only this one. Default: 0, and more where that fails.")
    ] = None,
    initial_prompt: Annotated[
        str | None, typer.Option("--prompt", help="A text that might stand before: names, spelling, style.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Recordings at once.")] = 8,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Print segments as they come. Default: on a terminal.")
    ] = None,
    as_json: inputs.AsJson = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    if kind not in KINDS:
        raise InputError(f"--format {kind}: choose {', '.join(KINDS)}")
    if word_timestamps and kind != "json" and not as_json:
        raise InputError("--word-timestamps needs --format json or --json: the other formats have no place for words")
    if output_dir is not None and as_json:
        raise InputError("--json prints lines here: leave out --output-dir, or use --format json")
    if output_dir is not None:
        if output_dir.exists() and not output_dir.is_dir():
            raise InputError(f"--output-dir {output_dir} is a file: name a folder")
        stems = [file.stem for file in files]
        twice = next((file for number, file in enumerate(files) if file.stem in stems[:number]), None)
        if twice is not None:
            raise InputError(f"two recordings would be written to {twice.stem}.{kind}: give them in two calls")
    streamable = len(files) == 1 and kind == "txt" and not as_json and output_dir is None
    if stream and not streamable:
        raise InputError("--stream prints the text of one recording: leave out --format, --json and --output-dir")
    options: dict[str, Any] = {
        "language": language,
        "task": task,
        "word_timestamps": word_timestamps,
        "num_beams": num_beams,
        "initial_prompt": initial_prompt,
        **opt.given(temperature=temperature),
    }
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    if streamable and (sys.stdout.isatty() if stream is None else stream):
        for segment in loaded.stream_segments(files[0], **options):
            print(segment.text.strip(), flush=True)
        return
    if output_dir is not None:
        output_dir.mkdir(parents=True, exist_ok=True)
    with work_bar("transcribing") as progress:
        results = loaded.transcribe(list(files), batch_size=batch_size, progress=progress, **options)
    for file, result in zip(files, results, strict=True):
        if as_json:
            inputs.print_json(file=str(file), **result.to_json())
        elif output_dir is not None:
            target = output_dir / f"{file.stem}.{kind}"
            _write(target, result.to(kind))
            print(target)
        else:
            if len(files) > 1:
                print(f"--- {file}")
            print(result.to(kind), end="")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
