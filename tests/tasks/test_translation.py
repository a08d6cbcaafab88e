"""Translations by tiny random Marian and mBART models with their own tokenizers, against transformers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from proof import randomise
from sentences import SENTENCES

import polyformer
from polyformer.errors import GenerationError

TEXTS = ["the fox jumps over the dog", "Paris is the capital of France.", "tea"]


def train_pieces(folder: Path, name: str, sentences: list[str], **options: int) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / name).write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / name))


def sizes(vocab_size: int, **options: Any) -> dict[str, Any]:
    return dict(
        vocab_size=vocab_size,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        **options,
    )


@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_marian(tmp_path: Path) -> None:
    pieces: dict[str, None] = {"</s>": None, "<unk>": None, ">>fra<<": None}
    for name, sentences in (("source.spm", SENTENCES), ("target.spm", [one[::-1] for one in SENTENCES])):
        made = train_pieces(tmp_path, name, sentences, unk_id=0, bos_id=-1, eos_id=1)
        pieces.update(dict.fromkeys(made.id_to_piece(number) for number in range(2, made.vocab_size())))
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<pad>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    pad = vocabulary["<pad>"]
    config = transformers.MarianConfig(
        **sizes(len(vocabulary), pad_token_id=pad, eos_token_id=0, forced_eos_token_id=0, decoder_start_token_id=pad)
    )
    randomise(transformers.MarianMTModel(config)).save_pretrained(tmp_path)
    reference: Any = transformers.MarianMTModel.from_pretrained(tmp_path).eval()  # computes its positions anew
    tokenizer = transformers.MarianTokenizer.from_pretrained(tmp_path)
    model = polyformer.load(tmp_path, device="cpu")

    def theirs(text: str, **options: Any) -> str:
        with torch.no_grad():
            ids = reference.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=12, **options)
        return tokenizer.decode(ids[0], skip_special_tokens=True)

    expected = [theirs(text, do_sample=False, num_beams=1) for text in TEXTS]
    found = model.translate(TEXTS, max_new_tokens=12, temperature=0, num_beams=1)
    assert [one.text for one in found] == expected and len(set(expected)) > 1
    told = model.translate(TEXTS[0], target_language="fra", max_new_tokens=12, temperature=0, num_beams=1)
    assert told.text == theirs(">>fra<< " + TEXTS[0], do_sample=False, num_beams=1)
    with pytest.raises(GenerationError, match="the model has no language 'xyz'; it has fra"):
        model.translate(TEXTS[0], target_language="xyz")
    model.save(tmp_path / "out")
    assert (
        polyformer.load(tmp_path / "out", device="cpu").translate(TEXTS, max_new_tokens=12, temperature=0, num_beams=1)
        == found
    )


def test_mbart(tmp_path: Path) -> None:
    train_pieces(tmp_path, "sentencepiece.bpe.model", SENTENCES, unk_id=0, bos_id=1, eos_id=2)
    config = {"tokenizer_class": "MBartTokenizer", "src_lang": "en_XX", "tgt_lang": "ro_RO"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = transformers.MBartTokenizer.from_pretrained(tmp_path)
    made = transformers.MBartForConditionalGeneration(
        transformers.MBartConfig(**sizes(len(tokenizer), decoder_start_token_id=2))
    )
    randomise(made).save_pretrained(tmp_path)
    reference: Any = transformers.MBartForConditionalGeneration.from_pretrained(tmp_path).eval()
    model = polyformer.load(tmp_path, device="cpu")
    for source, target in (("en_XX", "ro_RO"), ("de_DE", "fr_XX")):
        tokenizer.src_lang = source
        start = tokenizer.convert_tokens_to_ids(target)
        for text in TEXTS:
            given = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                ids = reference.generate(
                    **given, forced_bos_token_id=start, max_new_tokens=12, do_sample=False, num_beams=1
                )
            options = dict(source_language=source, target_language=target, max_new_tokens=12, temperature=0)
            found = model.translate(text, num_beams=1, **options)
            assert found.text == tokenizer.decode(ids[0], skip_special_tokens=True).strip()
