"""N:M sparsity: of every m inputs in a row, n weights stay, so that a kernel knows where to look (2:4 on some GPUs).

The m consecutive inputs are columns of a matrix, input channels of a convolution. Which inputs are neighbours is chance
and can be changed: with the columns in another order (and the layer before putting out its channels in that order),
more of the large weights fit into the pattern. The best order is a search over groupings of the columns: all of them
where there are few; else for each pair of groups the best way to share their 2m columns, until no pair gets better.

    Mishra and others, "Accelerating sparse deep neural networks", 2021, https://arxiv.org/abs/2104.08378
    Pool and Yu, "Channel permutations for N:M sparsity", 2021,
    https://proceedings.neurips.cc/paper/2021/hash/6e8404c3b93a9527c8db241a1846599a-Abstract.html
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from compresslab.pruning.masks import check_finite, enforce
from compresslab.pruning.weights import PRUNABLE, Sparse, choose_weights

__all__ = ["NMSparse", "check_n_m", "n_m_mask", "permute_columns", "prune_n_m", "why_not_n_m"]

FEW = 6000  # groupings that are all tried: those of 12 columns into 4s are 5,775
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class NMSparse(Sparse):
    """A model that keeps n of every m inputs."""

    orders: dict[str, Tensor]  # by parameter: (I,) the order of the input channels in which the pattern holds


def n_m_mask(scores: Tensor, *, n: int = 2, m: int = 4) -> Tensor:
    """The mask that keeps the n highest scores of every m consecutive inputs; of equal ones the first go.

    Args:
        scores: (O, I) or (O, C, K...), without NaN; m divides the inputs (axis 1).
        n, m: n kept of every m, 0 <= n <= m.

    Raises:
        ValueError: n and m do not fit each other or the inputs, or scores are not finite.

    Example:
        >>> n_m_mask(torch.tensor([[1.0, 4.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]])).int().tolist()
        [[0, 1, 0, 1, 0, 0, 1, 1]]
    """
    check_n_m(n, m)
    check_finite(scores, "scores")
    if scores.dim() < 2 or scores.shape[1] % m:
        raise ValueError(f"m={m} must divide the inputs (axis 1) of {tuple(scores.shape)}; try permuting or another m")
    groups = scores.movedim(1, -1).unflatten(-1, (-1, m))  # (O, K..., I / m, m)
    kept = groups.argsort(dim=-1, stable=True)[..., m - n :]
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, kept, True)
    return mask.flatten(-2).movedim(-1, 1)


def permute_columns(scores: Tensor, *, n: int = 2, m: int = 4, sweeps: int = 3) -> Tensor:
    """An order of the inputs in which the N:M mask keeps more: ``n_m_mask(scores[:, order])``.

    All groupings are tried where they are at most 6,000 (12 columns into 4s), and the best one is found. Else pairs of
    groups are improved in turn, which takes (I / m)^2 / 2 small searches a sweep.

    Args:
        scores: (O, I) or (O, C, K...), not negative; m divides the inputs (axis 1).
        n, m: as in ``n_m_mask``.
        sweeps: over all pairs of groups, at most; 0 leaves the order as it is where there are more than a few.

    Returns:
        (I,) indices; within a group in rising order.

    Raises:
        ValueError: as ``n_m_mask``, or 2m columns can be shared in too many ways.

    Example:
        >>> permute_columns(torch.tensor([[9.0, 1.0, 9.0, 1.0]]), n=1, m=2).tolist()  # the two 9s part
        [0, 1, 2, 3]
        >>> permute_columns(torch.tensor([[9.0, 9.0, 1.0, 1.0]]), n=1, m=2).tolist()
        [0, 2, 1, 3]
    """
    mask = n_m_mask(scores, n=n, m=m)
    groups = [list(range(start, start + m)) for start in range(0, mask.shape[1], m)]
    columns = scores.detach().movedim(1, 0).flatten(1).cpu()  # (I, rows)
    columns = columns.to(torch.promote_types(columns.dtype, torch.float32))
    if n in (0, m):  # any order keeps the same
        sweeps = 0
    elif _groupings(len(groups), m) <= FEW:
        groups, sweeps = _best(columns, groups, n), 0
    elif _groupings(2, m) > FEW:
        raise ValueError(f"m={m} must leave at most {FEW} ways to share two groups, got {_groupings(2, m)}; try m=4")
    changed = set(range(len(groups)))
    for _ in range(sweeps):
        before, changed = changed, set()
        for pair in combinations(range(len(groups)), 2):
            if {*pair} & (before | changed):
                old = [groups[place] for place in pair]
                groups[pair[0]], groups[pair[1]] = new = _best(columns, old, n)
                changed |= {*pair} if new != old else set()
    return torch.tensor([column for group in groups for column in group], device=scores.device)


def prune_n_m(
    model: nn.Module,
    *,
    n: int = 2,
    m: int = 4,
    scores: Mapping[str, Tensor] | None = None,
    permute: bool = False,
    names: Iterable[str] | None = None,
) -> NMSparse:
    """A new model that keeps n of every m inputs of each weight, those of the highest scores.

    With ``permute`` the masks hold the pattern in the order found: ``weight[:, order]`` is N:M, and computes the same
    from ``x[..., order]``. The model itself keeps its columns where they are.

    Args:
        model: any module; it is left as it was.
        n, m: n kept of every m.
        scores: by parameter, at least those that are pruned; magnitude if None.
        permute: look for a better order of the input channels.
        names: of parameters, or all matrices and kernels.

    Raises:
        ValueError: as ``n_m_mask`` and ``prune_magnitude``, or no weight has inputs that m divides.

    Example:
        >>> result = prune_n_m(nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 2)))
        >>> result.sparsity, result.skipped["1.weight"]
        (0.5, 'm=4 does not divide its 2 inputs')
    """
    check_n_m(n, m)
    result = copy.deepcopy(model)
    weights, skipped = choose_weights(result, names)
    masks, orders = {}, {}
    for name, weight in weights.items():
        if reason := why_not_n_m(result, name, m):
            skipped[name] = reason
            continue
        score = weight.detach().abs() if scores is None else scores[name]
        orders[name] = torch.arange(weight.shape[1], device=weight.device)
        if permute:
            orders[name] = permute_columns(score, n=n, m=m)
        masks[name] = n_m_mask(score[:, orders[name]], n=n, m=m)[:, orders[name].argsort()]
    if not masks:
        raise ValueError(f"{type(model).__name__} has no weight with inputs in groups of m={m}: {skipped}")
    enforce(masks)(result)
    return NMSparse(result, masks, skipped, orders)


def check_n_m(n: int, m: int) -> None:
    """Raise unless n of m can be kept.

    Raises:
        ValueError: they cannot.

    Example:
        >>> check_n_m(2, 4)
    """
    if not (isinstance(n, int) and isinstance(m, int) and 0 <= n <= m and m >= 1):
        raise ValueError(f"n={n!r} and m={m!r} must be integers, 0 <= n <= m (n kept of every m); try n=2, m=4")


def why_not_n_m(model: nn.Module, name: str, m: int) -> str:
    """Why a weight's inputs are not groups of m along axis 1; empty if they are.

    Example:
        >>> why_not_n_m(nn.Linear(6, 2), "weight", 4)
        'm=4 does not divide its 6 inputs'
    """
    module, weight = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
    if weight.dim() < 2 or isinstance(module, TRANSPOSED) or not isinstance(module, PRUNABLE):
        return f"{type(module).__name__}: its inputs do not lie along axis 1"
    return f"m={m} does not divide its {weight.shape[1]} inputs" if weight.shape[1] % m else ""


def _groupings(groups: int, m: int) -> int:
    """In how many ways columns fall into groups of m."""
    return math.factorial(groups * m) // (math.factorial(m) ** groups * math.factorial(groups))


def _best(columns: Tensor, groups: Sequence[list[int]], n: int) -> list[list[int]]:
    """The grouping of all these columns that keeps the most; the one given, unless another is better."""
    m, every = len(groups[0]), sorted(column for group in groups for column in group)
    subsets, groupings = _table(len(every), m)
    rows = list(columns[torch.tensor(every)][subsets.T])  # m of (subsets, rows)
    for first in range(n):  # the n highest of each m, by exchanges: much faster than a sort of so few
        for at in range(m - 1, first, -1):
            rows[at - 1], rows[at] = torch.maximum(rows[at - 1], rows[at]), torch.minimum(rows[at - 1], rows[at])
    kept = torch.stack(rows[:n]).sum((0, 2))[groupings].sum(1)  # (groupings,)
    place = {column: at for at, column in enumerate(every)}
    given = sorted(sorted(place[column] for column in group) for group in groups)
    best = kept.argmax()
    old = int((subsets[groupings] == torch.tensor(given)).flatten(1).all(1).nonzero())
    if kept[best] <= kept[old] * (1 + 1e-6):  # sums of floats in another order are no better
        best = old
    return [[every[at] for at in group] for group in subsets[groupings[best]].tolist()]


@functools.cache
def _table(count: int, m: int) -> tuple[Tensor, Tensor]:
    """All subsets of m columns (S, m), and all groupings as indices of subsets (P, count / m)."""
    subsets = list(combinations(range(count), m))
    index = {subset: at for at, subset in enumerate(subsets)}
    groupings = [[index[group] for group in grouping] for grouping in _all_groupings(tuple(range(count)), m)]
    return torch.tensor(subsets), torch.tensor(groupings)


def _all_groupings(columns: tuple[int, ...], m: int) -> Iterator[list[tuple[int, ...]]]:
    if not columns:
        yield []
        return
    first, *rest = columns
    for others in combinations(rest, m - 1):
        left = tuple(column for column in rest if column not in others)
        for grouping in _all_groupings(left, m):
            yield [(first, *others), *grouping]
