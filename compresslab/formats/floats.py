"""Floating point formats of any number of exponent and mantissa bits, and rounding to them, exact to the bit.

A number is (-1)^s * 2^(E - bias) * 1.M, or (-1)^s * 2^(1 - bias) * 0.M where E is 0 (a subnormal). Rounding needs no
table: between 2^e and 2^(e+1) the values of the format are 2^(e-m) apart, so adding and subtracting a power of two
that is 2^23 such steps makes the processor's own addition round to the nearest step, ties to even.

    IEEE 754-2019; Micikevicius and others, "FP8 formats for deep learning", 2022, https://arxiv.org/abs/2209.05433;
    Open Compute Project, "Microscaling formats (MX) specification", version 1.0, 2023
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FLOATS", "FloatFormat", "round_float"]

CHUNK = 2**15  # elements worked on at a time, so that what lies between the steps stays in the cache


@dataclass(frozen=True)
class FloatFormat:
    """A floating point format: its bits, and what its largest exponent is used for.

    Example:
        >>> half = FloatFormat(5, 10)
        >>> half.bits, half.max_value, half.tiny, half.smallest
        (16, 65504.0, 6.103515625e-05, 5.960464477539063e-08)
    """

    exponent_bits: int
    mantissa_bits: int
    special: str = "ieee"  # "ieee": infinities and NaN; "nan": NaN alone; "none": every code is a finite number

    def __post_init__(self) -> None:
        """Raise ValueError unless float32 can hold every value of the format."""
        if not 1 <= self.exponent_bits <= 8 or not 0 <= self.mantissa_bits <= 23:
            pair = f"({self.exponent_bits}, {self.mantissa_bits})"
            raise ValueError(f"(exponent_bits, mantissa_bits)={pair} must be in 1..8 and 0..23; float16 is (5, 10)")
        if self.special not in ("ieee", "nan", "none"):
            raise ValueError(f"special={self.special!r} must be 'ieee', 'nan' or 'none'")
        if self.special == "ieee" and self.exponent_bits < 2:
            raise ValueError("exponent_bits=1 with special='ieee' leaves no finite exponent; use special='none'")
        if self.special == "nan" and self.mantissa_bits < 1:
            raise ValueError("mantissa_bits=0 with special='nan' would lose a whole exponent; use 'ieee' or 'none'")

    @property
    def bits(self) -> int:
        """Sign, exponent and mantissa."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
        return max(2 ** (self.exponent_bits - 1) - 1, 0)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, and of all subnormal ones."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest number."""
        return 2**self.exponent_bits - 1 - self.bias - (self.special == "ieee")

    @property
    def max_value(self) -> float:
        """The largest finite number."""
        last = 2 - 2.0**-self.mantissa_bits
        if self.special == "nan":  # the code of all ones is NaN
            last -= 2.0**-self.mantissa_bits
        return last * 2.0**self.max_exponent

    @property
    def tiny(self) -> float:
        """The smallest normal number."""
        return 2.0**self.min_exponent

    @property
    def smallest(self) -> float:
        """The smallest number above zero, a subnormal one; also the step between all subnormal numbers."""
        return 2.0 ** (self.min_exponent - self.mantissa_bits)

    def values(self) -> Tensor:
        """Every finite value from 0 up, ascending, float32; for formats of up to 16 bits.

        Raises:
            ValueError: there are too many.

        Example:
            >>> FloatFormat(2, 1, "none").values().tolist()
            [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        """
        if self.bits > 16:
            raise ValueError(f"a format of {self.bits} bits has too many values to list; at most 16 bits")
        steps = torch.arange(2**self.mantissa_bits, dtype=torch.float64) / 2**self.mantissa_bits
        exponents = range(self.min_exponent, self.max_exponent + 1)
        values = torch.cat([steps * self.tiny, *((1 + steps) * 2.0**exponent for exponent in exponents)])
        return values[values <= self.max_value].float()


FLOATS = {
    "fp32": FloatFormat(8, 23),
    "tf32": FloatFormat(8, 10),
    "fp16": FloatFormat(5, 10),
    "bf16": FloatFormat(8, 7),
    "fp8_e4m3": FloatFormat(4, 3, "nan"),
    "fp8_e5m2": FloatFormat(5, 2),
    "fp6_e2m3": FloatFormat(2, 3, "none"),
    "fp6_e3m2": FloatFormat(3, 2, "none"),
    "fp4_e2m1": FloatFormat(2, 1, "none"),
}


def round_float(
    x: Tensor,
    fmt: FloatFormat,
    *,
    rounding: str = "nearest",
    saturate: bool | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``x`` with every element rounded to a value of the format.

    Beyond the largest number a format with infinities gives infinity, one without gives its largest number: what
    torch's casts do. NaN stays NaN, and zero keeps its sign.

    Args:
        x: any shape, any floating point dtype.
        fmt: the format.
        rounding: "nearest" (ties to even), or "stochastic": up with a probability equal to the distance from the value
            below, so that the mean of many roundings is ``x``.
        saturate: True gives the largest number for everything beyond it, an infinite ``x`` too; False gives infinity
            or, where the format has none but has NaN, NaN. None is False for formats with infinities, else True.
        generator: of the stochastic rounding; None draws from a generator with seed 0.

    Returns:
        The shape of ``x``; float64 for float64, float32 otherwise (which holds every value of every format).

    Raises:
        TypeError: ``x`` is not floating point.
        ValueError: ``rounding`` is unknown.

    Example:
        >>> round_float(torch.tensor([0.3, 2.5, -5.0, 100.0]), FLOATS["fp4_e2m1"]).tolist()
        [0.5, 2.0, -4.0, 6.0]
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}; call .float() first")
    if rounding not in ("nearest", "stochastic"):
        raise ValueError(f"rounding={rounding!r} must be 'nearest' or 'stochastic'")
    if rounding == "stochastic" and generator is None:
        generator = torch.Generator(x.device).manual_seed(0)
    result = x.detach().to(
        torch.promote_types(x.dtype, torch.float32), memory_format=torch.contiguous_format, copy=True
    )
    for chunk in result.view(-1).split(CHUNK):
        sign = chunk.clone()
        magnitude = chunk.abs_()
        if rounding == "stochastic":
            _round_stochastic(magnitude, fmt, generator)
        else:
            _round_nearest(magnitude, fmt)
        if saturate or fmt.special == "none" or (saturate is None and fmt.special == "nan"):
            magnitude.clamp_(max=fmt.max_value)
        else:
            magnitude.masked_fill_(magnitude > fmt.max_value, math.inf if fmt.special == "ieee" else math.nan)
        magnitude.copysign_(sign)
    return result


def _exponent(magnitude: Tensor, fmt: FloatFormat) -> Tensor:
    """2^e of each element, e at least that of the subnormal numbers: the exponent bits alone, read as a float."""
    if magnitude.dtype is torch.float64:
        power = (magnitude.view(torch.int64) & (0x7FF << 52)).view(torch.float64)
    else:
        power = (magnitude.view(torch.int32) & (0xFF << 23)).view(torch.float32)
    return power.clamp_(min=fmt.tiny)


def _round_nearest(magnitude: Tensor, fmt: FloatFormat) -> None:
    digits = 52 if magnitude.dtype is torch.float64 else 23
    if fmt.mantissa_bits >= digits:
        return
    if fmt.exponent_bits == 8 and digits == 23:
        # The same exponents as float32: the sum below would overflow, and the bits can be rounded as an integer.
        drop, nan = digits - fmt.mantissa_bits, magnitude.isnan()
        code = magnitude.view(torch.int32)
        code.add_(((code >> drop) & 1).add_(2 ** (drop - 1) - 1)).bitwise_and_(-(2**drop))
        magnitude.masked_fill_(nan, math.nan)
        return
    magnitude.clamp_(max=2.0 ** (fmt.max_exponent + 1))  # rounds to more than the largest number all the same
    shift = _exponent(magnitude, fmt).mul_(2.0 ** (digits - fmt.mantissa_bits))
    magnitude.add_(shift).sub_(shift)


def _round_stochastic(magnitude: Tensor, fmt: FloatFormat, generator: torch.Generator) -> None:
    magnitude.clamp_(max=2.0 ** min(fmt.max_exponent + 1, 127))
    step = _exponent(magnitude, fmt).mul_(2.0**-fmt.mantissa_bits)
    chance = torch.rand(magnitude.shape, generator=generator, dtype=magnitude.dtype, device=magnitude.device)
    below = magnitude.div_(step).floor()  # magnitude is now in steps, so the rest is a probability
    magnitude.sub_(below).gt_(chance).add_(below).mul_(step)
