"""A recipe: everything that a training run is, in one YAML file that is checked before anything starts.

A mistake is named with its line and, where a name was mistyped, the nearest right one.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from polyformer.errors import ConfigError
from polyformer.training.optimizers import NAMES as OPTIMIZERS
from polyformer.training.schedules import SHAPES

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
_SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Precision = Annotated[
    Literal["float32", "bfloat16", "float16"],
    BeforeValidator(lambda value: _SHORT_NAMES.get(value, value) if isinstance(value, str) else value),
]


class Section(BaseModel):
    """Base of every part of a recipe: no field beyond those declared, none changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(Section):
    """What is trained: exactly one of ``size``, ``family``, ``network`` or ``start_from``.

    Attributes:
        size: a public size by name, with new weights (``polyformer models --sizes``).
        family: a public architecture; ``config`` gives the keys of its config.json.
        network: a tree of configs, as `Config.to_dict` writes it (``kind`` in each).
        start_from: a model with weights: a folder, a name of the catalogue, a hub id.
        config: with ``family``: keys of config.json; the size of the vocabulary comes from the tokenizer.
        architecture: with ``family`` or ``start_from``: the class of the head, as config.json names it
            ("BertForSequenceClassification"). A new head on given weights begins at random values, and is named.
        labels: the names of what the head tells apart.
        freeze: parameters that stay as they are, by the beginnings of their names.
    """

    size: str | None = None
    family: str | None = None
    network: dict[str, Any] | None = None
    start_from: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    architecture: str | None = None
    labels: list[str] | None = None
    freeze: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_source(self) -> ModelSection:
        given = [name for name in ("size", "family", "network", "start_from") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of size, family, network or start_from, not {' and '.join(given) or 'none'}")
        if self.config and given[0] not in ("family", "start_from"):
            raise ValueError(f"config goes with family or start_from, not with {given[0]}")
        if self.architecture and given[0] not in ("family", "start_from"):
            raise ValueError(f"architecture goes with family or start_from, not with {given[0]}")
        return self


class TokenizerSection(Section):
    """Where the tokenizer comes from: exactly one of ``start_from`` or ``train``; left out, it is the model's own.

    Attributes:
        start_from: a folder, or a model that has one.
        train: a kind to train on the training data: "bpe", "wordpiece", "unigram", "byte" or "character".
        vocab_size: entries, special tokens included.
        purpose: which special tokens and templates it gets; see `polyformer.tokenizers.training`.
        options: further options of `train_tokenizer`.
    """

    start_from: str | None = None
    train: str | None = None
    vocab_size: Positive | None = None
    purpose: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> TokenizerSection:
        if (self.start_from is None) == (self.train is None):
            raise ValueError("give either start_from or train")
        if self.start_from is not None and (self.vocab_size or self.purpose or self.options):
            raise ValueError("vocab_size, purpose and options are for a tokenizer that is trained here")
        return self


class SourceSection(Section):
    """Documents from one place.

    Attributes:
        source: a sample set by name (``polyformer data list``), a file, a folder or a pattern.
        split: "train", "validation" or "test", of a source that has them.
        weight: the share of this source in what is read, beside the others.
        format: how files are read; None goes by their names.
        fields: the field that the objective wants -> the field of the source ("text: content").
        options: further options of the reader or of the sample set.
        limit: only so many documents.
    """

    source: str
    split: str | None = None
    weight: Annotated[float, Field(gt=0)] = 1.0
    format: str | None = None
    fields: dict[str, str] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    limit: Positive | None = None

    @model_validator(mode="after")
    def _no_double(self) -> SourceSection:
        for name in self.options:
            if name in SourceSection.model_fields:
                raise ValueError(f"{name} is a field of the source itself: write it beside options, not in them")
        return self


class DataSection(Section):
    """What is learned from, and what is held out.

    Attributes:
        train: the sources; several are mixed by their weights.
        validation: sources that are never trained on.
        validation_share: held out of ``train`` instead, by document.
        length: the longest row, in tokens.
        packing: "documents" (rows of exactly ``length``; attention stays inside documents), "across" (the same, and
            attention goes across), "best" (no document is cut that fits), "none" (each document a row, padded).
        stride: with "none": a longer document becomes windows that begin so far apart; None: ``length``.
        source_length, target_length: of pairs; None: ``length``.
        truncate: too long examples of pairs and labels are cut; otherwise they are an error.
        deduplicate: "exact" or "near" leaves out documents that are (nearly) the same as an earlier one.
        append_end: whether documents end with the tokenizer's end token.
    """

    train: list[SourceSection] = Field(min_length=1)
    validation: list[SourceSection] = Field(default_factory=list)
    validation_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    length: Positive = 256
    packing: Literal["documents", "across", "best", "none"] = "documents"
    stride: Positive | None = None
    source_length: Positive | None = None
    target_length: Positive | None = None
    truncate: bool = False
    deduplicate: Literal["exact", "near"] | None = None
    append_end: bool = True

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        """One source needs no list, and a source that is only a name no dictionary."""
        if isinstance(values, dict):
            values = dict(values)
            for name in ("train", "validation"):
                given = values.get(name)
                if isinstance(given, (str, dict)):
                    given = [given]
                if isinstance(given, list):
                    values[name] = [{"source": one} if isinstance(one, str) else one for one in given]
        return values

    @model_validator(mode="after")
    def _consistent(self) -> DataSection:
        if self.validation and self.validation_share:
            raise ValueError("give validation or validation_share, not both")
        if self.stride is not None and self.packing != "none":
            raise ValueError(f"stride goes with packing 'none', not with {self.packing!r}")
        return self


class ObjectiveSection(BaseModel):
    """What is learned. ``name`` says which objective; every other field is one of its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


class OptimizerSection(Section):
    """See `polyformer.training.optimizers.OptimizerSettings`."""

    name: Literal["adamw", "muon", "adafactor", "lion"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    betas: tuple[Share, Share] | None = None
    eps: Annotated[float, Field(gt=0)] = 1e-8
    adamw_learning_rate: Annotated[float, Field(gt=0)] | None = None


class ScheduleSection(Section):
    """See `polyformer.training.schedules.Schedule`. Warm-up and decay are steps, or (below 1) shares of the run."""

    shape: Literal["constant", "cosine", "linear", "warmup-stable-decay", "inverse-square-root"] = "cosine"
    warmup: Annotated[float, Field(ge=0)] = 0.02
    decay: Annotated[float, Field(ge=0)] = 0.2
    final: Share = 0.1


class EarlyStoppingSection(Section):
    """Stop when the held-out loss has not gone down by ``least`` for ``patience`` evaluations."""

    patience: Positive
    least: Annotated[float, Field(ge=0)] = 0.0


class SpikeSection(Section):
    """What counts as a spike of the loss, and what then happens.

    Attributes:
        action: "stop" ends the run, "warn" says so and goes on, "off" does not look.
        deviations: so many standard deviations above the mean of the last ``window`` losses, and
        ratio: so many times that mean.
        window: losses that are remembered.
    """

    action: Literal["stop", "warn", "off"] = "warn"
    deviations: Annotated[float, Field(gt=0)] = 8.0
    ratio: Annotated[float, Field(gt=1)] = 1.5
    window: Annotated[int, Field(ge=10)] = 100


class SamplesSection(Section):
    """What the model writes while it is trained.

    Attributes:
        prompts: what it goes on from (sources, for an encoder-decoder).
        every: steps between.
        max_new_tokens, temperature: of generation.
    """

    prompts: list[str] = Field(min_length=1)
    every: Positive | None = None
    max_new_tokens: Positive = 48
    temperature: Annotated[float, Field(ge=0)] = 0.8


class ParallelSection(Section):
    """How the work is divided among processes (`torchrun`). The product must be the number of processes.

    Attributes:
        shard: processes that hold a part of every weight each (FSDP); None: all that are left.
        replicate: copies of such a group (hybrid sharding).
        tensor: processes that share every matrix (tensor parallelism).
    """

    shard: Positive | None = None
    replicate: Positive = 1
    tensor: Positive = 1


class TrainingSection(Section):
    """The loop.

    Attributes:
        steps, tokens, epochs: how long; exactly one of them. A token is what the network reads, padding not counted.
        batch_size: rows of one step, over all processes and micro-batches.
        micro_batch_size: rows that go through the network at once; None: all of a process's rows.
        micro_batches_at_once: how many of them are computed at the same time, each by one core of the CPU; faster
            than one after the other by all cores, where the network is small and draws no random numbers.
        precision: of the computation; weights and optimizer stay in float32.
        gradient_clipping: the largest norm of all gradients together; None: no limit.
        activation_checkpointing: layers are computed twice, and their inner results not kept.
        compile: `torch.compile`.
        ema: memory of an average of the weights, which is evaluated and saved in their place; None without.
        evaluate_every, save_every, log_every: steps between; None: ten evaluations, four states.
        keep_last: states that stay.
        keep_best: whether the state with the least held-out loss stays too and becomes the model.
        early_stopping, spikes: see there.
        tensorboard: whether curves are written for it too.
        deterministic: refuse kernels whose result is not the same every time.
    """

    steps: Positive | None = None
    tokens: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    batch_size: Positive = 16
    micro_batch_size: Positive | None = None
    micro_batches_at_once: Positive = 1
    precision: Precision = "float32"
    gradient_clipping: Annotated[float, Field(gt=0)] | None = 1.0
    activation_checkpointing: bool = False
    compile: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    evaluate_every: Positive | None = None
    save_every: Positive | None = None
    log_every: Positive = 10
    keep_last: Positive = 2
    keep_best: bool = True
    early_stopping: EarlyStoppingSection | None = None
    spikes: SpikeSection = SpikeSection()
    tensorboard: bool = False
    deterministic: bool = False

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSection:
        given = [name for name in ("steps", "tokens", "epochs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of steps, tokens or epochs, not {' and '.join(given) or 'none'}")
        if self.micro_batch_size and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is larger than batch_size {self.batch_size}, of which it is "
                "a part"
            )
        once = self.micro_batches_at_once
        if once > 1 and (self.micro_batch_size or self.batch_size) * once > self.batch_size:
            most = self.batch_size // once
            raise ValueError(
                f"micro_batches_at_once is {once}, but a batch of {self.batch_size} has fewer micro-batches: "
                + (f"give a micro_batch_size of at most {most}" if most else f"give a batch_size of at least {once}")
            )
        return self


class Recipe(Section):
    """A whole training run.

    Attributes:
        name: of the run; None: the file's.
        seed: of the weights, the order of the data, the noise and dropout.
        output: the run's folder; None: ``runs/NAME``.
        model, tokenizer, data, objective, optimizer, schedule, training, samples, parallel: see there.
    """

    name: str | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    output: str | None = None
    model: ModelSection
    tokenizer: TokenizerSection | None = None
    data: DataSection
    objective: ObjectiveSection
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection
    samples: SamplesSection | None = None
    parallel: ParallelSection = ParallelSection()

    def to_yaml(self) -> str:
        """The recipe with every field that was given, as YAML that reads back to an equal one."""
        text: str = yaml.safe_dump(
            self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
        )
        return text


assert set(OPTIMIZERS) == set(typing.get_args(OptimizerSection.model_fields["name"].annotation))
assert set(SHAPES) == set(typing.get_args(ScheduleSection.model_fields["shape"].annotation))


# ---------------------------------------------------------------------------------------------------------------
# From a file


def read_recipe(path: str | os.PathLike[str], changes: Sequence[str] = ()) -> Recipe:
    """
    Args:
        path: a YAML file.
        changes: of single values, as on the command line: ``"training.steps=100"``.

    Raises:
        ConfigError: there is no such file, it is no YAML, or it asks for something that cannot be; file and line are
            named.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [one.name for one in _yaml_files(file.parent)], n=1)
        hint = f"; did you mean {file.parent / near[0]}?" if near else ""
        raise ConfigError(f"there is no recipe {file}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the recipe {file} cannot be read: {error}") from None
    return parse_recipe(text, where=str(file), changes=changes, name=file.stem)


def _yaml_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".yaml", ".yml")] if folder.is_dir() else []


def parse_recipe(text: str, *, where: str = "recipe", changes: Sequence[str] = (), name: str = "run") -> Recipe:
    """The recipe that a YAML text describes; see `read_recipe`."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: a recipe is a dictionary with model, data, objective and training")
    lines = dict(_lines(node))
    for change in changes:
        _change(values, change)
    values.setdefault("name", name)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_message(error, where, lines, values)) from None


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as in YAML 1.2, and a key may stand only once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"{key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
        r"|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _lines(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], int]]:
    """The line, counted from 1, of every value by its path."""
    if node is None:
        return
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            yield here, key.start_mark.line + 1
            yield from _lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            here = (*path, number)
            yield here, value.start_mark.line + 1
            yield from _lines(value, here)


def _change(values: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise ConfigError(f"a change of a recipe is written as section.name=value, not {change!r}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{change!r}: the value is not valid YAML") from None
    *sections, name = path.split(".")
    here = values
    for section in sections:
        inner = here.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{change!r}: {section} is {inner!r}, not a section")
        here = inner
    here[name] = value


def _message(error: ValidationError, where: str, lines: Mapping[tuple[Any, ...], int], values: Any) -> str:
    """The first mistake in one line; how many more there are."""
    errors = error.errors(include_url=False)
    # A missing name beside an unknown one is most often the same mistake: the unknown one says it better.
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    path = tuple(first["loc"])
    found = [lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines]
    # A source given without a list has no number in its path.
    if not found:
        plain = tuple(part for part in path if not isinstance(part, int))
        found = [lines[plain[:end]] for end in range(len(plain), 0, -1) if plain[:end] in lines]
    place = f"{where}:{found[0]}" if found else where
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{place}: {_words(first, path)}{more}"


def _words(first: Any, path: tuple[Any, ...]) -> str:
    name = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        section = ".".join(map(str, path[:-1])) or "a recipe"
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return f"{section} has no field {str(path[-1])!r}; {hint}"
    if first["type"] == "missing":
        section = ".".join(map(str, path[:-1])) or "a recipe"
        return f"{section} needs {path[-1]!r}"
    if first["type"] == "literal_error":
        given = str(first["input"])
        choices = [choice.strip(" '") for choice in str(first["ctx"]["expected"]).replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(given, choices, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{name} is {given!r}, but it must be one of {', '.join(choices)}{hint}"
    if first["type"] == "value_error":
        return f"{name or 'recipe'}: {first['msg'].removeprefix('Value error, ')}"
    message = (first["msg"][:1].lower() + first["msg"][1:]).partition(", unable")[0]
    message = message.replace("input should", "it must").replace("valid integer", "whole number")
    return f"{name} is {first['input']!r}: {message}"


def _fields_at(path: Sequence[Any]) -> list[str]:
    """Names of the fields of the section at a path."""
    section: Any = Recipe
    for part in path:
        if isinstance(part, int):
            continue
        section = _section_of(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) in (typing.Union, list, Annotated):
        for argument in typing.get_args(annotation):
            found = _section_of(argument)
            if found is not None:
                return found
    return None
