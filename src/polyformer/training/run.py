"""A whole run: from a recipe to a model in a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import platform
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from polyformer.checkpoints.loading import build_on_meta
from polyformer.checkpoints.saving import save_network
from polyformer.checkpoints.sentence_transformers import EmbeddingSettings
from polyformer.errors import ConfigError, TrainingError
from polyformer.objectives import OBJECTIVES, CausalLM, ContrastivePairs, PrefixLM
from polyformer.objectives.base import Batch, Objective
from polyformer.objectives.labels import Judgement
from polyformer.tokenizers.images import ImageProcessor
from polyformer.tokenizers.loading import load_tokenizer
from polyformer.tokenizers.plan import TokenizerPlan
from polyformer.tokenizers.text import TextTokenizer
from polyformer.tokenizers.training import train_tokenizer
from polyformer.training.averaging import ExponentialAverage
from polyformer.training.data.loader import EvaluationLoader, Loader
from polyformer.training.datasets import KINDS, Prepared, prepare, training_texts
from polyformer.training.group import Alone, Group
from polyformer.training.models import Built, build_model, folder_of, tokenizer_of
from polyformer.training.observers import JournalObserver
from polyformer.training.optimizers import OptimizerSettings, make_optimizers
from polyformer.training.parallel import (
    check_parallel,
    gather,
    parallelize,
    process_device,
    process_group,
    with_spares,
)
from polyformer.training.recipe import Recipe, parse_recipe
from polyformer.training.report import write_report
from polyformer.training.run_folder import Journal, RunFolder
from polyformer.training.sampling import Sampler
from polyformer.training.schedules import Schedule
from polyformer.training.spikes import SpikeSettings
from polyformer.training.states import States
from polyformer.training.tensorboard import TensorBoardObserver, require_tensorboard
from polyformer.training.trainer import Observer, Trainer, TrainerSettings


@dataclass(frozen=True)
class Summary:
    """What came of a run.

    Attributes:
        folder: of the run; the model is in ``model`` below it.
        ended: "done", "early" (the held-out loss went down no more) or "stopped" (someone asked).
        step, steps: done, and of the whole run.
        parameters: of the network; shared ones count once.
        tokens, examples, seconds, flops: of the whole run.
        loss: of the last step.
        evaluation: mean loss and metrics on the held-out data of the weights that were saved; empty without such data.
        best_step: whose weights these are; None: the last step's.
        data: documents, tokens and rows.
        exit_code: of a run that someone stopped, as a shell has it.
    """

    folder: str
    ended: str
    step: int
    steps: int
    parameters: int
    tokens: int
    examples: int
    seconds: float
    flops: float
    loss: float | None
    evaluation: dict[str, float]
    best_step: int | None
    data: dict[str, Any]
    exit_code: int = 0

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        del values["exit_code"]
        return values


def train(
    recipe: Recipe,
    *,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str | torch.device | None = None,
    observers: Sequence[Observer] = (),
) -> Summary:
    """Train as a recipe says.

    Ctrl-C and SIGTERM end the run after the step it is in; its state is saved, and `resume` goes on from it. Called in
    every process that ``torchrun`` starts, they train together; the first one writes and speaks.

    Args:
        recipe: from `read_recipe`.
        output: the run's folder; None: the recipe's, or ``runs/NAME``.
        resume: go on with the run that is there. The recipe must be the same, but for how often things are logged,
            evaluated and saved, for samples, and for the number of processes.
        overwrite: replace the run that is there.
        device: where; None takes a GPU if there is one.
        observers: told what happens.

    Raises:
        ConfigError: the recipe asks for what cannot be.
        DataError: the data are missing, damaged or empty.
        TrainingError: there is a run already, or none to go on with; the loss is not a number.
    """
    folder = RunFolder(output or recipe.output or Path("runs") / (recipe.name or "run"))
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other: choose one")
    place = process_device(device)
    with process_group(recipe.parallel, place) as group:
        if resume:
            group.share(lambda: _require_same(recipe, folder))
        parts = prepare_parts(recipe, tokenizer_folder=folder.tokenizer if resume else None, group=group)
        states = States(folder.states, keep_last=recipe.training.keep_last, group=group)
        trainer = make_trainer(recipe, parts, place, states, group)
        if resume:
            _go_on(trainer, folder)
        else:
            group.share(lambda: _begin(recipe, folder, parts, overwrite))
        return _run(recipe, folder, parts, trainer, observers)


def _begin(recipe: Recipe, folder: RunFolder, parts: Parts, overwrite: bool) -> None:
    folder.begin(recipe.to_yaml(), overwrite=overwrite)
    if parts.tokenizer is not None:
        parts.tokenizer.save(folder.tokenizer)


def check_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe comes to, without training: data are read and tokenized, the network is built.

    Raises:
        as `train`.
    """
    parts = prepare_parts(recipe, tokenizer_folder=None)
    trainer = make_trainer(recipe, parts, torch.device("cpu"), None)
    return {
        "parameters": count_parameters(parts.built.network),
        "vocabulary": None if parts.tokenizer is None else parts.tokenizer.vocab_size,
        "steps": trainer.settings.steps,
        "data": parts.data.facts,
        "new_parts": list(parts.built.new_parts),
    }


# --- the parts of a run ---------------------------------------------------------------------------------------------


@dataclass
class Parts:
    """What a recipe names, made."""

    tokenizer: TextTokenizer | None
    built: Built
    objective: Objective
    data: Prepared
    image_processor: ImageProcessor | None


def prepare_parts(recipe: Recipe, *, tokenizer_folder: Path | None, group: Group | None = None) -> Parts:
    """The tokenizer, the network, the objective and the data of a recipe, in this order, each checked before the next.

    Args:
        tokenizer_folder: of a run that is gone on with: its tokenizer is not trained again.
        group: the processes; the first one trains the tokenizer and stores the tokens, the others take them over.
    """
    group = group or Alone()

    def find_tokenizer() -> TextTokenizer | None:
        if tokenizer_folder is not None and tokenizer_folder.is_dir():
            return load_tokenizer(tokenizer_folder)
        return _tokenizer(recipe)

    _check_packing(recipe)
    if recipe.training.tensorboard:
        require_tensorboard()
    tokenizer = group.share(find_tokenizer)
    return group.in_turns(lambda: _make_parts(recipe, tokenizer))


def _check_packing(recipe: Recipe) -> None:
    packing = recipe.data.packing
    if _objective_class(recipe).one_document and packing in ("documents", "best"):
        raise ConfigError(
            f"data.packing {packing!r} puts several documents into a row, but {recipe.objective.name} reads one "
            "document a row: write packing: none (or across, where the ends of documents do not matter)"
        )


def _make_parts(recipe: Recipe, tokenizer: TextTokenizer | None) -> Parts:
    chosen = _objective_class(recipe)
    kind = KINDS[chosen.reads]
    if kind.texts and tokenizer is None:
        raise ConfigError(
            f"objective {recipe.objective.name} reads texts, but there is no tokenizer: name one under tokenizer"
        )
    built = build_model(recipe.model, tokenizer, seed=recipe.seed, length=_longest(recipe, chosen))
    objective = _objective(recipe, tokenizer, built)
    objective.check(built.network.config)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)  # not the numbers that the network began with
        built.network = objective.begun(built.network)
    processor = _image_processor(built) if "image" in kind.kept else None
    data = prepare(
        recipe.data,
        kind,
        tokenizer,
        ends=_writes_on(chosen),
        labels=built.labels,
        image_processor=processor,
        check_label=objective.label if isinstance(objective, Judgement) else None,
    )
    return Parts(tokenizer, built, objective, data, processor)


def _writes_on(objective: type[Objective]) -> bool:
    """Whether it learns to write texts to their end, so that the end must be in the data. The others add it."""
    return issubclass(objective, (CausalLM, PrefixLM))


def _longest(recipe: Recipe, objective: type[Objective]) -> int:
    """The most tokens of a sequence: those of a row, and where an objective puts a beginning and an end around it,
    these."""
    data = recipe.data
    longest = max(data.length, data.source_length or 0, data.target_length or 0)
    return longest if _writes_on(objective) else longest + 2


def _objective_class(recipe: Recipe) -> type[Objective]:
    name = recipe.objective.name
    if name not in OBJECTIVES:
        near = difflib.get_close_matches(name, OBJECTIVES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(OBJECTIVES)}"
        raise ConfigError(f"there is no objective {name!r}: {hint}")
    return OBJECTIVES[name]


def _tokenizer(recipe: Recipe) -> TextTokenizer | None:
    section = recipe.tokenizer
    if section is None:
        return tokenizer_of(recipe.model)
    if section.start_from is not None:
        from polyformer.checkpoints.catalogue import resolve

        found = load_tokenizer(folder_of(resolve(section.start_from).path))
        if found is None:
            raise ConfigError(f"tokenizer.start_from: there is no tokenizer in {section.start_from}")
        return found
    assert section.train is not None
    kind = KINDS[_objective_class(recipe).reads]
    usual = _TOKENIZERS.get(recipe.objective.name, {"purpose": "encoder"})
    options = {**(usual if section.purpose is None else {"purpose": section.purpose}), **section.options}
    if section.vocab_size is not None:
        options["vocab_size"] = section.vocab_size
    TokenizerPlan.of(kind=section.train, **options)  # refuses what cannot be before any data are read
    return train_tokenizer(training_texts(recipe.data, kind), section.train, **options)


# How a tokenizer is trained, by what its model is trained for; all others make an encoder.
_TOKENIZERS: dict[str, dict[str, Any]] = {
    "causal-lm": {"purpose": "decoder"},
    "prefix-lm": {"purpose": "decoder"},
    "fill-in-the-middle": {"purpose": "code"},
    "span-corruption": {"purpose": "encoder-decoder"},
    "denoising": {"purpose": "denoising"},
    "sequence-to-sequence": {"purpose": "translation"},
    "captioning": {"purpose": "translation"},
    "contrastive-images": {"purpose": "encoder-decoder", "sentinels": 0},  # a vector is that of the end token
}


def _objective(recipe: Recipe, tokenizer: TextTokenizer | None, built: Built) -> Objective:
    """The objective with the options of the recipe, and with the ids that follow from tokenizer and network."""
    chosen = _objective_class(recipe)
    fields = {field.name for field in dataclasses.fields(chosen)}
    options = recipe.objective.options
    for name in options:
        if name not in fields:
            near = difflib.get_close_matches(name, sorted(fields), n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(fields)) or 'none'}"
            raise ConfigError(f"objective {recipe.objective.name} has no option {name!r}; {hint}")
    known = {name: value for name, value in known_ids(tokenizer, built.network).items() if name in fields}
    if built.embedding_settings is not None and "pooling" in fields:
        known["pooling"] = built.embedding_settings.pooling
    if not options.get("whole_words"):
        known.pop("continuation_token_ids", None)
    try:
        made: Objective = TypeAdapter(chosen).validate_python({**known, **options})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"objective {recipe.objective.name}: {where}: {first['msg']}") from None
    return made


def known_ids(tokenizer: TextTokenizer | None, network: Any) -> dict[str, Any]:
    """Values of options of objectives that need not stand in a recipe."""
    values: dict[str, Any] = {}
    config = network.config
    for name in ("vocab_size", "num_labels", "decoder_start_token_id"):
        if getattr(config, name, None) is not None:
            values[name] = getattr(config, name)
    if tokenizer is None:
        return values
    for role in ("bos", "eos", "pad", "cls", "sep", "mask", "unk"):
        number = getattr(tokenizer, f"{role}_token_id")
        if number is not None:
            values[f"{role}_token_id"] = number
    values["special_token_ids"] = tuple(sorted(tokenizer.special_token_ids))
    values["vocab_size"] = tokenizer.vocab_size
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.vocab_size)]
    values["continuation_token_ids"] = _ids_where(tokens, lambda token: token.startswith("##"))
    values["sentence_end_token_ids"] = _ids_where(tokens, lambda token: token.strip("▁Ġ") in (".", "!", "?"))
    # As it is, in GPT-2's spelling of bytes (elsewhere Ċ is a letter), or as SentencePiece's byte
    perhaps = _ids_where(tokens, lambda token: any(mark in token for mark in ("\n", "Ċ", "<0x0A>")))
    values["newline_token_ids"] = tuple(number for number in perhaps if "\n" in tokenizer.decode([number]))
    values["sentinel_token_ids"] = tokenizer.sentinel_token_ids
    values.update({f"{part}_token_id": number for part, number in tokenizer.fill_in_the_middle_ids.items()})
    return values


def _ids_where(tokens: Sequence[str | None], wanted: Callable[[str], bool]) -> tuple[int, ...]:
    return tuple(number for number, token in enumerate(tokens) if token is not None and wanted(token))


def _image_processor(built: Built) -> ImageProcessor:
    """The one of the weights, where it fits; else pictures of the size that the network's positions are for, with
    numbers from -1 to 1."""
    config: Any = built.network.config
    tower = getattr(config, "image", None) or config
    embedding = tower.encoder.embedding
    size, given = tuple(embedding.image_size), built.image_processor
    if given is not None and given.frame_size == size and given.channels == embedding.channels:
        return given
    half = (0.5,) * embedding.channels
    return ImageProcessor(size=size, mean=half, std=half)


# --- the run itself -------------------------------------------------------------------------------------------------


def make_trainer(
    recipe: Recipe, parts: Parts, device: torch.device, states: States | None, group: Group | None = None
) -> Trainer:
    """The trainer of a recipe, whose parts were made. The network is moved to the device, or divided among many.

    Raises:
        ConfigError: a setting that cannot be.
    """
    section, group = recipe.training, group or Alone()
    steps = _steps(recipe, parts.data)
    schedule = _schedule(recipe, steps)
    network, alone = parts.built.network, group.processes == 1

    def check() -> None:
        check_parallel(recipe.parallel, network.config, precision=section.precision)  # type: ignore[arg-type]
        _loader(recipe, parts, group)

    group.share(check)  # what cannot be is said once
    if section.activation_checkpointing:
        _checkpoint_layers(network)
    loader = _loader(recipe, parts, group)
    if alone:
        network.to(device)
    else:
        parallelize(network, group, compile=section.compile)
    return Trainer(
        torch.compile(network) if section.compile and alone else network,  # type: ignore[arg-type]
        parts.objective,
        loader,
        optimizers=make_optimizers(network, OptimizerSettings(**recipe.optimizer.model_dump())),
        schedule=schedule,
        settings=_settings(recipe, steps),
        states=states,
        evaluation=_evaluation(recipe, parts, group),
        average=ExponentialAverage(network, section.ema) if section.ema is not None else None,
        group=group,
        sample=_sampler(recipe, parts),
    )


def _loader(recipe: Recipe, parts: Parts, group: Group) -> Loader:
    section = recipe.training
    loader = Loader(
        parts.data.train,
        parts.objective,
        batch_size=section.batch_size,
        micro_batch_size=section.micro_batch_size,
        seed=recipe.seed,
        rank=group.rank,
        world_size=group.size,
    )
    if parts.objective.depends_on_batch:
        compares = f"objective {recipe.objective.name} compares the rows of a batch with one another"
        if loader.micro_batch_size < loader.rank_rows:
            raise ConfigError(f"{compares}, so micro-batches would change it: leave micro_batch_size out")
        if group.tensor > 1:
            raise ConfigError(f"{compares}, which does not go with parallel.tensor: use shard")
    return loader


def _go_on(trainer: Trainer, folder: RunFolder) -> None:
    states = trainer.states
    found = trainer.group.share(states.steps) if states is not None else []
    if not found:
        raise TrainingError(f"{folder.path} holds no state to go on from: begin again with --overwrite")
    trainer.resume(found[-1])


def _run(recipe: Recipe, folder: RunFolder, parts: Parts, trainer: Trainer, observers: Sequence[Observer]) -> Summary:
    section, group = recipe.training, trainer.group
    facts = _facts(parts, trainer)
    with contextlib.ExitStack() as stack:
        journal = None
        if group.first:
            journal = Journal(folder.journal, after_step=trainer.progress.step)
            stack.callback(journal.close)
            trainer.observers = [JournalObserver(journal, facts, section.log_every), *observers]
            if section.tensorboard:
                trainer.observers.append(TensorBoardObserver(folder.path / "tensorboard"))
        with _deterministic(section.deterministic), _signals(trainer) as received:
            ended = trainer.run()
            summary = _finish(recipe, folder, parts, trainer, ended)
        if journal is not None:
            journal.write("end", step=trainer.progress.step, reason=ended)
    for number in (signal.SIGTERM, signal.SIGINT):
        if group.any(number in received):
            summary = dataclasses.replace(summary, exit_code=128 + number)
    group.share(lambda: _tell(folder, {**summary.to_json(), **facts}))
    return summary


def _tell(folder: RunFolder, summary: dict[str, Any]) -> None:
    folder.write_summary(summary)
    write_report(folder)


def _finish(recipe: Recipe, folder: RunFolder, parts: Parts, trainer: Trainer, ended: str) -> Summary:
    """Save the model: the best weights if there are held-out data, else the last ones."""
    progress, network = trainer.progress, parts.built.network
    last_loss = progress.losses[-1] if progress.losses else None
    best, evaluation = None, dict(trainer.last_evaluation)
    if ended != "stopped" and recipe.training.keep_best and progress.best_step not in (None, progress.step):
        assert trainer.states is not None and progress.best_step is not None
        best, evaluation = progress.best_step, dict(progress.best_evaluation)
        trainer.states.load(best, network, trainer.optimizers, trainer.average)
    with trainer.average.in_place() if trainer.average is not None else contextlib.nullcontext():
        whole = dataclasses.replace(parts, built=_whole(parts.built, trainer.group))
        trainer.group.share(lambda: save_model(folder.model, whole))
    return Summary(
        folder=str(folder.path),
        ended=ended,
        step=progress.step,
        steps=trainer.settings.steps,
        parameters=count_parameters(network),
        tokens=progress.tokens,
        examples=progress.examples,
        seconds=round(progress.seconds, 3),
        flops=progress.flops,
        loss=last_loss,
        evaluation=evaluation,
        best_step=best,
        data=parts.data.facts,
    )


def _whole(built: Built, group: Group) -> Built:
    """With a network that is not divided among processes; only the first process gets one with weights."""
    if group.processes == 1:
        return built
    weights = gather(built.network, group)
    network = build_on_meta(built.network.config)
    if group.first:
        network.load_state_dict(weights, assign=True)
    return dataclasses.replace(built, network=network)


def save_model(folder: Path, parts: Parts) -> None:
    """Write the layout that `polyformer.load` and transformers open."""
    built, tokenizer = parts.built, parts.tokenizer
    writers: list[Callable[[Path], object]] = [
        part.save for part in (tokenizer, parts.image_processor) if part is not None
    ]
    generation: dict[str, Any] = {}
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        generation["eos_token_id"] = tokenizer.eos_token_id
    network, family = parts.objective.finished(built.network, built.family)
    values = dict(built.config_values or {})
    if parts.objective.problem_type is not None:
        values["problem_type"] = parts.objective.problem_type
    if isinstance(parts.objective, ContrastivePairs):
        settings = built.embedding_settings or EmbeddingSettings()
        settings = dataclasses.replace(settings, pooling=parts.objective.pooling, normalize=True)
        writers.append(partial(settings.save, size=network.config.hidden_size))
    save_network(
        network,
        family,
        folder,
        writers=writers,
        config_values=values,
        generation_config=generation or None,
    )


def count_parameters(network: nn.Module) -> int:
    """Shared ones count once."""
    return sum(parameter.numel() for parameter in network.parameters())


def _steps(recipe: Recipe, data: Prepared) -> int:
    section = recipe.training
    if section.steps is not None:
        return section.steps
    rows = len(data.train)
    if section.epochs is not None:
        return max(1, -(-int(section.epochs * rows) // section.batch_size))
    assert section.tokens is not None
    per_row = data.facts["training_tokens"] / rows if rows else 0
    if not per_row:
        raise ConfigError("training.tokens is for texts: give steps or epochs")
    return max(1, round(section.tokens / (per_row * section.batch_size)))


def _schedule(recipe: Recipe, steps: int) -> Schedule:
    section = recipe.schedule

    def counted(value: float) -> int:
        return round(value * steps) if value < 1 else round(value)

    decay = counted(section.decay) if section.shape == "warmup-stable-decay" else 0
    return Schedule(section.shape, steps, counted(section.warmup), section.final, decay)


def _settings(recipe: Recipe, steps: int) -> TrainerSettings:
    section = recipe.training
    stopping = section.early_stopping
    evaluate = section.evaluate_every or max(1, steps // 10)
    return TrainerSettings(
        steps=steps,
        seed=recipe.seed,
        precision=section.precision,
        gradient_clipping=section.gradient_clipping,
        evaluate_every=evaluate,
        save_every=section.save_every or max(1, steps // 4),
        sample_every=(recipe.samples.every or evaluate) if recipe.samples is not None else None,
        keep_best=section.keep_best,
        patience=stopping.patience if stopping is not None else None,
        least_improvement=stopping.least if stopping is not None else 0.0,
        spikes=SpikeSettings(**section.spikes.model_dump()),
        compiled=section.compile,
        micro_batches_at_once=section.micro_batches_at_once,
    )


def _evaluation(recipe: Recipe, parts: Parts, group: Group) -> Callable[[], Iterator[Batch]] | None:
    if parts.data.validation is None:
        if recipe.training.early_stopping is not None:
            raise ConfigError("early_stopping needs held-out data: give data.validation or data.validation_share")
        return None
    compares, section = parts.objective.depends_on_batch, recipe.training
    loader = EvaluationLoader(
        parts.data.validation,
        parts.objective.held_out(),
        batch_size=section.batch_size if compares else section.micro_batch_size or section.batch_size,
        seed=recipe.seed,
        rank=group.rank,
        world_size=group.size,
        whole_batches=compares,
    )
    return lambda: with_spares(loader)


def _sampler(recipe: Recipe, parts: Parts) -> Sampler | None:
    if recipe.samples is None:
        return None
    if parts.tokenizer is None:
        raise ConfigError("samples need a tokenizer")
    return Sampler(recipe.samples, parts.tokenizer, seed=recipe.seed)


def _checkpoint_layers(network: nn.Module) -> None:
    """Layers are computed again in the backward pass, in every stack of the network."""
    stacks = [module for module in network.modules() if hasattr(module, "checkpoint_layers")]
    if not stacks:
        raise ConfigError("activation_checkpointing: this network has no stack of layers")
    for stack in stacks:
        stack.checkpoint_layers = True  # type: ignore[assignment]


def _facts(parts: Parts, trainer: Trainer) -> dict[str, Any]:
    device = trainer.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    machine = {
        "device": name,
        "processes": trainer.group.processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return {
        "parameters": count_parameters(parts.built.network),
        "steps": trainer.settings.steps,
        **parts.data.facts,
        "machine": machine,
    }


# Sections of a recipe that may change when a run is gone on with: what is computed stays the same.
_MAY_CHANGE: Mapping[str, Collection[str] | None] = {
    "training": {"evaluate_every", "save_every", "log_every", "keep_last", "tensorboard", "compile"},
    "samples": None,
    "output": None,
    "name": None,
    "parallel": None,
}


def _require_same(recipe: Recipe, folder: RunFolder) -> None:
    if not folder.has_run:
        raise TrainingError(f"{folder.path} holds no run to go on with: leave --resume out to begin one")
    before = parse_recipe(folder.recipe.read_text(encoding="utf-8"), where=str(folder.recipe))
    old, new = before.model_dump(mode="json"), recipe.model_dump(mode="json")
    for section in new:
        changeable: Collection[str] | None = _MAY_CHANGE.get(section, frozenset())
        if changeable is None:
            continue
        if isinstance(new[section], dict) and isinstance(old[section], dict):
            names = (*new[section], *old[section])
            different = [
                name
                for name in dict.fromkeys(names)
                if name not in changeable and new[section].get(name) != old[section].get(name)
            ]
            if different:
                name = different[0]
                raise TrainingError(
                    f"the run in {folder.path} has {section}.{name}={old[section].get(name)!r}, but the recipe says "
                    f"{new[section].get(name)!r}: begin another run (--output), or give the recipe it was begun with"
                )
        elif new[section] != old[section]:
            raise TrainingError(
                f"the run in {folder.path} has {section}={old[section]!r}, but the recipe says {new[section]!r}"
            )


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextlib.contextmanager
def _signals(trainer: Trainer) -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the run after its step; a second one ends it at once. Gives the signals that came."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if received and trainer.group.processes > 1:
            return  # torchrun hands on what came to all of them already; it kills those that take too long
        if received:
            raise KeyboardInterrupt
        received.append(number)
        trainer.stop()
        for observer in trainer.observers:
            at_once = "; once more to stop at once" if trainer.group.processes == 1 else ""
            observer.on_message(f"stopping after this step{at_once}")

    before: Mapping[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
