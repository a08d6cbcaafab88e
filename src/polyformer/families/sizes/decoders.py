"""The sizes of networks that only write.

Two families have no public weights. PaLM's entries are those of its table 1. GPT-3's are those of its table 2.1, as
GPT-2 networks that attend to everything before: the paper has that and local attention in turn, but not the local
window, and parameter counts do not depend on it (GPT-Neo is its public relative with windows). Two rows of that table
contradict themselves, and the entries take what fits the counts it gives: the XL has 16 heads of 128 (24 of them would
be wider than its width of 2048), the 13B a width of 5120 (5140 is no multiple of its 40 heads).
"""

from __future__ import annotations

from typing import Any

from polyformer.families.sizes.size import Size, weights


def _gpt2(width: int, layers: int, heads: int, positions: int = 1024) -> dict[str, Any]:
    return {
        "vocab_size": 50257,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }


def _gpt_neo(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "attention_types": [[["global", "local"], layers // 2]],
        "window_size": 256,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }


def _gpt_neox(width: int, layers: int, heads: int, vocab_size: int, activation: str = "gelu") -> dict[str, Any]:
    """The keys in which releases differ; the others say what the reader takes for them anyway."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": activation,
    }


def _llama(width: int, inner: int, layers: int, heads: int, shared: int, **more: Any) -> dict[str, Any]:
    """The layout that LLaMA made common; what differs by release comes in ``more``."""
    values = {
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    return {**values, **more}


_LLAMA_1 = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6}
_CODE_LLAMA = {"max_position_embeddings": 16384, "rope_theta": 1e6}
_LLAMA_3 = {"vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0}


def _llama_3(factor: float) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {**_LLAMA_3, "max_position_embeddings": 131072, "rope_scaling": scaling}


_QWEN_2 = {"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "use_sliding_window": False}
_QWEN_2_SMALL = dict(_QWEN_2, vocab_size=151936, tie_word_embeddings=True)
_QWEN_2_LARGE = dict(_QWEN_2, vocab_size=152064)
_QWEN_3 = {
    "vocab_size": 151936,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "attention_bias": False,
    "use_sliding_window": False,
}
_QWEN_3_SMALL = dict(_QWEN_3, tie_word_embeddings=True)
_PHI_3 = {
    "vocab_size": 32064,
    "original_max_position_embeddings": 4096,
    "sliding_window": 2047,
    "attention_bias": False,
}
_SMOLLM_2 = {"vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True}


def _gemma(width: int, inner: int, layers: int, heads: int, shared: int, **more: Any) -> dict[str, Any]:
    values = {
        "vocab_size": 256000,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    return {**values, **more}


_GEMMA_2 = {
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA_3_SMALL = {
    "vocab_size": 262144,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rope_local_base_freq": 10000.0,
}
_GEMMA_3 = dict(
    _GEMMA_3_SMALL,
    vocab_size=262208,
    sliding_window=1024,
    max_position_embeddings=131072,
    rope_scaling={"rope_type": "linear", "factor": 8.0},
)


def _falcon(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=65024,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=2048,
        layer_norm_epsilon=1e-5,
        bias=False,
        alibi=False,
        multi_query=True,
        parallel_attn=True,
        **more,
    )


def _palm(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 256000,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "head_dim": 256,
    }


def _bigcode(width: int, layers: int, heads: int, vocab_size: int, positions: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "n_positions": positions,
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_inner": 4 * width,
        "activation_function": "gelu_pytorch_tanh",
        "layer_norm_epsilon": 1e-5,
        "multi_query": True,
    }


def _starcoder2(width: int, layers: int, heads: int, shared: int, base: float, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=49152,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        hidden_act="gelu_pytorch_tanh",
        max_position_embeddings=16384,
        norm_epsilon=1e-5,
        rope_theta=base,
        sliding_window=4096,
        use_bias=True,
        **more,
    )


_GPT_3_TABLE = "Brown et al., 2020, table 2.1"
_API = f"{_GPT_3_TABLE}; that the API's name meant this one is Gao's finding (On the Sizes of OpenAI API Models, 2021)"
_GPT_2_NOTE = "README of the authors' gpt-2 repository, which corrects the paper's table 2"
_LLAMA_PAPER = "Touvron et al., 2023, LLaMA, table 2"
_GPT = {
    "vocab_size": 40478,
    "n_positions": 512,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "afn": "gelu",
    "layer_norm_epsilon": 1e-5,
}
_GPT_J = {
    "vocab_size": 50400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}
_PYTHIA_CARD = "model card of EleutherAI/pythia-70m, total parameters of every size"
_GPT_NEOX = _gpt_neox(6144, 44, 64, 50432, "gelu_fast")
_MIXTRAL = {"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6}


SIZES = (
    Size("gpt", "openai-gpt", "117M", "Radford et al., 2019, table 2, the smallest: as large as GPT", values=_GPT),
    Size("gpt2", "gpt2", "124M", _GPT_2_NOTE, values=_gpt2(768, 12, 12)),
    Size("gpt2-medium", "gpt2", "355M", _GPT_2_NOTE, values=_gpt2(1024, 24, 16)),
    Size("gpt2-large", "gpt2", "774M", _GPT_2_NOTE, values=_gpt2(1280, 36, 20)),
    Size("gpt2-xl", "gpt2", "1558M", _GPT_2_NOTE, values=_gpt2(1600, 48, 25)),
    Size("gpt3-small", "gpt2", "125M", _GPT_3_TABLE, values=_gpt2(768, 12, 12, 2048)),
    Size("gpt3-medium", "gpt2", "350M", _GPT_3_TABLE, 2, _gpt2(1024, 24, 16, 2048)),
    Size("gpt3-large", "gpt2", "760M", _GPT_3_TABLE, values=_gpt2(1536, 24, 16, 2048)),
    Size("gpt3-xl", "gpt2", "1.3B", _GPT_3_TABLE, values=_gpt2(2048, 24, 16, 2048)),
    Size("gpt3-2.7b", "gpt2", "2.7B", _GPT_3_TABLE, values=_gpt2(2560, 32, 32, 2048)),
    Size("gpt3-6.7b", "gpt2", "6.7B", _GPT_3_TABLE, values=_gpt2(4096, 32, 32, 2048)),
    Size("gpt3-13b", "gpt2", "13B", f"{_GPT_3_TABLE}, the name", values=_gpt2(5120, 40, 40, 2048)),
    Size("gpt3-175b", "gpt2", "175B", f"{_GPT_3_TABLE}, the name", values=_gpt2(12288, 96, 96, 2048)),
    Size("gpt3-ada", "gpt2", "350M", _API, 2, _gpt2(1024, 24, 16, 2048)),
    Size("gpt3-babbage", "gpt2", "1.3B", _API, values=_gpt2(2048, 24, 16, 2048)),
    Size("gpt3-curie", "gpt2", "6.7B", _API, values=_gpt2(4096, 32, 32, 2048)),
    Size("gpt3-davinci", "gpt2", "175B", _API, values=_gpt2(12288, 96, 96, 2048)),
    Size("gpt-neo-125m", "gpt_neo", "125M", "model card of EleutherAI/gpt-neo-125m", values=_gpt_neo(768, 12, 12)),
    Size("gpt-neo-1.3b", "gpt_neo", "1.3B", "model card of EleutherAI/gpt-neo-1.3B", values=_gpt_neo(2048, 24, 16)),
    Size("gpt-neo-2.7b", "gpt_neo", "2.7B", "model card of EleutherAI/gpt-neo-2.7B", values=_gpt_neo(2560, 32, 20)),
    Size("gpt-j-6b", "gptj", "6.05B", "model card of EleutherAI/gpt-j-6b", values=_GPT_J),
    Size("gpt-neox-20b", "gpt_neox", "20,554,567,680", "model card of EleutherAI/gpt-neox-20b", values=_GPT_NEOX),
    Size("pythia-70m", "gpt_neox", "70,426,624", _PYTHIA_CARD, values=_gpt_neox(512, 6, 8, 50304)),
    Size("pythia-160m", "gpt_neox", "162,322,944", _PYTHIA_CARD, values=_gpt_neox(768, 12, 12, 50304)),
    Size("pythia-410m", "gpt_neox", "405,334,016", _PYTHIA_CARD, values=_gpt_neox(1024, 24, 16, 50304)),
    Size("pythia-1b", "gpt_neox", "1,011,781,632", _PYTHIA_CARD, values=_gpt_neox(2048, 16, 8, 50304)),
    Size("pythia-1.4b", "gpt_neox", "1,414,647,808", _PYTHIA_CARD, values=_gpt_neox(2048, 24, 16, 50304)),
    Size("pythia-2.8b", "gpt_neox", "2,775,208,960", _PYTHIA_CARD, values=_gpt_neox(2560, 32, 32, 50304)),
    Size("pythia-6.9b", "gpt_neox", "6,857,302,016", _PYTHIA_CARD, values=_gpt_neox(4096, 32, 32, 50432)),
    Size("pythia-12b", "gpt_neox", "11,846,072,320", _PYTHIA_CARD, values=_gpt_neox(5120, 36, 40, 50688)),
    Size("llama-7b", "llama", "6.7B", _LLAMA_PAPER, values=_llama(4096, 11008, 32, 32, 32, **_LLAMA_1)),
    Size("llama-13b", "llama", "13.0B", _LLAMA_PAPER, values=_llama(5120, 13824, 40, 40, 40, **_LLAMA_1)),
    Size("llama-33b", "llama", "32.5B", _LLAMA_PAPER, values=_llama(6656, 17920, 60, 52, 52, **_LLAMA_1)),
    Size(
        "llama-65b",
        "llama",
        "65.2B",
        _LLAMA_PAPER,
        values=_llama(8192, 22016, 80, 64, 64, **{**_LLAMA_1, "rms_norm_eps": 1e-5}),
    ),
    Size(
        "llama-2-7b",
        "llama",
        "6,738,415,616",
        weights("meta-llama/Llama-2-7b-hf"),
        values=_llama(4096, 11008, 32, 32, 32),
    ),
    Size(
        "llama-2-13b",
        "llama",
        "13,015,864,320",
        weights("meta-llama/Llama-2-13b-hf"),
        values=_llama(5120, 13824, 40, 40, 40),
    ),
    Size(
        "llama-2-70b",
        "llama",
        "68,976,648,192",
        weights("meta-llama/Llama-2-70b-hf"),
        values=_llama(8192, 28672, 80, 64, 8),
    ),
    Size(
        "code-llama-7b",
        "llama",
        "6,738,546,688",
        weights("codellama/CodeLlama-7b-hf"),
        values=_llama(4096, 11008, 32, 32, 32, **_CODE_LLAMA, vocab_size=32016),
    ),
    Size(
        "code-llama-13b",
        "llama",
        "13,016,028,160",
        weights("codellama/CodeLlama-13b-hf"),
        values=_llama(5120, 13824, 40, 40, 40, **_CODE_LLAMA, vocab_size=32016),
    ),
    Size(
        "code-llama-34b",
        "llama",
        "33,743,970,304",
        weights("codellama/CodeLlama-34b-hf"),
        values=_llama(8192, 22016, 48, 64, 8, **_CODE_LLAMA),
    ),
    Size(
        "code-llama-70b",
        "llama",
        "68,976,910,336",
        weights("codellama/CodeLlama-70b-hf"),
        values=_llama(8192, 28672, 80, 64, 8, **_CODE_LLAMA, vocab_size=32016),
    ),
    Size(
        "llama-3-8b",
        "llama",
        "8,030,261,248",
        weights("meta-llama/Meta-Llama-3-8B"),
        values=_llama(4096, 14336, 32, 32, 8, **_LLAMA_3),
    ),
    Size(
        "llama-3-70b",
        "llama",
        "70,553,706,496",
        weights("meta-llama/Meta-Llama-3-70B"),
        values=_llama(8192, 28672, 80, 64, 8, **_LLAMA_3),
    ),
    Size(
        "llama-3.1-405b",
        "llama",
        "405B",
        "Dubey et al., 2024, table 3",
        values=_llama(16384, 53248, 126, 128, 8, **_llama_3(8.0)),
    ),
    Size(
        "llama-3.2-1b",
        "llama",
        "1,235,814,400",
        weights("meta-llama/Llama-3.2-1B"),
        values=_llama(2048, 8192, 16, 32, 8, **{**_llama_3(32.0), "tie_word_embeddings": True}),
    ),
    Size(
        "llama-3.2-3b",
        "llama",
        "3,212,749,824",
        weights("meta-llama/Llama-3.2-3B"),
        values=_llama(3072, 8192, 28, 24, 8, **{**_llama_3(32.0), "tie_word_embeddings": True}),
    ),
    Size(
        "mistral-7b",
        "mistral",
        "7,241,732,096",
        weights("mistralai/Mistral-7B-v0.1"),
        values=_llama(4096, 14336, 32, 32, 8, max_position_embeddings=32768, sliding_window=4096),
    ),
    Size(
        "mixtral-8x7b",
        "mixtral",
        "46,702,792,704",
        weights("mistralai/Mixtral-8x7B-v0.1"),
        values=_llama(4096, 14336, 32, 32, 8, max_position_embeddings=32768, **_MIXTRAL),
    ),
    Size(
        "mixtral-8x22b",
        "mixtral",
        "141B",
        "Mistral AI's announcement, 2024",
        values=_llama(6144, 16384, 56, 48, 8, max_position_embeddings=65536, **_MIXTRAL),
    ),
    Size(
        "qwen2-0.5b",
        "qwen2",
        "494,032,768",
        weights("Qwen/Qwen2-0.5B"),
        values=_llama(896, 4864, 24, 14, 2, **_QWEN_2_SMALL),
    ),
    Size(
        "qwen2-1.5b",
        "qwen2",
        "1,543,714,304",
        weights("Qwen/Qwen2-1.5B"),
        values=_llama(1536, 8960, 28, 12, 2, **_QWEN_2_SMALL),
    ),
    Size(
        "qwen2-7b",
        "qwen2",
        "7,615,616,512",
        weights("Qwen/Qwen2-7B"),
        values=_llama(3584, 18944, 28, 28, 4, **_QWEN_2_LARGE),
    ),
    Size(
        "qwen2-72b",
        "qwen2",
        "72,706,203,648",
        weights("Qwen/Qwen2-72B"),
        values=_llama(8192, 29568, 80, 64, 8, **{**_QWEN_2_LARGE, "rms_norm_eps": 1e-5}),
    ),
    Size(
        "qwen2.5-3b",
        "qwen2",
        "3,085,938,688",
        weights("Qwen/Qwen2.5-3B"),
        values=_llama(2048, 11008, 36, 16, 2, **{**_QWEN_2_SMALL, "max_position_embeddings": 32768}),
    ),
    Size(
        "qwen2.5-14b",
        "qwen2",
        "14,770,033,664",
        weights("Qwen/Qwen2.5-14B"),
        values=_llama(5120, 13824, 48, 40, 8, **{**_QWEN_2_LARGE, "rms_norm_eps": 1e-5}),
    ),
    Size(
        "qwen2.5-32b",
        "qwen2",
        "32,763,876,352",
        weights("Qwen/Qwen2.5-32B"),
        values=_llama(5120, 27648, 64, 40, 8, **{**_QWEN_2_LARGE, "rms_norm_eps": 1e-5}),
    ),
    Size(
        "qwen3-0.6b",
        "qwen3",
        "0.6B",
        "model card of Qwen/Qwen3-0.6B",
        values=_llama(1024, 3072, 28, 16, 8, **_QWEN_3_SMALL),
    ),
    Size(
        "qwen3-1.7b",
        "qwen3",
        "1.7B",
        "model card of Qwen/Qwen3-1.7B",
        values=_llama(2048, 6144, 28, 16, 8, **_QWEN_3_SMALL),
    ),
    Size(
        "qwen3-4b",
        "qwen3",
        "4,022,468,096",
        weights("Qwen/Qwen3-4B"),
        values=_llama(2560, 9728, 36, 32, 8, **_QWEN_3_SMALL),
    ),
    Size(
        "qwen3-8b",
        "qwen3",
        "8,190,735,360",
        weights("Qwen/Qwen3-8B"),
        values=_llama(4096, 12288, 36, 32, 8, **_QWEN_3),
    ),
    Size(
        "qwen3-14b",
        "qwen3",
        "14,768,307,200",
        weights("Qwen/Qwen3-14B"),
        values=_llama(5120, 17408, 40, 40, 8, **_QWEN_3),
    ),
    Size(
        "qwen3-32b",
        "qwen3",
        "32,762,123,264",
        weights("Qwen/Qwen3-32B"),
        values=_llama(5120, 25600, 64, 64, 8, **_QWEN_3),
    ),
    Size("gemma-2b", "gemma", "2,506,172,416", weights("google/gemma-2b"), values=_gemma(2048, 16384, 18, 8, 1)),
    Size("gemma-7b", "gemma", "8,537,680,896", weights("google/gemma-7b"), values=_gemma(3072, 24576, 28, 16, 16)),
    Size(
        "gemma-2-2b",
        "gemma2",
        "2,614,341,888",
        weights("google/gemma-2-2b"),
        values=_gemma(2304, 9216, 26, 8, 4, **_GEMMA_2),
    ),
    Size(
        "gemma-2-9b",
        "gemma2",
        "9,241,705,984",
        weights("google/gemma-2-9b"),
        values=_gemma(3584, 14336, 42, 16, 8, **_GEMMA_2),
    ),
    Size(
        "gemma-2-27b",
        "gemma2",
        "27,227,128,320",
        weights("google/gemma-2-27b"),
        values=_gemma(4608, 36864, 46, 32, 16, **{**_GEMMA_2, "query_pre_attn_scalar": 144, "head_dim": 128}),
    ),
    Size(
        "gemma-3-270m",
        "gemma3_text",
        "268,098,176",
        weights("google/gemma-3-270m"),
        values=_gemma(640, 2048, 18, 4, 1, **_GEMMA_3_SMALL),
    ),
    Size(
        "gemma-3-1b",
        "gemma3_text",
        "999,885,952",
        weights("google/gemma-3-1b-pt"),
        values=_gemma(1152, 6912, 26, 4, 1, **_GEMMA_3_SMALL),
    ),
    Size(
        "gemma-3-4b",
        "gemma3_text",
        "3.88B",
        "Gemma team, 2025, table 1, the sum without the vision encoder",
        values=_gemma(2560, 10240, 34, 8, 4, **_GEMMA_3),
    ),
    Size(
        "gemma-3-12b",
        "gemma3_text",
        "11.77B",
        "Gemma team, 2025, table 1, the sum without the vision encoder",
        values=_gemma(3840, 15360, 48, 16, 8, **_GEMMA_3),
    ),
    Size(
        "gemma-3-27b",
        "gemma3_text",
        "27.0B",
        "Gemma team, 2025, table 1, the sum without the vision encoder",
        values=_gemma(5376, 21504, 62, 32, 16, **{**_GEMMA_3, "query_pre_attn_scalar": 168, "head_dim": 128}),
    ),
    Size(
        "phi-3-mini",
        "phi3",
        "3,821,079,552",
        weights("microsoft/Phi-3-mini-4k-instruct"),
        values=_llama(3072, 8192, 32, 32, 32, **_PHI_3),
    ),
    Size(
        "phi-3-medium",
        "phi3",
        "13,960,238,080",
        weights("microsoft/Phi-3-medium-4k-instruct"),
        values=_llama(5120, 17920, 40, 40, 10, **_PHI_3),
    ),
    Size("falcon-7b", "falcon", "7B", "Almazrouei et al., 2023", values=_falcon(4544, 32, 71)),
    Size(
        "falcon-40b",
        "falcon",
        "40B",
        "Almazrouei et al., 2023",
        1,
        _falcon(8192, 60, 128, new_decoder_architecture=True, num_kv_heads=8),
    ),
    Size(
        "falcon-180b",
        "falcon",
        "180B",
        "Almazrouei et al., 2023",
        2,
        _falcon(14848, 80, 232, new_decoder_architecture=True, num_kv_heads=8),
    ),
    Size("palm-8b", "palm", "8.63B", "Chowdhery et al., 2022, table 1", values=_palm(4096, 32, 16)),
    Size("palm-62b", "palm", "62.50B", "Chowdhery et al., 2022, table 1", values=_palm(8192, 64, 32)),
    Size("palm-540b", "palm", "540.35B", "Chowdhery et al., 2022, table 1", values=_palm(18432, 118, 48)),
    Size("santacoder", "gpt_bigcode", "1.1B", "Ben Allal et al., 2023", values=_bigcode(2048, 24, 16, 49280, 2048)),
    Size("starcoder", "gpt_bigcode", "15.5B", "Li et al., 2023", values=_bigcode(6144, 40, 48, 49152, 8192)),
    Size(
        "starcoder2-3b",
        "starcoder2",
        "3,030,371,328",
        weights("bigcode/starcoder2-3b"),
        values=_starcoder2(3072, 30, 24, 2, 999999.4420358813),
    ),
    Size(
        "starcoder2-7b",
        "starcoder2",
        "7,173,923,840",
        weights("bigcode/starcoder2-7b"),
        values=_starcoder2(4608, 32, 36, 4, 1e6),
    ),
    Size(
        "starcoder2-15b",
        "starcoder2",
        "15,957,889,024",
        weights("bigcode/starcoder2-15b"),
        values=_starcoder2(6144, 40, 48, 4, 1e5, tie_word_embeddings=False),
    ),
    Size(
        "smollm2-135m",
        "llama",
        "134,515,008",
        weights("HuggingFaceTB/SmolLM2-135M"),
        values=_llama(576, 1536, 30, 9, 3, **_SMOLLM_2, rope_theta=100000.0),
    ),
    Size(
        "smollm2-360m",
        "llama",
        "361,821,120",
        weights("HuggingFaceTB/SmolLM2-360M"),
        values=_llama(960, 2560, 32, 15, 5, **_SMOLLM_2, rope_theta=100000.0),
    ),
    Size(
        "smollm2-1.7b",
        "llama",
        "1,711,376,384",
        weights("HuggingFaceTB/SmolLM2-1.7B"),
        values=_llama(2048, 8192, 24, 32, 32, **_SMOLLM_2, rope_theta=130000.0),
    ),
)
