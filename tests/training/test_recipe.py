"""Recipes: a mistake is named with its line and the nearest right name."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyformer.errors import ConfigError
from polyformer.training.recipe import Recipe, parse_recipe, read_recipe

GOOD = """\
model:
  family: llama
  config: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128}
tokenizer:
  train: bpe
  vocab_size: 512
data:
  train:
    - source: novels/*.txt
      weight: 2
    - austen
  length: 64
objective:
  name: causal-lm
  z_loss: 1e-4
optimizer: {name: adamw, learning_rate: 1e-3}
training:
  steps: 10
  precision: bf16
"""


def test_a_good_recipe() -> None:
    recipe = parse_recipe(GOOD, name="small")
    assert recipe.name == "small"
    assert [source.source for source in recipe.data.train] == ["novels/*.txt", "austen"]
    assert recipe.data.train[0].weight == 2
    assert recipe.objective.options == {"z_loss": 1e-4}
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.training.precision == "bfloat16"


def test_it_reads_back_what_it_writes() -> None:
    recipe = parse_recipe(GOOD)
    assert parse_recipe(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps:", "stepz:", "r.yaml:18: training has no field 'stepz'; did you mean steps?"),
        ("weight:", "wieght:", "r.yaml:10: data.train.0 has no field 'wieght'; did you mean weight?"),
        ("training:", "trainin:", "r.yaml:17: a recipe has no field 'trainin'; did you mean training?"),
        ("bf16", "bf61", "r.yaml:19: training.precision is 'bf61', but it must be one of float32, bfloat16, float16"),
        ("1e-3", "-1", "r.yaml:16: optimizer.learning_rate is -1: it must be greater than 0"),
        ("1e-3", "fast", "r.yaml:16: optimizer.learning_rate is 'fast': it must be a valid number"),
        ("  steps: 10\n", "", "r.yaml:17: training: give one of steps, tokens or epochs, not none"),
        ("steps: 10", "steps: 10\n  epochs: 2", "give one of steps, tokens or epochs, not steps and epochs"),
        ("family: llama", "family: llama\n  size: gpt2", "give one of size, family, network or start_from"),
        ("  name: causal-lm\n", "", "r.yaml:13: objective needs 'name'"),
        ("length: 64", "length: 64\n  stride: 3", "stride goes with packing 'none', not with 'documents'"),
        ("adamw", "adam", "optimizer.name is 'adam', but it must be one of adamw, muon, adafactor, lion; did you mean"),
        ("{name: adamw,", "{name: adamw,,", "r.yaml:16: not valid YAML"),
        ("length: 64", "length: 64\n  length: 32", "r.yaml:13: not valid YAML: 'length' stands twice"),
        ("precision: bf16", "batch_size: 4\n  micro_batch_size: 8", "micro_batch_size 8 is larger than batch_size 4"),
        (
            "precision: bf16",
            "batch_size: 4\n  micro_batch_size: 3\n  micro_batches_at_once: 2",
            "at_once is 2, but a batch of 4 has fewer micro-batches: give a micro_batch_size of at most 2",
        ),
        ("precision: bf16", "batch_size: 2\n  micro_batches_at_once: 3", "give a batch_size of at least 3"),
    ],
)
def test_mistakes_are_named_with_their_line(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_recipe(GOOD.replace(old, new, 1), where="r.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_changes_from_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    recipe = read_recipe(path, ["training.steps=3", "schedule.shape=linear", "seed=7", "objective.z_loss=0"])
    assert (recipe.training.steps, recipe.schedule.shape, recipe.seed) == (3, "linear", 7)
    assert recipe.objective.options == {"z_loss": 0}
    for change, words in [
        ("training.stepz=3", "did you mean steps"),
        ("steps", "section.name=value"),
        ("optimizer.name.first=1", "name is 'adamw', not a section"),
        ("training.steps={", "not valid YAML"),
    ]:
        with pytest.raises(ConfigError, match=words):
            read_recipe(path, [change])


def test_a_file_that_is_not_there_or_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "austen.yaml").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"there is no recipe .*asten.yaml; did you mean .*austen.yaml"):
        read_recipe(tmp_path / "asten.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="a recipe is a dictionary"):
        read_recipe(tmp_path / "list.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "binary.yaml")


def test_defaults_do_not_depend_on_each_other() -> None:
    assert isinstance(parse_recipe(GOOD), Recipe)
    assert parse_recipe(GOOD).training.spikes.action == "warn"
