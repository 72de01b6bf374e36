"""Levels of 1 to 8 bits in as many bytes as they need.

The smallest integer type that torch computes with has 8 bits, so 4-bit levels in an int8 tensor take 8 bits each. Here
they stand one after the other in a stream of bits, the first level in the lowest bits of the first byte:

    4 bits    byte 0: b b b b a a a a                                            (as in ONNX's int4)
    3 bits    byte 0: c c b b b a a a     byte 1: f e e e d d d c     byte 2: h h h g g g f f
              high bit <-------- low bit

Eight levels of b bits fill b bytes exactly, which is the unit that the code moves; widths that divide 8 move byte by
byte instead, many times faster. What is left of the last byte is 0.
Signed levels are two's complement; with 1 bit, where that would mean -1 and 0, the bit 1 stands for +1 and 0 for -1, as
in ``affine.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["pack", "unpack"]


def pack(levels: Tensor, *, bits: int, signed: bool = True) -> Tensor:
    """The levels as a stream of bytes.

    Args:
        levels: integers of any shape, -2^(bits-1) .. 2^(bits-1) - 1 if signed (-1 and +1 for 1 bit), else
            0 .. 2^bits - 1.
        bits: 1..8.

    Returns:
        uint8, (ceil(number of levels * bits / 8),).

    Raises:
        ValueError: ``bits`` is out of range, or a level does not fit. TypeError: the levels are not integers.

    Example:
        >>> pack(torch.tensor([1, -1, 7]), bits=4).tolist()  # 0001, 1111, 0111: bytes 11110001, 00000111
        [241, 7]
    """
    _check_bits(bits)
    if levels.is_floating_point() or levels.is_complex() or levels.dtype == torch.bool:
        raise TypeError(f"levels must be integers, got {levels.dtype}; quantize first")
    flat = levels.reshape(-1).long()  # before comparing: torch would wrap -8 to 248 beside a uint8
    low, high = _ends(bits, signed)
    wrong = (flat < low) | (flat > high) | ((flat == 0) if bits == 1 and signed else False)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {flat.numel()} levels do not fit, the first {int(flat[wrong][0])}; "
            f"{'signed' if signed else 'unsigned'} levels of {bits} bits are {low}..{high}"
        )
    if bits == 1 and signed:
        flat = (flat > 0).long()
    if 8 % bits == 0:
        flat = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % (8 // bits))).reshape(-1, 8 // bits)
        flat = flat & (2**bits - 1)
        parts = [flat[:, place] << (place * bits) for place in range(8 // bits)]
        return torch.stack(parts).sum(0, dtype=torch.uint8)  # no two of them share a bit
    words = torch.zeros(-(-flat.numel() // 8), dtype=torch.int64, device=flat.device)
    for place in range(8):
        part = flat[place::8] & (2**bits - 1)
        words[: part.numel()] |= part << (place * bits)
    stream = torch.stack([(words >> (8 * byte)) & 255 for byte in range(bits)], dim=-1)  # (words, bits)
    return stream.to(torch.uint8).reshape(-1)[: _size(flat.numel(), bits)]


def unpack(packed: Tensor, shape: int | Sequence[int], *, bits: int, signed: bool = True) -> Tensor:
    """The levels that ``pack`` put into ``packed``.

    Args:
        packed: uint8, as many bytes as the levels need.
        shape: of the levels.
        bits, signed: as they were packed.

    Returns:
        int8 if signed, else uint8, in the shape asked for.

    Raises:
        ValueError: ``bits`` is out of range, or the number of bytes is not the one that ``shape`` needs.
        TypeError: ``packed`` is not uint8.

    Example:
        >>> unpack(torch.tensor([241, 7], dtype=torch.uint8), 3, bits=4).tolist()
        [1, -1, 7]
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be uint8, got {packed.dtype}; give what pack returned")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    count = math.prod(shape)
    if packed.shape != (_size(count, bits),):
        need = f"{_size(count, bits)} bytes for {count} levels of {bits} bits"
        raise ValueError(f"packed has shape {tuple(packed.shape)}, but needs {need}; check shape={shape} and bits")
    if 8 % bits == 0:  # each level to the top of a byte, and down again: an int8 brings its sign with it
        spare = 8 - bits
        levels = torch.stack([packed << place for place in range(spare, -1, -bits)], dim=-1).reshape(-1)[:count]
        if signed and bits > 1:
            return (levels.view(torch.int8) >> spare).reshape(shape)
        levels = (levels >> spare).reshape(shape)
        return 2 * levels.to(torch.int8) - 1 if signed else levels
    stream = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits).long()
    words = torch.zeros(len(stream), dtype=torch.int64, device=packed.device)
    for byte in range(bits):
        words |= stream[:, byte] << (8 * byte)
    levels = torch.stack([(words >> (place * bits)) & (2**bits - 1) for place in range(8)], dim=-1)  # (words, 8)
    levels = levels.reshape(-1)[:count].reshape(shape)
    if not signed:
        return levels.to(torch.uint8)
    return torch.where(levels >= 2 ** (bits - 1), levels - 2**bits, levels).to(torch.int8)


def _size(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _ends(bits: int, signed: bool) -> tuple[int, int]:
    if not signed:
        return 0, 2**bits - 1
    return (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _check_bits(bits: int) -> None:
    if not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(f"bits={bits!r} must be an integer in 1..8; wider levels are stored as they are, in 16 bits")
