"""The tokenizers of CLIP and SigLIP from their files: the ids of the reference."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer, SiglipTokenizer

from polyformer.errors import TokenizerError
from polyformer.tokenizers.loading import load_tokenizer

CORPUS = [
    "a photo of a cat, and another one of two dogs",
    "the quick brown fox jumps over the lazy dog's back",
    "an old temple in the evening sun; it's 1742 and we've walked for 3 hours",
    "Blumen im Garten, café au lait, naïve façade",
] * 4
TEXTS = [
    "a photo of a cat",
    "A Photo of  a CAT.",
    "it's 1742!! we've <|endoftext|> walked\n\tfar away...",
    "Café NAÏVE façade — “quotes” & émigré 猫 😀",
    "snake_case and semi;colons (in brackets) 3.14",
    "  leading and trailing  ",
    "zzzz" * 9,
]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = dict(model["vocab"])
    for letter in alphabet:
        vocabulary.setdefault(letter + "</w>", len(vocabulary))
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}))
    return folder


def test_clip(clip_folder: Path) -> None:
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (clip_folder / "merges.txt").read_text().splitlines()[1:]]
    reference = CLIPTokenizer(vocab=vocabulary, merges=merges)
    ours = load_tokenizer(clip_folder)
    assert ours is not None
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == reference(text).input_ids, text
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True), text
    assert ours.encode("a cat")[-1] == vocabulary["<|endoftext|>"] == ours.pad_token_id


def test_clip_without_its_special_tokens(clip_folder: Path, tmp_path: Path) -> None:
    vocabulary = json.loads((clip_folder / "vocab.json").read_text())
    del vocabulary["<|startoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text((clip_folder / "merges.txt").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    with pytest.raises(TokenizerError, match=r"the vocabulary has no <\|startoftext\|>"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("lower", [True, False])
def test_siglip(lower: bool, tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=200,
        hard_vocab_limit=False,
        minloglevel=2,
        unk_id=2,
        eos_id=1,
        bos_id=-1,
        pad_id=0,
    )
    (tmp_path / "spiece.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": lower, "model_max_length": 64}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    reference = SiglipTokenizer(str(tmp_path / "spiece.model"), do_lower_case=lower)
    ours = load_tokenizer(tmp_path)
    assert ours is not None
    for text in TEXTS:
        assert ours.encode(text) == reference(text).input_ids, text
    assert ours.pad_token_id == reference.pad_token_id == 1
