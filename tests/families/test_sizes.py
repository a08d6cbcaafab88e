"""The public sizes: parameters counted on the meta device against the published numbers."""

from __future__ import annotations

import pytest
import torch
import transformers

import polyformer
from polyformer.core import EncoderDecoder, EncoderOnly
from polyformer.errors import ConfigError
from polyformer.families import all_families, find_family
from polyformer.families.sizes import SIZES, TABLES, Size, build_config, find_size, size_names

EXACT = [name for name in SIZES if SIZES[name].is_exact]
ROUNDED = [name for name in SIZES if not SIZES[name].is_exact]
# Published counts of decoders are mostly exact; these are compared with the class that the entry names.
WITH_CLASSES = [size.name for size in SIZES.values() if "architectures" in size.values]
# A config of the core has no public sizes, nor has the half of a family whose sizes are those of the whole.
WITHOUT_SIZES = {"polyformer", "clip_text_model", "clip_vision_model", "siglip_text_model", "siglip_vision_model"}


def count(name: str) -> int:
    with torch.device("meta"):
        network = build_config(name).build()
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", EXACT)
def test_count_is_the_published_one(name: str) -> None:
    assert f"{count(name):,}" == SIZES[name].published


@pytest.mark.parametrize("name", ROUNDED)
def test_count_rounds_to_the_published_one(name: str) -> None:
    number = count(name)
    assert SIZES[name].agrees(number), f"{number:,} parameters, but {SIZES[name].published} were published"
    assert not SIZES[name].agrees(2 * number)


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_count_is_that_of_the_class_in_transformers(name: str) -> None:
    size = SIZES[name]
    (architecture,) = size.values["architectures"]
    with torch.device("meta"):
        theirs = getattr(transformers, architecture)(transformers.AutoConfig.for_model(size.family, **size.values))
    expected = sum(parameter.numel() for parameter in theirs.parameters())
    # Sinusoids are computed here, and a parameter that is never trained there.
    tables = [module.weight for module in theirs.modules() if "Sinusoidal" in type(module).__name__]
    expected -= sum(table.numel() for table in tables)
    # BART and its kin add a bias to the scores: a parameter here, a buffer there.
    expected += sum(buffer.numel() for name, buffer in theirs.named_buffers() if name == "final_logits_bias")
    # A decoder looks at every patch, not at the pooled vector that transformers makes all the same.
    expected -= sum(weight.numel() for name, weight in theirs.named_parameters() if name.startswith("encoder.pooler."))
    # T5 1.1 and mT5 have a head of their own; transformers 5 unties it only when it loads weights.
    if size.values.get("tie_word_embeddings") is False and theirs.lm_head.weight is theirs.shared.weight:
        expected += theirs.lm_head.weight.numel()
    assert f"{count(name):,}" == f"{expected:,}"


def test_every_encoder_is_compared_with_its_class() -> None:
    assert {*WITH_CLASSES} >= {size.name for kind in TABLES for size in TABLES[kind] if kind != "decoders"}


@pytest.mark.parametrize(
    ("name", "kind", "task"),
    [
        ("bert-base-multilingual-cased", EncoderOnly, "pretraining"),
        ("xlm-roberta-large", EncoderOnly, "masked-lm"),
        ("distilbert-base-cased", EncoderOnly, "masked-lm"),
        ("electra-large-discriminator", EncoderOnly, "replaced-token-detection"),
        ("electra-large-generator", EncoderOnly, "masked-lm"),
        ("mt5-xxl", EncoderDecoder, "generation"),
        ("opus-mt-en-de", EncoderDecoder, "generation"),
        ("whisper-tiny.en", EncoderDecoder, "generation"),
        ("vit-base-patch16", EncoderOnly, "sequence-classification"),
        ("dinov2-base", EncoderOnly, "features"),
        ("trocr-base", EncoderDecoder, "generation"),
    ],
)
def test_head_is_that_of_the_pretraining(name: str, kind: type, task: str) -> None:
    config = build_config(name)
    assert isinstance(config, kind.Config)
    assert config.task == task


def test_towers_are_compared_in_one_space() -> None:
    network = polyformer.build("clip-vit-base-patch32", dtype="bfloat16", seed=0).network
    output = network(torch.tensor([[5, 6, 49407]]), pixel_values=torch.zeros(2, 3, 224, 224, dtype=torch.bfloat16))
    assert output.text_embeds.shape == (1, 512)
    assert output.image_embeds.shape == (2, 512)
    assert output.logits_per_text.shape == (1, 2)


def test_what_is_built_can_be_used() -> None:
    reader = polyformer.build("electra-small-discriminator", seed=0)
    assert reader.network(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3)
    writer = polyformer.build("t5-v1.1-small", dtype="bfloat16", seed=0)
    assert writer.network(torch.tensor([[5, 6, 7]]), decoder_input_ids=torch.tensor([[0, 8]])).logits.shape == (
        1,
        2,
        32128,
    )


@pytest.mark.parametrize("name", SIZES)
def test_every_value_is_understood_and_written_back(name: str) -> None:
    size = SIZES[name]
    family = find_family(size.family)
    assert family.unread_keys(size.values) == []
    config = build_config(name)
    assert family.read_config(family.write_config(config)) == config


def test_what_agrees_with_a_rounded_number() -> None:
    def agrees(published: str, number: float, digits: int | None = None) -> bool:
        return Size("x", "llama", published, "nobody", digits).agrees(round(number))

    assert agrees("6.7B", 6.738e9)
    assert agrees("6.7B", 6.799e9)  # cut
    assert agrees("6.7B", 6.651e9)  # rounded
    assert not agrees("6.7B", 6.64e9)
    assert not agrees("6.7B", 6.81e9)
    assert agrees("0.6B", 596e6)
    assert not agrees("0.6B", 540e6)
    assert not agrees("350M", 356e6)
    assert agrees("350M", 356e6, 2)
    assert agrees("1,234", 1234)
    assert not agrees("1,234", 1235)


def test_names_are_listed_once_and_found_in_capitals() -> None:
    assert len(size_names()) == len(set(size_names())) == sum(map(len, TABLES.values()))
    assert find_size("LLaMA-2-7B") is SIZES["llama-2-7b"]


def test_every_family_has_sizes_that_has_published_ones() -> None:
    families = {family.name for family in all_families()}
    assert families > WITHOUT_SIZES
    assert {size.family for size in SIZES.values()} == families - WITHOUT_SIZES


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"no public size 'gpt2-huge'; the nearest are gpt2"):
        build_config("gpt2-huge")
