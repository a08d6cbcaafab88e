"""Pictures of every kind against transformers' processors, and what is no picture."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.image_utils import load_image
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from polyformer.errors import TokenizerError
from polyformer.tokenizers.image_files import read_picture
from polyformer.tokenizers.images import ImageProcessor, load_image_processor

REFERENCES = {
    "clip": CLIPImageProcessorPil(),
    "clip-336": CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
    "vit": ViTImageProcessorPil(),
    "trocr": ViTImageProcessorPil(size={"height": 384, "width": 384}, resample=2),
    "deit": DeiTImageProcessorPil(),
    "siglip": SiglipImageProcessorPil(),
    "dinov2": BitImageProcessorPil(
        size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    ),
    "crop-only": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 301, "width": 700}),
    "odd-crop": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 97, "width": 51}),
    "plain": ViTImageProcessorPil(do_resize=False, do_normalize=False),
}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """A temple and a flower, 640 x 427."""
    return [Image.fromarray(image) for image in load_sample_images().images]


def turned(photograph: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph, "JPEG", exif=exif)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def with_alpha(photograph: Image.Image) -> Image.Image:
    mask = np.tile(np.linspace(0, 255, photograph.width).astype(np.uint8), (photograph.height, 1))
    image = photograph.copy()
    image.putalpha(Image.fromarray(mask))
    return image


def make_files(photographs: list[Image.Image]) -> dict[str, bytes]:
    temple, flower = photographs
    frames = [temple.resize((50, 40)), flower.resize((50, 40))]
    return {
        "photograph.jpg": encoded(temple, "JPEG"),
        "flower.webp": encoded(flower, "WEBP"),
        "odd.png": encoded(temple.crop((3, 5, 260, 118)), "PNG"),
        "tall.png": encoded(temple.crop((10, 0, 47, 427)), "PNG"),
        "tiny.png": encoded(temple.resize((3, 2)), "PNG"),
        "one.png": encoded(temple.resize((1, 1)), "PNG"),
        "grey.png": encoded(flower.convert("L"), "PNG"),
        "grey.jpg": encoded(flower.convert("L"), "JPEG"),
        "bits.png": encoded(flower.convert("1"), "PNG"),
        "alpha.png": encoded(with_alpha(flower), "PNG"),
        "grey-alpha.png": encoded(with_alpha(flower).convert("LA"), "PNG"),
        "palette.png": encoded(temple.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "palette-transparent.png": encoded(
            temple.convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=bytes(range(200))
        ),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "inks.jpg": encoded(flower.convert("CMYK"), "JPEG"),
        "print.tiff": encoded(flower, "TIFF"),
        **{f"turned-{number}.jpg": turned(temple, number) for number in range(1, 9)},
    }


@pytest.mark.parametrize("name", REFERENCES)
def test_every_picture_is_what_the_reference_makes_of_it(
    name: str, photographs: list[Image.Image], tmp_path: Path
) -> None:
    reference = REFERENCES[name]
    reference.save_pretrained(tmp_path)
    ours = load_image_processor(tmp_path)
    assert ours is not None
    for file, data in make_files(photographs).items():
        (tmp_path / file).write_bytes(data)
        theirs = reference(load_image(str(tmp_path / file)), return_tensors="pt").pixel_values
        values = ours(tmp_path / file)
        assert values.shape == theirs.shape, file
        assert values.dtype == torch.float32
        assert float((values - theirs).abs().max()) <= 1e-5, file


@pytest.mark.parametrize("name", REFERENCES)
def test_settings_survive(name: str, photographs: list[Image.Image], tmp_path: Path) -> None:
    REFERENCES[name].save_pretrained(tmp_path)
    first = load_image_processor(tmp_path)
    assert first is not None
    (tmp_path / "again").mkdir()
    first.save(tmp_path / "again")
    assert load_image_processor(tmp_path / "again") == first
    theirs = type(REFERENCES[name]).from_pretrained(tmp_path / "again")
    values = theirs(photographs[0], return_tensors="pt").pixel_values
    assert float((first(photographs[0]) - values).abs().max()) <= 1e-5


def test_kinds_of_input(photographs: list[Image.Image], tmp_path: Path) -> None:
    processor = ImageProcessor()
    path = tmp_path / "a.png"
    photographs[0].save(path)
    from_path = processor(path)
    for same in (str(path), path.read_bytes(), photographs[0], np.asarray(photographs[0]), [path]):
        assert torch.equal(processor(same), from_path)
    both = processor([path, photographs[1]])
    assert both.shape == (2, 3, 224, 224)
    grey = ImageProcessor(mean=(0.5,), std=(0.5,))
    assert grey(path).shape == (1, 1, 224, 224)
    assert grey(np.asarray(photographs[0].convert("L"))).shape == (1, 1, 224, 224)


def test_sixteen_bits_are_scaled_and_not_cut_off() -> None:
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (4, 1))
    image = read_picture(encoded(Image.fromarray(ramp), "PNG"))
    row = np.asarray(image)[0, :, 0].astype(int)
    assert row[0] == 0 and row[-1] == 255 and abs(row[128] - 128) <= 1


def test_an_upside_down_photograph_stands_upright(photographs: list[Image.Image]) -> None:
    image = read_picture(turned(photographs[0].rotate(180), 3))
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(photographs[0]).astype(int)).mean()
    assert difference < 8  # of JPEG


def test_old_files(tmp_path: Path) -> None:
    """One number meant the shorter side in CLIP's class, and a square in ViT's."""
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"feature_extractor_type": "CLIPFeatureExtractor", "size": 100, "crop_size": 90}))
    found = load_image_processor(tmp_path)
    assert found is not None and (found.size, found.crop) == (100, (90, 90))
    file.write_text(json.dumps({"feature_extractor_type": "ViTFeatureExtractor", "size": 100}))
    found = load_image_processor(tmp_path)
    assert found is not None and (found.size, found.crop) == ((100, 100), None)
    file.unlink()
    assert load_image_processor(tmp_path) is None
    inner = {"image_processor_type": "SiglipImageProcessorFast", "size": {"height": 32, "width": 48}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    found = load_image_processor(tmp_path)
    assert found is not None and found.size == (32, 48)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "'DonutImageProcessor' is not supported; supported: CLIP"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad is not supported"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 5}}, "size .* is not supported"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 0, "width": 1}}, "side is 0"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [0.5]}, "must belong together"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 17}, "resample is 17"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=message):
        load_image_processor(tmp_path)


def test_damaged_settings(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="not readable JSON"):
        load_image_processor(tmp_path)


# --- what is no picture ---------------------------------------------------------------------------------------------


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty: fetch it again"),
        (b"It was a dark and stormy night.", "is no picture that is read; known: png, jpeg"),
        (bytes(range(256)) * 9, "is no picture that is read"),
        (b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(500), "is a video, not a picture"),
        (b"\x1aE\xdf\xa3" + b"webm" * 50, "is a video"),
        (b"RIFF\x00\x00\x10\x00AVI LIST" + bytes(99), "is a video"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", "is a drawing, not a picture: render it first"),
        (bomb(60_000, 60_000), "claims .* more than 150,000,000 are not read"),
        (bomb(14_000, 11_000), "claims 14000 x 11000 pixels"),
        (bomb(2_000, 2_000), "is damaged"),
    ],
    ids=["empty", "text", "noise", "mp4", "webm", "avi", "svg", "bomb", "smaller-bomb", "too-short"],
)
def test_what_is_no_picture(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    path.write_bytes(data)
    with pytest.raises(TokenizerError, match=message) as caught:
        ImageProcessor()(path)
    assert str(path) in str(caught.value)
    with pytest.raises(TokenizerError, match=message):
        ImageProcessor()(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_every_cut_of_a_file_is_an_error_that_says_so(kind: str, photographs: list[Image.Image]) -> None:
    data = encoded(photographs[0].resize((64, 40)), kind)
    for length in (1, 7, 30, len(data) // 3, len(data) // 2):
        with pytest.raises(TokenizerError, match=r"is damaged|no picture that is read"):
            read_picture(data[:length])


def test_other_wrong_inputs(tmp_path: Path) -> None:
    processor = ImageProcessor()
    for wrong, message in (
        (tmp_path, "is a folder: name the files in it"),
        (tmp_path / "absent.png", "cannot be read: No such file"),
        (np.zeros((4, 4, 3)), r"must be bytes \(uint8, 0 to 255\), but it is float64"),
        (np.zeros((3, 4, 4, 4), np.uint8), r"must be \[height, width\]"),
        (np.zeros((0, 4, 3), np.uint8), r"but it is \[0, 4, 3\]"),
        ([5], "must be a path, bytes, a Pillow image or an array of bytes, not int"),
        ([], "there are no pictures"),
    ):
        with pytest.raises(TokenizerError, match=message):
            processor(wrong)  # type: ignore[arg-type]
    thin = Image.new("RGB", (200_000, 2))
    with pytest.raises(TokenizerError, match="becomes 22400000 long"):
        ImageProcessor(224)(thin)
    with pytest.raises(TokenizerError, match="come out in different sizes"):
        ImageProcessor(None)([Image.new("RGB", (5, 5)), Image.new("RGB", (5, 6))])
