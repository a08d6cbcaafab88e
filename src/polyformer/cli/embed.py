"""`polyformer embed`: one vector for each text or picture."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from polyformer.cli import inputs
from polyformer.cli import options as opt
from polyformer.cli.loading import load
from polyformer.cli.progress import work_bar
from polyformer.cli.reading import InputError

HELP = """Turn texts or pictures into vectors: those of like meaning lie close together.

CLIP and SigLIP put both into one space: their inputs are texts, or with --images files and folders of pictures.

\b
[bold]Examples[/bold]
polyformer embed all-minilm-l6-v2 "a cat" "a dog"
polyformer embed all-minilm-l6-v2 --input-file sentences.txt --output vectors.npy
polyformer embed all-minilm-l6-v2 --input-file texts.jsonl --output vectors.jsonl --truncate
polyformer embed ./clip --images photos/ --output photos.npy
"""


def register(app: typer.Typer) -> None:
    app.command("embed", help=HELP)(embed)


def embed(
    model: opt.ModelName,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="INPUT", help="Texts (- is standard input), or files of pictures.")
    ] = None,
    input_file: inputs.InputFile = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A .npy file of all vectors, or a .jsonl file. Default: JSON lines here."),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            "--pooling", help="mean, class or last; of pictures mean or class. Default: what the model was made for."
        ),
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option("--normalize/--no-normalize", help="Vectors of length 1. Default: the model's.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", help="A prompt of the model, or words, to stand before each text.")
    ] = None,
    truncate: inputs.Truncate = False,
    images: Annotated[
        bool, typer.Option("--images", help="The inputs are pictures. A model that reads nothing else needs no word.")
    ] = False,
    dtype: opt.DataType = None,
    device: opt.Device = None,
    revision: opt.Revision = None,
) -> None:
    if output is not None and output.suffix not in (".npy", ".jsonl"):
        raise InputError(f"{output}: name a file that ends in .npy or .jsonl")
    if output is not None and not output.parent.is_dir():
        raise InputError(f"{output.parent} is no folder: make it first")
    loaded = load(model, dtype=dtype, device=device, revision=revision)
    can_pictures = "embed_images" in loaded.capabilities
    pictures = images or (can_pictures and "embed" not in loaded.capabilities)
    if pictures:
        given = inputs.gather_pictures(texts, input_file)
    else:
        given = inputs.gather_texts(texts, input_file, for_files="--images" if can_pictures else "--input-file")
    if pictures and (truncate or prompt is not None):
        raise InputError("--truncate and --prompt are for texts, but these are pictures: leave them out")
    options: dict[str, Any] = {"pooling": pooling, "normalize": normalize}
    with work_bar("embedding") as progress:
        if pictures:
            vectors = loaded.embed_images(given, **options, progress=progress)
        else:
            vectors = loaded.embed(given, **options, prompt=prompt, truncate=truncate, progress=progress)
    key = "image" if pictures else "text"
    if output is None:
        for text, vector in zip(given, vectors, strict=True):
            inputs.print_json(**{key: text}, embedding=vector.tolist())
        return
    import numpy as np

    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if output.suffix == ".npy":
                np.save(file, vectors)
            else:
                for text, vector in zip(given, vectors, strict=True):
                    line = json.dumps({key: text, "embedding": vector.tolist()}, ensure_ascii=False)
                    file.write(line.encode() + b"\n")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{output}: {len(vectors):,} vectors of {vectors.shape[1]} numbers")
