"""How large a rank: by what it keeps, by what it costs, and under one budget for many layers.

A matrix with singular values s_1 >= s_2 >= ... loses, at rank r, the part sum_{i>r} s_i^2 / sum_i s_i^2 of its energy
(Eckart and Young 1936), and its two factors have r (O + I) numbers in place of O I. So a rank saves parameters only below
the break-even O I / (O + I). For several layers under one budget each layer's choices are points (cost, energy kept);
on the upper hull of these points the best choice for any price of a parameter is found by taking the steepest step
first (Lagrange). Keeping a layer whole is one of its points, so none gets a rank above its break-even.

    Eckart and Young, "The approximation of one matrix by another of lower rank", 1936
    Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988 (steps along the hull)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from compresslab.factorization.replacing import check_fraction

__all__ = ["RankAllocation", "allocate_ranks", "break_even_rank", "energy_rank", "error_rank", "largest_rank"]


@dataclass(frozen=True)
class RankAllocation:
    """A rank for each layer, and what they take and keep together."""

    ranks: dict[str, int | None]  # None: the layer stays whole
    parameters: int
    error: float  # sum over layers of the part of the energy that is lost


def energy_rank(singular_values: Tensor, energy: float) -> int:
    """The smallest rank that keeps this part of the energy, the sum of squared singular values.

    Args:
        singular_values: (n,), from the largest down.
        energy: greater than 0, at most 1.

    Raises:
        ValueError: the energy is out of range, or there are no values.

    Example:
        >>> import torch
        >>> energy_rank(torch.tensor([3.0, 1.0, 1.0]), 0.9)  # 9 of 11 is 0.82, 10 of 11 is 0.91
        2
    """
    check_fraction(energy, name="energy")
    if singular_values.dim() != 1 or not len(singular_values):
        raise ValueError(f"singular_values must be a vector of at least 1, got {tuple(singular_values.shape)}")
    kept = singular_values.double().square().cumsum(0)
    wanted = energy * kept[-1] * (1 - 1e-12)  # the sum itself is rounded
    return min(int((kept < wanted).sum()) + 1, len(kept))


def error_rank(singular_values: Tensor, error: float) -> int:
    """The smallest rank whose relative error, ||W - W_r|| / ||W||, is at most this.

    Args:
        singular_values: (n,), from the largest down.
        error: at least 0, less than 1.

    Raises:
        ValueError: the error is out of range.

    Example:
        >>> import torch
        >>> error_rank(torch.tensor([4.0, 3.0]), 0.6)  # without the second: 3 / 5
        1
    """
    if not 0 <= error < 1:
        raise ValueError(f"error={error!r} must be at least 0 and less than 1; try 0.1")
    return energy_rank(singular_values, 1 - error**2)


def break_even_rank(out_features: int, in_features: int) -> int:
    """The largest rank whose two factors have fewer numbers than the matrix; 0 if none has.

    Example:
        >>> break_even_rank(384, 96)  # 384 * 96 / (384 + 96) = 76.8
        76
    """
    return (out_features * in_features - 1) // (out_features + in_features)


def largest_rank(cost: Callable[[int], float], limit: float, *, most: int) -> int:
    """The largest rank such that it and all smaller ones cost less than the limit; 0 if rank 1 does not.

    Args:
        cost: of a rank: parameters, MACs, or milliseconds that the caller measures.
        limit: what the layer costs as it is, in the same unit.
        most: the largest rank that is tried.

    Example:
        >>> largest_rank(lambda rank: rank * (384 + 96), 384 * 96, most=96)
        76
    """
    for rank in range(1, most + 1):
        if cost(rank) >= limit:
            return rank - 1
    return most


def allocate_ranks(spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int) -> RankAllocation:
    """Ranks under a budget of parameters, such that little of the layers' energies is lost.

    Args:
        spectra: by layer: singular values, from the largest down.
        shapes: by layer: (O, I).
        budget: parameters of all layers together, biases not counted.

    Returns:
        The optimum where the budget is used up by whole steps of the hull; otherwise it misses the optimum by less than
        one step, and what is left of the budget is spent on the next best choices that fit.

    Raises:
        ValueError: the names differ, or the budget is below rank 1 everywhere.

    Example:
        >>> import torch
        >>> spectra = {"a": torch.tensor([2.0, 1.0, 1.0]), "b": torch.tensor([1.0, 1.0, 1.0])}
        >>> allocate_ranks(spectra, {"a": (3, 9), "b": (3, 9)}, 3 * 12).ranks  # b's second value is 1 of 3, a's 1 of 6
        {'a': 1, 'b': 2}
    """
    if spectra.keys() != shapes.keys() or not spectra:
        raise ValueError(f"spectra and shapes must name the same layers, got {[*spectra]} and {[*shapes]}")
    choices = {name: _choices(values, *shapes[name]) for name, values in spectra.items()}
    hulls = {name: _hull(points) for name, points in choices.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(cost for cost, _, _ in chosen.values())
    if left < 0:
        raise ValueError(f"budget={budget} is below rank 1 in every layer; give at least {budget - left}")
    steps = []
    for name, hull in hulls.items():
        for before, after in itertools.pairwise(hull):
            steps.append(((after[1] - before[1]) / (after[0] - before[0]), name, after))
    for _, name, after in sorted(steps, key=lambda step: -step[0]):  # steepest first; along a hull slopes only fall
        more = after[0] - chosen[name][0]
        if more > left:
            break
        chosen[name], left = after, left - more
    while True:  # the rest of the budget, by single choices that fit
        rest = [
            ((point[1] - chosen[name][1]) / (point[0] - chosen[name][0]), name, point)
            for name, points in choices.items()
            for point in points
            if 0 < point[0] - chosen[name][0] <= left and point[1] > chosen[name][1]
        ]
        if not rest:
            break
        _, name, point = max(rest, key=lambda step: step[0])
        chosen[name], left = point, left - (point[0] - chosen[name][0])
    return RankAllocation(
        {name: rank for name, (_, _, rank) in chosen.items()},
        sum(cost for cost, _, _ in chosen.values()),
        sum(1 - kept for _, kept, _ in chosen.values()),
    )


Point = tuple[int, float, int | None]  # parameters, part of the energy kept, rank


def _choices(singular_values: Tensor, out_features: int, in_features: int) -> list[Point]:
    energies = singular_values.double().square()
    kept = (energies.cumsum(0) / energies.sum().clamp_min(1e-300)).tolist()
    ranks = range(1, min(break_even_rank(out_features, in_features), len(kept)) + 1)
    points: list[Point] = [(rank * (out_features + in_features), kept[rank - 1], rank) for rank in ranks]
    return [*points, (out_features * in_features, 1.0, None)]


def _hull(points: list[Point]) -> list[Point]:
    """The points of the upper concave hull, from the cheapest on."""
    hull: list[Point] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(a: Point, b: Point) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])
