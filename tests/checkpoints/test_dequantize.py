"""Dequantization against gguf-py's, bit for bit, on random blocks of every type."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from polyformer.checkpoints import dequantize as module
from polyformer.checkpoints.dequantize import BLOCK_FORMATS, BlockFormat, dequantize
from polyformer.errors import CheckpointError

QUANTIZED = [(number, block) for number, block in BLOCK_FORMATS.items() if block.decode is not None]
# Where the float16 scales lie in a block: random bytes there could be infinite or not a number.
SCALE_BYTES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q4_1": (0, 2)}
SCALE_BYTES |= {"Q5_1": (0, 2)}


def random_blocks(block: BlockFormat, count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, size=(count, block.nbytes), dtype=np.uint8)
    for at in SCALE_BYTES.get(block.name, (0,)):
        scales = generator.normal(size=(count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8)
    return blocks


@pytest.mark.parametrize(("number", "block"), QUANTIZED, ids=[block.name for _, block in QUANTIZED])
def test_float32_is_bit_equal_to_the_reference(number: int, block: BlockFormat) -> None:
    count = 2 * (module.WEIGHTS_AT_A_TIME // block.weights) + 7  # two whole pieces and a rest
    blocks = random_blocks(block, count, seed=number)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(number)).reshape(count, block.weights)
    ours = dequantize(torch.from_numpy(blocks), block, (count, block.weights), torch.float32)
    assert np.array_equal(ours.numpy().view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(("number", "block"), QUANTIZED, ids=[block.name for _, block in QUANTIZED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_float32_rounded_once(number: int, block: BlockFormat, dtype: torch.dtype) -> None:
    raw = torch.from_numpy(random_blocks(block, 12, seed=100 + number))
    shape = (3, 4 * block.weights)
    exact = dequantize(raw, block, shape, torch.float32)
    assert torch.equal(dequantize(raw, block, shape, dtype), exact.to(dtype))


def test_sizes_and_names_are_those_of_the_reference() -> None:
    for number, block in BLOCK_FORMATS.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == block.name
        assert gguf.GGML_QUANT_SIZES[kind] == (block.weights, block.nbytes)


def test_names_of_the_types_not_read_are_those_of_the_reference() -> None:
    theirs = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    common = theirs.keys() & module.OTHER_TYPE_NAMES.keys()
    assert len(common) >= 10
    assert {number: theirs[number] for number in common} == {n: module.OTHER_TYPE_NAMES[n] for n in common}
    assert not module.OTHER_TYPE_NAMES.keys() & BLOCK_FORMATS.keys()


def test_wrong_number_of_bytes_is_an_error() -> None:
    block = BLOCK_FORMATS[2]
    with pytest.raises(CheckpointError, match=r"17 bytes of Q4_0.*\[32\]"):
        dequantize(torch.zeros(17, dtype=torch.uint8), block, (32,), torch.float32)
    with pytest.raises(CheckpointError, match="not quantized"):
        dequantize(torch.zeros(4, dtype=torch.uint8), BLOCK_FORMATS[0], (1,), torch.float32)
