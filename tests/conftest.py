"""For all tests: small random models on disk, as transformers saves them, and how hypothesis runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import settings

# A property that takes long on a busy machine is not a property that fails.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 128
VOCABULARY = 320


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama, a byte-level tokenizer and a chat template. Do not write into it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-llama")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the cat sat on the mat and the rat ran"] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.4)
        network.lm_head.weight[:3] = 0  # end-of-text and the marks of a chat are then never the likeliest token
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def tiny_without_tokenizer(tiny_copy: Path) -> Path:
    """The tiny Llama without any tokenizer file: it takes and gives ids."""
    for path in tiny_copy.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            path.unlink()
    return tiny_copy


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct, out of the cache or fetched into it. For tests marked `real`."""
    from polyformer.checkpoints.catalogue import resolve

    return resolve("smollm2-135m-instruct").path
