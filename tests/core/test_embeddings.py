from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from polyformer import core
from polyformer.errors import ConfigError

IDS = torch.tensor([[3, 7, 28, 0], [5, 28, 3, 3]])
POSITIONS = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 2]])
TYPES = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 0]])
PATCHES = core.PatchEmbedding.Config(6, (2, 3), (4, 9))


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


# ---------------------------------------------------------------------------------------------------------------
# Tokens


def test_tokens_are_the_sum_of_their_parts_normalized_then_projected(random_module: Any) -> None:
    """Scale of the token vectors alone, types, positions, then the norm, and the projection last."""
    config = core.TokenEmbedding.Config(
        29,
        6,
        core.Learned.Config(8, 6, offset=2),
        scale=3.0,
        norm=core.LayerNorm.Config(6),
        token_types=3,
        projection=core.Linear.Config(6, 10, bias=True),
    )
    embedding = random_module(config)
    parts = dict(embedding.named_parameters())
    total = parts["tokens.weight"][IDS] * 3 + parts["token_types.weight"][TYPES]
    total = total + parts["positions.weight"][POSITIONS + 2]
    centred = total - total.mean(-1, keepdim=True)
    normal = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normal = normal * parts["norm.weight"] + parts["norm.bias"]
    result = embedding(IDS, POSITIONS, TYPES)
    assert_same(result, normal @ parts["projection.weight"].T + parts["projection.bias"])
    assert result.shape[-1] == config.output_size == 10
    assert replace(config, projection=None).output_size == 6


def test_no_token_types_mean_type_zero_everywhere(random_module: Any) -> None:
    embedding = random_module(core.TokenEmbedding.Config(29, 6, token_types=2))
    assert_same(embedding(IDS, POSITIONS), embedding(IDS, POSITIONS, torch.zeros_like(IDS)))
    assert (embedding(IDS, POSITIONS) - embedding(IDS, POSITIONS, torch.ones_like(IDS))).abs().min() > 1e-6


def test_a_network_without_token_types_takes_none(random_module: Any) -> None:
    embedding = random_module(core.TokenEmbedding.Config(29, 6))
    with pytest.raises(ConfigError, match=r"token_type_ids were given, but this network .*: leave them out"):
        embedding(IDS, POSITIONS, TYPES)
    assert set(embedding.state_dict()) == {"tokens.weight"}


@pytest.mark.parametrize("interleaved", [False, True])
def test_sinusoids_are_added(interleaved: bool, random_module: Any) -> None:
    positions = core.Sinusoidal.Config(6, base=100.0, interleaved=interleaved, offset=1)
    embedding = random_module(core.TokenEmbedding.Config(29, 6, positions))
    added = embedding(IDS, POSITIONS) - embedding.tokens.weight[IDS]
    for row, place in ((0, 3), (1, 2)):
        angles = [(place + 1) / 100 ** (2 * i / 6) for i in range(3)]
        sines, cosines = [math.sin(a) for a in angles], [math.cos(a) for a in angles]
        expected = [n for pair in zip(sines, cosines) for n in pair] if interleaved else sines + cosines
        assert_same(added[row, 3], torch.tensor(expected, dtype=torch.float64))


def test_the_projection_reads_the_table() -> None:
    with pytest.raises(ConfigError, match="the projection takes vectors of 5, but the table has 6"):
        core.TokenEmbedding.Config(29, 6, projection=core.Linear.Config(5, 10))


def test_the_table_starts_as_wide_as_the_config_says() -> None:
    torch.manual_seed(0)
    embedding = core.TokenEmbedding.Config(300, 64, standard_deviation=1.0, token_types=90).build()
    assert embedding.tokens.weight.std().item() == pytest.approx(1, rel=0.05)
    assert embedding.token_types.weight.std().item() == pytest.approx(1, rel=0.05)


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def by_patches(embedding: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Each patch cut out, flattened and multiplied by the matrix, in rows from the upper left."""
    height, width = embedding.config.patch_size
    matrix = embedding.weight.flatten(1)
    vectors = []
    for top in range(0, pictures.shape[2] - height + 1, height):
        for left in range(0, pictures.shape[3] - width + 1, width):
            patch = pictures[:, :, top : top + height, left : left + width].flatten(1)
            vectors.append(patch @ matrix.T + (0 if embedding.bias is None else embedding.bias))
    return torch.stack(vectors, dim=1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_patch_is_one_linear_map_of_its_pixels(channels: int, bias: bool, random_module: Any) -> None:
    embedding = random_module(replace(PATCHES, channels=channels, bias=bias, class_token=False))
    pictures = random(2, channels, 4, 9)
    result = embedding(pictures)
    assert_same(result, by_patches(embedding, pictures) + embedding.positions.weight)
    unfolded = functional.unfold(pictures, (2, 3), stride=(2, 3)).mT @ embedding.weight.flatten(1).T
    assert_same(result - embedding.positions.weight, unfolded + (embedding.bias if bias else 0))


@pytest.mark.parametrize("registers", [0, 2])
@pytest.mark.parametrize("class_token", [False, True])
def test_class_token_registers_and_patches_in_this_order(class_token: bool, registers: int, random_module: Any) -> None:
    """The class token has the first position, registers have none."""
    config = replace(PATCHES, class_token=class_token, registers=registers)
    embedding, pictures = random_module(config), random(2, 3, 4, 9)
    table, leading = embedding.positions.weight, int(class_token)
    assert len(table) == leading + 6
    expected = [by_patches(embedding, pictures) + table[leading:]]
    if registers:
        expected.insert(0, embedding.registers.expand(2, -1, -1))
    if class_token:
        expected.insert(0, (embedding.class_token + table[0]).expand(2, -1, -1))
    result = embedding(pictures)
    assert_same(result, torch.cat(expected, dim=1))
    assert result.shape[1] == config.leading + 6 == leading + registers + 6


def test_the_norm_of_pictures_is_over_the_class_token_too(random_module: Any) -> None:
    config = replace(PATCHES, registers=1, norm=core.LayerNorm.Config(6))
    embedding, pictures = random_module(config), random(2, 3, 4, 9)
    plain = random_module(replace(config, norm=None))
    plain.load_state_dict(embedding.state_dict(), strict=False)
    expected = functional.layer_norm(plain(pictures), (6,), embedding.norm.weight, embedding.norm.bias)
    assert_same(embedding(pictures), expected)


def test_a_masked_patch_keeps_its_place_and_loses_its_pixels(random_module: Any) -> None:
    embedding = random_module(replace(PATCHES, mask_token=True))
    pictures = random(2, 3, 4, 9)
    masked = torch.tensor([[0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0]])
    whole, result = embedding(pictures), embedding(pictures, masked)
    table = embedding.positions.weight
    assert_same(result[0, 1:][[1, 5]], embedding.mask_token + table[[2, 6]])
    kept = torch.cat([torch.ones(2, 1, dtype=torch.bool), ~masked.bool()], dim=1)
    assert torch.equal(result[kept], whole[kept])
    assert torch.equal(embedding(pictures, masked.bool()), result)


def test_masks_need_a_mask_token(random_module: Any) -> None:
    embedding = random_module(PATCHES)
    with pytest.raises(ConfigError, match="masked_patches were given, but this network has no mask token"):
        embedding(random(2, 3, 4, 9), torch.zeros(2, 6))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(3, 5), (1, 2), (6, 2), (3, 2)])
def test_positions_of_another_grid_are_interpolated(grid: tuple[int, int], antialias: bool, random_module: Any) -> None:
    """The pictures are larger or smaller, or as many patches in another shape (2 x 3 against 3 x 2)."""
    embedding = random_module(replace(PATCHES, registers=1, antialias=antialias))
    pictures = random(2, 3, grid[0] * 2 + 1, grid[1] * 3)
    table = embedding.positions.weight
    plane = table[1:].T.reshape(1, 6, 2, 3)
    places = functional.interpolate(plane, grid, mode="bicubic", antialias=antialias)[0].flatten(1).T
    result = embedding(pictures)
    assert_same(result[:, 2:], by_patches(embedding, pictures) + places)
    assert_same(result[:, 0], (embedding.class_token + table[0]).expand(2, -1))


def test_a_larger_picture_that_holds_no_more_patches_keeps_the_learned_positions(random_module: Any) -> None:
    embedding, pictures = random_module(PATCHES), random(2, 3, 5, 11)
    assert torch.equal(embedding(pictures), embedding(pictures[:, :, :4, :9]))
    first, others = embedding.position_rows((2, 3))
    assert torch.equal(torch.cat([first, others]), embedding.positions.weight)


def test_positions_in_16_bits_are_interpolated_in_32(random_module: Any) -> None:
    embedding = random_module(PATCHES, dtype=torch.bfloat16)
    _, others = embedding.position_rows((5, 7))
    assert others.dtype == torch.bfloat16
    assert torch.equal(others, embedding.float().position_rows((5, 7))[1].bfloat16())


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 4), st.integers(0, 4))
def test_grid(height: int, width: int, rows: int, columns: int) -> None:
    size = (height * (rows + 1) + height - 1, width * (columns + 1))
    config = core.PatchEmbedding.Config(4, (height, width), size)
    assert config.grid == (rows + 1, columns + 1)
    assert config.build()(torch.zeros(1, 3, *size)).shape == (1, config.leading + math.prod(config.grid), 4)


@pytest.mark.parametrize("shape", [(3, 4, 9), (2, 1, 4, 9), (2, 3, 1, 9), (2, 3, 4, 2)])
def test_pictures_of_a_wrong_shape(shape: tuple[int, ...], random_module: Any) -> None:
    message = r"pixel_values must be \[batch, 3, height, width\] of at least one patch \(2, 3\), but they are "
    with pytest.raises(ConfigError, match=message + rf"\[{', '.join(map(str, shape))}\]"):
        random_module(PATCHES)(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    ("patch", "image"), [((2,), (4, 9)), ((2, 3), (4,)), ((0, 3), (4, 9)), ((5, 3), (4, 9)), ((2, 10), (4, 9))]
)
def test_impossible_patches(patch: tuple[int, ...], image: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"must be \(height, width\) in pixels, and a picture no smaller than a"):
        core.PatchEmbedding.Config(6, patch, image)


# ---------------------------------------------------------------------------------------------------------------
# Sound


def by_frames(embedding: Any, frames: torch.Tensor) -> torch.Tensor:
    """Every window of frames cut out of the padded sound and multiplied by the matrix."""
    hidden = frames
    for convolution, stride in zip(embedding.convolutions, embedding.config.strides):
        size = embedding.config.kernel_size
        windows = functional.pad(hidden, (size // 2, size // 2)).unfold(2, size, stride)
        products = torch.einsum("bfwk,ofk->bow", windows, convolution.weight)
        hidden = functional.relu(products + convolution.bias[:, None])
    return hidden.mT


@pytest.mark.parametrize("frames", [1, 8, 9])
@pytest.mark.parametrize(("strides", "kernel_size"), [((1, 2), 3), ((2, 2), 3), ((1,), 1), ((3, 1, 2), 5)])
def test_frames(strides: tuple[int, ...], kernel_size: int, frames: int, random_module: Any) -> None:
    positions = core.Learned.Config(9, 6)
    config = core.FrameEmbedding.Config(6, 5, positions, strides, kernel_size, activation="relu")
    embedding, sound = random_module(config), random(2, 5, frames)
    expected = by_frames(embedding, sound)
    result = embedding(sound)
    assert_same(result, expected + embedding.positions.weight[: expected.shape[1]])
    assert config.output_size == result.shape[2] == 6
    length = frames
    for stride in strides:
        length = math.ceil(length / stride)
    assert result.shape[1] == length


def test_layers_get_rows_in_order_and_not_those_of_a_convolution(random_module: Any) -> None:
    """Otherwise the order stays to the last layer, and every norm copies."""
    frames = core.FrameEmbedding.Config(6, 5, core.Sinusoidal.Config(6))
    assert random_module(frames)(random(2, 5, 8)).is_contiguous()
    assert random_module(replace(PATCHES, class_token=False))(random(2, PATCHES.channels, 4, 9)).is_contiguous()


def test_frames_are_whispers_by_default() -> None:
    """One convolution of every frame, one of every second, both with GELU."""
    config = core.FrameEmbedding.Config(6, 5, core.Sinusoidal.Config(6))
    assert (config.strides, config.kernel_size, config.activation) == ((1, 2), 3, "gelu")


def test_a_longer_sound_than_there_are_positions_for(random_module: Any) -> None:
    """The limit counts vectors, not frames; sinusoids have none."""
    config = core.FrameEmbedding.Config(6, 5, core.Learned.Config(4, 6))
    embedding = random_module(config)
    assert embedding(random(1, 5, 8)).shape == (1, 4, 6)
    message = "the sound has 9 frames, which make 5 vectors, but this network has positions for 4: cut it"
    with pytest.raises(ConfigError, match=message):
        embedding(random(1, 5, 9))
    endless = random_module(replace(config, positions=core.Sinusoidal.Config(6)))
    assert endless(random(1, 5, 400)).shape == (1, 200, 6)


@pytest.mark.parametrize("shape", [(5, 8), (2, 8, 5)])
def test_sound_of_a_wrong_shape(shape: tuple[int, ...], random_module: Any) -> None:
    embedding = random_module(core.FrameEmbedding.Config(6, 5, core.Sinusoidal.Config(6)))
    message = rf"input_features must be \[batch, 5, frames\], but they are \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ConfigError, match=message):
        embedding(random(*shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size is 4, but it must be odd"),
        ({"strides": ()}, "frames need at least one convolution: give its stride"),
        ({"activation": "sine"}, "activation 'sine' is not known"),
    ],
)
def test_impossible_frames(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        core.FrameEmbedding.Config(6, 5, core.Sinusoidal.Config(6), **options).build()


# ---------------------------------------------------------------------------------------------------------------
# All of them

READERS = {
    "tokens": (
        core.TokenEmbedding.Config(
            29, 6, core.Learned.Config(4, 6), token_types=3, norm=core.LayerNorm.Config(6), dropout=0.5
        ),
        (IDS.repeat(40, 1), POSITIONS[:1], TYPES.repeat(40, 1)),
    ),
    "patches": (
        replace(PATCHES, registers=1, mask_token=True, norm=core.LayerNorm.Config(6), dropout=0.5),
        (random(80, 3, 4, 9), torch.tensor([[1, 0, 0, 1, 0, 0]])),
    ),
    "frames": (core.FrameEmbedding.Config(6, 5, core.Learned.Config(4, 6), dropout=0.5), (random(80, 5, 8),)),
}


@pytest.mark.parametrize("name", READERS)
def test_dropout_only_in_training(name: str, random_module: Any) -> None:
    """It drops what comes out, after the norm: a number is 0 or twice what it was."""
    config, arguments = READERS[name]
    embedding = random_module(config)
    exact = embedding(*arguments)
    assert torch.equal(exact, random_module(replace(config, dropout=0.0)).train()(*arguments))
    torch.manual_seed(0)
    dropped = embedding.train()(*arguments)
    gone = dropped == 0
    assert gone.double().mean().item() == pytest.approx(0.5, abs=4 * (0.25 / gone.numel()) ** 0.5)
    assert_same(dropped[~gone], 2 * exact[~gone])


@pytest.mark.parametrize("name", READERS)
def test_every_parameter_learns(name: str, random_module: Any) -> None:
    config, arguments = READERS[name]
    embedding = random_module(replace(config, dropout=0.0)).train()
    (embedding(*arguments) ** 3).sum().backward()
    for label, parameter in embedding.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, label


@pytest.mark.parametrize("name", READERS)
def test_written_and_read_back(name: str) -> None:
    config, _ = READERS[name]
    assert core.Config.from_dict(config.to_dict()) == config
