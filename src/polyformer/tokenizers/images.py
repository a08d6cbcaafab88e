"""Pictures as the numbers that a network reads: resized, cut out, normalized."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from polyformer.errors import TokenizerError
from polyformer.tokenizers.image_files import MOST_PIXELS, Picture, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

PREPROCESSOR_FILE = "preprocessor_config.json"
# Where transformers writes the parts of a processor together
PROCESSOR_FILE = "processor_config.json"

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

NEAREST, LANCZOS, BILINEAR, BICUBIC, BOX, HAMMING = range(6)  # Pillow's numbers of filters


@dataclass(frozen=True)
class ImageProcessor:
    """A picture to ``pixel_values``.

    Attributes:
        size: (height, width) that a picture is resized to, whatever its shape; or one number for its shorter side,
            which keeps the shape; None leaves it.
        crop: (height, width) cut out of the middle after that, with black around what is smaller; None leaves it.
        resample: Pillow's number of the filter: 2 is bilinear, 3 bicubic.
        scale: what bytes are multiplied by.
        mean, std: of each channel; what is left is (x · scale - mean) / std. None leaves x · scale.
        kind: the class of transformers that does the same, named in the file that `save` writes.
    """

    size: tuple[int, int] | int | None = (224, 224)
    crop: tuple[int, int] | None = None
    resample: int = BICUBIC
    scale: float = 1 / 255
    mean: tuple[float, ...] | None = HALF
    std: tuple[float, ...] | None = HALF
    kind: str = "ViTImageProcessor"

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, tuple) else (self.size,)
        for side in (*sides, *(self.crop or ())):
            if side is not None and (isinstance(side, bool) or not isinstance(side, int) or side < 1):
                raise TokenizerError(f"a picture's side is {side!r}, but it must be a whole number of at least 1")
        if self.resample not in range(6):
            raise TokenizerError(f"resample is {self.resample!r}, but Pillow's filters have the numbers 0 to 5")
        if (self.mean is None) != (self.std is None) or (self.mean and len(self.mean) != len(self.std or ())):
            raise TokenizerError(f"mean {self.mean} and std {self.std} must belong together, a number a channel each")
        if self.mean is not None and len(self.mean) not in (1, 3):
            raise TokenizerError(f"mean has {len(self.mean)} numbers, but pictures have 1 or 3 channels")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise TokenizerError(f"std is {self.std}, but every number must be positive")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colours."""
        return 3 if self.mean is None else len(self.mean)

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Tensor:
        """``pixel_values`` [batch, channels, height, width] in float32 of one picture or several.

        Raises:
            TokenizerError: a picture cannot be read, or the pictures come out in different sizes.
        """
        many: list[Any] = [pictures] if is_one_picture(pictures) else list(pictures)  # type: ignore[arg-type]
        values = [self.pixels(picture) for picture in many]
        if not values:
            raise TokenizerError("there are no pictures: give at least one")
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) > 1:
            raise TokenizerError(f"the pictures come out in different sizes {sorted(shapes)}: give them one by one")
        return torch.stack(values)

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """(height, width) of what comes out; None where it depends on the picture."""
        return self.crop or (self.size if isinstance(self.size, tuple) else None)

    def pixels(self, picture: Picture) -> Tensor:
        """[channels, height, width] of one picture.

        Raises:
            TokenizerError: the picture cannot be read.
        """
        return self.normalize(self.frame(picture))

    def frame(self, picture: Picture) -> np.ndarray[Any, Any]:
        """The first half of `pixels`: the part of a picture that is looked at, in its size, as bytes [channels, height,
        width].

        Raises:
            TokenizerError: the picture cannot be read.
        """
        image = read_picture(picture, "L" if self.channels == 1 else "RGB")
        if self.size is not None:
            image = image.resize(self._resized(image), resample=self.resample)
        values = np.asarray(image)
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
        return values if self.crop is None else center_crop(values, self.crop)

    def normalize(self, frame: np.ndarray[Any, Any]) -> Tensor:
        """The second half of `pixels`: bytes become numbers."""
        scaled = torch.from_numpy((frame.astype(np.float64) * self.scale).astype(np.float32))
        if self.mean is None or self.std is None:
            return scaled
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        return (scaled - mean) / std

    def _resized(self, image: Image) -> tuple[int, int]:
        """(width, height) after resizing, the order that Pillow has."""
        if isinstance(self.size, tuple):
            return self.size[1], self.size[0]
        assert self.size is not None
        width, height = image.size
        longer = int(self.size * max(width, height) / min(width, height))
        if longer * self.size > MOST_PIXELS:
            raise TokenizerError(
                f"a picture of {width} x {height} pixels becomes {longer} long when its shorter side becomes "
                f"{self.size}: cut a piece out of it"
            )
        return (self.size, longer) if width <= height else (longer, self.size)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``preprocessor_config.json``, as transformers reads it."""
        values: dict[str, Any] = {
            "image_processor_type": self.kind,
            "do_resize": self.size is not None,
            "do_center_crop": self.crop is not None,
            "do_rescale": True,
            "do_normalize": self.mean is not None,
            "do_convert_rgb": self.channels == 3,
            "rescale_factor": self.scale,
            "resample": self.resample,
        }
        if self.size is not None:
            values["size"] = {"shortest_edge": self.size} if isinstance(self.size, int) else _sides(self.size)
        if self.crop is not None:
            values["crop_size"] = _sides(self.crop)
        if self.mean is not None and self.std is not None:
            values["image_mean"], values["image_std"] = list(self.mean), list(self.std)
        (Path(folder) / PREPROCESSOR_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def is_one_picture(pictures: Any) -> bool:
    """Whether it is one picture, and not a list of them."""
    return isinstance(pictures, (str, os.PathLike, bytes, bytearray, np.ndarray)) or hasattr(pictures, "resize")


def center_crop(values: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """The middle [channels, *size] of [channels, height, width], with zeros around what is smaller.

    Where the middle lies between two pixels, it is the upper left one that begins, and the lower right half of an odd
    frame that is smaller: transformers' choice.
    """
    padding, cut = [(0, 0)], [slice(None)]
    for length, wanted in zip(values.shape[1:], size, strict=True):
        missing = max(0, wanted - length)
        before = math.ceil(missing / 2)
        padding.append((before, missing - before))
        start = (length - wanted) // 2 + before
        cut.append(slice(start, start + wanted))
    return np.pad(values, padding)[tuple(cut)] if any(map(sum, padding)) else values[tuple(cut)]


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"height": size[0], "width": size[1]}


# --- what a folder says ---------------------------------------------------------------------------------------------

# What each class does where its file does not say.
_DEFAULTS: Mapping[str, ImageProcessor] = {
    "CLIPImageProcessor": ImageProcessor(224, (224, 224), BICUBIC, mean=CLIP_MEAN, std=CLIP_STD),
    "ViTImageProcessor": ImageProcessor((224, 224), None, BILINEAR),
    "DeiTImageProcessor": ImageProcessor((256, 256), (224, 224), BICUBIC, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "SiglipImageProcessor": ImageProcessor((224, 224), None, BICUBIC),
    "BitImageProcessor": ImageProcessor(224, (224, 224), BICUBIC, mean=CLIP_MEAN, std=CLIP_STD),
}
# Settings that make something else of a picture, unless they are switched off.
_OFF = (
    "do_pad",
    "do_reduce_labels",
    "do_flip_channel_order",
    "do_thumbnail",
    "do_align_long_axis",
    "do_image_splitting",
)


def load_image_processor(folder: str | os.PathLike[str]) -> ImageProcessor | None:
    """What a folder says about pictures; None if it says nothing.

    Raises:
        TokenizerError: the file is damaged, or asks for something else than these five classes do.
    """
    path, values = _read(Path(folder))
    if values is None:
        return None
    name = values.get("image_processor_type") or values.get("feature_extractor_type") or "ViTImageProcessor"
    kind = str(name).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in _DEFAULTS:
        raise TokenizerError(f"{path}: the processor {name!r} is not supported; supported: {', '.join(_DEFAULTS)}")
    switched_on = [key for key in _OFF if values.get(key)]
    if switched_on:
        raise TokenizerError(f"{path}: {', '.join(switched_on)} is not supported: switch it off")
    usual = _DEFAULTS[kind]
    try:
        normalizes = values.get("do_normalize", True)
        return ImageProcessor(
            size=_size(values.get("size"), usual.size) if values.get("do_resize", True) else None,
            crop=_crop(values.get("crop_size"), usual.crop) if values.get("do_center_crop", bool(usual.crop)) else None,
            resample=int(values.get("resample", usual.resample)),
            scale=float(values.get("rescale_factor", usual.scale)) if values.get("do_rescale", True) else 1.0,
            mean=tuple(values.get("image_mean") or usual.mean or ()) if normalizes else None,
            std=tuple(values.get("image_std") or usual.std or ()) if normalizes else None,
            kind=kind,
        )
    except (TypeError, ValueError, KeyError) as error:
        raise TokenizerError(f"{path}: {error}") from None


def _read(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """The file that speaks of pictures, and what it says."""
    for name in (PREPROCESSOR_FILE, PROCESSOR_FILE):
        path = folder / name
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path} is not readable JSON ({error}): fetch it again") from None
        if not isinstance(values, dict):
            raise TokenizerError(f"{path} must hold a JSON object, not {type(values).__name__}: fetch it again")
        values = values.get("image_processor", values) if name == PROCESSOR_FILE else values
        if "image_processor_type" in values or "feature_extractor_type" in values or "image_mean" in values:
            return path, values
    return folder, None


def _size(value: Any, usual: tuple[int, int] | int | None) -> tuple[int, int] | int | None:
    if value is None:
        return usual
    if isinstance(value, int):  # of older files: what it means differs between the classes
        return value if isinstance(usual, int) else (value, value)
    if isinstance(value, dict):
        if set(value) == {"shortest_edge"}:
            return int(value["shortest_edge"])
        if {"height", "width"} <= set(value):
            return int(value["height"]), int(value["width"])
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        return int(value[0]), int(value[1])
    raise TokenizerError(f"size {value!r} is not supported: give height and width, or shortest_edge")


def _crop(value: Any, usual: tuple[int, int] | None) -> tuple[int, int] | None:
    found = _size(value, usual)
    return (found, found) if isinstance(found, int) else found
