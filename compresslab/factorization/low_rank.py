"""Low-rank layers: a matrix as a product of a narrow and a wide one, W (O, I) = L (O, r) R (r, I).

Cut after r singular values, the SVD is the nearest matrix of rank r (Eckart and Young). But a layer should keep its
outputs, not its weights: min ||(W - W') X|| over inputs X. With the covariance C = S S^T of the inputs this is
min ||(W - W') S||, so W' S is the cut SVD of W S = U Sigma V^T: W' = U_r Sigma_r V_r^T S^-1. Now Sigma_r V_r^T is
U_r^T W S, and the inverse cancels:

    W' = U_r U_r^T W,        L = U_r,  R = U_r^T W

so a covariance that cannot be inverted (fewer inputs than features) does no harm. Where inputs tell two directions not
apart, a little of the identity (the ridge) lets the weights decide. Both factors get the same norm, which trains better.

    Wang and others, "SVD-LLM: truncation-aware singular value decomposition", 2024, https://arxiv.org/abs/2403.07378
    Chen and others, "DRONE: data-aware low-rank compression", 2021, https://openreview.net/forum?id=lvfESPvn7P
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.factorization.covariance import input_covariances
from compresslab.factorization.ranks import allocate_ranks, break_even_rank, energy_rank
from compresslab.factorization.replacing import Factorized, check_fraction, check_rank, find_layers, replace_layers

__all__ = ["Decomposed", "LowRankLinear", "decompose", "factorize_linears"]


@dataclass(frozen=True, eq=False)
class Decomposed:
    """The directions of a weight's outputs, from the one that carries most down."""

    weight: Tensor  # (O, I)
    basis: Tensor  # U: (O, min(O, I)), orthonormal columns, float64
    singular_values: Tensor  # of W, or of W S; (min(O, I),), float64

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """L (O, rank) and R (rank, I) in the weight's dtype, such that L R is the best of that rank."""
        left = self.basis[:, : check_rank(rank, len(self.singular_values))]
        right = left.T @ self.weight.double()
        size = right.norm(dim=1).sqrt()
        size = torch.where(size > 0, size, 1.0)
        return (left * size).to(self.weight.dtype), (right / size.unsqueeze(1)).to(self.weight.dtype)

    def error(self, rank: int) -> float:
        """||(W - L R) S|| / ||W S||; without a covariance S is 1."""
        energies = self.singular_values.square()
        return math.sqrt(energies[rank:].sum() / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny))


class LowRankLinear(nn.Sequential):
    """Two linear layers in place of one, (I -> r) and (r -> O); the second has the bias."""

    def __init__(self, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
        down, up = (nn.Linear(part.shape[1], part.shape[0], bias=False, device="meta") for part in (right, left))
        down.weight, up.weight = nn.Parameter(right.clone()), nn.Parameter(left.clone())
        if bias is not None:
            up.bias = nn.Parameter(bias.detach().clone())
        super().__init__(down, up)

    @property
    def weight(self) -> Tensor:
        """The product, (O, I), for code that reads a layer's weight."""
        return self[1].weight @ self[0].weight

    @property
    def bias(self) -> Tensor | None:
        """That of the layer."""
        return self[1].bias


def decompose(weight: Tensor, *, covariance: Tensor | None = None, ridge: float = 1e-6) -> Decomposed:
    """The SVD of a weight, or of its effect on inputs of this covariance.

    Args:
        weight: (O, I).
        covariance: (I, I), mean of x x^T over the inputs, not centred; None is the identity.
        ridge: at least 0, added to the covariance, in units of its mean diagonal.

    Raises:
        ValueError: the shapes do not fit, a number is not finite, or the ridge is negative.

    Example:
        >>> weight, seen = torch.diag(torch.tensor([3.0, 1.0])), torch.diag(torch.tensor([1.0, 100.0]))
        >>> left, right = decompose(weight).factors(1)
        >>> (left @ right).round().tolist()
        [[3.0, 0.0], [0.0, 0.0]]
        >>> left, right = decompose(weight, covariance=seen).factors(1)  # the second input is ten times as large
        >>> (left @ right).round().tolist()
        [[0.0, 0.0], [0.0, 1.0]]
    """
    if weight.dim() != 2 or not weight.numel() or not weight.isfinite().all():
        raise ValueError(f"weight must be a finite matrix, got {tuple(weight.shape)}; flatten(1) a kernel")
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge={ridge!r} must be finite and at least 0; try 1e-6")
    effect = weight.detach().double()
    if covariance is not None:
        if covariance.shape != 2 * weight.shape[1:] or not covariance.isfinite().all():
            raise ValueError(
                f"covariance must be finite and {tuple(2 * weight.shape[1:])}, got {tuple(covariance.shape)}"
            )
        c = covariance.to(effect)
        values, vectors = torch.linalg.eigh((c + c.T) / 2)
        effect = effect @ (vectors * (values.clamp_min(0) + ridge * c.diagonal().mean().clamp_min(0)).sqrt())  # W S
    basis, singular_values, _ = torch.linalg.svd(effect, full_matrices=False)
    return Decomposed(weight.detach(), basis, singular_values)


def factorize_linears(
    model: nn.Module,
    batches: Iterable | None = None,
    *,
    rank: int | Mapping[str, int] | None = None,
    energy: float | None = None,
    budget: float | None = None,
    skip: Collection[str] = (),
) -> Factorized:
    """A new model whose linear layers are products of two smaller ones, where that saves parameters.

    Args:
        model: any module.
        batches: of (inputs, ...): keep the outputs on these inputs. None: keep the weights.
        rank: one for all layers, or by layer name (the others are skipped). Give this, energy or budget.
        energy: part of each layer's energy to keep, greater than 0, at most 1.
        budget: parameters of all layers' weights, as a part of what they are now, greater than 0, at most 1. It is
            shared out by the energies of the weights, also with batches: those of outputs do not compare.
        skip: names of layers or modules to leave as they are.

    Raises:
        ValueError: not one of rank, energy and budget is given, a value is out of range, a name is unknown, a weight
            or an input is not finite, there is no batch, or nothing was replaced.

    Example:
        >>> result = factorize_linears(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), rank=2)
        >>> result.ranks, result.skipped, result.parameters, result.parameters_before
        ({'0': (2,)}, {'2': 'rank 2 saves nothing: (1, 8) breaks even below 1'}, 49, 81)
    """
    if sum(option is not None for option in (rank, energy, budget)) != 1:
        raise ValueError(f"give one of rank={rank}, energy={energy} and budget={budget}; try energy=0.9")
    layers, skipped = find_layers(model, [nn.Linear], skip=skip)
    if isinstance(rank, Mapping):
        if unknown := rank.keys() - layers:
            raise ValueError(f"rank={sorted(unknown)} must name layers that can be replaced: {[*layers]}")
        skipped |= dict.fromkeys(layers.keys() - rank, "left out by the caller")
        layers = {name: layer for name, layer in layers.items() if name in rank}
    seen = None if batches is None else input_covariances(model, batches, layers=layers)
    if seen is not None:
        skipped |= dict.fromkeys(layers.keys() - seen, "no input reached it")
        layers = {name: layer for name, layer in layers.items() if name in seen}
    parts = {
        name: decompose(layer.weight, covariance=seen and seen[name])
        for name, layer in layers.items()
        if layer.weight.numel()
    }
    new = {}
    for name, r in _ranks(parts, rank, energy, budget).items():
        shape = tuple(parts[name].weight.shape)
        if r is None:
            skipped[name] = "the budget has room for it as it is"
        elif r > break_even_rank(*shape):
            skipped[name] = f"rank {r} saves nothing: {shape} breaks even below {break_even_rank(*shape) + 1}"
        else:
            new[name] = (LowRankLinear(*parts[name].factors(r), layers[name].bias), (r,))
    return replace_layers(model, new, skipped)


def _ranks(
    parts: Mapping[str, Decomposed], rank: int | Mapping[str, int] | None, energy: float | None, budget: float | None
) -> dict[str, int | None]:
    if energy is not None:
        check_fraction(energy, name="energy")
        return {name: energy_rank(part.singular_values, energy) for name, part in parts.items()}
    if budget is not None:
        check_fraction(budget, name="budget")
        if not parts:
            return {}
        # Of the weights, also with batches: outputs with one loud direction would seem to need no rank at all.
        spectra = {name: torch.linalg.svdvals(part.weight.double()) for name, part in parts.items()}
        shapes = {name: tuple(part.weight.shape) for name, part in parts.items()}
        return allocate_ranks(spectra, shapes, int(budget * sum(out * into for out, into in shapes.values()))).ranks
    if isinstance(rank, Mapping):
        return {name: check_rank(rank[name], len(part.singular_values), name=name) for name, part in parts.items()}
    return dict.fromkeys(parts, check_rank(rank, 2**31))
