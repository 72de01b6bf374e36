"""Tucker-2: a convolution as three, 1 x 1 to few channels, K x K among the few, 1 x 1 back to many.

A kernel is a tensor of O x C x K numbers. Its two channel axes are compressed each by a basis of its own,

    W[o, c, k] = sum_{p, q} U[o, p] G[p, q, k] V[c, q],        U (O, r_out), V (C, r_in), G (r_out, r_in, K)

The bases that HOSVD takes are the leading singular vectors of W unfolded along each axis: good, not optimal. HOOI goes
on in turns: with V fixed, the best U are the leading vectors of W x V, and the other way round. No step makes the
error larger, since each is the exact optimum of its half. With orthonormal bases ||W - W'||^2 = ||W||^2 - ||G||^2.

    Kim and others, "Compression of deep convolutional neural networks for fast and low power mobile applications",
    2016, https://arxiv.org/abs/1511.06530, section 3; De Lathauwer, De Moor and Vandewalle, "On the best rank-1 and
    rank-(R1, ..., RN) approximation of higher-order tensors", 2000 (HOOI)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.factorization.conv_svd import by_group, conv_like
from compresslab.factorization.replacing import check_rank

__all__ = ["Tucker2", "tucker2", "tucker_conv"]


@dataclass(frozen=True, eq=False)
class Tucker2:
    """A tensor whose first two axes have each a basis; with a leading axis for groups, if it was given one."""

    core: Tensor  # (..., r_out, r_in, K...)
    out_basis: Tensor  # U: (..., O, r_out), orthonormal columns
    in_basis: Tensor  # V: (..., C, r_in), orthonormal columns
    error: float  # ||W - W'|| / ||W||

    def full(self) -> Tensor:
        """The tensor of the first shape."""
        core = self.core.flatten(self.out_basis.dim())
        return torch.einsum("...pqk,...op,...cq->...ock", core, self.out_basis, self.in_basis).reshape(
            *self.out_basis.shape[:-1], self.in_basis.shape[-2], *self.core.shape[self.out_basis.dim() :]
        )


def tucker2(weight: Tensor, ranks: tuple[int, int], *, steps: int = 10, grouped: bool = False) -> Tucker2:
    """The Tucker-2 factors of a tensor: HOSVD, then some steps of HOOI.

    Args:
        weight: (O, C, K...), or (G, O, C, K...) with ``grouped``; all computation is in float64.
        ranks: (r_out, r_in), at most (O, C).
        steps: of HOOI, at least 0; 0 is plain HOSVD.
        grouped: the first axis holds tensors that are treated one by one.

    Raises:
        ValueError: the shape, a rank or the number of steps is out of range, or a number is not finite.

    Example:
        >>> u, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0, -1.0])
        >>> weight = torch.einsum("o,c,k->ock", u, v, torch.tensor([1.0, 5.0]))  # one product: ranks (1, 1) are exact
        >>> tucker2(weight, (1, 1)).error < 1e-6, torch.allclose(tucker2(weight, (1, 1)).full().float(), weight)
        (True, True)
    """
    if weight.dim() < 2 + grouped or not weight.numel() or not weight.isfinite().all():
        raise ValueError(f"weight must be a finite tensor (O, C, K...), got {tuple(weight.shape)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps={steps!r} must be a whole number, at least 0; try 10")
    w = weight.detach().double() if grouped else weight.detach().double().unsqueeze(0)
    shape, w = w.shape, w.flatten(3) if w.dim() > 3 else w.unsqueeze(-1)  # (G, O, C, K)
    out_rank, in_rank = check_rank(ranks[0], shape[1], name="r_out"), check_rank(ranks[1], shape[2], name="r_in")
    u = _leading(torch.einsum("gock,gpck->gop", w, w), out_rank)
    v = _leading(torch.einsum("gock,godk->gcd", w, w), in_rank)
    for _ in range(steps):
        half = torch.einsum("gock,gcq->goqk", w, v)
        u = _leading(torch.einsum("goqk,gpqk->gop", half, half), out_rank)
        half = torch.einsum("gock,gop->gpck", w, u)
        v = _leading(torch.einsum("gpck,gpdk->gcd", half, half), in_rank)
    core = torch.einsum("gock,gop,gcq->gpqk", w, u, v)
    lost = (w - torch.einsum("gpqk,gop,gcq->gock", core, u, v)).norm() / w.norm().clamp_min(torch.finfo(w.dtype).tiny)
    parts = [core.reshape(shape[0], out_rank, in_rank, *shape[3:]), u, v]
    return Tucker2(*(parts if grouped else [part[0] for part in parts]), float(lost))


def tucker_conv(layer: nn.Module, ranks: tuple[int, int], *, steps: int = 10) -> nn.Sequential:
    """Three convolutions in place of one.

    Args:
        layer: Conv1d, Conv2d or Conv3d, grouped or not.
        ranks: (r_out, r_in) for each group.
        steps: of HOOI.

    Raises:
        ValueError: as ``tucker2``.

    Example:
        >>> tucker_conv(nn.Conv2d(8, 6, 3, padding=1), (3, 2))
        Sequential(
          (0): Conv2d(8, 2, kernel_size=(1, 1), stride=(1, 1), bias=False)
          (1): Conv2d(2, 3, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)
          (2): Conv2d(3, 6, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    kernel = by_group(layer)
    found = tucker2(kernel, ranks, steps=steps, grouped=True)
    ones = [1] * (kernel.dim() - 3)
    # All three get the same norm; bases have sqrt(rank).
    each = (float(found.core.norm()) * math.sqrt(math.prod(ranks))) ** (1 / 3) or 1.0
    first = found.in_basis.mT * (each / math.sqrt(ranks[1]))
    last = found.out_basis * (each / math.sqrt(ranks[0]))
    core = found.core * (math.sqrt(math.prod(ranks)) / each**2)
    return nn.Sequential(
        conv_like(layer, first.reshape(*first.shape, *ones)),
        conv_like(layer, core, axes=tuple(range(len(ones)))),
        conv_like(layer, last.reshape(*last.shape, *ones), bias=True),
    )


def _leading(gram: Tensor, rank: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues, as columns: (G, n, n) -> (G, n, rank)."""
    return torch.linalg.eigh(gram).eigenvectors[..., -rank:]
