"""Rounding the columns of a weight one after another, each making up for the errors of those before it.

Errors D = W - Q make the output of a layer wrong by trace(D H D^T) (``hessian.py``). Cholesky's H = M diag(p) M^T with M
unit upper triangular makes this a sum of squares, for each row d of D

    d H d^T = sum_j p_j (d_j + sum_{k<j} M_kj d_k)^2

and the j-th square knows the columns up to j only. So column j is not rounded from w_j but from

    w_j + sum_{k<j} M_kj d_k            then, in each sweep, from            w_j + sum_{k/=j} (H_kj / H_jj) d_k

The first makes the j-th square as small as it can be. It is GPTQ (there with Cholesky's factor of H^-1) to the last
level, without an inverse, as Chee and others prove. A sweep is coordinate descent: each column is rounded again, now
that all others are known, and d H d^T never grows by it. H is the damped one in both. Columns come in blocks, and what
those outside of the block have to say is one matrix product.

    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ", 2022, https://arxiv.org/abs/2210.17323, section 3.3
    Chee, Cai, Kuleshov and De Sa, "QuIP: 2-bit quantization of large language models with guarantees", 2023,
    https://arxiv.org/abs/2307.13304, section 3 (LDLQ)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.quantization.affine import Grid

__all__ = ["RoundedColumns", "round_columns"]


@dataclass(frozen=True, eq=False)
class RoundedColumns:
    """The levels of a weight, and what it took to find them."""

    levels: Tensor  # (O, I), whole numbers in a floating-point dtype
    damping: float  # that was needed, relative to the mean of the Hessian's diagonal


@torch.no_grad()
def round_columns(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    act_order: bool = True,
    damping: float = 0.01,
    sweeps: int = 2,
    block_size: int = 32,
) -> RoundedColumns:
    """The levels of a weight, each column rounded with regard to the others.

    Args:
        weight: (O, I).
        hessian: (I, I), or (groups, I, I), one for each run of O / groups rows.
        grid: of the weight, with a scale for each row or group; it stays.
        act_order: columns in the order of falling diagonal of H, else from the first to the last.
        damping: added to the diagonal, relative to its mean, 0..1; 10 times as much where that is too little.
        sweeps: of coordinate descent afterwards.
        block_size: columns in a block; it changes the time, and the result by no more than how sums are rounded.

    Raises:
        ValueError: ``hessian`` is not symmetric or has a negative eigenvalue, beyond rounding, an option is out of range,
            or the grid has one bit and is symmetric.

    Example:
        >>> weight, grid = torch.tensor([[0.4, 0.4]]), Grid(torch.ones(1), torch.zeros(1), bits=4, axis=0)
        >>> round_columns(weight, torch.ones(2, 2), grid).levels.tolist()  # both inputs are always the same
        [[0.0, 1.0]]
    """
    if grid.bits == 1 and grid.symmetric:
        raise ValueError("a symmetric grid of bits=1 has no level between -1 and 1; try symmetric=False or bits=2")
    if not 0 <= damping <= 1:
        raise ValueError(f"damping={damping} must be in 0..1, relative to the mean of the diagonal; try 0.01")
    for name, value, least in (("sweeps", sweeps, 0), ("block_size", block_size, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}; try {least + 1}")
    dtype = torch.promote_types(grid.scale.dtype, hessian.dtype)
    matrices = hessian.to(dtype).reshape(-1, *hessian.shape[-2:])
    rows = [part.to(dtype).chunk(len(matrices)) for part in (weight, grid.scale, grid.zero_point)]
    levels, needed = [], [damping]
    for h, w, scale, zero_point in zip(matrices, *rows, strict=True):
        order = torch.arange(len(h), device=h.device)
        if act_order:
            order = h.diagonal().argsort(descending=True, stable=True)
        factor, descent, used = _coefficients(h[order][:, order], damping)
        # Transposed: what lies in a column, (O,), then lies together in memory.
        scale, zero_point = (part.reshape(len(w), -1).T.contiguous() for part in (scale, zero_point))  # (groups, O)
        steps = zip(scale, 1 / scale, grid.quant_min - zero_point, grid.quant_max - zero_point, strict=True)
        steps, size = list(steps), len(h) // len(scale)
        columns = [steps[group] for group in (order // size).tolist()]
        found = _round(w[:, order].T.contiguous(), columns, [factor] + sweeps * [descent], block_size)
        levels.append(found[order.argsort()].T + zero_point.repeat_interleave(size, 0).T)
        needed.append(used)
    return RoundedColumns(torch.cat(levels), max(needed))


def _round(w: Tensor, grids: list[tuple[Tensor, ...]], passes: list[Tensor], block_size: int) -> Tensor:
    """Levels from the zero point, (I, O): row j rounds w_j + sum_k C_jk d_k, d = w - Q, to its grid, by each C in turn."""
    levels, d = torch.zeros_like(w), torch.zeros_like(w)
    for turn, c in enumerate(passes):
        for start in range(0, len(w), block_size):
            block, stop = slice(start, start + block_size), start + block_size
            targets = torch.addmm(w[block], c[block, :start], d[:start])
            if turn:  # the first C is triangular
                targets.addmm_(c[block, stop:], d[stop:])
            near, columns = d[block].T, zip(targets, c[block, block], w[block], levels[block], d[block], strict=True)
            for (target, row, column, level, error), (scale, inverse, low, high) in zip(
                columns, grids[block], strict=True
            ):
                torch.mul(torch.addmv(target, near, row), inverse, out=level).round_().clamp_(low, high)
                torch.addcmul(column, level, scale, value=-1, out=error)
    return levels


def _coefficients(h: Tensor, damping: float) -> tuple[Tensor, Tensor, float]:
    """By row j what is added of d_k: M_kj for k < j, else 0; H_kj / H_jj for k /= j; and the damping it took."""
    uneven = (h - h.T).abs().max().item()
    if uneven > 1e-3 * h.abs().max():
        raise ValueError(f"hessian must be symmetric, two of its halves differ by {uneven:g}; use RunningHessian")
    mean, used = h.diagonal().mean(), damping
    mean = torch.where(mean > 0, mean, 1)
    while True:
        damped = h + used * mean * torch.eye(len(h), dtype=h.dtype, device=h.device)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))  # of H = R R^T with R upper, so from the last
        if not failed:
            break
        if used >= 1:
            least = torch.linalg.eigvalsh(h)[0].item()
            raise ValueError(f"hessian must be a mean of x x^T, its lowest eigenvalue is {least:g}; use RunningHessian")
        used = min(max(10 * used, 1e-4), 1.0)
    upper = lower.flip(0, 1)
    factor = (upper / upper.diagonal()).T.contiguous().fill_diagonal_(0)
    return factor, (damped / damped.diagonal().unsqueeze(1)).fill_diagonal_(0), used
