"""A tiny random LLaMA in transformers and the same weights in our core, and a byte-level tokenizer."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, RMSNorm, Rotary, Stack, TokenEmbedding
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings

VOCAB_SIZE = 301
HIDDEN_SIZE = 32
CONTEXT = 96


def _reference() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=256,
        eos_token_id=None,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        attn_implementation="eager",
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


def _ours(reference: LlamaForCausalLM) -> DecoderOnly:
    norm = RMSNorm.Config(HIDDEN_SIZE, eps=1e-5)
    layer = Layer.Config(
        attention=Attention.Config(
            HIDDEN_SIZE, num_heads=4, num_key_value_heads=2, head_dim=12, positions=Rotary.Config(12, base=10000.0)
        ),
        feedforward=FeedForward.Config(HIDDEN_SIZE, 48, activation="silu", gated=True),
        norm=norm,
    )
    network = DecoderOnly.Config(
        embedding=TokenEmbedding.Config(VOCAB_SIZE, HIDDEN_SIZE),
        stack=Stack.Config(layers=(layer, layer), norm=norm),
        head=Head.Config(HIDDEN_SIZE, VOCAB_SIZE, tied=False),
        max_positions=CONTEXT,
    ).build()
    theirs = reference.state_dict()
    renamed = {
        "embedding.tokens.weight": theirs["model.embed_tokens.weight"],
        "stack.norm.weight": theirs["model.norm.weight"],
        "head.weight": theirs["lm_head.weight"],
    }
    parts = {
        "attention_norm": "input_layernorm",
        "feedforward_norm": "post_attention_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "feedforward.gate": "mlp.gate_proj",
        "feedforward.up": "mlp.up_proj",
        "feedforward.down": "mlp.down_proj",
    }
    for number in range(2):
        for ours, name in parts.items():
            renamed[f"stack.layers.{number}.{ours}.weight"] = theirs[f"model.layers.{number}.{name}.weight"]
    network.load_state_dict(renamed)
    return network.eval()


@pytest.fixture(scope="session")
def reference() -> LlamaForCausalLM:
    """transformers' LLaMA with random weights (standard deviation 0.2), float32."""
    return _reference()


@pytest.fixture(scope="session")
def network(reference: LlamaForCausalLM) -> DecoderOnly:
    """Our network with the same weights."""
    return _ours(reference)


@pytest.fixture(scope="session")
def network64(reference: LlamaForCausalLM) -> DecoderOnly:
    """The same in float64."""
    return _ours(reference).double()


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """Bytes 0 to 255, three special tokens, and some longer tokens, so that stop strings straddle them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    merges = [("a", "b"), ("ab", "c"), ("c", "d"), ("e", "r"), ("t", "h"), ("th", "e")]
    for index, (left, right) in enumerate(merges):
        vocabulary[left + right] = 260 + index
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return TextTokenizer(backend, TokenizerSettings(special_tokens={"bos": "<s>", "eos": "</s>"}))


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Prompts of different length."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 250, (length,), generator=generator).tolist() for length in (7, 1, 12, 4)]
