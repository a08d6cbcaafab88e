"""Block-quantized GGUF weights to floating point, in PyTorch.

A quantized row is cut into blocks of 32 or 256 weights ("super-blocks" for the K types). Each block stores a scale in
float16, small integers, and for some types a minimum: ``weight = scale * integer - minimum``. The layouts are those of
the GGUF specification and of ggml's ``block_q*`` structures. Every function here computes in float32 in the order of
operations that ggml uses, so that float32 results are equal to the reference bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyformer.checkpoints.memory import PIECE_BYTES, give_back_pages, one_thread
from polyformer.errors import CheckpointError

# One decoder call handles this many weights at a time: the temporaries (a few bytes a weight) then stay in the
# processor's cache, and the peak memory of loading does not grow with the size of a tensor.
WEIGHTS_AT_A_TIME = 1 << 18

# A decoder reads ``blocks`` [count, bytes per block] (uint8) and fills ``out`` [count, weights per block] (float32).
Decoder = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class BlockFormat:
    """How one GGUF tensor type stores its weights.

    Attributes:
        name: the type's name in the GGUF specification, such as ``"Q4_K"``.
        weights: the number of weights in a block (1 for the plain types).
        nbytes: the number of bytes in a block.
        dtype: the PyTorch dtype of a plain type; None for a quantized type.
        decode: the decoder of a quantized type; None for a plain type.
    """

    name: str
    weights: int
    nbytes: int
    dtype: torch.dtype | None = None
    decode: Decoder | None = None


def dequantize(
    raw: Tensor, block_format: BlockFormat, shape: tuple[int, ...], dtype: torch.dtype, *, mapped: bool = False
) -> Tensor:
    """Turns the stored bytes of a quantized tensor into a new tensor.

    Args:
        raw: the stored bytes, uint8, of any shape; whole blocks.
        block_format: the format of those bytes; it must be a quantized one.
        shape: the shape of the result, outermost dimension first.
        dtype: the floating dtype of the result. The arithmetic is float32; the result is rounded once, at the end.
        mapped: the bytes lie in a mapped, unmodified file: their pages are given back as they are used up.

    Raises:
        CheckpointError: the bytes are not as many as the shape needs.
    """
    if block_format.decode is None:
        raise CheckpointError(f"{block_format.name} weights are not quantized: read them as {block_format.dtype}")
    result = torch.empty(shape, dtype=dtype)
    blocks = raw.reshape(-1)
    if blocks.numel() * block_format.weights != result.numel() * block_format.nbytes:
        raise CheckpointError(
            f"{blocks.numel()} bytes of {block_format.name} do not make a tensor of shape {list(shape)}: "
            "the file is damaged, fetch it again"
        )
    blocks = blocks.view(-1, block_format.nbytes)
    flat = result.view(-1, block_format.weights)
    at_a_time = max(1, WEIGHTS_AT_A_TIME // block_format.weights)
    scratch = None if dtype == torch.float32 else torch.empty(min(at_a_time, len(flat)), block_format.weights)
    given_back = 0
    with one_thread():
        for start in range(0, len(flat), at_a_time):
            target = flat[start : start + at_a_time]
            out = target if scratch is None else scratch[: len(target)]
            block_format.decode(blocks[start : start + at_a_time], out)
            if scratch is not None:
                target.copy_(out)
            used = blocks[given_back : start + at_a_time]
            if mapped and used.nbytes >= PIECE_BYTES:
                give_back_pages(used)
                given_back = start + at_a_time
    if mapped:
        give_back_pages(blocks[given_back:])
    return result


def _float16(blocks: Tensor, at: int) -> Tensor:
    """The float16 stored at byte ``at`` of every block, as float32 [count, 1]."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _bit_fields(packed: Tensor, bits: int, fields: int) -> Tensor:
    """Splits bytes [..., length] into ``fields`` numbers of ``bits`` bits, lowest first: [..., fields, length]."""
    shifts = torch.arange(0, bits * fields, bits, dtype=torch.uint8).unsqueeze(-1)
    return (packed.unsqueeze(-2) >> shifts) & ((1 << bits) - 1)


def _nibbles(packed: Tensor, out: Tensor) -> None:
    """The 4-bit numbers of one 32-weight block: the low halves of the 16 bytes, then the high halves."""
    half = packed.shape[1]
    out[:, :half] = packed & 15
    out[:, half:] = packed >> 4


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """The 32 fifth bits of a Q5_0 or Q5_1 block, worth 16 each: [count, 32]. Byte j holds weights 8j to 8j + 7."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (((blocks[:, at : at + 4].unsqueeze(-1) >> shifts) & 1) << 4).flatten(1)


def _decode_q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8))
    out.mul_(_float16(blocks, 0))


def _decode_q4_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 2:], out)
    out.sub_(8).mul_(_float16(blocks, 0))


def _decode_q4_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 4:], out)
    out.mul_(_float16(blocks, 0)).add_(_float16(blocks, 2))


def _decode_q5_0(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 6:], out)
    out.add_(_fifth_bits(blocks, 2)).sub_(16).mul_(_float16(blocks, 0))


def _decode_q5_1(blocks: Tensor, out: Tensor) -> None:
    _nibbles(blocks[:, 8:], out)
    out.add_(_fifth_bits(blocks, 4)).mul_(_float16(blocks, 0)).add_(_float16(blocks, 2))


def _scale_groups(out: Tensor, scales: Tensor, minima: Tensor | None = None) -> None:
    """``out = out * scale - minimum``, group by group. scales and minima [count, groups]; out [count, 256]."""
    grouped = out.view(len(out), scales.shape[1], -1)
    grouped.mul_(scales.unsqueeze(-1))
    if minima is not None:
        grouped.sub_(minima.unsqueeze(-1))


def _decode_q2_k(blocks: Tensor, out: Tensor) -> None:
    # Bytes: 16 of scales (low half) and minima (high half), 64 of 2-bit weights, d, dmin.
    packed_scales = blocks[:, :16]
    weights = blocks[:, 16:80].unflatten(1, (2, 32))
    out.view(-1, 2, 4, 32).copy_(_bit_fields(weights, 2, 4))
    scales = _float16(blocks, 80) * (packed_scales & 15)
    minima = _float16(blocks, 82) * (packed_scales >> 4)
    _scale_groups(out, scales, minima)


def _decode_q3_k(blocks: Tensor, out: Tensor) -> None:
    # Bytes: 32 of third bits, 64 of the low two bits, 12 of 6-bit scales, d.
    low = _bit_fields(blocks[:, 32:96].unflatten(1, (2, 32)), 2, 4)
    third = _bit_fields(blocks[:, :32], 1, 8).view(-1, 2, 4, 32)
    # The third bit is stored inverted: where it is set the weight is 0..3, where not it is -4..-1.
    out.view(-1, 2, 4, 32).copy_(low | (third << 2)).sub_(4)
    scales_low = _bit_fields(blocks[:, 96:104], 4, 2).flatten(1)
    scales_high = _bit_fields(blocks[:, 104:108], 2, 4).flatten(1)
    scales = (scales_low | (scales_high << 4)).float() - 32
    _scale_groups(out, _float16(blocks, 108) * scales)


def _six_bit_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and eight 6-bit minima that Q4_K and Q5_K keep in 12 bytes: two of [count, 8].

    The first four of each are the low six bits of bytes 0-3 and 4-7. The last four take their low four bits from
    bytes 8-11 (scales: low half, minima: high half) and their top two from the spare bits of bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:12]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scales, minima


def _decode_q4_k(blocks: Tensor, out: Tensor) -> None:
    # Bytes: d, dmin, 12 of 6-bit scales and minima, 128 of 4-bit weights.
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    out.view(-1, 4, 2, 32).copy_(_bit_fields(blocks[:, 16:].unflatten(1, (4, 32)), 4, 2))
    _scale_groups(out, _float16(blocks, 0) * scales, _float16(blocks, 2) * minima)


def _decode_q5_k(blocks: Tensor, out: Tensor) -> None:
    # Bytes: d, dmin, 12 of 6-bit scales and minima, 32 of fifth bits, 128 of the low four bits.
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    low = _bit_fields(blocks[:, 48:].unflatten(1, (4, 32)), 4, 2)
    fifth = _bit_fields(blocks[:, 16:48], 1, 8).view(-1, 4, 2, 32)
    out.view(-1, 4, 2, 32).copy_(low | (fifth << 4))
    _scale_groups(out, _float16(blocks, 0) * scales, _float16(blocks, 2) * minima)


def _decode_q6_k(blocks: Tensor, out: Tensor) -> None:
    # Bytes: 128 of the low four bits, 64 of the top two bits, 16 of signed scales, d.
    low = _bit_fields(blocks[:, :128].unflatten(1, (2, 64)), 4, 2).view(-1, 2, 4, 32)
    high = _bit_fields(blocks[:, 128:192].unflatten(1, (2, 32)), 2, 4)
    out.view(-1, 2, 4, 32).copy_(low | (high << 4)).sub_(32)
    _scale_groups(out, _float16(blocks, 208) * blocks[:, 192:208].view(torch.int8))


# The numbers are those of ``enum ggml_type``: they are part of the file format.
BLOCK_FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4, dtype=torch.float32),
    1: BlockFormat("F16", 1, 2, dtype=torch.float16),
    2: BlockFormat("Q4_0", 32, 18, decode=_decode_q4_0),
    3: BlockFormat("Q4_1", 32, 20, decode=_decode_q4_1),
    6: BlockFormat("Q5_0", 32, 22, decode=_decode_q5_0),
    7: BlockFormat("Q5_1", 32, 24, decode=_decode_q5_1),
    8: BlockFormat("Q8_0", 32, 34, decode=_decode_q8_0),
    10: BlockFormat("Q2_K", 256, 84, decode=_decode_q2_k),
    11: BlockFormat("Q3_K", 256, 110, decode=_decode_q3_k),
    12: BlockFormat("Q4_K", 256, 144, decode=_decode_q4_k),
    13: BlockFormat("Q5_K", 256, 176, decode=_decode_q5_k),
    14: BlockFormat("Q6_K", 256, 210, decode=_decode_q6_k),
    24: BlockFormat("I8", 1, 1, dtype=torch.int8),
    25: BlockFormat("I16", 1, 2, dtype=torch.int16),
    26: BlockFormat("I32", 1, 4, dtype=torch.int32),
    27: BlockFormat("I64", 1, 8, dtype=torch.int64),
    28: BlockFormat("F64", 1, 8, dtype=torch.float64),
    30: BlockFormat("BF16", 1, 2, dtype=torch.bfloat16),
}

# Types that exist but that are not read here, so that the error can call them by name.
OTHER_TYPE_NAMES: dict[int, str] = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
}
