"""The front door: `load` opens a model, `Model` is what a person calls."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from polyformer.baselines import ConvolutionLM, RecurrentLM, RecurrentTranslator
from polyformer.core.config import Config
from polyformer.core.dual_encoder import DualEncoder
from polyformer.core.encoder import EncoderOnly
from polyformer.core.encoder_decoder import EncoderDecoder
from polyformer.core.placement import has_bfloat16, parse_device, parse_dtype, require_memory
from polyformer.core.transformer import DecoderOnly
from polyformer.errors import CapabilityError, ConfigError, GenerationError
from polyformer.generation.defaults import SAMPLING, GenerationDefaults
from polyformer.generation.generate import generate, stream, stream_events
from polyformer.generation.requests import ReadText
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks import sequence_to_sequence

if TYPE_CHECKING:
    from polyformer.checkpoints.loading import Checkpoint
    from polyformer.checkpoints.sentence_transformers import EmbeddingSettings
    from polyformer.families.base import Family
    from polyformer.tokenizers.audio import AudioProcessor
    from polyformer.tokenizers.images import ImageProcessor
    from polyformer.tokenizers.text import TextTokenizer

Ids: TypeAlias = "Sequence[int] | Tensor"
Prompt: TypeAlias = "str | Ids"
Message: TypeAlias = "Mapping[str, Any]"
AnyNetwork: TypeAlias = (
    "DecoderOnly | EncoderOnly | EncoderDecoder | DualEncoder | RecurrentLM | ConvolutionLM | RecurrentTranslator"
)

# What goes on with a text, and what turns one into another.
CONTINUING = (DecoderOnly, RecurrentLM, ConvolutionLM)
TURNING = (EncoderDecoder, RecurrentTranslator)

GENERATION_CONFIG = "generation_config.json"

# Tasks of encoders whose scores stand for labels with names.
LABELLED_TASKS = ("sequence-classification", "token-classification")

# What an encoder of text does, by the task it was trained for; every one of them gives embeddings too.
_ENCODER_METHODS: Mapping[str, tuple[str, ...]] = {
    "masked-lm": ("fill_mask",),
    "pretraining": ("fill_mask", "follows"),
    "next-sentence": ("follows",),
    "sequence-classification": ("classify",),
    "token-classification": ("tag",),
    "question-answering": ("answer",),
    "multiple-choice": ("choose",),
}

# Tokens whose logits are held together while a text is scored.
_SCORED_AT_ONCE = 256


def load(
    source: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: str | None = None,
    revision: str | None = None,
) -> Model:
    """Open a model.

    Args:
        source: a name of the catalogue (``polyformer models`` lists them; fetched on first use), a folder in the
            Hugging Face layout, a ``.gguf`` file, or a hub id (``owner/name``). A folder without a tokenizer
            gives a model that takes and gives token ids.
        dtype: of the weights and the computation: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"float64"``, or the
            torch dtype. None keeps the file's own; a file with quantized weights, or one of CTranslate2, is
            computed in bfloat16 where the device has instructions for it, else in float32. Models that come with
            this package are computed in float32.
        device: where it runs: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` … None takes a GPU if there is one.
        quantize: not offered yet: anything but None is refused.
        revision: branch, tag or commit of a hub id; refused for other sources.

    Raises:
        CheckpointError: there is nothing under that name (the nearest names are given), or the files are damaged.
        ConfigError: the architecture, a setting of it, the dtype or the device is not supported.
        TokenizerError: the tokenizer's files are damaged.
        DownloadError: the model could not be fetched.
    """
    from polyformer.checkpoints.catalogue import resolve
    from polyformer.checkpoints.loading import open_checkpoint

    if quantize is not None:
        raise ConfigError(
            f"quantize={quantize!r} is not offered yet: leave it out, or load a .gguf file that is quantized already"
        )
    place, asked = parse_device(device), parse_dtype(dtype)
    found = resolve(os.fspath(source), revision=revision)
    path = found.path
    if asked is None:
        asked = parse_dtype(found.dtype)
    with open_checkpoint(path) as checkpoint:
        tokenizer = _tokenizer_of(checkpoint)
        defaults = GenerationDefaults()
        if not checkpoint.is_gguf:
            folder = path if path.is_dir() else path.parent
            fallback = _with_decoder(checkpoint.values)
            defaults = GenerationDefaults.read(folder / GENERATION_CONFIG, fallback=fallback)
        if asked is None and checkpoint.is_compact:
            asked = torch.bfloat16 if has_bfloat16(place) else torch.float32
        network: Any = checkpoint.load(dtype=asked, device=place)
        reads = inputs_of(network.config)
        return Model(
            network,
            checkpoint.family,
            tokenizer=tokenizer,
            image_processor=_image_processor_of(checkpoint) if "pixel_values" in reads else None,
            audio_processor=_audio_processor_of(checkpoint, network.config) if "input_features" in reads else None,
            labels=None if checkpoint.is_gguf else _labels_of(checkpoint.values, network.config),
            task_settings=None if checkpoint.is_gguf else checkpoint.values.get("task_specific_params"),
            problem_type=None if checkpoint.is_gguf else checkpoint.values.get("problem_type"),
            embedding_settings=None if checkpoint.is_gguf else _embedding_settings_of(checkpoint),
            generation_defaults=defaults,
        )


def build(
    what: str | Config,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    seed: int | None = None,
) -> Model:
    """A new model with random weights, to train or to study. It has no tokenizer: it takes and gives token ids.

    Args:
        what: the name of a public size (``"gpt2-medium"``, ``"palm-8b"``; ``polyformer models --sizes`` lists them), or
            the config of a network of one's own.
        dtype, device: as in `load`.
        seed: the same seed gives the same weights on the same kind of device.

    Raises:
        ConfigError: there is no such size, dtype or device, or the weights do not fit into memory.
    """
    from polyformer.checkpoints.loading import build_on_meta
    from polyformer.families import find_family
    from polyformer.families.sizes import build_config, find_size

    config = build_config(what) if isinstance(what, str) else what
    family = find_family(find_size(what).family if isinstance(what, str) else "polyformer")
    place, kind = parse_device(device), parse_dtype(dtype) or torch.float32
    count = sum(parameter.numel() for parameter in build_on_meta(config).parameters())
    require_memory(count * kind.itemsize, place, f"{count:,} parameters in {str(kind).removeprefix('torch.')}")
    devices = [place] if place.type == "cuda" else []
    usual = torch.get_default_dtype()
    with torch.random.fork_rng(devices), torch.device(place):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            torch.set_default_dtype(kind)
            network = config.build()
        finally:
            torch.set_default_dtype(usual)
    if not isinstance(network, (*CONTINUING, *TURNING, EncoderOnly, DualEncoder)):
        raise ConfigError(
            f"{config.kind} is a part, not a whole network: build the Config of a DecoderOnly, EncoderOnly, "
            "EncoderDecoder or DualEncoder, or of a network of polyformer.baselines"
        )
    return Model(network, family)


def _tokenizer_of(checkpoint: Checkpoint) -> TextTokenizer | None:
    """The tokenizer that belongs to a checkpoint; None if it has none at all."""
    from polyformer.tokenizers.gguf import tokenizer_from_gguf
    from polyformer.tokenizers.loading import load_tokenizer

    if checkpoint.is_gguf:
        return tokenizer_from_gguf(checkpoint.values) if "tokenizer.ggml.model" in checkpoint.values else None
    return load_tokenizer(_folder_of(checkpoint))


def _folder_of(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _with_decoder(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A ``config.json`` in which a pair's own settings hide those of its decoder."""
    decoder = values.get("decoder")
    if not isinstance(decoder, dict):
        return values
    return {**decoder, **{name: value for name, value in values.items() if value is not None}}


def _image_processor_of(checkpoint: Checkpoint) -> ImageProcessor | None:
    from polyformer.tokenizers.images import load_image_processor

    return load_image_processor(_folder_of(checkpoint))


def _audio_processor_of(checkpoint: Checkpoint, config: Any) -> AudioProcessor:
    """What the folder says, or the front end of Whisper's paper: files of CTranslate2 say nothing about it."""
    from polyformer.tokenizers.audio import AudioProcessor, load_audio_processor

    found = load_audio_processor(_folder_of(checkpoint))
    return found or AudioProcessor(mel_bins=config.encoder.embedding.features)


def _embedding_settings_of(checkpoint: Checkpoint) -> EmbeddingSettings | None:
    from polyformer.checkpoints.sentence_transformers import read_embedding_settings

    return read_embedding_settings(_folder_of(checkpoint))


def _labels_of(values: Mapping[str, Any], config: Any) -> tuple[str, ...] | None:
    """The names that ``config.json`` gives the labels of the network's head; None where there is no such head.

    Raises:
        ConfigError: there are not as many names as the head has labels.
    """
    count = getattr(config, "num_labels", None)
    if count is None or config.task not in LABELLED_TASKS:
        return None
    names = values.get("id2label")
    if not isinstance(names, dict):
        return tuple(f"LABEL_{number}" for number in range(count))
    try:
        return tuple(str({int(key): name for key, name in names.items()}[number]) for number in range(count))
    except (KeyError, ValueError):
        raise ConfigError(
            f"config.json: id2label must name the labels 0 to {count - 1} of the head, but it names "
            f"{', '.join(map(str, names)) or 'none'}"
        ) from None


def inputs_of(config: Any) -> tuple[str, ...]:
    """What a network with this config reads: "input_ids", "pixel_values", "input_features"."""
    if isinstance(config, DualEncoder.Config):
        return tuple(tower.encoder.input_name for tower in (config.text, config.image) if tower is not None)
    encoder = getattr(config, "encoder", None)
    return ("input_ids",) if encoder is None else (encoder.input_name,)


class Model:
    """A network with its tokenizer, and what can be done with them.

    Attributes:
        network: the ``torch.nn.Module``. Generation packs its weights where that is faster (on a CPU): its
            parameters then stand on the meta device until ``network.unpack()``, training, gradients, ``state_dict`` or
            a move bring them back.
        tokenizer: text to ids and back; None for a model that takes and gives ids.
        image_processor, audio_processor: pictures and sound to what the network reads; None where it reads neither, or
            the files do not say.
        labels: the names of what the network's head tells apart; None without such a head.
        task_settings: what ``config.json`` says about single tasks (``task_specific_params``): a prefix, say.
        problem_type: what the scores of labels are, as ``config.json`` says it: "single_label_classification",
            "multi_label_classification" or "regression"; None where it does not say.
        embedding_settings: how a sentence-embedding model makes one vector of a text; None for another.
        config: the network's config tree.
        family: how the network is written in files.
        generation_defaults: what the model's own files say about generating with it.
    """

    def __init__(
        self,
        network: AnyNetwork,
        family: Family,
        *,
        tokenizer: TextTokenizer | None = None,
        image_processor: ImageProcessor | None = None,
        audio_processor: AudioProcessor | None = None,
        labels: Sequence[str] | None = None,
        problem_type: str | None = None,
        task_settings: Mapping[str, Any] | None = None,
        embedding_settings: EmbeddingSettings | None = None,
        generation_defaults: GenerationDefaults | None = None,
    ) -> None:
        self.network: Any = network.eval()
        self.family = family
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.audio_processor = audio_processor
        count = getattr(network.config, "num_labels", None)
        if labels is not None and len(labels) != count:
            raise ConfigError(f"{len(labels)} names of labels were given, but the network's head has {count or 'none'}")
        self.labels = None if labels is None else tuple(labels)
        self.problem_type = problem_type
        self.task_settings = dict(task_settings or {})
        self.embedding_settings = embedding_settings
        self.generation_defaults = generation_defaults or GenerationDefaults()

    def __repr__(self) -> str:
        kinds = {"pixel_values": "pictures", "input_features": "sound"}
        text = "text" if self.tokenizer is not None else "token ids"
        words = " and ".join(kinds.get(name, text) for name in inputs_of(self.config))
        dtype = str(self.dtype).removeprefix("torch.")
        what = f"{self.family.name}, {self.num_parameters:,} parameters, {words}, {dtype} on {self.device}"
        return f"<polyformer.Model {what}>"

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights."""
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def num_parameters(self) -> int:
        """Shared (tied) weights count once."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def context_length(self) -> int | None:
        """The most tokens that a prompt and its continuation may have together; None if there is no limit."""
        limit: int | None = self.config.max_positions
        return limit

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text: those of ``generation_config.json`` and those of the tokenizer."""
        of_tokenizer = () if self.tokenizer is None else self.tokenizer.eos_token_ids
        return tuple(dict.fromkeys((*self.generation_defaults.eos_token_ids, *of_tokenizer)))

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The names of the methods that this model can serve."""
        has_text = self.tokenizer is not None
        network, reads = self.network, inputs_of(self.config)
        if isinstance(network, CONTINUING):
            can_chat = self.tokenizer is not None and bool(self.tokenizer.chat_templates)
            can_embed = has_text and isinstance(network, DecoderOnly)
            can_infill = self.tokenizer is not None and {"prefix", "suffix", "middle"} <= set(
                self.tokenizer.fill_in_the_middle_ids
            )
            extra = (
                *(("chat", "conversation") if can_chat else ()),
                *(("infill",) if can_infill else ()),
                *(("embed",) if can_embed else ()),
            )
            return ("generate", "stream", "score", *extra)
        if isinstance(network, DualEncoder):
            texts = ("embed",) if "input_ids" in reads and has_text else ()
            pictures = ("embed_images",) if "pixel_values" in reads else ()
            return (*texts, *pictures, *(("classify",) if texts and pictures else ()))
        task = self.config.task
        if isinstance(network, EncoderOnly):
            if reads == ("input_ids",):
                return (*_ENCODER_METHODS.get(task, ()), *(("embed",) if has_text else ()))
            pictures = ("embed_images",) if reads == ("pixel_values",) else ()
            return (*(_ENCODER_METHODS.get(task, ())), *pictures)
        if task != "generation":
            return _ENCODER_METHODS.get(task, ())
        if reads == ("input_features",):
            return ("transcribe",)
        if reads == ("pixel_values",):
            return ("caption",)
        return ("generate", "stream", *(("translate", "summarize") if has_text else ()))

    # --- continuing a text ------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        settings: GenerationSettings | None = None,
        *,
        cache_kind: str = "dense",
        **options: Any,
    ) -> Any:
        """Continue a prompt, or many of any length together; an encoder-decoder writes what a prompt becomes.

        Args:
            prompts: one text or the ids of one, or a list of them; tensors and arrays serve
                as lists of ids.
            settings: options made beforehand; then ``generation_defaults`` are not used, and `options` change single
                values of it.
            cache_kind: of keys and values: "dense", or "int8" for a quarter to half of the memory.
            options: the fields of `GenerationSettings`: ``max_new_tokens``, ``temperature`` (0 is greedy), ``top_k``,
                ``top_p``, ``stop``, ``seed``, ``n``, ``num_beams``, ``logprobs`` … ``negative_prompt`` may be a text;
                ``bad_words``, a list of texts, may stand for ``bad_words_ids``.

        Returns:
            A `Generation` for one prompt, a list of them for a list of prompts; where ``n`` is above 1, each of them is
            a list of ``n``. ``.text`` is the new text, without the prompt.

        Raises:
            GenerationError: an unknown or impossible option, or a prompt that the model cannot take.
            CapabilityError: a text for a model without a tokenizer.
        """
        given: Any = _as_lists(prompts)
        together = _is_many(given)
        self._require("generate")
        chosen = self._settings(settings, options)
        many: Sequence[Any] = given if together else [given]
        ids = [self._ids(prompt) for prompt in many]
        if isinstance(self.network, TURNING):
            sources = [sequence_to_sequence.fitting(self, one) for one in ids]
            results = sequence_to_sequence.generate_from(self, sources, chosen, cache_kind=cache_kind)
        else:
            results = generate(
                self.network.pack(),
                ids,
                chosen,
                tokenizer=self.tokenizer,
                eos_token_ids=self.eos_token_ids,
                cache_kind=cache_kind,
            )
        answers = [result if chosen.n > 1 else result[0] for result in results]
        return answers if together else answers[0]

    def stream(
        self,
        prompt: Prompt,
        settings: GenerationSettings | None = None,
        *,
        cache_kind: str = "dense",
        read_text: ReadText | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Continue one prompt piece by piece.

        Takes what `generate` takes, but for beam search and ``n``. The pieces, joined, are the text that `generate`
        gives for the same ``seed``. With a `ReadText` that is kept from call to call, only what a prompt adds to the
        last one is read.

        Yields:
            Pieces of text as soon as they are certain; token ids from a model without a tokenizer.

        Raises:
            GenerationError, CapabilityError: as `generate`, before the first piece.
        """
        self._require("stream")
        ids, chosen, ends = self._ids(prompt), self._settings(settings, options), self.eos_token_ids
        if isinstance(self.network, TURNING):
            if read_text is not None:
                raise GenerationError("read_text is for decoders: an encoder-decoder reads every source anew")
            source = sequence_to_sequence.fitting(self, ids)
            return sequence_to_sequence.stream_from(self, source, chosen, cache_kind=cache_kind)
        network = self.network.pack()
        if self.tokenizer is None:
            events = stream_events(network, ids, chosen, eos_token_ids=ends, cache_kind=cache_kind, read_text=read_text)
            return (event.token_id for event in events)
        return stream(
            network,
            ids,
            chosen,
            tokenizer=self.tokenizer,
            eos_token_ids=ends,
            cache_kind=cache_kind,
            read_text=read_text,
        )

    def score(self, text: Prompt, *, prompt: Prompt | None = None) -> Score:
        """How likely the model finds a text.

        Args:
            text: what is scored. Without a `prompt` its first token is not, for nothing stands before it.
            prompt: what stands before it and is not scored.

        Raises:
            GenerationError: nothing is left to score, or it is longer than the context.
        """
        self._require("score")
        before = [] if prompt is None else self._ids(prompt)
        scored = self._ids(text) if prompt is None else self._ids(text, add_special_tokens=False)
        ids = [*before, *scored]
        first = max(len(before), 1)
        if len(ids) <= first:
            raise GenerationError(
                f"nothing to score: there are {len(ids)} tokens, and the first one has nothing before it"
            )
        if self.context_length is not None and len(ids) > self.context_length:
            raise GenerationError(
                f"{len(ids)} tokens are more than the model's context of {self.context_length}; shorten it"
            )
        wrong = [token for token in ids if not 0 <= token < self.config.vocab_size]
        if wrong:
            raise GenerationError(f"there is no token {wrong[0]}: the ids are 0 to {self.config.vocab_size - 1}")
        return Score(token_ids=ids[first:], logprobs=self._logprobs(ids)[first - 1 :])

    @torch.inference_mode()
    def _logprobs(self, ids: list[int]) -> list[float]:
        """The log-probability of every token but the first. Read in pieces, for the logits are large."""
        row = torch.tensor([ids], device=self.device)
        cache = self.network.new_cache()
        found: list[float] = []
        for start in range(0, len(ids) - 1, _SCORED_AT_ONCE):
            stop = min(start + _SCORED_AT_ONCE, len(ids) - 1)
            logits = self.network(row[:, start:stop], cache=cache).logits[0]
            logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            found += logprobs.gather(1, row[0, start + 1 : stop + 1, None])[:, 0].tolist()
        return found

    # --- conversations ----------------------------------------------------------------------------------------------

    def encode_chat(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """The prompt that a conversation becomes, up to the opening of the model's answer.

        Raises:
            CapabilityError: the model has no tokenizer, or no chat template.
            TokenizerError: the template refuses the messages.
        """
        if "chat" not in self.capabilities:
            why = "it has no tokenizer" if self.tokenizer is None else "it has no chat template, so it is a base model"
            self._cannot("chat", f": {why}")
        assert self.tokenizer is not None
        return self.tokenizer.encode_chat(messages, **variables)

    def chat(self, messages: Sequence[Message], settings: GenerationSettings | None = None, **options: Any) -> Any:
        """Answer a conversation: ``[{"role": "user", "content": "Hi!"}]``.

        Returns, raises: as `generate` for one prompt; CapabilityError if the model has no chat template.
        """
        return self.generate(self.encode_chat(messages), settings, **options)

    def conversation(self, system: str | None = None, **options: Any) -> Conversation:
        """A conversation that remembers what was said.

        Raises:
            GenerationError: an unknown or impossible option.
            CapabilityError: the model has no chat template.
        """
        return Conversation(self, system=system, **options)

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the layout that transformers loads: ``config.json``, safetensors, and the tokenizer if there is one.

        Raises:
            ConfigError: the network has parts that its family cannot express.
            CheckpointError, TokenizerError: the folder cannot be written.
        """
        from polyformer.checkpoints.saving import save_network

        defaults = replace(self.generation_defaults, eos_token_ids=self.eos_token_ids)
        writes = not isinstance(self.network, (EncoderOnly, DualEncoder))
        parts = (self.tokenizer, self.image_processor, self.audio_processor)
        writers: list[Any] = [part.save for part in parts if part is not None]
        if self.embedding_settings is not None:
            writers.append(partial(self.embedding_settings.save, size=self.config.hidden_size))
        save_network(
            self.network,
            self.family,
            Path(folder),
            writers=writers,
            config_values=self._config_values(),
            generation_config=(defaults.to_json() or None) if writes else None,
        )

    def _config_values(self) -> dict[str, Any]:
        """What ``config.json`` says beyond the network."""
        named = {"task_specific_params": self.task_settings} if self.task_settings else {}
        return {**named, **self._label_names()}

    def _label_names(self) -> dict[str, Any]:
        if self.labels is None:
            return {}
        values: dict[str, Any] = {
            "id2label": {str(number): name for number, name in enumerate(self.labels)},
            "label2id": {name: number for number, name in enumerate(self.labels)},
        }
        return values if self.problem_type is None else {**values, "problem_type": self.problem_type}

    # --- vectors ----------------------------------------------------------------------------------------------------

    def embed(self, texts: str | Sequence[str], **options: Any) -> Any:
        """One vector for each text; see `polyformer.tasks.embedding.embed` for the options.

        Returns:
            numpy [size] for one text, [texts, size] for a list.
        """
        self._require("embed")
        from polyformer.tasks.embedding import embed

        return embed(self, texts, **options)

    def embed_images(self, images: Any, **options: Any) -> Any:
        """One vector for each picture; see `polyformer.tasks.embedding_pictures.embed_images`."""
        self._require("embed_images")
        from polyformer.tasks.embedding_pictures import embed_images

        return embed_images(self, images, **options)

    # --- what encoders were trained for -----------------------------------------------------------------------------

    def fill_mask(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Guess the masked words of a text; see `polyformer.tasks.masked.fill_mask`."""
        self._require("fill_mask")
        from polyformer.tasks.masked import fill_mask

        return fill_mask(self, texts, **options)

    def classify(self, inputs: Any, **options: Any) -> Any:
        """Labels with their scores, for texts or for pictures, as the network reads them.

        With ``labels`` of one's own, a model that tells entailment from contradiction (see `tasks.classification`), or
        one that compares pictures with texts (`tasks.zero_shot_images`), chooses among those. Labels that a model of
        pictures was trained on: `tasks.image_classification`.
        """
        self._require("classify")
        if isinstance(self.network, DualEncoder):
            from polyformer.tasks.zero_shot_images import classify_images_zero_shot

            return classify_images_zero_shot(self, inputs, **options)
        if inputs_of(self.config) == ("pixel_values",):
            from polyformer.tasks.image_classification import classify_images

            return classify_images(self, inputs, **options)
        from polyformer.tasks.classification import classify

        return classify(self, inputs, **options)

    def tag(self, texts: str | Sequence[str], **options: Any) -> Any:
        """Names of persons, places … in texts, with character offsets; see `polyformer.tasks.tagging.tag`."""
        self._require("tag")
        from polyformer.tasks.tagging import tag

        return tag(self, texts, **options)

    def answer(self, question: str | Sequence[str], context: str | Sequence[str], **options: Any) -> Any:
        """The part of a context that answers a question; see `polyformer.tasks.answering.answer`."""
        self._require("answer")
        from polyformer.tasks.answering import answer

        return answer(self, question, context, **options)

    def choose(self, prompt: str, choices: Sequence[str], **options: Any) -> Any:
        """Which of several continuations fits; see `polyformer.tasks.choosing.choose`."""
        self._require("choose")
        from polyformer.tasks.choosing import choose

        return choose(self, prompt, choices, **options)

    def follows(self, first: str, second: str, **options: Any) -> Any:
        """Whether one sentence follows another; see `polyformer.tasks.next_sentence.follows`."""
        self._require("follows")
        from polyformer.tasks.next_sentence import follows

        return follows(self, first, second, **options)

    # --- code ---------------------------------------------------------------------------------------------------------

    def infill(self, gaps: tuple[str, str] | Sequence[tuple[str, str]], **options: Any) -> Any:
        """What belongs between a text's beginning and its end; see `polyformer.tasks.infilling.infill`.

        Args:
            gaps: ``(prefix, suffix)``, or a list of such pairs.

        Returns:
            An `Infilling` for one gap, a list of them for a list.
        """
        self._require("infill")
        from polyformer.tasks.infilling import infill

        if len(gaps) == 2 and all(isinstance(part, str) for part in gaps):
            return infill(self, [tuple(gaps)], **options)[0]  # type: ignore[list-item]
        return infill(self, gaps, **options)  # type: ignore[arg-type]

    # --- from a source to a text ------------------------------------------------------------------------------------

    def translate(self, texts: str | Sequence[str], **options: Any) -> Any:
        """See `polyformer.tasks.translation.translate`."""
        self._require("translate")
        from polyformer.tasks.translation import translate

        return translate(self, texts, **options)

    def summarize(self, texts: str | Sequence[str], **options: Any) -> Any:
        """See `polyformer.tasks.summarization.summarize`."""
        self._require("summarize")
        from polyformer.tasks.summarization import summarize

        return summarize(self, texts, **options)

    def caption(self, images: Any, **options: Any) -> Any:
        """What a picture shows, or what is written on it; see `polyformer.tasks.captioning.caption`."""
        self._require("caption")
        from polyformer.tasks.captioning import caption

        return caption(self, images, **options)

    def transcribe(self, sound: Any, **options: Any) -> Any:
        """What is said in a recording; see `polyformer.tasks.transcription.transcribe`."""
        self._require("transcribe")
        from polyformer.tasks.transcription import transcribe

        return transcribe(self, sound, **options)

    def stream_segments(self, sound: Any, **options: Any) -> Iterator[Any]:
        """What is said in a recording, segment by segment as the work goes on; see `transcribe`."""
        from polyformer.tasks.transcription import stream_segments

        self._require("transcribe")
        return stream_segments(self, sound, **options)

    def _require(self, what: str) -> None:
        if what not in self.capabilities:
            needs = {"embed", "translate", "summarize"}
            self._cannot(what, ": it has no tokenizer" if what in needs and self.tokenizer is None else "")

    def _cannot(self, what: str, why: str = "") -> NoReturn:
        can = ", ".join(self.capabilities) or "only be called as a network"
        raise CapabilityError(f"this {self.family.name} model cannot {what}{why}; it can {can}")

    # --- from what a person says to what generation takes -----------------------------------------------------------

    def _ids(self, prompt: Prompt, *, add_special_tokens: bool = True) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise CapabilityError(f"this {self.family.name} model has no tokenizer: give token ids, not a text")
            return self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        prompt = _as_lists(prompt)
        if not isinstance(prompt, Sequence) or not all(_is_token(item) for item in prompt):
            raise GenerationError(f"a prompt must be a text or a list of token ids, not {prompt!r:.80}")
        return [int(token) for token in prompt]

    def _settings(self, settings: GenerationSettings | None, options: Mapping[str, Any]) -> GenerationSettings:
        values = dict(options)
        if "bad_words" in values:
            if "bad_words_ids" in values:
                raise GenerationError("give bad_words or bad_words_ids, not both")
            values["bad_words_ids"] = self._spellings(values.pop("bad_words"))
        if isinstance(values.get("negative_prompt"), str):
            values["negative_prompt"] = self._ids(values["negative_prompt"])
        if settings is not None:
            return settings.replace(**values)
        if isinstance(self.network, TURNING):
            return GenerationSettings.from_options({**sequence_to_sequence.own_options(self, values), **values})
        asked = GenerationSettings.from_options(values)
        return asked.replace(**{name: value for name, value in self._defaults_for(asked).items() if name not in values})

    def _defaults_for(self, asked: GenerationSettings) -> Mapping[str, Any]:
        if asked.mode == "sampling":
            return self.generation_defaults.options
        return {name: value for name, value in self.generation_defaults.options.items() if name not in SAMPLING}

    def _spellings(self, words: Any) -> list[list[int]]:
        """The ids of each word, as it stands at the beginning of a text and after a space."""
        if isinstance(words, str) or not all(isinstance(word, str) and word for word in words):
            raise GenerationError(f"bad_words must be a list of texts, not {words!r}")
        spellings = [self._ids(space + word, add_special_tokens=False) for word in words for space in ("", " ")]
        return [list(ids) for ids in dict.fromkeys(map(tuple, spellings))]


@dataclass(frozen=True)
class Score:
    """How likely a text is.

    Attributes:
        token_ids: the scored tokens.
        logprobs: the natural log-probability of each, given all before it.
    """

    token_ids: list[int]
    logprobs: list[float]

    @property
    def logprob(self) -> float:
        """Of the whole text."""
        return sum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """exp(- mean log-probability of a token)."""
        return float(torch.tensor(-self.logprob / len(self.logprobs), dtype=torch.float64).exp())


class Conversation:
    """A conversation that remembers what was said, as far as the model's context reaches.

    Args:
        model: answers.
        system: the system prompt.
        options: of every answer; see `Model.generate`.

    Attributes:
        messages: all that was said, the system prompt first; nothing is ever taken out of it.
        dropped: how many of the oldest messages the last answer was given without, because all of them together did
            not fit into the context.
    """

    def __init__(self, model: Model, *, system: str | None = None, **options: Any) -> None:
        self.model = model
        self.settings = model._settings(None, options)
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.dropped = 0
        guided = self.settings.mode == "contrastive" or self.settings.negative_prompt is not None
        self._read_text = None if guided else ReadText()  # keys and values of the turns so far
        self.reset(system=system)
        model.encode_chat([*self.messages, {"role": "user", "content": "?"}])  # refuses now what it would refuse later

    def reset(self, *, system: str | None = None) -> None:
        """Forget what was said; a `system` prompt replaces the present one."""
        self.system = system if system is not None else self.system
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.dropped = 0

    def ask(self, text: str) -> Generator[str, None, None]:
        """Say something and stream the answer.

        An answer that is broken off (the generator is closed, or an exception passes through it) is remembered as far
        as it went.

        Raises:
            GenerationError: the message alone does not fit into the context; it is not remembered.
        """
        message = {"role": "user", "content": text}
        ids, dropped = self._prompt(message)
        answer = self.model.stream(ids, self.settings, read_text=self._read_text)
        self.messages.append(message)
        self.dropped = dropped
        pieces: list[str] = []
        try:
            for piece in answer:
                pieces.append(piece)
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages as a JSON list.

        Raises:
            OSError: the file cannot be written.
        """
        _write_json(Path(path), self.messages)

    def _prompt(self, message: Message) -> tuple[list[int], int]:
        """The ids of the conversation with `message`, and how many old messages had to be left out of them.

        A quarter of the context, or ``max_new_tokens`` if that is less, is kept for the answer. Old messages go in
        pairs, question and answer, for many templates insist on the alternation.
        """
        context = self.model.context_length
        head = [one for one in self.messages if one["role"] == "system"]
        turns = [one for one in self.messages if one["role"] != "system"]
        dropped = 0
        while True:
            ids = self.model.encode_chat([*head, *turns[dropped:], message])
            if context is None or len(ids) + min(self.settings.max_new_tokens, context // 4) <= context:
                return ids, dropped
            if dropped >= len(turns):
                if len(ids) < context:
                    return ids, dropped
                raise GenerationError(
                    f"the message and the system prompt take {len(ids)} tokens, but the model's context is {context}; "
                    "shorten them"
                )
            dropped += 2


def _as_lists(value: Any) -> Any:
    """Tensors and arrays as lists; everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _is_token(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_many(prompts: Any) -> bool:
    """Whether it is a list of prompts (an empty list holds none), and not one text or the ids of one."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        return False
    return not any(_is_token(item) for item in prompts) and all(
        isinstance(item, (str, Sequence)) or hasattr(item, "tolist") for item in prompts
    )


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
