"""Numbers as bits and back: sign, exponent, mantissa, for every format of ``floats.py``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresslab.formats.floats import FloatFormat, round_float

__all__ = ["bit_string", "decode", "encode"]


def encode(x: Tensor, fmt: FloatFormat) -> Tensor:
    """The codes of ``x``, rounded to the format: integers whose bits are sign, exponent and mantissa.

    Args:
        x: any shape, floating point.
        fmt: the format.

    Returns:
        The shape of ``x``, int64, 0 .. 2^bits - 1. NaN gets the code that torch gives it.

    Raises:
        ValueError: ``x`` holds NaN and the format has none.

    Example:
        >>> from compresslab.formats.floats import FLOATS
        >>> encode(torch.tensor([1.0, -6.0, 0.5]), FLOATS["fp4_e2m1"]).tolist()
        [2, 15, 1]
    """
    if fmt.special == "none" and (count := int(x.isnan().sum())):
        raise ValueError(f"{count} of {x.numel()} elements of x are NaN, which this format cannot hold")
    rounded = round_float(x, fmt)
    magnitude = rounded.abs().double()
    finite = magnitude.isfinite()
    magnitude = torch.where(finite, magnitude, 0.0)
    exponent = torch.frexp(magnitude).exponent.long() - 1
    normal = magnitude >= fmt.tiny
    exponent = torch.where(normal, exponent, fmt.min_exponent)
    steps = torch.ldexp(magnitude, fmt.mantissa_bits - exponent).long()  # in units of the step there, exact
    # A normal number has 2^m steps below it in its own octave: the implicit one.
    code = (exponent - fmt.min_exponent) * 2**fmt.mantissa_bits + steps
    top = (2**fmt.exponent_bits - 1) * 2**fmt.mantissa_bits
    nan = 2**fmt.mantissa_bits - 1 if fmt.special == "nan" else 2 ** max(fmt.mantissa_bits - 1, 0)
    code = torch.where(finite, code, torch.where(rounded.isnan(), top + nan, top))
    return code + rounded.signbit().long() * 2 ** (fmt.bits - 1)


def decode(codes: Tensor, fmt: FloatFormat) -> Tensor:
    """The values that codes stand for, float32.

    Args:
        codes: any shape, integers 0 .. 2^bits - 1.
        fmt: the format.

    Raises:
        ValueError: a code has more bits than the format.

    Example:
        >>> from compresslab.formats.floats import FLOATS
        >>> decode(torch.tensor([0, 1, 2, 7, 15]), FLOATS["fp4_e2m1"]).tolist()
        [0.0, 0.5, 1.0, 6.0, -6.0]
    """
    codes = codes.long()
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 2**fmt.bits:
        raise ValueError(f"codes must be in 0..{2**fmt.bits - 1}, got {int(codes.min())}..{int(codes.max())}")
    sign = 1 - 2 * (codes >> (fmt.bits - 1))
    stored = (codes >> fmt.mantissa_bits) & (2**fmt.exponent_bits - 1)
    mantissa = codes & (2**fmt.mantissa_bits - 1)
    steps = mantissa + (stored > 0) * 2**fmt.mantissa_bits
    exponent = stored.clamp(min=1) - fmt.bias - fmt.mantissa_bits
    value = sign * torch.ldexp(steps.double(), exponent)
    largest = stored == 2**fmt.exponent_bits - 1
    if fmt.special == "ieee":
        value = torch.where(largest, torch.where(mantissa == 0, sign * math.inf, math.nan), value)
    elif fmt.special == "nan":
        value = torch.where(largest & (mantissa == 2**fmt.mantissa_bits - 1), math.nan, value)
    return value.float()


def bit_string(code: int, fmt: FloatFormat) -> str:
    """The bits of a code in three groups.

    Raises:
        ValueError: the code has more bits than the format.

    Example:
        >>> from compresslab.formats.floats import FLOATS
        >>> bit_string(0b1_1000_101, FLOATS["fp8_e4m3"])
        '1 1000 101'
    """
    if not 0 <= code < 2**fmt.bits:
        raise ValueError(f"code={code} must be in 0..{2**fmt.bits - 1}")
    bits = f"{code:0{fmt.bits}b}"
    return " ".join(part for part in (bits[0], bits[1 : 1 + fmt.exponent_bits], bits[1 + fmt.exponent_bits :]) if part)
