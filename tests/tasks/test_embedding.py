"""Sentence embeddings against sentence-transformers, on real weights and on tiny ones."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentences import SENTENCES

import polyformer
from polyformer.checkpoints.sentence_transformers import EmbeddingSettings, read_embedding_settings
from polyformer.errors import CapabilityError, CheckpointError, GenerationError, TokenizerError
from polyformer.tasks.base import length_batches
from polyformer.tasks.search import split_sentences

Load = Callable[..., Any]


def real_sentences(count: int) -> list[str]:
    """Of Python's own reference manual."""
    from pydoc_data.topics import topics

    found = [one.text for text in topics.values() for one in split_sentences(text, longest=400)]
    assert len(found) >= count
    return found[:: len(found) // count][:count]


def sentence_transformer(folder: Path | str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.real
@pytest.mark.slow
def test_minilm_is_sentence_transformers() -> None:
    from polyformer.checkpoints.catalogue import resolve

    sentences = real_sentences(1000)
    model = polyformer.load("all-minilm-l6-v2", device="cpu")
    theirs = sentence_transformer(resolve("all-minilm-l6-v2").path).encode(sentences, batch_size=32)
    together = model.embed(sentences, truncate=True)
    assert together.shape == (1000, 384) and together.dtype == np.float32
    assert np.abs(together - theirs).max() <= 1e-5
    alone = np.stack([model.embed(sentence, truncate=True) for sentence in sentences[::20]])
    assert np.abs(alone - theirs[::20]).max() <= 1e-5
    # Some of them: where the processor has no bfloat16, it takes ten times as long.
    half = polyformer.load("all-minilm-l6-v2", dtype="bfloat16", device="cpu").embed(sentences[::5], truncate=True)
    cosines = (half * together[::5]).sum(1) / np.linalg.norm(half, axis=1)
    assert cosines.min() >= 0.999


@pytest.mark.parametrize("pooling", ["mean", "class", "last"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_layout_of_sentence_transformers(load: Load, tmp_path: Path, pooling: str, normalize: bool) -> None:
    model, _ = load(transformers.BertModel)
    model.embedding_settings = EmbeddingSettings(pooling, normalize, max_tokens=40)
    model.save(tmp_path / "model")
    theirs = sentence_transformer(tmp_path / "model").encode(SENTENCES)
    again = polyformer.load(tmp_path / "model", device="cpu")
    assert again.embedding_settings == model.embedding_settings
    assert np.abs(again.embed(SENTENCES) - theirs).max() <= 1e-4 * max(1, np.abs(theirs).max())
    assert np.allclose(np.linalg.norm(theirs, axis=1), 1) == normalize


def test_choices_of_a_call(load: Load) -> None:
    model, _ = load(transformers.BertModel)
    plain = model.embed(SENTENCES)
    assert np.allclose(model.embed(SENTENCES[2]), plain[2], atol=1e-5)
    unit = model.embed(SENTENCES, normalize=True)
    assert np.allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-5)
    assert not np.allclose(model.embed(SENTENCES, pooling="class"), plain, atol=1e-2)
    asked = model.embed("capital of France", prompt="query: ")
    assert np.allclose(asked, model.embed("query: capital of France"), atol=1e-5)
    assert model.embed([]).shape == (0, 32)
    seen: list[tuple[int, int]] = []
    model.embed(SENTENCES, batch_tokens=30, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6) and len(seen) > 1


def test_prompts_of_the_model(load: Load, tmp_path: Path) -> None:
    model, _ = load(transformers.BertModel)
    model.embedding_settings = EmbeddingSettings(prompts={"query": "find: ", "text": ""}, default_prompt="query")
    assert np.allclose(model.embed("tea"), model.embed("find: tea", prompt="text"), atol=1e-5)
    assert np.allclose(model.embed("tea", prompt="query"), model.embed("tea"), atol=1e-6)


def test_what_is_refused(load: Load, tmp_path: Path) -> None:
    model, _ = load(transformers.BertModel)
    with pytest.raises(GenerationError, match="pooling 'max' is not one of mean, class, last"):
        model.embed("x", pooling="max")
    with pytest.raises(TokenizerError, match=r"text 1 has \d+ tokens, but the model reads at most 48"):
        model.embed(["short", "long " * 60])
    assert model.embed("long " * 60, truncate=True).shape == (32,)
    bare = polyformer.build("gpt2")
    with pytest.raises(CapabilityError, match="cannot embed: it has no tokenizer"):
        bare.embed("x")


def test_damaged_folders(tmp_path: Path) -> None:
    assert read_embedding_settings(tmp_path) is None
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"modules\.json is not readable JSON"):
        read_embedding_settings(tmp_path)
    kinds = ["Transformer", "Pooling", "Dense"]
    modules = [{"path": f"{n}_{kind}", "type": f"sentence_transformers.models.{kind}"} for n, kind in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match="the modules are Transformer, Pooling, Dense, but"):
        read_embedding_settings(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(modules[:2]))
    with pytest.raises(CheckpointError, match=r"1_Pooling.* is not readable JSON"):
        read_embedding_settings(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    with pytest.raises(CheckpointError, match="pooling pooling_mode_max_tokens is not supported"):
        read_embedding_settings(tmp_path)


@pytest.mark.parametrize("limit", [1, 50, 4096])
def test_batches_alike_in_length(limit: int) -> None:
    lengths = torch.randint(1, 60, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = length_batches(lengths, limit)
    assert sorted(number for batch in batches for number in batch) == list(range(300))
    for batch in batches:
        longest = max(lengths[number] for number in batch)
        assert len(batch) == 1 or len(batch) * longest <= limit
    if limit == 4096:
        padded = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
        assert padded <= 1.1 * sum(lengths)


def test_the_command(load: Load, tmp_path: Path) -> None:
    model, folder = load(transformers.BertModel)
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES))

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "polyformer", "embed", str(folder), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    done = run("--input-file", texts, "--output", tmp_path / "vectors.npy")
    assert done.returncode == 0 and "6 vectors of 32 numbers" in done.stdout
    assert np.allclose(np.load(tmp_path / "vectors.npy"), model.embed(SENTENCES), atol=1e-5)
    done = run(SENTENCES[0], "--normalize")
    values = json.loads(done.stdout)
    assert values["text"] == SENTENCES[0] and np.linalg.norm(values["embedding"]) == pytest.approx(1, abs=1e-4)
    for wrong, message in (
        (["x", "-o", "v.txt"], "ends in .npy or .jsonl"),
        (["x", "--pooling", "max"], "pooling 'max'"),
    ):
        done = run(*wrong)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
