"""AdaRound's search: each weight is rounded up or down, whichever makes a given error small.

With w = s (floor(w / s) + h) each h is 0 or 1. The best h are searched by gradient descent through a soft one,

    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1),    zeta = 1.1, gamma = -0.1
    min over V  error(W~) + lambda mean(1 - |2 h(V) - 1|^beta)

which starts at the weights as they are. The last term drives each h to 0 or 1: a high beta holds only those near an
end, and it falls from 20 to 2. In the first fifth of the steps there is no such term. Scales stay as they are.

Two things are ours. The last term is a mean and not a sum, for an error that is relative: with the paper's lambda =
0.01 layers with few or coarse weights ended undecided. And the learning rate falls with the number of steps, so that V
gets as far in few: 0.02 for 1,000 steps, 0.001 (the paper's) for 20,000.

    Nagel, Amjad, van Baalen, Louizos and Blankevoort, "Up or down? Adaptive rounding for post-training quantization",
    2020, https://arxiv.org/abs/2004.10568, equations 22 to 24
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.quantization.affine import Grid, Quantized

__all__ = ["Found", "search_rounding"]

GAMMA, ZETA = -0.1, 1.1
WARMUP, TRAVEL = 0.2, 20  # share of the steps without the last term; steps times Adam's learning rate


@dataclass(frozen=True, eq=False)
class Found:
    """The rounding that a search ended with."""

    weight: Quantized  # h >= 0.5 is up
    undecided: float  # fraction of h that were neither 0 nor 1


def search_rounding(
    weight: Tensor, grid: Grid, error: Callable[[Tensor], Tensor], *, steps: int = 1000, penalty: float = 100.0
) -> Found:
    """The rounding of a weight that gradient descent finds for an error of the rounded weight.

    Args:
        weight: finite, any shape that the grid's scales fit.
        grid: of the weight; it stays.
        error: called with the soft-rounded weight at each step, in float32 or wider; gives a scalar, 1 for an error as
            large as that of rounding to nearest. It may draw new samples each time.
        steps: of Adam.
        penalty: lambda, above 0.

    Raises:
        ValueError: an option is out of range, or the grid is symmetric and has one bit.

    Example:
        >>> grid = Grid(torch.tensor(1.0), torch.tensor(0), bits=4)
        >>> total = lambda rounded: (rounded.sum() - 0.85).square() / 0.85**2
        >>> search_rounding(torch.tensor([0.45, 0.4]), grid, total).weight.levels.tolist()
        [1, 0]
    """
    if grid.bits == 1 and grid.symmetric:
        raise ValueError("a symmetric grid of bits=1 has no level between -1 and 1; try symmetric=False or bits=2")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be an integer of at least 1; try 1000")
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty={penalty} must be above 0 and finite; try 100")
    scale, zero_point = (grid.spread(part, weight.shape) for part in (grid.scale, grid.zero_point))
    exact = weight.detach().to(scale.dtype) / scale
    down = exact.floor()
    h = (exact - down).clamp(1e-4, 1 - 1e-4)  # at the ends the clip lets no gradient through
    v = (-((ZETA - GAMMA) / (h - GAMMA) - 1).log()).requires_grad_()
    adam = torch.optim.Adam([v], lr=TRAVEL / steps)

    def soft() -> Tensor:
        return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)

    def value(h: Tensor) -> Tensor:
        return scale * ((down + zero_point + h).clamp(grid.quant_min, grid.quant_max) - zero_point)

    with torch.enable_grad():
        for step in range(steps):
            h = soft()
            loss = error(value(h))
            done = (step / steps - WARMUP) / (1 - WARMUP)
            if done >= 0:
                loss = loss + penalty * (1 - (2 * h - 1).abs() ** (20 - 18 * done)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    h = soft().detach()
    hard = grid.quantize(value((h >= 0.5).to(scale.dtype)))
    return Found(Quantized(hard.levels, grid, weight.dtype), ((h > 0) & (h < 1)).double().mean().item())
