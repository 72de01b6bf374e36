"""Ranks and their correlation: what is left of scores when only their order counts.

    rho = 1 - 6 sum_i (r_i - s_i)^2 / (n^3 - n)      without ties; in general the correlation of the ranks r and s

Pruning removes the lowest scores, so only the order matters, and one enormous value cannot rule it.

    Spearman, "The proof and measurement of association between two things", 1904, https://doi.org/10.2307/1412159
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["average_ranks", "spearman"]


def average_ranks(values: Tensor) -> Tensor:
    """The rank of each value, from 1 for the lowest; equal values share the mean of their ranks.

    Args:
        values: of any shape.

    Returns:
        float64, in the shape of ``values``.

    Raises:
        ValueError: a value is NaN, and has no rank.

    Example:
        >>> import torch
        >>> average_ranks(torch.tensor([30.0, 10.0, 30.0, 20.0])).tolist()
        [3.5, 1.0, 3.5, 2.0]
    """
    if values.isnan().any():
        raise ValueError(
            f"{int(values.isnan().sum())} of {values.numel()} values are NaN and have no rank; remove them"
        )
    _, place, counts = values.flatten().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place].reshape(values.shape)


def spearman(first: Tensor, second: Tensor) -> float:
    """Spearman's rank correlation, in -1..1.

    Args:
        first, second: as many values each, at least 2.

    Returns:
        NaN if all values of one are equal: it has no order.

    Raises:
        ValueError: different lengths, fewer than 2 values, or a NaN.

    Example:
        >>> import torch
        >>> round(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0])), 3)  # 1 - 6 * 2 / 24
        0.5
    """
    if first.numel() != second.numel() or first.numel() < 2:
        raise ValueError(f"{first.numel()} and {second.numel()} values must be as many, and at least 2, to correlate")
    r, s = (average_ranks(values.flatten()) for values in (first, second))
    r, s = r - r.mean(), s - s.mean()
    return float((r @ s) / ((r @ r) * (s @ s)).sqrt())  # 0 / 0 is NaN: no order
