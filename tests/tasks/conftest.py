"""Tiny random models in folders, with tokenizers trained on a few sentences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from proof import randomise
from sentences import SENTENCES
from tokenizers import BertWordPieceTokenizer

import polyformer
from polyformer.model import Model


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wordpiece")
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(SENTENCES, vocab_size=160, min_frequency=1, show_progress=False)
    trained.save_model(str(folder))
    made = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=48)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_folder(tokenizer_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a tiny random BERT of a class, and the tokenizer."""

    def make(hf_class: type, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp(hf_class.__name__)
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_files)
        if "id2label" in options:
            options["label2id"] = {name: number for number, name in options["id2label"].items()}
        config = transformers.BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=48,
            attn_implementation="eager",
            **options,
        )
        randomise(hf_class(config)).eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def load(make_folder: Callable[..., Path]) -> Callable[..., tuple[Model, Path]]:
    def made(hf_class: type, **options: Any) -> tuple[Model, Path]:
        folder = make_folder(hf_class, **options)
        return polyformer.load(folder, device="cpu"), folder

    return made
