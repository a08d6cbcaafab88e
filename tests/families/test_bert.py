"""BERT: every head against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof import close, load_folder, saved
from proof_encoder import prove_encoder
from safetensors.torch import load_file, save_file

from polyformer.errors import CheckpointError, ConfigError
from polyformer.families import find_family
from polyformer.families.bert import TASKS


def make_config(**options: Any) -> transformers.BertConfig:
    values = {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 37,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 33,
        "type_vocab_size": 3,
        "layer_norm_eps": 1e-5,
        "hidden_dropout_prob": 0.2,
        "classifier_dropout": 0.3,
        "num_labels": 5,
    }
    return transformers.BertConfig(**{**values, **options})


@pytest.mark.parametrize("name", TASKS)
def test_every_head(name: str, tmp_path: Path) -> None:
    options = {"num_labels": 2} if name == "BertForQuestionAnswering" else {}  # a beginning and an end
    network = prove_encoder(getattr(transformers, name), make_config(**options), tmp_path, types=3)
    labels = {"BertForMultipleChoice": 1, "BertForQuestionAnswering": 2, "BertForNextSentencePrediction": 2}
    if "Classification" in name or name in labels:
        assert network.config.num_labels == labels.get(name, 5)


def test_untied(tmp_path: Path) -> None:
    """The file then holds two biases, of which the reference adds the second; written, both are that one."""
    hf = saved(transformers.BertForMaskedLM, make_config(tie_word_embeddings=False), tmp_path)
    family, network, _ = load_folder(tmp_path)
    assert network.masked_head.head.weight is not None
    ids = torch.randint(0, 61, (2, 9))
    with torch.no_grad():
        close(network(ids).logits, hf(ids).logits, 1e-8, "logits")
    assert family.read_config(family.write_config(network.config)) == network.config


def test_old_names_of_norms(tmp_path: Path) -> None:
    saved(transformers.BertForPreTraining, make_config(), tmp_path)
    _, network, _ = load_folder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(33)[None]
    old["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    assert "bert.embeddings.LayerNorm.gamma" in old
    save_file(old, tmp_path / "model.safetensors")
    _, again, _ = load_folder(tmp_path)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name))


def test_the_model_alone_from_a_file_with_heads(tmp_path: Path) -> None:
    """Its names begin with ``bert.`` there, and the heads of pretraining are left out by name."""
    saved(transformers.BertForPreTraining, make_config(), tmp_path)
    family, whole, tensors = load_folder(tmp_path)
    config = family.read_config({**family.write_config(whole.config), "architectures": ["BertModel"]})
    with torch.device("meta"):
        network = config.build()
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    plan = family.weight_table(config).plan(shapes, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    plan.raise_if_broken()
    # A head of fine-tuning is another matter: dropping it in silence would lose what the model was made for.
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()} | {"classifier.weight": (2, 24)}
    with pytest.raises(CheckpointError, match=r"unexpected  classifier\.weight"):
        family.weight_table(config).plan(shapes, theirs).raise_if_broken()


def test_what_is_refused() -> None:
    family = find_family("bert")
    values = make_config().to_dict()
    with pytest.raises(ConfigError, match="position_embedding_type='relative_key' is not supported"):
        family.read_config({**values, "position_embedding_type": "relative_key"})
    with pytest.raises(ConfigError, match="'BertForDancing' is not supported"):
        family.read_config({**values, "architectures": ["BertForDancing"]})
    with pytest.raises(ConfigError, match="is_decoder=True is not supported"):
        family.read_config({**values, "is_decoder": True})
