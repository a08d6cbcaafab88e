"""Marian, T5, BART, mBART and PEGASUS against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof import close
from proof_encoder_decoder import prove_encoder_decoder, saved_pair, text_inputs

from polyformer.checkpoints.loading import open_checkpoint
from polyformer.errors import ConfigError
from polyformer.families import find_family

SIZES = {
    "vocab_size": 61,
    "d_model": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 37,
    "decoder_ffn_dim": 29,
    "max_position_embeddings": 40,
    "activation_function": "gelu_new",
    "dropout": 0.2,
    "activation_dropout": 0.1,
}


def tolerance_of(kind: str) -> float:
    """Their sinusoids are rounded to float32."""
    return 1e-6 if kind in ("Pegasus", "Marian") else 1e-8


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("kind", ["Bart", "MBart", "Pegasus"])
def test_generation(kind: str, scale: bool, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**SIZES, scale_embedding=scale, decoder_start_token_id=2)
    hf_class = getattr(transformers, f"{kind}ForConditionalGeneration")
    network = prove_encoder_decoder(hf_class, config, tmp_path, tolerance=tolerance_of(kind))
    assert network.config.decoder_start_token_id == 2


@pytest.mark.parametrize("kind", ["Bart", "MBart", "Pegasus", "Marian"])
def test_the_model_alone(kind: str, tmp_path: Path) -> None:
    ids = {"pad_token_id": 4, "eos_token_id": 0, "decoder_start_token_id": 4} if kind == "Marian" else {}
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "decoder_start_token_id": 2, **ids})
    prove_encoder_decoder(getattr(transformers, f"{kind}Model"), config, tmp_path, tolerance=tolerance_of(kind))


@pytest.mark.parametrize("shared", [True, False])
def test_marian(shared: bool, tmp_path: Path) -> None:
    config = transformers.MarianConfig(
        **SIZES,
        pad_token_id=4,
        eos_token_id=0,
        decoder_start_token_id=4,
        scale_embedding=True,
        share_encoder_decoder_embeddings=shared,
        decoder_vocab_size=61 if shared else 53,
    )
    network = prove_encoder_decoder(transformers.MarianMTModel, config, tmp_path, tolerance=tolerance_of("Marian"))
    assert (network.decoder.embedding.tokens is network.encoder.embedding.tokens) == shared


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForQuestionAnswering"])
def test_heads(kind: str, head: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(
        **SIZES,
        num_labels=2 if "Question" in head else 5,
        eos_token_id=2,
        classifier_dropout=0.3,
        decoder_start_token_id=2,
        pad_token_id=1,
    )
    hf = saved_pair(getattr(transformers, kind + head), config, tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        family, network = checkpoint.family, checkpoint.load()
    values = family.write_config(network.config)
    assert family.read_config(values) == network.config and values["architectures"] == [kind + head]
    given = text_inputs(61)
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, 1)
    for row, length in enumerate(given["attention_mask"].sum(1).tolist()):
        given["input_ids"][row, length - 1] = 2
    moved = torch.cat([torch.full((3, 1), 2), given["input_ids"][:, :-1]], dim=1)
    real = given["attention_mask"].bool()
    with torch.no_grad():
        theirs = hf(**given, decoder_input_ids=moved)
        ours = network(**given)
    if "Question" in head:
        expected = torch.stack([theirs.start_logits, theirs.end_logits], dim=-1)
        close(ours.logits[real], expected[real], 1e-8, "logits")
    else:
        assert ours.logits.shape == (3, 5)
        close(ours.logits, theirs.logits, 1e-8, "logits")


T5_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 7,
    "d_ff": 37,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-5,
    "dropout_rate": 0.2,
    "decoder_start_token_id": 0,
}


# T5LayerNorm takes the mean square in float32, so float64 ends there.
@pytest.mark.parametrize("kind", ["T5", "MT5"])
@pytest.mark.parametrize("projection", ["relu", "gated-gelu", "gated-silu"])
def test_t5(kind: str, projection: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{kind}Config")(**T5_SIZES, feed_forward_proj=projection)
    prove_encoder_decoder(getattr(transformers, f"{kind}ForConditionalGeneration"), config, tmp_path, tolerance=1e-5)


def test_t5_with_a_head_of_its_own(tmp_path: Path) -> None:
    """Version 1.1: its file holds another matrix for the scores, and they are not scaled."""
    config = transformers.T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    hf = saved_pair(transformers.T5ForConditionalGeneration, config, tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        family, network = checkpoint.family, checkpoint.load()
    assert network.config.head.scale is None and not network.config.head.tied
    given = text_inputs(61)
    target = torch.randint(3, 61, (3, 9))
    with torch.no_grad():
        ours, theirs = network(**given, decoder_input_ids=target), hf(**given, decoder_input_ids=target)
    close(ours.logits, theirs.logits, 1e-5, "logits")
    assert family.read_config(family.write_config(network.config)) == network.config


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
def test_t5_starts_as_the_reference_does(projection: str, tmp_path: Path) -> None:
    """Every weight is as large before training as transformers makes it: T5 does not learn from N(0, 0.02²)."""
    torch.manual_seed(0)  # a table of 64 numbers can by chance be half as large again
    sizes = {**T5_SIZES, "vocab_size": 400, "d_model": 96, "d_kv": 40, "d_ff": 150}
    config = transformers.T5Config(**sizes, feed_forward_proj=projection)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        theirs = checkpoint.load()
    ours = theirs.config.build()
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 2:
            deviation = parameter.std().item()
            near = pytest.approx(deviation, rel=0.1 if parameter.numel() > 999 else 0.5)
            assert ours.get_parameter(name).std().item() == near, name


def test_t5_encoder(tmp_path: Path) -> None:
    config = transformers.T5Config(**T5_SIZES)
    hf = saved_pair(transformers.T5EncoderModel, config, tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        family, network = checkpoint.family, checkpoint.load()
    given = text_inputs(61)
    real = given["attention_mask"].bool()
    with torch.no_grad():
        ours, theirs = network(**given), hf(**given)
    close(ours.last_hidden_state[real], theirs.last_hidden_state[real], 1e-5, "states")
    assert family.read_config(family.write_config(network.config)) == network.config


def test_what_is_refused() -> None:
    bart = find_family("bart")
    values = transformers.BartConfig(**SIZES).to_dict()
    for key, value in (("normalize_before", True), ("tie_word_embeddings", False), ("add_bias_logits", True)):
        with pytest.raises(ConfigError, match=f"{key}={value} is not supported"):
            bart.read_config({**values, key: value})
    with pytest.raises(ConfigError, match="feed_forward_proj='gated-nothing' is not supported"):
        find_family("t5").read_config(
            {**transformers.T5Config(**T5_SIZES).to_dict(), "feed_forward_proj": "gated-nothing"}
        )
