"""The vocabulary of lessons 02 to 04: a grid of integers laid over the real numbers, and what rounding to it gives.

    level = clamp(round(x / scale) + zero_point, quant_min, quant_max)        x ~ scale * (level - zero_point)

*Symmetric*: the zero point is 0 and the levels run from -(2^(bits-1) - 1) to 2^(bits-1) - 1. The lowest two's
complement number stays unused, so that x and -x get opposite levels and both ends of the range are hit exactly; it
costs one level, which matters at 2 bits only (three levels are left: use the asymmetric grid there). At 1 bit the two
levels are -1 and +1, the scale is mean|x| (Rastegari and others, 2016) and no level stands for 0.
*Asymmetric*: the levels run from 0 to 2^bits - 1, and the range is widened so that 0.0 is a level, exactly: padding
with zeros and ReLU then cost nothing.

    Jacob and others, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    2017, https://arxiv.org/abs/1712.05877, section 2.1
    Rastegari and others, "XNOR-Net", 2016, https://arxiv.org/abs/1603.05279, section 3.1 (1 bit)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid", "Quantized", "check_finite", "choose_grid", "integer_levels", "quantize"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels and what they stand for: one scale and zero point for a tensor, for each channel or for each group."""

    scale: Tensor  # (), (channels,) or (..., groups): the step, in units of x, > 0
    zero_point: Tensor  # int32, shape of scale: the level that stands for 0.0
    bits: int
    symmetric: bool = True
    axis: int | None = None
    group_size: int | None = None

    @property
    def quant_min(self) -> int:
        """The lowest level."""
        return integer_levels(self.bits, symmetric=self.symmetric)[0]

    @property
    def quant_max(self) -> int:
        """The highest level."""
        return integer_levels(self.bits, symmetric=self.symmetric)[-1]

    def spread(self, values: Tensor, shape: torch.Size) -> Tensor:
        """``values``, one for each scale, in a shape that broadcasts against a tensor of shape ``shape``."""
        if self.group_size is not None:
            return values.repeat_interleave(self.group_size, -1).reshape(shape)
        if self.axis is None:
            return values
        return values.reshape([-1 if axis == self.axis % len(shape) else 1 for axis in range(len(shape))])

    def quantize(self, x: Tensor) -> Quantized:
        """``x`` on this grid; what lies outside goes to the nearest end.

        Args:
            x: finite, floating point; a shape that the scales fit.

        Raises:
            ValueError: ``x`` is not finite. TypeError: it is not floating point.

        Example:
            >>> choose_grid(-1.0, 1.0, bits=8).quantize(torch.tensor([0.5, 3.0])).levels.tolist()
            [64, 127]
        """
        check_finite(x)
        values = x.detach().to(self.scale.dtype)
        if self.bits == 1 and self.symmetric:
            levels = torch.where(values < 0, -1, 1)
        else:
            # By the reciprocal, as torch's own fake quantization does: the levels are the same to the last bit.
            levels = (values * self.spread(1 / self.scale, x.shape)).round() + self.spread(self.zero_point, x.shape)
        narrow, wide = (torch.int8, torch.int16) if self.symmetric else (torch.uint8, torch.int32)
        levels = levels.clamp(self.quant_min, self.quant_max)  # before the cast: a cast to integers wraps around
        return Quantized(levels.to(narrow if self.bits <= 8 else wide), self, x.dtype)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A tensor as integers, with the grid that gives them meaning."""

    levels: Tensor  # shape of x; int8 or uint8 up to 8 bits, then int16 (symmetric) or int32
    grid: Grid
    dtype: torch.dtype  # of x, and of what dequantize returns

    @property
    def scale(self) -> Tensor:
        """The grid's scales."""
        return self.grid.scale

    @property
    def zero_point(self) -> Tensor:
        """The grid's zero points."""
        return self.grid.zero_point

    @property
    def bits(self) -> int:
        """Bits of a level."""
        return self.grid.bits

    def dequantize(self) -> Tensor:
        """The values that the levels stand for, in the shape and dtype of the tensor that was quantized."""
        scale, zero_point = (self.grid.spread(part, self.levels.shape) for part in (self.scale, self.zero_point))
        # Widened first: uint8 minus a 0-d int32 is uint8 to torch, and wraps around.
        return ((self.levels.to(torch.int32) - zero_point) * scale).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes to store: packed levels, scales as they are, packed zero points (none where the grid is symmetric)."""
        packed = [self.levels] if self.grid.symmetric else [self.levels, self.zero_point]
        return self.scale.nbytes + sum(-(-part.numel() * self.bits // 8) for part in packed)

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element, scales and zero points included; infinite for an empty tensor."""
        return 8 * self.nbytes / self.levels.numel() if self.levels.numel() else float("inf")


def quantize(
    x: Tensor, *, bits: int = 8, symmetric: bool = True, axis: int | None = None, group_size: int | None = None
) -> Quantized:
    """``x`` rounded to the integer grid that spans from its smallest to its largest value.

    Args:
        x: finite, floating point, any shape.
        bits: 1..16.
        symmetric: levels around 0 with zero point 0, or levels from 0 with a zero point.
        axis: the axis kept, one scale for each index; None is one scale for the tensor.
        group_size: consecutive elements of the last axis that share a scale, instead of ``axis``.

    Raises:
        ValueError: ``x`` is not finite, ``bits`` or ``axis`` is out of range, or ``group_size`` does not divide the
            last axis. TypeError: ``x`` is not floating point.

    Example:
        >>> quantized = quantize(torch.tensor([7.0, 2.4, -2.6]), bits=4)  # scale 7 / 7
        >>> quantized.levels.tolist(), quantized.dequantize().tolist()
        ([7, 2, -3], [7.0, 2.0, -3.0])
    """
    check_finite(x)
    rows = _rows(x.detach(), axis, group_size).to(torch.promote_types(x.dtype, torch.float32))
    if not rows.numel():
        minimum = maximum = rows.new_zeros(rows.shape[:-1])
    elif bits == 1 and symmetric:
        minimum, maximum = -rows.abs().mean(-1), rows.abs().mean(-1)
    else:
        minimum, maximum = rows.aminmax(dim=-1)
    return choose_grid(minimum, maximum, bits=bits, symmetric=symmetric, axis=axis, group_size=group_size).quantize(x)


def choose_grid(
    minimum: Tensor | float,
    maximum: Tensor | float,
    *,
    bits: int = 8,
    symmetric: bool = True,
    axis: int | None = None,
    group_size: int | None = None,
) -> Grid:
    """The grid whose ends are the ends of a range, which is widened to hold 0.

    Args:
        minimum, maximum: the range, one for each scale, finite. Where both are 0 the scale is 1 and everything in the
            range has the level of 0.
        bits: 1..16.
        symmetric: the range becomes -m..m, m the larger magnitude.
        axis, group_size: what each scale belongs to, as in ``quantize``.

    Raises:
        ValueError: ``bits`` is out of range, the range is not finite, or it ends before it begins.

    Example:
        >>> grid = choose_grid(-1.0, 2.0, bits=2, symmetric=False)  # three steps from -1 to 2
        >>> grid.scale.item(), grid.zero_point.item()
        (1.0, 1)
    """
    levels = integer_levels(bits, symmetric=symmetric)
    dtype = torch.promote_types(torch.as_tensor(minimum).dtype, torch.float32)
    low, high = (torch.as_tensor(end).double() for end in (minimum, maximum))  # max - min of float32 may overflow
    wrong = ~(low.isfinite() & high.isfinite() & (low <= high))
    if wrong.any():
        raise ValueError(
            f"a range must be finite and ordered, got {low[wrong][0]:g}..{high[wrong][0]:g}; calibrate again"
        )
    low, high, info = low.clamp(max=0), high.clamp(min=0), torch.finfo(dtype)
    span = torch.maximum(-low, high) if symmetric else high - low
    scale = (span / levels[-1]).clamp(info.tiny, info.max).to(dtype)
    if bits > 1 or not symmetric:  # with 1 bit no level is 0, so the scale itself must vanish
        scale = torch.where(span == 0, 1, scale)
    zero_point = torch.zeros_like(scale) if symmetric else (-low / scale.double()).round()
    return Grid(scale, zero_point.to(torch.int32), bits, symmetric, axis, group_size)


def integer_levels(bits: int, *, symmetric: bool = True) -> range:
    """The levels of a grid, from ``quant_min`` to ``quant_max``.

    Args:
        bits: 1..16.

    Raises:
        ValueError: ``bits`` is not an integer in 1..16.

    Example:
        >>> integer_levels(4), integer_levels(4, symmetric=False), list(integer_levels(1))
        (range(-7, 8), range(0, 16), [-1, 1])
    """
    if not isinstance(bits, int) or not 1 <= bits <= 16:
        raise ValueError(f"bits={bits!r} must be an integer in 1..16; try 8 or 4")
    if bits == 1 and symmetric:
        return range(-1, 2, 2)
    return range(1 - 2 ** (bits - 1), 2 ** (bits - 1)) if symmetric else range(2**bits)


def check_finite(x: Tensor, name: str = "x") -> None:
    """Raise unless every element of ``x`` is a finite floating-point number.

    Raises:
        ValueError: some are not (the message counts them), or ``x`` is on the meta device and holds nothing.
        TypeError: ``x`` is not floating point.

    Example:
        >>> check_finite(torch.tensor([1.0, 2.0]))
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; call .float() first")
    if x.is_meta:
        raise ValueError(f"{name} is on the meta device and holds no values; load the weights first")
    if x.numel() and not all(end.isfinite() for end in x.detach().aminmax()):  # quicker than to count
        nan, infinite = int(x.isnan().sum()), int(x.isinf().sum())
        raise ValueError(f"{name} must be finite, got {nan} NaN and {infinite} infinite of {x.numel()}; mend it first")


def _rows(x: Tensor, axis: int | None, group_size: int | None) -> Tensor:
    """(scales..., elements that share a scale)"""
    if axis is not None and group_size is not None:
        raise ValueError(f"axis={axis} and group_size={group_size} exclude each other; groups lie along the last axis")
    if group_size is not None:
        last = x.shape[-1] if x.dim() else 1
        if group_size < 1 or last % group_size:
            fit = sorted((abs(size - group_size), size) for size in range(1, last + 1) if last % size == 0)[:3]
            raise ValueError(f"group_size={group_size} must divide the last axis ({last}); try {[s for _, s in fit]}")
        return x.reshape(*x.shape[:-1], last // group_size, group_size)
    if axis is None:
        return x.reshape(-1)
    if not -x.dim() <= axis < x.dim():
        raise ValueError(f"axis={axis} must be an axis of x, whose shape is {tuple(x.shape)}; None is per tensor")
    return x.movedim(axis, 0).reshape(x.shape[axis], x.numel() // max(x.shape[axis], 1))
