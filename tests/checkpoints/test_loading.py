"""From files to networks: right, strict, and never held twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import polyformer
from polyformer.checkpoints.loading import build_on_meta, load_network, open_checkpoint
from polyformer.checkpoints.sources import open_tensors
from polyformer.checkpoints.validate import validate
from polyformer.errors import CheckpointError, ConfigError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


def their_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes that transformers gives to a LLaMA of this config."""
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    return shapes


def write_folder(folder: Path, *, random: bool = True, **changes: Any) -> dict[str, torch.Tensor]:
    """A small LLaMA folder with random weights. Returns them under their names."""
    config = {**CONFIG, **changes}
    generator = torch.Generator().manual_seed(7)
    dtype = getattr(torch, config["torch_dtype"])
    shapes = their_shapes(config)
    if random:
        tensors = {name: (torch.randn(shape, generator=generator) * 0.2).to(dtype) for name, shape in shapes.items()}
    else:
        tensors = {name: torch.full(shape, 0.5, dtype=dtype) for name, shape in shapes.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "llama")
    return tmp_path / "llama"


def logits(network: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = network(torch.tensor([[1, 5, 96, 0, 3]])).logits
    return result


def test_the_same_logits_as_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.family.name == "llama"
        assert not checkpoint.is_quantized
        network = checkpoint.load()
    assert not network.training
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        expected = theirs(torch.tensor([[1, 5, 96, 0, 3]])).logits
    assert torch.allclose(logits(network), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["shards", "pickle", "pickle shards"])
def test_every_layout_gives_the_same_network(tmp_path: Path, kind: str) -> None:
    tensors = write_folder(tmp_path / "plain")
    expected = logits(open_checkpoint(tmp_path / "plain").load())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text((tmp_path / "plain" / "config.json").read_text())
    names = list(tensors)
    halves = [{name: tensors[name] for name in names[:9]}, {name: tensors[name] for name in names[9:]}]
    if kind == "pickle":
        torch.save(tensors, other / "pytorch_model.bin")
    else:
        stem, suffix = ("model", "safetensors") if kind == "shards" else ("pytorch_model", "bin")
        weight_map = {}
        for number, half in enumerate(halves, start=1):
            file = f"{stem}-0000{number}-of-00002.{suffix}"
            save_file(half, other / file) if kind == "shards" else torch.save(half, other / file)
            weight_map.update(dict.fromkeys(half, file))
        (other / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits(open_checkpoint(other).load()), expected)


def test_dtypes(tmp_path: Path) -> None:
    tensors = write_folder(tmp_path / "half", torch_dtype="bfloat16")
    checkpoint = open_checkpoint(tmp_path / "half")
    assert checkpoint.dtype == torch.bfloat16
    network = checkpoint.load()
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    exact = checkpoint.load(dtype=torch.float64)
    table = exact.get_parameter("embedding.tokens.weight")
    assert torch.equal(table, tensors["model.embed_tokens.weight"].double())
    # Where the config states nothing, the file decides; where it states nonsense, that is an error.
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    del config["torch_dtype"]
    (tmp_path / "half" / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(tmp_path / "half").dtype == torch.bfloat16
    (tmp_path / "half" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat99"}))
    with pytest.raises(ConfigError, match="states the dtype 'bfloat99'"):
        open_checkpoint(tmp_path / "half").load()


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    write_folder(tmp_path / "tied", tie_word_embeddings=True)
    network = open_checkpoint(tmp_path / "tied").load()
    assert network.head.weight is None
    before = logits(network)
    with torch.no_grad():
        network.get_parameter("embedding.tokens.weight").mul_(2)
    assert not torch.equal(logits(network), before)


class Shared(torch.nn.Module):
    """Two attributes that are one parameter, as tied weights outside the core may be."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 3, bias=False)
        self.second = torch.nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight


def test_shared_parameters_stay_shared(tmp_path: Path) -> None:
    from polyformer.families.weights import Rule, WeightTable

    class Config:
        build = staticmethod(Shared)

    save_file({"x": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    network = load_network(Config(), WeightTable((Rule("first.weight", "x"),)), open_tensors(tmp_path))
    assert network.second.weight is network.first.weight
    assert torch.equal(network.second.weight, torch.ones(3, 3))


def test_nothing_left_on_meta_is_let_through(tmp_path: Path) -> None:
    from polyformer.families.weights import Rule, WeightTable

    class WithBuffer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 3, bias=False)
            self.register_buffer("table", torch.zeros(3))

    class Config:
        build = staticmethod(WithBuffer)

    save_file({"x": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"nothing fills table \(1 tensors\)"):
        load_network(Config(), WeightTable((Rule("linear.weight", "x"),)), open_tensors(tmp_path))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    tensors = write_folder(tmp_path / "llama")
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    save_file(tensors, tmp_path / "llama" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds torch\.int8 and not floating numbers"):
        open_checkpoint(tmp_path / "llama").load()


def test_weights_that_do_not_fit(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(64, 31)
    tensors["model.layers.1.mlp.gate_projection.weight"] = tensors.pop("model.layers.1.mlp.gate_proj.weight")
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder).load()
    message = str(caught.value)
    assert "1 missing, 1 unexpected, 1 " in message
    assert "nearest in the file: model.layers.1.mlp.gate_projection.weight" in message
    assert "the file has [64, 31], the network needs [64, 32]" in message


def test_missing_and_bad_configs(folder: Path) -> None:
    path = folder / "config.json"
    for content, error, message in (
        ("{", CheckpointError, "not readable JSON"),
        ("[]", CheckpointError, "must hold a JSON object"),
        ("{}", ConfigError, "has no model_type"),
        ('{"model_type": "lama"}', ConfigError, "'lama' is not known; the nearest are llama"),
        ('{"model_type": "llama"}', ConfigError, "has no 'hidden_size'"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}', CheckpointError, "with 'gptq'"),
    ):
        path.write_text(content)
        with pytest.raises(error, match=message):
            open_checkpoint(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        open_checkpoint(folder / "nowhere")


def write_gguf(path: Path, *, architecture: str = "llama", scale: int = 1) -> None:
    """A small LLaMA as GGUF: Q8_0 matrices, float32 norms."""
    writer = gguf.GGUFWriter(path, architecture)
    hidden, inner, vocab = 64 * scale, 96 * scale, 70 * scale**2
    metadata = {"block_count": 2, "embedding_length": hidden, "feed_forward_length": inner, "context_length": 128}
    metadata |= {"attention.head_count": 4, "attention.head_count_kv": 2, "vocab_size": vocab}
    for key, value in metadata.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_array("tokenizer.ggml.tokens", [f"t{number}" for number in range(vocab)])
    generator = np.random.default_rng(3)
    shapes = {"token_embd": (vocab, hidden), "output_norm": (hidden,)}
    for layer in range(2):
        parts: dict[str, tuple[int, ...]] = {"attn_norm": (hidden,), "ffn_norm": (hidden,)}
        parts |= dict.fromkeys(["attn_q", "attn_output"], (hidden, hidden))
        parts |= dict.fromkeys(["attn_k", "attn_v"], (hidden // 2, hidden))
        parts |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    for name, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", generator.normal(size=shape).astype(np.float32))
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        if scale == 1:
            packed = gguf.quants.quantize(generator.normal(size=shape).astype(np.float32), kind)
        else:
            packed = np.zeros((shape[0], shape[1] // 32 * 34), dtype=np.uint8)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.is_gguf and checkpoint.is_quantized
    assert checkpoint.dtype == torch.float32
    network = checkpoint.load()
    value = network.get_parameter("stack.layers.1.attention.value.weight")
    assert torch.equal(value, checkpoint.source.load("blk.1.attn_v.weight"))
    assert open_checkpoint(tmp_path).path == path  # a folder with one GGUF file and no config
    half = checkpoint.load(dtype=torch.bfloat16)
    assert torch.equal(half.get_parameter("stack.layers.1.attention.value.weight"), value.bfloat16())


def test_gguf_of_an_unknown_architecture(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", architecture="lama")
    with pytest.raises(ConfigError, match="GGUF architecture 'lama' is not known; the nearest are llama"):
        open_checkpoint(tmp_path / "m.gguf")


def test_building_on_meta_draws_no_random_numbers() -> None:
    """A random number on the meta device makes PyTorch import its compiler: a second of a fresh process."""
    code = (
        "import sys, torch; from polyformer.checkpoints.loading import build_on_meta;"
        "from polyformer.families import find_family; import json;"
        f"config = find_family('llama').read_config({CONFIG!r}); before = len(sys.modules);"
        "network = build_on_meta(config); print(len(sys.modules) - before);"
        "print({p.device.type for p in network.parameters()})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added, devices = done.stdout.split("\n")[:2]
    assert int(added) < 50
    assert devices == "{'meta'}"


MEASURE = """
import resource, sys, torch
import polyformer
from polyformer.checkpoints.loading import build_on_meta, open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
build_on_meta(checkpoint.config)
torch.ones(4, 4) @ torch.ones(4, 4)

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

open("/proc/self/clear_refs", "w").write("5")  # the high-water mark begins anew
before = status("VmRSS")
network = checkpoint.load(dtype=getattr(torch, sys.argv[2]))
total = sum(float(parameter.detach().double().sum()) for parameter in network.parameters() if parameter.dim() < 2)
for parameter in network.parameters():  # every page is used, so that mapped ones count
    parameter.detach().view(-1)[:: 1024].sum()
print((status("VmHWM") - before) / sum(parameter.nbytes for parameter in network.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("stored", "asked", "kind"),
    [
        ("float32", "bfloat16", "safetensors"),
        ("bfloat16", "float32", "safetensors"),
        ("bfloat16", "bfloat16", "safetensors"),
        ("float32", "bfloat16", "pickle"),
        ("float32", "bfloat16", "gguf"),
    ],
)
def test_peak_memory_is_the_weights_and_little_more(tmp_path: Path, stored: str, asked: str, kind: str) -> None:
    path = tmp_path / "big"
    if kind == "gguf":
        path.mkdir()
        write_gguf(path / "m.gguf", scale=24)
    else:
        size = {"vocab_size": 30_000, "hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16}
        size |= {"head_dim": 64, "num_key_value_heads": 16}
        tensors = write_folder(path, random=False, **size, torch_dtype=stored)
        if kind == "pickle":
            (path / "model.safetensors").unlink()
            torch.save(tensors, path / "pytorch_model.bin")
        del tensors
    command = [sys.executable, "-c", MEASURE, str(path), asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.15


def test_meta_networks_have_the_shapes_of_the_file(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    network = build_on_meta(checkpoint.config)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == sum(torch.Size(shape).numel() for shape in their_shapes(CONFIG).values())


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "ViT"])
def test_a_model_saved_without_its_pooler(kind: str, tmp_path: Path) -> None:
    """Only the tensors tell; what is written back says it, and transformers finds every weight there is."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    if kind == "ViT":
        sizes |= {"image_size": 8, "patch_size": 4}
    hf = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes), add_pooling_layer=False)
    hf.save_pretrained(tmp_path / "theirs")
    model = polyformer.load(tmp_path / "theirs", device="cpu")
    assert model.config.pooling is None
    assert validate(tmp_path / "theirs").ok
    model.save(tmp_path / "ours")
    again = polyformer.load(tmp_path / "ours", device="cpu")
    assert again.config == model.config
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
