"""One function for every format of lesson 01: ``round_to_format(x, "fp8_e4m3")``."""

from __future__ import annotations

import torch
from torch import Tensor

from compresslab.formats.blocks import MX, NF4_BLOCK, round_integer, round_mx, round_nf4
from compresslab.formats.floats import FLOATS, FloatFormat, round_float

__all__ = ["FORMATS", "bits_per_element", "round_to_format"]

INTEGERS = {"int8": 8, "int4": 4}
FORMATS = (*FLOATS, *INTEGERS, "nf4", *MX)


def round_to_format(
    x: Tensor,
    fmt: str | tuple[int, int] | FloatFormat,
    *,
    rounding: str = "nearest",
    saturate: bool | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``x`` with every element rounded to what the format can hold.

    Args:
        x: any shape, floating point.
        fmt: one of ``FORMATS``; a pair (exponent bits, mantissa bits) for a format with infinities and NaN like
            IEEE's; or a ``FloatFormat``.
        rounding: "nearest" (ties to even) or "stochastic". NF4, whose values lie at unequal distances, has nearest only.
        saturate: of floating point formats: the largest number instead of infinity (True) or NaN instead of the largest
            number (False); None is what torch's casts do, infinity where the format has it.
        generator: of the stochastic rounding; None draws from a generator with seed 0.

    Returns:
        The shape of ``x``; float64 for float64, float32 otherwise.

    Raises:
        ValueError: no such format, no such rounding, or a block format with elements that are not finite.
        TypeError: ``x`` is not floating point.

    Example:
        >>> x = torch.tensor([1.0, 1.1, 300.0])
        >>> round_to_format(x, "fp8_e4m3").tolist(), round_to_format(x, (4, 1)).tolist()
        ([1.0, 1.125, 288.0], [1.0, 1.0, inf])
    """
    if isinstance(fmt, tuple):
        fmt = FloatFormat(*fmt)
    elif fmt in FLOATS:
        fmt = FLOATS[fmt]
    if isinstance(fmt, FloatFormat):
        return round_float(x, fmt, rounding=rounding, saturate=saturate, generator=generator)
    if fmt in INTEGERS:
        return round_integer(x, INTEGERS[fmt], rounding=rounding, generator=generator)
    if fmt in MX:
        return round_mx(x, MX[fmt], rounding=rounding, generator=generator)
    if fmt == "nf4":
        if rounding != "nearest":
            raise ValueError(f"rounding={rounding!r} must be 'nearest' for nf4, whose values lie at unequal distances")
        return round_nf4(x)
    raise ValueError(f"fmt={fmt!r} is not known; choose one of {', '.join(FORMATS)}, or a pair such as (4, 3)")


def bits_per_element(fmt: str) -> float:
    """What an element costs, its part of a shared scale counted (a float32 for each block of NF4).

    Raises:
        ValueError: no such format.

    Example:
        >>> [bits_per_element(name) for name in ("bf16", "int4", "nf4", "mxfp4")]
        [16, 4, 4.5, 4.25]
    """
    if fmt in FLOATS:
        return FLOATS[fmt].bits
    if fmt in INTEGERS:
        return INTEGERS[fmt]
    if fmt in MX:
        return MX[fmt].bits_per_element
    if fmt == "nf4":
        return 4 + 32 / NF4_BLOCK
    raise ValueError(f"fmt={fmt!r} is not known; choose one of {', '.join(FORMATS)}")
