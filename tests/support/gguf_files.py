"""Small GGUF files, written as llama.cpp's converter writes them, from the weights of a Hugging Face model.

Nothing here looks at a family's table: names come from the ``gguf`` package, which llama.cpp's converter uses, and the
conventions (permuted rotary rows, shifted norms, stacked experts) are written out again from that converter.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from proof import close, hard_ids
from torch import Tensor

from polyformer.checkpoints.gguf import GGUFFile
from polyformer.families import find_gguf_family


def llama_cpp_names(architecture: str, tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The tensors under the names that llama.cpp's converter gives them.

    Raises:
        KeyError: the converter knows no name for one of them.
    """
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, layers)
    result = {}
    for name, tensor in tensors.items():
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise KeyError(f"llama.cpp has no name for {name}")
        result[mapped] = tensor
    return result


def usual_metadata(config: Any) -> dict[str, Any]:
    """What the converter writes for any decoder, out of a Hugging Face config."""
    metadata = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if "rope_theta" in config.rope_parameters:
        metadata["rope.freq_base"] = float(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None) is not None:
        metadata |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return metadata


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Rows of LLaMA's query or key projection in llama.cpp's order: each head's halves become neighbours."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    vocab_size: int,
    name: str = "test",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """Write a GGUF file.

    Args:
        metadata: keys without the architecture's prefix.
        tensors: under llama.cpp's names.
        vocab_size: so many made-up tokens are listed.
        kind: the type of the matrices whose rows it fits; all else is F32.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("llama")
    writer.add_pad_token_id(0)
    writer.add_token_list([f"token {number}" for number in range(vocab_size)])
    writer.add_token_scores([-float(number) for number in range(vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab_size)
    for key, tensor in tensors.items():
        array = np.ascontiguousarray(tensor.detach().float().numpy())
        block = gguf.GGML_QUANT_SIZES[kind][0]
        if array.ndim > 1 and array.shape[-1] % block == 0 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(key, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def round_matrices(
    model: torch.nn.Module, kind: gguf.GGMLQuantizationType, transposed: tuple[str, ...] = ()
) -> torch.nn.Module:
    """The model in float32 with every matrix as a file of ``kind`` gives it back, by the ``gguf`` package.

    Args:
        transposed: ends of the names of matrices that the file holds the other way round.
    """
    model = model.float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            turned = name.endswith(transposed) if transposed else False
            rows = (parameter.T if turned else parameter).contiguous().numpy()
            if rows.ndim == 2 and rows.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0:
                back = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind))
                parameter.copy_(back.T if turned else back)
    return model


def load_gguf(path: Path) -> torch.nn.Module:
    """The network of a GGUF file, built and filled as the family's GGUF format says, in float32."""
    with GGUFFile(path) as file:
        form = find_gguf_family(file.metadata["general.architecture"]).gguf
        assert form is not None
        config = form.read_config(file)
        with torch.device("meta"):
            network = config.build()
        ours = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        plan = form.weight_table(config).plan(ours, {name: file.shape(name) for name in file.names()})
        plan.raise_if_broken(str(path))
        state = {}
        for step in plan.steps:
            made = step.to_ours([file.load(name, torch.float32) for name in step.theirs])
            state.update(zip(step.ours, (tensor.clone() for tensor in made), strict=True))
    network.load_state_dict(state, assign=True, strict=True)
    return network.eval()


def prove_gguf(path: Path, hf_model: torch.nn.Module, *, tolerance: float = 1e-5, length: int = 29) -> torch.nn.Module:
    """The file's network gives the logits of the Hugging Face model it was written from (in float32, so 1e-5 of the
    largest logit).

    Returns:
        Our network.
    """
    return _same_logits(path, copy.deepcopy(hf_model).float(), tolerance, length)


def prove_gguf_against_transformers(path: Path, hf_class: Any, *, tolerance: float = 1e-5, length: int = 29) -> None:
    """transformers reads the same file to the same logits: an independent reader."""
    reference = hf_class.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    _same_logits(path, reference.eval(), tolerance, length)


def _same_logits(path: Path, reference: torch.nn.Module, tolerance: float, length: int) -> torch.nn.Module:
    network = load_gguf(path)
    ids = hard_ids(network.config.vocab_size, length)
    with torch.no_grad():
        close(network(ids).logits, reference(ids, use_cache=False).logits, tolerance, "logits of the GGUF file")
    return network
