"""Small tokenizers, and stores of a few documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings
from polyformer.training.data.store import TokenStore, build_store

TEXT = """It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want
of a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this
truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some
one or other of their daughters."""
END = "<end>"


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """Byte-level BPE; id 0 is the end token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    return TextTokenizer(backend, TokenizerSettings(special_tokens={"eos": END}))


@pytest.fixture
def make_store(tokenizer: TextTokenizer, tmp_path: Path) -> Callable[..., TokenStore]:
    """Builds a store of texts or of documents; every call another."""
    made = 0

    def make(documents: Iterable[str | Mapping[str, Any]], **settings: Any) -> TokenStore:
        nonlocal made
        made += 1
        dicts = ({"text": one} if isinstance(one, str) else one for one in documents)
        return build_store(dicts, tokenizer, tmp_path / f"store {made}", **settings)

    return make
