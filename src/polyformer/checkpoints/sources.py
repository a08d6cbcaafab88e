"""The function that opens a checkpoint, whatever kind of files it has."""

from __future__ import annotations

from pathlib import Path

from polyformer.checkpoints.tensor_source import TensorSource
from polyformer.errors import CheckpointError

SAFETENSORS_FILE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
PICKLE_FILE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


def open_tensors(path: str | Path) -> TensorSource:
    """Opens a checkpoint: a folder in the Hugging Face layout or with CTranslate2's ``model.bin``, or one ``.gguf`` or
    ``.safetensors`` file.

    In a folder, safetensors are preferred to pickles, and a single file to shards; shards are found through the index.
    Pickles are read only as weights: one that wants to run code is refused.

    Raises:
        CheckpointError: nothing is there, or the files are damaged, incomplete, or of an unknown kind. The message
            names the file and what to do.
    """
    from polyformer.checkpoints.ctranslate2 import CTRANSLATE2_FILE, CTranslate2File, is_ctranslate2

    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if (path.is_dir() or path.name == CTRANSLATE2_FILE) and is_ctranslate2(folder):
        return CTranslate2File(folder / CTRANSLATE2_FILE)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a folder of weights, a .safetensors file or a .gguf file")
    if path.suffix == ".gguf":
        from polyformer.checkpoints.gguf import GGUFFile

        return GGUFFile(path)
    if path.suffix == ".safetensors":
        from polyformer.checkpoints.safetensors_files import SafetensorsSource

        return SafetensorsSource(path, [path])
    if path.suffix in (".bin", ".pt", ".pth"):
        from polyformer.checkpoints.pickle_files import PickleSource

        return PickleSource(path, [path])
    raise CheckpointError(f"{path} is not a kind of weights file that is read: .safetensors, .gguf, .bin, .pt or .pth")


def _open_folder(folder: Path) -> TensorSource:
    from polyformer.checkpoints.pickle_files import PickleSource
    from polyformer.checkpoints.safetensors_files import SafetensorsSource, read_index

    if (folder / SAFETENSORS_FILE).is_file():
        return SafetensorsSource(folder, [folder / SAFETENSORS_FILE])
    if (folder / SAFETENSORS_INDEX).is_file():
        weight_map = read_index(folder / SAFETENSORS_INDEX)
        return SafetensorsSource(folder, _shards(folder, weight_map), weight_map)
    if (folder / PICKLE_FILE).is_file():
        return PickleSource(folder, [folder / PICKLE_FILE])
    if (folder / PICKLE_INDEX).is_file():
        weight_map = read_index(folder / PICKLE_INDEX)
        return PickleSource(folder, _shards(folder, weight_map), weight_map)
    gguf_files = sorted(folder.glob("*.gguf"))
    if len(gguf_files) == 1:
        from polyformer.checkpoints.gguf import GGUFFile

        return GGUFFile(gguf_files[0])
    if gguf_files:
        names = ", ".join(file.name for file in gguf_files)
        raise CheckpointError(f"{folder} holds several GGUF files ({names}): give the path of one of them")
    raise CheckpointError(
        f"{folder} holds no weights: one of {SAFETENSORS_FILE}, {SAFETENSORS_INDEX}, {PICKLE_FILE}, {PICKLE_INDEX} "
        "or a .gguf file is needed"
    )


def _shards(folder: Path, weight_map: dict[str, str]) -> list[Path]:
    """The shard files of an index, in order, all of them present and inside the folder."""
    shards = []
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise CheckpointError(f"the index in {folder} points outside the folder, to {name!r}: refused")
        if not (folder / name).is_file():
            count = sum(1 for shard in weight_map.values() if shard == name)
            raise CheckpointError(f"{folder / name} is missing ({count} tensors are in it): fetch that file again")
        shards.append(folder / name)
    return shards
