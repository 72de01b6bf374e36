"""SparseGPT: weights are removed so that the output of their layer stays right, and those that are left make up for it.

Column after column is gone through. What removing a weight does to the output is taken over by the weights further on
in its row, as the correlations of the inputs allow (the optimal brain surgeon, in a fixed order). With H the mean of
x x^T, damped, and its inverse U^T U, U upper triangular:

    e = w_j / U_jj  where weight j goes, else 0        w_k <- w_k - e U_jk   for k >= j

What goes is chosen block by block, over all rows, as the lowest w^2 / U_jj^2 of the weights as they are by then, or for
N:M among every m columns. All columns of a block are corrected at once for the blocks behind it: for given masks the
size of the blocks changes the time only.

    Frantar and Alistarh, "SparseGPT: massive language models can be accurately pruned in one-shot", 2023,
    https://arxiv.org/abs/2301.00774, algorithm 1
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.pruning.layer_inputs import InputStatistics
from compresslab.pruning.masks import check_finite, global_masks
from compresslab.pruning.n_m import n_m_mask
from compresslab.pruning.sequential import SparseLayers, prune_in_order
from compresslab.pruning.wanda import check_options

__all__ = ["SparseGPTWeight", "sparsegpt", "sparsegpt_model"]


@dataclass(frozen=True, eq=False)
class SparseGPTWeight:
    """A weight with zeros, and what they cost."""

    weight: Tensor  # (O, I): those that are left have changed
    mask: Tensor  # (O, I) bool, True stays
    error: float  # trace(D H D^T): squared error of the layer's output, mean over tokens
    damping: float  # that was needed, relative to the mean of the diagonal


@torch.no_grad()
def sparsegpt(
    weight: Tensor,
    gram: Tensor,
    *,
    sparsity: float = 0.5,
    n: int | None = None,
    m: int | None = None,
    mask: Tensor | None = None,
    block_size: int = 128,
    damping: float = 0.01,
) -> SparseGPTWeight:
    """The weight without the given fraction, the rest corrected so that the layer's output changes little.

    Args:
        weight: (O, I), finite.
        gram: (I, I), the mean over tokens of x x^T; any positive factor gives the same. With groups (groups, I, I), one
            for each run of O / groups rows. Inputs that are always 0 are pruned first.
        sparsity: the fraction removed, 0..1, round(sparsity * O * I) in all and as even as can be over the blocks.
        n, m: keep n of every m inputs instead.
        mask: (O, I) bool, what is kept; then nothing is chosen, and the weights that are left are corrected.
        block_size: columns whose masks are chosen together; with n and m a multiple of m.
        damping: added to the diagonal, relative to its mean, 0..1; 10 times as much where that is too little.

    Raises:
        ValueError: a tensor is not finite, shapes do not fit, ``gram`` is not a mean of x x^T, or an option is out of
            range.

    Example:
        >>> gram = torch.ones(2, 2)  # both inputs are always the same: the second weight takes over
        >>> sparsegpt(torch.tensor([[1.0, 3.0]]), gram, mask=torch.tensor([[False, True]]), damping=0.0001).weight.round()
        tensor([[0., 4.]])
    """
    _check(weight, gram, mask, block_size, damping, m)
    check_options(sparsity, n, m)
    dtype = torch.promote_types(torch.promote_types(weight.dtype, gram.dtype), torch.float32)
    grams = gram.to(dtype).reshape(-1, *gram.shape[-2:])
    masks = [None] * len(grams) if mask is None else mask.chunk(len(grams))
    parts, error, most = [], 0.0, damping
    for h, rows, kept in zip(grams, weight.to(dtype).chunk(len(grams)), masks, strict=True):
        upper, used = _inverse_factor(h, damping)
        new, kept = _remove(rows.clone(), upper, kept, h.diagonal() > 0, (sparsity, n, m), block_size)
        d = rows - new
        parts.append((new, kept))
        error, most = error + ((d @ h) * d).sum().item(), max(most, used)
    new, kept = (torch.cat(part) for part in zip(*parts, strict=True))
    return SparseGPTWeight(new.to(weight.dtype), kept, error, most)


def _remove(
    w: Tensor, upper: Tensor, mask: Tensor | None, alive: Tensor, pattern: tuple, block_size: int
) -> tuple[Tensor, Tensor]:
    """Go through the columns of ``w`` in place, choosing what to remove where no mask is given."""
    (sparsity, n, m), (rows, columns) = pattern, w.shape
    kept = torch.ones_like(w, dtype=torch.bool) if mask is None else mask
    diagonal = upper.diagonal()

    def scores(first: int, last: int) -> Tensor:  # of the weights as they are by now; dead inputs first
        return torch.where(alive[first:last], (w[:, first:last] / diagonal[first:last]).square(), -1.0)

    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        block, errors = w[:, start:stop], torch.zeros_like(w[:, start:stop])
        if mask is None and m is None:
            remove = round(sparsity * rows * stop) - round(sparsity * rows * start)
            kept[:, start:stop] = global_masks({"": scores(start, stop)}, remove / (rows * (stop - start)))[""]
        for j in range(start, stop):
            if mask is None and m is not None and j % m == 0:
                kept[:, j : j + m] = n_m_mask(scores(j, j + m), n=n, m=m)
            e = torch.where(kept[:, j], 0, w[:, j] / diagonal[j])
            errors[:, j - start] = e
            block[:, j - start :].addr_(e, upper[j, j:stop], alpha=-1)
            w[:, j].masked_fill_(~kept[:, j], 0)  # and not 1e-9
        w[:, stop:].addmm_(errors, upper[start:stop, stop:], alpha=-1)
    return w, kept


def _inverse_factor(h: Tensor, damping: float) -> tuple[Tensor, float]:
    """U with U^T U the inverse of h, damped; and the damping it took."""
    mean, used = h.diagonal().mean(), damping
    mean = torch.where(mean > 0, mean, 1)
    eye = torch.eye(len(h), dtype=h.dtype, device=h.device)
    while True:
        damped = h + used * mean * eye
        damped.diagonal().add_(torch.where(h.diagonal() == 0, mean, 0))
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))  # of H = R R^T with R upper; then U = R^-1
        if not failed:
            return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True), used
        if used >= 1:
            least = torch.linalg.eigvalsh(h)[0].item()
            raise ValueError(f"gram must be a mean of x x^T, its lowest eigenvalue is {least:g}; see InputStatistics")
        used = min(max(10 * used, 1e-4), 1.0)


def sparsegpt_model(
    model: nn.Module,
    batches: Iterable,
    *,
    sparsity: float = 0.5,
    n: int | None = None,
    m: int | None = None,
    block_size: int = 128,
    damping: float = 0.01,
    names: Iterable[str] | None = None,
) -> SparseLayers:
    """A new model whose Linear and Conv layers were pruned by SparseGPT, one after the other.

    Args:
        model: any module, run in eval mode; it is left as it was.
        batches: of (inputs, labels), the labels are not used. A layer should get several times as many tokens as it has
            columns.
        sparsity: the fraction of each layer that is removed, 0..1.
        n, m: keep n of every m inputs instead; layers whose inputs m does not divide are skipped.
        block_size, damping: as in ``sparsegpt``.
        names: of parameters, or all matrices and kernels.

    Raises:
        ValueError: as ``sparsegpt`` and ``prune_in_order``.

    Example:
        >>> result = sparsegpt_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), [(torch.ones(5, 4), None)])
        >>> result.sparsity, result.tokens
        (0.5, {'0.weight': 5, '1.weight': 5})
    """
    check_options(sparsity, n, m)

    def prune(weight: Tensor, seen: InputStatistics) -> tuple[Tensor, Tensor]:
        inputs = weight[0].numel()
        order = torch.arange(inputs, device=weight.device).reshape(weight.shape[1], -1)  # (C, K)
        order = order.T.flatten() if m is not None else order.flatten()  # m channels of one position side by side
        back, gram = order.argsort(), seen.gram[:, order][:, :, order]
        options = {"sparsity": sparsity, "n": n, "m": m, "block_size": block_size, "damping": damping}
        found = sparsegpt(weight.flatten(1)[:, order], gram, **options)
        return found.weight[:, back].reshape(weight.shape), found.mask[:, back].reshape(weight.shape)

    return prune_in_order(model, batches, prune, names=names, m=m)


def _check(weight: Tensor, gram: Tensor, mask: Tensor | None, block_size: int, damping: float, m: int | None) -> None:
    check_finite(weight, "weight")
    check_finite(gram, "gram")
    groups = len(gram) if gram.dim() == 3 else 1
    fit = weight.dim() == 2 and gram.dim() in (2, 3) and gram.shape[-2:] == weight.shape[1:] * 2
    if not fit or not weight.numel() or not groups or len(weight) % groups:
        shapes = f"{tuple(weight.shape)} and {tuple(gram.shape)}"
        raise ValueError(f"weight (O, I) and gram (I, I) or (groups, I, I) must fit, got {shapes}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != weight.shape):
        raise ValueError(f"mask must be bool {tuple(weight.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    if not isinstance(block_size, int) or block_size < 1 or (m and block_size % m):
        raise ValueError(f"block_size={block_size!r} must be an integer of at least 1, a multiple of m; try 128")
    if not 0 <= damping <= 1:
        raise ValueError(f"damping={damping} must be in 0..1, relative to the mean of the diagonal; try 0.01")
