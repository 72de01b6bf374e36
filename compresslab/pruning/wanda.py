"""Wanda: a weight matters as much as its magnitude times the size of what it is multiplied with.

    S_ij = |W_ij| ||X_j||_2        ||X_j||_2 = sqrt(sum_t x_tj^2), over all tokens

The lowest of each row (an output) go, so each output keeps as many inputs; no weight is changed. It is what is best if
inputs were uncorrelated: then removing W_ij adds (S_ij)^2 to the squared error of the output. Layers are pruned in the
order in which they run, each with what it gets from those pruned before. A convolution is a matrix over patches.

    Sun, Liu, Bair and Kolter, "A simple and effective pruning approach for large language models", 2024,
    https://arxiv.org/abs/2306.11695, equation 1
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from compresslab.pruning.layer_inputs import InputStatistics
from compresslab.pruning.masks import check_finite, check_sparsity
from compresslab.pruning.n_m import check_n_m, n_m_mask
from compresslab.pruning.sequential import SparseLayers, prune_in_order

__all__ = ["row_masks", "wanda", "wanda_model", "wanda_scores"]


def wanda(
    weight: Tensor, squares: Tensor, *, sparsity: float = 0.5, n: int | None = None, m: int | None = None
) -> Tensor:
    """The mask of a layer, from its weight and the sum of squares of each input.

    Args:
        weight: (O, I), or (O, C, K...) of a convolution; finite.
        squares: (I,) or (groups, I), I = C * K..., at least 0; any positive factor gives the same.
        sparsity: the fraction of each row that is removed, 0..1: floor(I * sparsity) weights.
        n, m: keep n of every m inputs instead.

    Returns:
        bool, in the shape of ``weight``.

    Raises:
        ValueError: shapes do not fit, a tensor is not finite, or an option is out of range.

    Example:
        >>> wanda(torch.tensor([[1.0, -2.0, 3.0, 4.0]]), torch.tensor([100.0, 1.0, 1.0, 4.0])).tolist()  # 10, 2, 3, 8
        [[True, False, False, True]]
    """
    scores = wanda_scores(weight, squares)
    if n is None and m is None:
        return row_masks(scores, sparsity)
    return n_m_mask(scores, n=n, m=m)


def wanda_scores(weight: Tensor, squares: Tensor) -> Tensor:
    """|W_ij| times the norm of input j, in the shape of ``weight``.

    Args:
        weight, squares: as in ``wanda``.

    Raises:
        ValueError: shapes do not fit, or a tensor is not finite.

    Example:
        >>> wanda_scores(torch.tensor([[1.0, -2.0]]), torch.tensor([9.0, 4.0]))
        tensor([[3., 4.]])
    """
    check_finite(weight, "weight")
    check_finite(squares, "squares")
    groups = squares.reshape(-1, squares.shape[-1] if squares.dim() else 1)
    if weight.dim() < 2 or groups.shape[1] != weight[:1].numel() or len(weight) % len(groups) or squares.min() < 0:
        shapes = f"{tuple(weight.shape)} and {tuple(squares.shape)}"
        raise ValueError(f"weight (O, I) and squares (I,) or (groups, I), at least 0, must fit, got {shapes}")
    norms = groups.sqrt().repeat_interleave(len(weight) // len(groups), 0)  # (O, I)
    return weight.abs() * norms.reshape(weight.shape)


def row_masks(scores: Tensor, sparsity: float) -> Tensor:
    """The mask that removes floor(I * sparsity) of each row, the lowest scores; of equal ones the first go.

    Args:
        scores: (O, ...), without NaN.
        sparsity: 0..1.

    Raises:
        ValueError: ``sparsity`` is out of range, or scores are not finite.

    Example:
        >>> row_masks(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]), 0.5).int().tolist()
        [[0, 1, 1], [0, 1, 1]]
    """
    check_sparsity(sparsity)
    check_finite(scores, "scores")
    rows = scores.flatten(1)
    remove = int(rows.shape[1] * sparsity + 1e-9)  # 100 * 0.29 is 28.999...
    order = rows.argsort(dim=1, stable=True)
    return torch.ones_like(rows, dtype=torch.bool).scatter_(1, order[:, :remove], False).reshape(scores.shape)


def wanda_model(
    model: nn.Module,
    batches: Iterable,
    *,
    sparsity: float = 0.5,
    n: int | None = None,
    m: int | None = None,
    names: Iterable[str] | None = None,
) -> SparseLayers:
    """A new model whose Linear and Conv layers were pruned by Wanda, one after the other.

    Args:
        model: any module, run in eval mode; it is left as it was.
        batches: of (inputs, labels), the labels are not used.
        sparsity: the fraction of each row that is removed, 0..1.
        n, m: keep n of every m inputs instead; layers whose inputs m does not divide are skipped.
        names: of parameters, or all matrices and kernels.

    Raises:
        ValueError: as ``wanda`` and ``prune_in_order``.

    Example:
        >>> result = wanda_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [(torch.ones(5, 4), None)])
        >>> result.sparsity, result.tokens
        (0.5, {'0.weight': 5, '1.weight': 5})
    """
    check_options(sparsity, n, m)

    def prune(weight: Tensor, seen: InputStatistics) -> tuple[Tensor, Tensor]:
        mask = wanda(weight, seen.squares, sparsity=sparsity, n=n, m=m)
        return weight.masked_fill(~mask, 0), mask

    return prune_in_order(model, batches, prune, names=names, gram=False, m=m)


def check_options(sparsity: float, n: int | None, m: int | None) -> None:
    """Raise unless there is a sparsity, or both n and m."""
    check_sparsity(sparsity)
    if n is not None or m is not None:
        check_n_m(n, m)
