"""Product quantization: pieces of a row share codewords, as single weights share centroids.

A row of I weights is cut into pieces of ``block``; k-means in that many dimensions finds a table of k codewords, and a
piece is the number of its codeword: log2(k) / block bits a weight, fewer than one bit if one likes. Weights that vary
together cost less than apart. The table has k * block values, so it pays only for large layers.

    Gong, Liu, Yang and Bourdev, "Compressing deep convolutional networks using vector quantization", 2014,
    https://arxiv.org/abs/1412.6115; Stock and others, "And the bit goes down", 2020, https://arxiv.org/abs/1907.05686
    (one table for a layer, as here)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.factorization.replacing import check_rank

__all__ = ["ProductQuantized", "product_quantize"]


@dataclass(frozen=True, eq=False)
class ProductQuantized:
    """A matrix made of codewords."""

    codewords: Tensor  # (k, block)
    indices: Tensor  # (O, I / block), int64

    def weight(self) -> Tensor:
        """The matrix that is stood for, (O, I)."""
        return self.codewords[self.indices].flatten(1)

    @property
    def nbytes(self) -> int:
        """Indices of log2 k bits, rounded up, and the table."""
        bits = self.indices.numel() * math.ceil(math.log2(len(self.codewords)))
        return -(-bits // 8) + self.codewords.nbytes


def product_quantize(
    weight: Tensor, clusters: int, *, block: int = 4, iterations: int = 25, generator: torch.Generator | None = None
) -> ProductQuantized:
    """A matrix in pieces of rows, each the nearest of some codewords.

    Args:
        weight: (O, I), finite.
        clusters: k, at most the number of pieces.
        block: weights of a piece; divides I.
        iterations: of k-means, at least 1. A codeword that loses all its pieces takes the one that fits worst.
        generator: draws the pieces to start with; one seeded with 0 if None.

    Raises:
        ValueError: a value is out of range, or a weight is not finite.

    Example:
        >>> weight = torch.tensor([[1.0, 2.0, 5.0, 6.0], [5.0, 6.0, 1.0, 2.0]])
        >>> found = product_quantize(weight, 2, block=2)
        >>> torch.equal(found.weight(), weight), found.nbytes  # 4 pieces of 1 bit, 2 codewords of 2 values
        (True, 17)
    """
    if weight.dim() != 2 or not weight.numel() or not weight.isfinite().all():
        raise ValueError(f"weight must be a finite matrix, got {tuple(weight.shape)}; flatten(1) a kernel")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1 or weight.shape[1] % block:
        raise ValueError(f"block={block!r} must divide the rows of {weight.shape[1]}; try 1, 2 or 4")
    pieces = weight.detach().float().reshape(-1, block)
    check_rank(clusters, len(pieces), name="clusters")
    check_rank(iterations, 2**31, name="iterations")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    distinct = pieces.unique(dim=0)
    drawn = torch.randperm(len(distinct), generator=generator)[:clusters].to(pieces.device)
    codewords = distinct[drawn]
    for _ in range(iterations):
        indices, errors = _nearest(pieces, codewords)
        counts = torch.bincount(indices, minlength=len(codewords))
        sums = torch.zeros_like(codewords).index_add(0, indices, pieces)
        moved = torch.where(counts.unsqueeze(1) > 0, sums / counts.clamp_min(1).unsqueeze(1), codewords)
        empty = (counts == 0).nonzero().squeeze(1)
        moved[empty] = pieces[errors.topk(len(empty)).indices]
        if torch.equal(moved, codewords):
            break
        codewords = moved
    indices, _ = _nearest(pieces, codewords)
    return ProductQuantized(codewords.to(weight.dtype), indices.reshape(len(weight), -1))


def _nearest(pieces: Tensor, codewords: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codeword of each piece and the squared distance, 65,536 pieces at a time."""
    found = [
        (part.square().sum(1, keepdim=True) - 2 * part @ codewords.T + codewords.square().sum(1)).min(1)
        for part in pieces.split(65536)
    ]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])
