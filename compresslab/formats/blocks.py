"""Formats whose elements share a scale: integers per tensor, NF4 per 64 elements, MX per 32 with a power of two.

A number of 4 bits alone spans little (E2M1: 0.5 to 6), so a block of neighbours is divided by a scale first. To
``floats.py`` this adds the blocks, and what the scale costs: bits / element = element bits + scale bits / block.

    Dettmers and others, "QLoRA", 2023, https://arxiv.org/abs/2305.14314, section 3 and appendix E (NF4)
    Rouhani and others, "Microscaling data formats for deep learning", 2023, https://arxiv.org/abs/2310.10537 (MX)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.formats.floats import FLOATS, FloatFormat, round_float

__all__ = ["MX", "NF4_VALUES", "BlockFormat", "round_integer", "round_mx", "round_nf4"]

# Equal areas under a normal curve, rescaled to -1..1, with an exact zero (QLoRA, appendix E).
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
NF4_BLOCK = 64
SMALLEST_SCALE = -127  # exponents of E8M0, a byte that holds a power of two


@dataclass(frozen=True)
class BlockFormat:
    """Elements of a small format with a shared scale for each block.

    Example:
        >>> MX["mxfp4"].bits_per_element
        4.25
    """

    element: FloatFormat
    block: int = 32
    scale_bits: int = 8  # E8M0

    @property
    def bits_per_element(self) -> float:
        """Bits of an element and its part of the scale."""
        return self.element.bits + self.scale_bits / self.block


MX = {
    "mxfp8": BlockFormat(FLOATS["fp8_e4m3"]),
    "mxfp6": BlockFormat(FLOATS["fp6_e2m3"]),
    "mxfp4": BlockFormat(FLOATS["fp4_e2m1"]),
}


def round_integer(
    x: Tensor, bits: int, *, rounding: str = "nearest", generator: torch.Generator | None = None
) -> Tensor:
    """``x`` rounded to a symmetric integer grid: multiples of max|x| / (2^(bits-1) - 1), one scale for the tensor.

    An integer format has one step everywhere, so something must say how large it is; lesson 02 is about that choice.

    Args:
        x: any shape, floating point, finite.
        bits: 2..16.
        rounding: "nearest" (ties to even) or "stochastic".
        generator: of the stochastic rounding; None draws from a generator with seed 0.

    Returns:
        The shape of ``x``; float64 for float64, float32 otherwise.

    Raises:
        ValueError: ``bits`` is out of range, ``rounding`` is unknown, or ``x`` is not finite.
        TypeError: ``x`` is not floating point.

    Example:
        >>> round_integer(torch.tensor([7.0, 2.4, -2.6]), 4).tolist()
        [7.0, 2.0, -3.0]
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits={bits} must be in 2..16; try 8 or 4")
    x = _finite(x)
    if not x.numel():
        return x
    scale = (x.abs().amax() / (2 ** (bits - 1) - 1)).clamp_min(torch.finfo(x.dtype).tiny)
    return _round(x / scale, rounding, generator) * scale


def round_nf4(x: Tensor, *, block: int = NF4_BLOCK) -> Tensor:
    """``x`` rounded to NF4: in each block of the last axis, the nearest of 16 values times the largest magnitude.

    Args:
        x: any shape, floating point, finite; a shorter last block is a block of its own.
        block: elements that share a scale, at least 1.

    Returns:
        The shape of ``x``; float64 for float64, float32 otherwise.

    Raises:
        ValueError: ``block`` is below 1 or ``x`` is not finite.
        TypeError: ``x`` is not floating point.

    Example:
        >>> [round(value, 4) for value in round_nf4(torch.tensor([2.0, 0.3, 0.01, -1.9])).tolist()]
        [2.0, 0.3219, 0.0, -2.0]
    """
    x = _finite(x)
    blocks, restore = _blocks(x, block)
    scale = blocks.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    values = torch.tensor(NF4_VALUES, dtype=x.dtype, device=x.device)
    borders = (values[1:] + values[:-1]) / 2
    return restore(values[torch.bucketize(blocks / scale, borders)] * scale)


def round_mx(
    x: Tensor, fmt: BlockFormat, *, rounding: str = "nearest", generator: torch.Generator | None = None
) -> Tensor:
    """``x`` rounded to a microscaling format: blocks of the last axis share a power of two, elements saturate.

    The scale is 2^(floor(log2 max|x|) - e_max), with e_max the largest exponent of the element format (section 6.3 of
    the specification); a block of zeros stays zero.

    Args:
        x: any shape, floating point, finite; a shorter last block is a block of its own.
        fmt: one of ``MX``, or your own.
        rounding: "nearest" (ties to even) or "stochastic".
        generator: of the stochastic rounding; None draws from a generator with seed 0.

    Returns:
        The shape of ``x``; float64 for float64, float32 otherwise.

    Raises:
        ValueError: ``x`` is not finite, or ``rounding`` is unknown.
        TypeError: ``x`` is not floating point.

    Example:
        >>> round_mx(torch.tensor([24.0, 5.0, 0.9]), MX["mxfp4"]).tolist()  # scale 2^(4 - 2) = 4
        [24.0, 4.0, 0.0]
    """
    x = _finite(x)
    blocks, restore = _blocks(x, fmt.block)
    largest = blocks.abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent - 1 - fmt.element.max_exponent  # floor(log2), exactly
    scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(SMALLEST_SCALE, 127))
    scaled = torch.where(largest > 0, blocks / scale, blocks)
    rounded = round_float(scaled, fmt.element, rounding=rounding, saturate=True, generator=generator)
    return restore(torch.where(largest > 0, rounded * scale, rounded))


def _finite(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; call .float() first")
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"{bad} of {x.numel()} elements of x are not finite; a shared scale needs finite ones")
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _round(x: Tensor, rounding: str, generator: torch.Generator | None) -> Tensor:
    if rounding == "nearest":
        return x.round()
    if rounding != "stochastic":
        raise ValueError(f"rounding={rounding!r} must be 'nearest' or 'stochastic'")
    generator = torch.Generator(x.device).manual_seed(0) if generator is None else generator
    below = x.floor()
    return below + (x - below > torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device))


def _blocks(x: Tensor, block: int) -> tuple[Tensor, object]:
    """(..., number of blocks, block), padded with zeros, and the function that undoes it."""
    if block < 1:
        raise ValueError(f"block={block} must be at least 1; try 32")
    last = x.shape[-1] if x.dim() else 1
    padding = -last % block
    padded = torch.nn.functional.pad(x.reshape(*x.shape[:-1], last), (0, padding))
    blocks = padded.reshape(*padded.shape[:-1], -1, block)

    def restore(rounded: Tensor) -> Tensor:
        return rounded.reshape(padded.shape)[..., :last].reshape(x.shape)

    return blocks, restore
