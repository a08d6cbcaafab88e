"""The folder layout of sentence-embedding models: which vectors become the one of a text, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyformer.errors import CheckpointError

MODULES_FILE = "modules.json"
# Flags of the pooling module -> the pooling's name here
_POOLINGS = {
    "pooling_mode_cls_token": "class",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


@dataclass(frozen=True)
class EmbeddingSettings:
    """How a sentence-embedding model makes one vector of a text (Reimers and Gurevych, 2019).

    Attributes:
        pooling: "mean", "class" (the first token) or "last".
        normalize: vectors have length 1.
        max_tokens: the longest text it was made for; None for the network's own limit.
        lower_case: texts are written small first.
        prompts: name -> what stands before a text.
        default_prompt: the name of the prompt that is used where none is asked for.
    """

    pooling: str = "mean"
    normalize: bool = False
    max_tokens: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None

    def save(self, folder: str | Path, *, size: int) -> None:
        """Write ``modules.json`` and what it names, as sentence-transformers loads it.

        Args:
            size: numbers in a vector.
        """
        folder = Path(folder)
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        if self.normalize:
            modules.append(("2_Normalize", "Normalize"))
        listed = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ]
        flags = {flag: name == self.pooling for flag, name in _POOLINGS.items()}
        pooling = {"word_embedding_dimension": size, **flags}
        (folder / "1_Pooling").mkdir(exist_ok=True)
        _write(folder / "1_Pooling" / "config.json", pooling)
        _write(folder / "sentence_bert_config.json", self._limits())
        _write(
            folder / "config_sentence_transformers.json",
            {"prompts": dict(self.prompts), "default_prompt_name": self.default_prompt},
        )
        _write(folder / MODULES_FILE, listed)

    def _limits(self) -> dict[str, Any]:
        return {"max_seq_length": self.max_tokens, "do_lower_case": self.lower_case}


def read_embedding_settings(folder: str | Path) -> EmbeddingSettings | None:
    """The settings of a sentence-embedding model's folder; None if it is not one.

    Raises:
        CheckpointError: a file is damaged, or asks for a module or a pooling that is not offered.
    """
    folder = Path(folder)
    if not (folder / MODULES_FILE).is_file():
        return None
    modules = _read(folder / MODULES_FILE)
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise CheckpointError(f"{folder / MODULES_FILE} must hold a list of modules: fetch the model again")
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in modules]
    allowed = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
    if kinds not in allowed:
        raise CheckpointError(
            f"{folder / MODULES_FILE}: the modules are {', '.join(kinds) or 'none'}, but Transformer, Pooling and "
            "perhaps Normalize are what is supported"
        )
    place = folder / str(modules[0].get("path", ""))
    limits_file = place / "sentence_bert_config.json"
    limits = _read(limits_file) if limits_file.is_file() else {}
    general_file = folder / "config_sentence_transformers.json"
    general = _read(general_file) if general_file.is_file() else {}
    return EmbeddingSettings(
        pooling=_read_pooling(folder / str(modules[1].get("path", "")) / "config.json"),
        normalize=len(kinds) == 3,
        max_tokens=limits.get("max_seq_length"),
        lower_case=bool(limits.get("do_lower_case")),
        prompts=general.get("prompts") or {},
        default_prompt=general.get("default_prompt_name"),
    )


def _read_pooling(path: Path) -> str:
    values = _read(path)
    if isinstance(values.get("pooling_mode"), str):  # the form since version 5
        names = {"cls": "class", "mean": "mean", "lasttoken": "last"}
        if values["pooling_mode"] not in names:
            raise CheckpointError(
                f"{path}: pooling {values['pooling_mode']!r} is not supported; supported: {', '.join(names)}"
            )
        return names[values["pooling_mode"]]
    asked = [key for key, value in values.items() if key.startswith("pooling_mode_") and value is True]
    if len(asked) != 1 or asked[0] not in _POOLINGS:
        raise CheckpointError(
            f"{path}: pooling {' and '.join(asked) or 'none'} is not supported; supported: one of "
            f"{', '.join(_POOLINGS)}"
        )
    return _POOLINGS[asked[0]]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): fetch the model again") from None


def _write(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
