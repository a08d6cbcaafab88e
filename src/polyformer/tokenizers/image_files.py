"""Files of pictures as upright pictures of three colours."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from polyformer.errors import TokenizerError

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | Image | np.ndarray[Any, Any]"
"""A file, the bytes of one, a Pillow image, or an array of bytes [height, width] or [height, width, 1, 3 or 4]."""

FORMATS = "png, jpeg, webp, gif, bmp, tiff, avif"

# What the largest cameras take. A small file can claim any number of pixels.
MOST_PIXELS = 150_000_000

# The beginnings of files that people take for pictures. Drawings are for other programs, and a file from anywhere must
# not start one: Pillow would call Ghostscript for PostScript.
_DRAWINGS = (b"<svg", b"<?xm", b"%!PS", b"\xc5\xd0\xd3\xc6", b"%PDF")
_VIDEOS = (b"\x1aE\xdf\xa3", b"FLV", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"OggS", b"0&\xb2u")
_QUICKTIME = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")


def read_picture(picture: Picture, mode: str = "RGB") -> Image:
    """An upright picture: turned as its EXIF data say, the first frame of several; transparency is dropped, as
    transformers drops it.

    Args:
        mode: Pillow's name of the channels: "RGB" for red, green, blue, "L" for grey.

    Raises:
        TokenizerError: there is no such file, or it is empty, damaged, a video, no picture at all, or so large that
            it looks like an attack.
    """
    from PIL import Image

    if isinstance(picture, Image.Image):
        _check_size(picture.size, "the picture")
        return _upright(picture, mode, "the picture")
    if isinstance(picture, np.ndarray):
        return _from_array(picture).convert(mode)
    if isinstance(picture, (bytes, bytearray)):
        return _decode(bytes(picture), "the picture", mode)
    if isinstance(picture, (str, os.PathLike)):
        return _decode(_read_file(Path(picture)), str(picture), mode)
    raise TokenizerError(
        f"a picture must be a path, bytes, a Pillow image or an array of bytes, not {type(picture).__name__}"
    )


def _read_file(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except IsADirectoryError:
        raise TokenizerError(f"{path} is a folder: name the files in it") from None
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _decode(data: bytes, name: str, mode: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise TokenizerError(f"{name} is empty: fetch it again")
    if data[:64].lstrip()[:4] in _DRAWINGS:
        raise TokenizerError(f"{name} is a drawing, not a picture: render it first; pictures are {FORMATS}")
    try:
        with warnings.catch_warnings():
            # The size is checked below, with a limit of our own.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        _check_size(image.size, name)
        return _upright(image, mode, name)
    except Image.DecompressionBombError:
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise TokenizerError(f"{name} {_what_else(data)}") from None
    except TokenizerError:
        raise
    # Decoders raise almost anything for damaged files: SyntaxError, struct.error, IndexError …
    except Exception as error:
        raise TokenizerError(f"{name} is damaged ({error}): fetch it again") from None


def _upright(image: Image, mode: str, name: str) -> Image:
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16 bits and more, which a plain conversion would cut off at 255
        values = np.asarray(turned)
        if values.min() < 0 or values.max() > 65535:
            raise TokenizerError(f"{name} has whole numbers beyond 16 bits as pixels: convert it to 8 bits first")
        return _from_array((values // 257).astype(np.uint8)).convert(mode)
    if turned.mode == "F":
        raise TokenizerError(f"{name} has floating numbers as pixels, and nothing says what is white: convert it first")
    if turned.mode == "P" and "transparency" in turned.info:
        turned = turned.convert("RGBA")
    return turned.convert(mode)


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MOST_PIXELS:
        raise _too_large(name, f"{width} x {height} pixels")
    if width * height == 0:
        raise TokenizerError(f"{name} has no pixels")


def _too_large(name: str, size: str = "more pixels than any camera takes") -> TokenizerError:
    return TokenizerError(
        f"{name} claims {size}, and more than {MOST_PIXELS:,} are not read, for they fill the memory: make it smaller"
    )


def _what_else(data: bytes) -> str:
    head = data[:64]
    container = head[4:8] in _QUICKTIME and head[8:12] not in _STILL_BRANDS
    if container or (head[:4] == b"RIFF" and head[8:12] == b"AVI ") or head.startswith(_VIDEOS):
        return "is a video, not a picture: take a frame out first, with: ffmpeg -i FILE -frames:v 1 out.png"
    return f"is no picture that is read; known: {FORMATS}"


def _from_array(array: np.ndarray[Any, Any]) -> Image:
    from PIL import Image

    if array.dtype != np.uint8:
        raise TokenizerError(f"an array of pixels must be bytes (uint8, 0 to 255), but it is {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise TokenizerError(
            f"an array of pixels must be [height, width] or [height, width, 3], but it is {list(array.shape)}"
        )
    _check_size((array.shape[1], array.shape[0]), "the array")
    return Image.fromarray(np.ascontiguousarray(array))
