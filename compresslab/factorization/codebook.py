"""Codebooks: the weights of a layer share a few values, and each weight is the number of its value.

k-means picks the values: the k centroids c with the least sum_i (w_i - c_a(i))^2. In one dimension the clusters are
intervals of the sorted weights, so one step is k searches and differences of prefix sums, whatever the number of
weights; the assignment is exact. How it starts matters (Han and others, section 3.3): ``"linear"`` spreads the
centroids over the range and keeps the few large weights, ``"density"`` has as many weights in each, ``"random"`` draws
them. Pruned weights stay zero and belong to no cluster.

Fine-tuning moves the centroids: the gradient of one is the sum over its weights, dL/dc_k = sum_{a(i)=k} dL/dw_i.
N weights in k clusters take N log2 k bits and a table of 32 k bits: for a small layer the table is larger than what it
codes, and such a layer is skipped.

    Han, Mao and Dally, "Deep compression", 2016, https://arxiv.org/abs/1510.00149, section 3
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.factorization.replacing import check_model

__all__ = ["Codebook", "SharedWeights", "kmeans", "share_weights"]

INITS = ("linear", "density", "random")
MOST_CLUSTERS = 4096


@dataclass(frozen=True, eq=False)
class Codebook:
    """A tensor whose values are those of a small table."""

    centroids: Tensor  # (k,), ascending, in the dtype of the weights
    indices: Tensor  # of the weight's shape: which centroid; uint8 up to 256 clusters, else int16
    mask: Tensor | None  # bool: False is zero, whatever the index; None: no weight was pruned

    def weight(self) -> Tensor:
        """The tensor that is stood for."""
        values = self.centroids[self.indices.long()]
        return values if self.mask is None else values.masked_fill(~self.mask, 0)

    @property
    def nbytes(self) -> int:
        """Indices of log2 k bits, rounded up, and the table; where pruned weights are is not counted."""
        kept = self.indices.numel() if self.mask is None else int(self.mask.sum())
        bits = kept * math.ceil(math.log2(max(len(self.centroids), 1)))
        return -(-bits // 8) + self.centroids.nbytes


@dataclass(frozen=True, eq=False)
class SharedWeights:
    """A model whose weights share values, and the tables."""

    model: nn.Module  # a new model of the same layers
    codebooks: dict[str, Codebook]  # by parameter
    skipped: dict[str, str]  # parameter: why it stayed as it was


def kmeans(
    values: Tensor,
    clusters: int,
    *,
    mask: Tensor | None = None,
    init: str = "linear",
    iterations: int = 100,
    generator: torch.Generator | None = None,
) -> Codebook:
    """The values in clusters, by Lloyd's iteration until no value changes sides.

    Args:
        values: any shape, finite.
        clusters: 1..4096; those that nobody belongs to are left out.
        mask: of the same shape; what is False takes no part and is zero.
        init: ``"linear"``, ``"density"`` or ``"random"``.
        iterations: at most so many, at least 0.
        generator: for ``"random"``; one seeded with 0 if None.

    Raises:
        ValueError: an option is out of range, the mask has another shape or keeps nothing, or a value is not finite.

    Example:
        >>> found = kmeans(torch.tensor([0.0, 0.2, 1.0, 1.2]), 2)
        >>> [round(value, 3) for value in found.centroids.tolist()], found.indices.tolist(), found.nbytes
        ([0.1, 1.1], [0, 0, 1, 1], 9)
    """
    if isinstance(clusters, bool) or not isinstance(clusters, int) or not 1 <= clusters <= MOST_CLUSTERS:
        raise ValueError(f"clusters={clusters!r} must be a whole number in 1..{MOST_CLUSTERS}; try 16")
    if init not in INITS:
        raise ValueError(f"init={init!r} must be one of {', '.join(INITS)}")
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"iterations={iterations!r} must be a whole number, at least 0; try 100")
    if mask is not None and (mask.shape != values.shape or mask.dtype != torch.bool):
        raise ValueError(f"mask must be bool of shape {tuple(values.shape)}, got {mask.dtype} {tuple(mask.shape)}")
    x = values.detach().contiguous()
    kept, _ = (x if mask is None else x[mask]).flatten().double().sort()
    if not len(kept) or not kept.isfinite().all():
        raise ValueError(f"values must be finite and at least one kept, got {len(kept)}; look at the mask")
    sums = torch.cat([kept.new_zeros(1), kept.cumsum(0)])
    centroids, before = _start(kept, clusters, init, generator), None
    for _ in range(iterations):
        ends = torch.searchsorted(kept, _middles(centroids), right=True)  # one in the middle belongs to the lower
        edges = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(kept)])])
        if before is not None and torch.equal(edges, before):
            break
        counts, before = edges.diff(), edges
        centroids = torch.where(counts > 0, sums[edges].diff() / counts.clamp_min(1), centroids).sort().values
    indices = torch.bucketize(x.double(), _middles(centroids))
    used = torch.bincount((indices if mask is None else indices[mask]).flatten(), minlength=len(centroids)) > 0
    places = (used.cumsum(0) - 1).clamp_min(0)
    centroids, indices = centroids[used], places[indices]
    indices = indices.to(torch.uint8 if len(centroids) <= 256 else torch.int16)
    return Codebook(centroids.to(values.dtype), indices, None if mask is None else mask.clone())


@torch.no_grad()
def share_weights(
    model: nn.Module,
    *,
    clusters: int | Mapping[str, int] = 16,
    masks: Mapping[str, Tensor] | None = None,
    init: str = "linear",
    skip: Collection[str] = (),
    generator: torch.Generator | None = None,
) -> SharedWeights:
    """A new model whose matrices and kernels have a few values each.

    Args:
        model: any module; its parameters of two axes and more are coded, also those of recurrent and attention layers.
        clusters: 1..4096, one number or one for each parameter name; with names, the others are skipped.
        masks: by parameter name, bool, True stays; the others are zero and not clustered.
        init, generator: as ``kmeans``.
        skip: names of parameters to leave as they are.

    Raises:
        ValueError: a name is unknown, a shape or an option does not fit, a weight is not finite, or nothing is coded.

    Example:
        >>> result = share_weights(nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 256)), clusters=16)
        >>> result.codebooks["1.weight"].nbytes  # 512 indices of 4 bits, 16 values of 4 bytes
        320
        >>> result.skipped["0.weight"]
        'the codebook saves nothing: 9 bytes in place of 8'
    """
    check_model(model)
    result = copy.deepcopy(model)
    parameters = dict(result.named_parameters())  # a tied one once, under its first name
    wanted, masks = clusters if isinstance(clusters, Mapping) else {}, masks or {}
    if unknown := sorted({*wanted, *masks, *skip} - parameters.keys()):
        raise ValueError(f"{unknown} must be parameters of the model; choose from {[*parameters]}")
    codebooks, skipped = {}, {}
    for name, parameter in parameters.items():
        if parameter.dim() < 2 or not parameter.is_floating_point() or not parameter.numel():
            skipped[name] = "only matrices and kernels are coded"
            continue
        if ".parametrizations." in f".{name}":
            skipped[name] = "it belongs to a parametrization"
            continue
        count = wanted.get(name) if isinstance(clusters, Mapping) else clusters
        if name in skip or count is None:
            skipped[name] = "left out by the caller"
            continue
        mask = masks.get(name)
        if mask is not None and mask.dtype == torch.bool and not mask.any():
            skipped[name] = "the mask keeps nothing"
            continue
        found = kmeans(parameter, count, mask=mask, init=init, generator=generator)
        dense = parameter.numel() if mask is None else int(mask.sum())
        if found.nbytes >= dense * parameter.element_size():
            size = dense * parameter.element_size()
            skipped[name] = f"the codebook saves nothing: {found.nbytes} bytes in place of {size}"
            continue
        codebooks[name] = found
        parameter.copy_(found.weight())
    if not codebooks:
        raise ValueError(f"{type(model).__name__} has no weight to code: {skipped or 'it has no parameters'}")
    return SharedWeights(result, codebooks, skipped)


def _start(kept: Tensor, clusters: int, init: str, generator: torch.Generator | None) -> Tensor:
    if init == "linear":
        return torch.linspace(float(kept[0]), float(kept[-1]), clusters, dtype=kept.dtype, device=kept.device)
    if init == "density":
        places = (torch.arange(clusters, dtype=torch.float64) + 0.5) / clusters * len(kept)
        return kept[places.long().to(kept.device)]
    distinct = kept.unique()
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = torch.randperm(len(distinct), generator=generator)[:clusters].to(kept.device)
    return distinct[drawn].sort().values


def _middles(centroids: Tensor) -> Tensor:
    return (centroids[1:] + centroids[:-1]) / 2
