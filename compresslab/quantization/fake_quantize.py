"""Fake quantization: round to a grid and come straight back to floats, with a gradient that training can use.

    y = scale * (clamp(round(x / scale) + zero_point, quant_min, quant_max) - zero_point)

Rounding is flat almost everywhere: its true gradient is 0 and nothing would learn. The *straight-through estimator*
acts as if y were x where x is on the grid, and constant where it is clipped:

    dy/dx = 1 if quant_min <= round(x / scale) + zero_point <= quant_max, else 0

The range of a weight is read from the weight whenever it is used. The range of an activation is a moving average over
the batches of training, until it is frozen. In eval mode it never moves: an observer that goes on watching learns from
the validation set.

    Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons for conditional
    computation", 2013, https://arxiv.org/abs/1308.3432, section 4 (straight-through)
    Jacob and others, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    2017, https://arxiv.org/abs/1712.05877, section 3.1 (moving averages of ranges)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import Grid, Quantized, check_finite, choose_grid, integer_levels

__all__ = ["Dequantize", "FakeQuantize", "FakeQuantizeWeight", "fake_quantize"]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
        levels = (x.to(scale.dtype) * (1 / scale)).round() + zero_point  # by the reciprocal, as torch does
        ctx.save_for_backward((levels >= quant_min) & (levels <= quant_max))
        return ((levels.clamp(quant_min, quant_max) - zero_point) * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        (inside,) = ctx.saved_tensors
        return gradient * inside, None, None, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int, axis: int | None = None
) -> Tensor:
    """``x`` rounded to a grid, in floats; the gradient passes straight through wherever nothing is clipped.

    Args:
        x: floating point, any shape. NaN stays NaN.
        scale: the step, > 0; () or (1,), or one for each index of ``axis``.
        zero_point: the level of 0.0, shape of ``scale``.
        quant_min, quant_max: the lowest and the highest level, inclusive.
        axis: the axis kept; None is one scale for the tensor.

    Returns:
        Shape and dtype of ``x``. No gradient reaches ``scale``; ``lsq`` is for that.

    Raises:
        ValueError: ``quant_min`` is not below ``quant_max``.

    Example:
        >>> x = torch.tensor([0.6, 9.0], requires_grad=True)
        >>> y = fake_quantize(x, torch.tensor(0.5), torch.tensor(0), quant_min=-7, quant_max=7)
        >>> y.sum().backward()
        >>> y.tolist(), x.grad.tolist()
        ([0.5, 3.5], [1.0, 0.0])
    """
    if quant_min >= quant_max:
        raise ValueError(f"quant_min={quant_min} must be below quant_max={quant_max}; try -7 and 7")
    if axis is not None:
        shape = [-1 if index == axis % x.dim() else 1 for index in range(x.dim())]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return _StraightThrough.apply(x, scale, zero_point, quant_min, quant_max)


class FakeQuantizeWeight(nn.Module):
    """Fake quantization of a weight on a symmetric grid that spans what the weight is now.

    Args:
        bits: 2..16.
        axis: the axis of the output channels, one scale for each; None is one scale for the tensor.

    Example:
        >>> FakeQuantizeWeight(bits=4)(torch.tensor([7.0, 2.4]))
        tensor([7., 2.])
    """

    def __init__(self, *, bits: int = 8, axis: int | None = None) -> None:
        super().__init__()
        self.bits, self.axis = _checked(bits), axis

    def grid(self, x: Tensor) -> Grid:
        """The grid of the weight ``x``."""
        rest = [index for index in range(x.dim()) if self.axis is None or index != self.axis % x.dim()]
        peak = x.detach().to(torch.promote_types(x.dtype, torch.float32)).abs().amax(rest)
        return choose_grid(-peak, peak, bits=self.bits, axis=self.axis)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on its grid."""
        grid = self.grid(x)
        low, high = grid.quant_min, grid.quant_max
        return fake_quantize(x, grid.scale, grid.zero_point, quant_min=low, quant_max=high, axis=self.axis)


class FakeQuantize(nn.Module):
    """Fake quantization of an activation on an asymmetric grid over a moving average of the batches' ranges.

    In train mode, until ``freeze()``, each batch moves the range; in eval mode nothing does.

    Args:
        minimum, maximum: the range to start from, from calibration.
        bits: 2..16.
        momentum: weight of the newest batch, 0..1.

    Example:
        >>> quantizer = FakeQuantize(0.0, 3.0, bits=2).eval()
        >>> quantizer(torch.tensor([-1.0, 1.2, 9.0])).tolist(), quantizer.maximum.item()
        ([0.0, 1.0, 3.0], 3.0)
    """

    def __init__(self, minimum: float, maximum: float, *, bits: int = 8, momentum: float = 0.1) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum} must be in 0..1; try 0.1")
        self.bits, self.momentum, self.frozen = _checked(bits), momentum, False
        self.register_buffer("minimum", torch.tensor(float(minimum)))  # ()
        self.register_buffer("maximum", torch.tensor(float(maximum)))
        grid = self._range_grid()
        self.register_buffer("scale", grid.scale)  # ()
        self.register_buffer("zero_point", grid.zero_point)  # () int32

    def grid(self, x: Tensor | None = None) -> Grid:
        """The grid as it stands; ``x`` does not matter."""
        return Grid(self.scale, self.zero_point, self.bits, symmetric=False)

    def freeze(self) -> None:
        """Let the range stay as it is, in train mode too."""
        self.frozen = True

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid."""
        if self.training and not self.frozen and x.numel():
            self._observe(x.detach())
        return fake_quantize(x, self.scale, self.zero_point, quant_min=0, quant_max=2**self.bits - 1)

    def _observe(self, x: Tensor) -> None:
        for end, seen in zip((self.minimum, self.maximum), x.aminmax(), strict=True):
            if not seen.isfinite():  # a NaN reaches both ends
                check_finite(x, "an activation")
            end += self.momentum * (seen.to(end.dtype) - end)
        grid = self._range_grid()
        self.scale.copy_(grid.scale)
        self.zero_point.copy_(grid.zero_point)

    def _range_grid(self) -> Grid:
        return choose_grid(self.minimum, self.maximum, bits=self.bits, symmetric=False)


class Dequantize(nn.Module):
    """Levels to the values they stand for, when training is over; scales and zero points are in its state.

    Example:
        >>> quantized = FakeQuantizeWeight(bits=4).grid(torch.tensor([7.0])).quantize(torch.tensor([7.0, 2.4]))
        >>> Dequantize(quantized)(quantized.levels)
        tensor([7., 2.])
    """

    def __init__(self, quantized: Quantized) -> None:
        super().__init__()
        grid = quantized.grid
        self.options = {"bits": grid.bits, "symmetric": grid.symmetric, "axis": grid.axis}
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.register_buffer("empty", torch.empty(0, dtype=quantized.dtype), persistent=False)  # follows .double()

    def forward(self, levels: Tensor) -> Tensor:
        """The values, in the dtype of the tensor that was quantized."""
        return Quantized(levels, Grid(self.scale, self.zero_point, **self.options), self.empty.dtype).dequantize()


def _checked(bits: int) -> int:
    integer_levels(bits)  # raises
    if bits < 2:
        raise ValueError(f"bits={bits} must be at least 2 to be trained; try 2 or 4")
    return bits
