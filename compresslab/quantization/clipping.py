"""Clipping: a weight's range made narrower on purpose, where that lowers the squared error.

The step of a grid from min to max is set by the two extremes, and every other weight pays for it in rounding error. A
range scaled by c < 1 has a finer step, and clips what lies outside. Of ``steps`` values of c the one of least error

    sum_i h_i (w_i - Q_c(w_i))^2

is taken, by itself for each scale. Without data h_i = 1; with h_i = E[x_i^2] it is the error of the layer's output, as
if its inputs did not correlate. The fewer the bits, the more there is to win: of 100,000 normal weights at 4 bits two
thirds of the error, at 8 bits next to nothing.

Less error in the weights need not be less in the network: what is clipped always becomes smaller, and such errors add
up from layer to layer. Measure it; a method that looks at outputs (AdaRound) makes good use of the finer step.

    Banner, Nahshan and Soudry, "Post training 4-bit quantization of convolutional networks for rapid-deployment",
    2018, https://arxiv.org/abs/1810.05723, section 3 (clipping; here it is searched, not computed from a distribution)
"""

from __future__ import annotations

import torch
from torch import Tensor

from compresslab.quantization.affine import Grid, check_finite, choose_grid, quantize

__all__ = ["clipped_grid"]


def clipped_grid(
    x: Tensor,
    *,
    bits: int = 8,
    symmetric: bool = True,
    axis: int | None = None,
    group_size: int | None = None,
    importance: Tensor | None = None,
    steps: int = 100,
) -> Grid:
    """The grid whose range is the part of ``x``'s range that gives the least squared error, for each scale.

    Args:
        x: finite, floating point, any shape.
        bits, symmetric, axis, group_size: as in ``quantize``.
        importance: weights of the squared errors, at least 0, in a shape that broadcasts against ``x``; None is 1.
        steps: how many factors are tried, evenly from 1 / steps to 1; of equal ones the widest wins.

    Raises:
        ValueError: ``x`` is not finite, an option is out of range, or ``importance`` is not finite or negative.

    Example:
        >>> x = torch.tensor([0.9, -1.1, 1.0, 1.6])  # two bits: -s, 0 and s
        >>> round(clipped_grid(x, bits=2).scale.item(), 3)  # the mean is 1.15; the nearest of 0.016, 0.032, ...
        1.152
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be an integer of at least 1; try 100")
    options = {"bits": bits, "symmetric": symmetric, "axis": axis, "group_size": group_size}
    widest = quantize(x, **options).grid
    if importance is not None:
        check_finite(importance, "importance")
        if (importance < 0).any():
            raise ValueError(f"importance must be at least 0, got {importance.min():g}; pass mean squares")
    low, high = ((end - widest.zero_point) * widest.scale for end in (widest.quant_min, widest.quant_max))
    best, least = widest, None
    for step in range(steps, 0, -1):
        grid = choose_grid(low * (step / steps), high * (step / steps), **options)
        error = (grid.quantize(x).dequantize().to(grid.scale.dtype) - x).square()
        error = _sums(error if importance is None else error * importance, axis, group_size)
        least = error if least is None else least
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, grid.scale, best.scale)
        best = Grid(scale, torch.where(better, grid.zero_point, best.zero_point), **options)
    return best


def _sums(values: Tensor, axis: int | None, group_size: int | None) -> Tensor:
    """Sums over the elements that share a scale, in the shape of the scales."""
    if group_size is not None:
        return values.unflatten(-1, (-1, group_size)).sum(-1)
    return values.sum() if axis is None else values.movedim(axis, 0).flatten(1).sum(1)
