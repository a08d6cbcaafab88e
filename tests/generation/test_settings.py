"""Settings are checked when they are made, and say what is wrong in one line."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from typing import Any

import pytest

from polyformer.errors import GenerationError
from polyformer.generation.settings import GenerationSettings

BAD_VALUES: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -1}, r"temperature must be a number in \[0, 100\]; 0 is greedy, not -1"),
    ({"temperature": float("nan")}, "temperature.*nan"),
    ({"temperature": "hot"}, "temperature.*'hot'"),
    ({"temperature": True}, "temperature.*True"),
    ({"max_new_tokens": 0}, "max_new_tokens must be a whole number >= 1, not 0"),
    ({"max_new_tokens": 2.5}, "max_new_tokens.*2.5"),
    ({"max_new_tokens": None}, "max_new_tokens.*None"),
    ({"min_new_tokens": -1}, "min_new_tokens.*-1"),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 is more than max_new_tokens=8"),
    ({"top_k": -5}, "top_k must be a whole number >= 0; 0 keeps every token, not -5"),
    ({"top_p": 0}, r"top_p must be a number in \(0, 1\], not 0"),
    ({"top_p": 1.01}, "top_p.*1.01"),
    ({"min_p": -0.1}, r"min_p must be a number in \[0, 1\]"),
    ({"typical_p": 0.0}, "typical_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": float("inf")}, "presence_penalty.*inf"),
    ({"frequency_penalty": -101}, "frequency_penalty.*-101"),
    ({"logit_bias": {3: float("nan")}}, "logit_bias of token 3"),
    ({"logit_bias": {3: float("inf")}}, "logit_bias of token 3"),
    ({"logit_bias": {"3": 1.0}}, "logit_bias.*'3'"),
    ({"logit_bias": [1]}, "logit_bias must map"),
    ({"bad_words_ids": [[]]}, "bad_words_ids must hold non-empty lists"),
    ({"bad_words_ids": [3]}, "bad_words_ids must hold non-empty lists"),
    ({"bad_words_ids": [[-3]]}, "bad_words_ids.*-3"),
    ({"stop": [""]}, "stop must hold non-empty strings"),
    ({"stop": [3]}, "stop must hold non-empty strings, not 3"),
    ({"stop": 3}, "stop must be a list, not 3"),
    ({"stop_token_ids": 5}, "stop_token_ids must be a list"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids.*'a'"),
    ({"ignore_eos": 1}, "ignore_eos must be True or False"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"n": 0}, "n must be"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"num_beams": 0}, "num_beams"),
    ({"early_stopping": "always", "num_beams": 2}, 'early_stopping must be True, False or "never"'),
    ({"early_stopping": 1, "num_beams": 2}, "early_stopping"),
    ({"penalty_alpha": 0, "top_k": 4}, "penalty_alpha"),
    ({"penalty_alpha": 1.5, "top_k": 4}, "penalty_alpha"),
    ({"guidance_scale": -1}, "guidance_scale"),
    ({"guidance_scale": 2, "negative_prompt": []}, "negative_prompt is empty"),
    ({"guidance_scale": 2, "negative_prompt": "no"}, "negative_prompt must be a list"),
]

BAD_COMBINATIONS: list[tuple[dict[str, Any], str]] = [
    ({"n": 3, "temperature": 0}, "n=3 with temperature=0"),
    ({"n": 5, "num_beams": 4}, "n=5 is more than num_beams=4"),
    ({"num_beams": 4, "temperature": 0.7}, "temperature=0.7 is for sampling"),
    ({"num_beams": 4, "top_k": 3}, "top_k=3 is for sampling"),
    ({"num_beams": 4, "top_p": 0.5}, "top_p=0.5 is for sampling"),
    ({"num_beams": 4, "min_p": 0.5}, "min_p=0.5 is for sampling"),
    ({"num_beams": 4, "typical_p": 0.5}, "typical_p=0.5 is for sampling"),
    ({"num_beams": 4, "guidance_scale": 2}, "guidance_scale=2 is not supported with beam search"),
    ({"num_beams": 4, "logprobs": 1}, "logprobs=1 is not supported with beam search"),
    ({"num_beams": 4, "penalty_alpha": 0.5, "top_k": 4}, "penalty_alpha=0.5 .* num_beams=4"),
    ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "num_beam_groups=3 does not divide"),
    ({"num_beams": 4, "num_beam_groups": 2}, "diverse beam search needs"),
    ({"num_beams": 4, "diversity_penalty": 1.0}, "diverse beam search needs"),
    ({"length_penalty": 2.0}, "length_penalty=2.0 is for beam search"),
    ({"early_stopping": True}, "early_stopping=True is for beam search"),
    ({"num_beam_groups": 2}, "num_beam_groups=2 is for beam search"),
    ({"penalty_alpha": 0.5}, "needs top_k >= 2"),
    ({"penalty_alpha": 0.5, "top_k": 4, "n": 2}, "n=2 with penalty_alpha"),
    ({"penalty_alpha": 0.5, "top_k": 4, "top_p": 0.5}, "top_p=0.5 is for sampling"),
    ({"penalty_alpha": 0.5, "top_k": 4, "temperature": 2.0}, "temperature=2.0 is for sampling"),
    ({"penalty_alpha": 0.5, "top_k": 4, "guidance_scale": 3}, "guidance_scale=3 is not supported with contrastive"),
    ({"negative_prompt": [1]}, "negative_prompt needs a guidance_scale"),
]


@pytest.mark.parametrize(("options", "message"), BAD_VALUES + BAD_COMBINATIONS)
def test_bad_settings_name_setting_value_and_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError, match=message) as caught:
        GenerationSettings(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("max_tokens", "max_new_tokens"),
        ("do_sample", "temperature=0 is greedy"),
        ("num_return_sequences", "did you mean n"),
        ("repetition_penality", "repetition_penalty"),
        ("zzz", "the settings are max_new_tokens"),
    ],
)
def test_unknown_names_get_the_nearest(name: str, meant: str) -> None:
    for build in (GenerationSettings.from_options, GenerationSettings().replace):
        with pytest.raises(GenerationError, match=meant) as caught:
            build(**{name: 1})
        assert repr(name) in str(caught.value)


def test_from_options_takes_mapping_and_names() -> None:
    settings = GenerationSettings.from_options({"top_k": 5, "seed": 1}, seed=2)
    assert (settings.top_k, settings.seed) == (5, 2)
    assert settings.replace(top_k=7) == GenerationSettings(top_k=7, seed=2)


def test_settings_are_values() -> None:
    """Frozen, hashable, equal by value, picklable, and independent of the lists they were made from."""
    words = [[1, 2]]
    settings = GenerationSettings(bad_words_ids=words, stop="end", logit_bias={1: 2.0}, stop_token_ids=range(3))
    words[0].append(3)
    assert settings.bad_words_ids == ((1, 2),)
    assert settings.stop == ("end",) and settings.stop_token_ids == (0, 1, 2)
    assert hash(settings) == hash(settings.replace()) and settings == settings.replace()
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert GenerationSettings(**dataclasses.asdict(settings)) == settings
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "sampling"),
        ({"temperature": 0}, "greedy"),
        ({"num_beams": 3}, "beam"),
        ({"num_beams": 3, "temperature": 0}, "beam"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "contrastive"),
    ],
)
def test_mode(options: dict[str, Any], mode: str) -> None:
    assert GenerationSettings(**options).mode == mode


def test_settings_do_not_import_torch() -> None:
    code = "import sys; from polyformer.generation import GenerationSettings; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
