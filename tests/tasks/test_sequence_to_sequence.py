"""Generation from a source against transformers' generate with the same weights; summaries of long texts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof_encoder_decoder import saved_pair

import polyformer
from polyformer.errors import GenerationError, TruncationWarning
from polyformer.generation.outputs import Generation
from polyformer.generation.processors import repeated_endings
from polyformer.model import Model
from polyformer.tasks.sequence_to_sequence import warn_of_unfinished
from polyformer.tasks.summarization import cut

SIZES = {
    "vocab_size": 61,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 29,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "forced_eos_token_id": None,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    folder = tmp_path_factory.mktemp("bart")
    hf = saved_pair(transformers.BartForConditionalGeneration, transformers.BartConfig(**SIZES), folder, torch.float32)
    return polyformer.load(folder, device="cpu"), hf


def sources(count: int = 4) -> list[list[int]]:
    generator = torch.Generator().manual_seed(4)
    lengths = [17, 5, 23, 11][:count]
    return [torch.randint(5, 61, (length,), generator=generator).tolist() for length in lengths]


def theirs(hf: Any, source: list[int], **options: Any) -> list[int]:
    """One source alone: what padding could change is not in it."""
    with torch.no_grad():
        ids = hf.generate(torch.tensor([source]), do_sample=False, **options)[0].tolist()
    return ids[1:]  # after the start token


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 4},
        {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 3},
        {"forced_bos_token_id": 9},
        {"num_beams": 4, "forced_bos_token_id": 9, "forced_eos_token_id": 2},
        {"repetition_penalty": 1.4},
    ],
)
def test_the_same_tokens_as_the_reference(pair: tuple[Model, Any], options: dict[str, Any]) -> None:
    model, hf = pair
    ours = model.generate(sources(), max_new_tokens=14, **options)
    for source, one in zip(sources(), ours, strict=True):
        expected = theirs(hf, source, max_new_tokens=14, **options)
        assert one.token_ids == expected


def test_samples_share_their_source(pair: tuple[Model, Any]) -> None:
    model, _ = pair
    alone = model.generate(sources()[0], temperature=1.0, n=3, seed=5, max_new_tokens=9)
    together = model.generate(sources(), temperature=1.0, n=3, seed=5, max_new_tokens=9)
    assert [one.token_ids for one in together[0]] == [one.token_ids for one in alone]
    assert len({tuple(one.token_ids) for one in alone}) > 1


def test_streaming_is_generating(pair: tuple[Model, Any]) -> None:
    model, _ = pair
    for source in sources():
        assert list(model.stream(source, max_new_tokens=12)) == model.generate(source, max_new_tokens=12).token_ids


def test_guidance_with_a_source(pair: tuple[Model, Any]) -> None:
    model, _ = pair
    plain = model.generate(sources(2), max_new_tokens=8)
    guided = model.generate(sources(2), max_new_tokens=8, guidance_scale=3.0, negative_prompt=[2, 7, 9], temperature=0)
    assert [one.token_ids for one in guided] != [one.token_ids for one in plain]


def test_what_the_models_files_say(tmp_path: Path) -> None:
    config = transformers.BartConfig(**SIZES)
    hf = saved_pair(transformers.BartForConditionalGeneration, config, tmp_path, torch.float32)
    hf.generation_config.update(num_beams=3, length_penalty=0.5, max_length=11, min_length=6, no_repeat_ngram_size=2)
    hf.generation_config.forced_bos_token_id = 8
    hf.generation_config.save_pretrained(tmp_path)
    model = polyformer.load(tmp_path, device="cpu")
    ours = model.generate(sources(2))
    with torch.no_grad():
        for source, one in zip(sources(2), ours, strict=True):
            assert one.token_ids == hf.generate(torch.tensor([source]))[0].tolist()[1:]
    assert len(model.generate(sources(1)[0], max_new_tokens=3).token_ids) == 3
    model.save(tmp_path / "again")
    again = polyformer.load(tmp_path / "again", device="cpu")
    assert again.generate(sources(2)) == ours


def test_what_is_refused(pair: tuple[Model, Any]) -> None:
    model, _ = pair
    with pytest.raises(GenerationError, match="a source has 41 tokens, but the model reads at most 40"):
        model.generate([5] * 41)
    with pytest.raises(GenerationError, match="a source holds token 61"):
        model.generate([5, 61])
    with pytest.raises(GenerationError, match="a source is empty"):
        model.generate([[]])
    with pytest.raises(GenerationError, match="no_repeat_ngram_size must be a whole number"):
        model.generate([5], no_repeat_ngram_size=-1)
    with pytest.raises(GenerationError, match="forced_bos_token_id names token 99"):
        model.generate([5], forced_bos_token_id=99)


def test_repeated_endings() -> None:
    assert repeated_endings([-1, 5, 6, 7, 5, 6], 3) == [7]
    assert repeated_endings([5, 6, 7, 8], 3) == []
    assert repeated_endings([5], 1) == [5]
    assert repeated_endings([5, 5, 5], 2) == [5, 5]


class Words:
    """A tokenizer of words and an end."""

    def encode(self, text: str) -> list[int]:
        return [1] * len(text.split()) + [0]


@pytest.mark.parametrize("room", [4, 7, 50])
def test_long_texts_are_cut_between_sentences(room: int) -> None:
    text = "One two three. Four five six seven? Eight nine ten eleven twelve thirteen fourteen!\nFifteen."
    pieces = cut(Words(), text, room)
    assert " ".join(pieces).split() == text.split()
    assert all(len(Words().encode(piece)) <= room for piece in pieces)
    if room == 7:
        assert pieces[0] == "One two three." and pieces[1] == "Four five six seven?"
    if room == 50:
        assert pieces == [text]


@pytest.mark.parametrize(
    ("lengths", "asked", "said"),
    [
        ([(3, "eos"), (9, "length")], None, "1 of 2 texts were not at their end"),
        ([(9, "length"), (4, "length")], 9, "1 of 2 texts"),  # the second ends where the model's positions do
        ([(9, "length"), (3, "stop")], 9, None),
    ],
)
def test_texts_without_room_for_their_end_are_said(
    lengths: list[tuple[int, Any]], asked: int | None, said: str | None
) -> None:
    made = [[Generation([1] * count, "text", reason)] for count, reason in lengths]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_unfinished(made, asked)
    assert [one.category for one in caught] == ([TruncationWarning] if said else [])
    assert said is None or said in str(caught[0].message)
