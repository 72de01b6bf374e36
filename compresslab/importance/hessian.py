"""The diagonal of the Hessian without the Hessian, and optimal brain damage.

Removing a weight changes the loss by -g w + 1/2 h w^2 to second order, h = H_kk; at an optimum g is 0. H has a row for
each weight and cannot be stored, but H v costs two backward passes. With random signs v,

    E[v * H v] = diag(H)        variance of entry k, for one probe: sum_{l != k} H_kl^2

since v_k v_l is 1 for k = l and random otherwise. The mean over m probes is unbiased and its error falls as 1 / sqrt(m);
the result says how large it is. (With v = 1, the gradient of the sum of a layer's gradient, nothing averages out: that
is the row sum of the layer's block of H, and for the last layer under a softmax it is 0.)

    LeCun, Denker and Solla, "Optimal brain damage", 1990, https://papers.nips.cc/paper/250, equations 3 and 5;
    Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007,
    https://doi.org/10.1016/j.apnum.2007.01.003, section 2; Hutchinson, "A stochastic estimator of the trace of the
    influence matrix", 1989, https://doi.org/10.1080/03610918908812806
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from compresslab.importance.scored import Batches, Loss, Scores, checked_loss, read, scored_weights, scoring, wide

__all__ = ["HessianDiagonal", "hessian_diagonal", "hessian_scores", "twice_differentiable"]


@dataclass(frozen=True, eq=False)
class HessianDiagonal:
    """An estimate of the diagonal of the Hessian of the mean loss, by weight name, and how far to trust it."""

    values: Scores  # the estimate
    standard_error: Scores  # of each entry: the deviation that other probes would show
    gradient: Scores  # of the mean loss, for what is not at an optimum
    probes: int  # for each batch


@contextlib.contextmanager
def twice_differentiable() -> Iterator[None]:
    """While it lasts, attention is computed in the way that has second derivatives.

    Example:
        >>> q = torch.ones(1, 1, 2, 2, requires_grad=True)
        >>> with twice_differentiable():
        ...     y = nn.functional.scaled_dot_product_attention(q, q, q).sum()
        ...     (g,) = torch.autograd.grad(y, q, create_graph=True)
        >>> torch.autograd.grad(g.sum(), q)[0].shape
        torch.Size([1, 1, 2, 2])
    """
    with sdpa_kernel(SDPBackend.MATH):
        yield


def hessian_diagonal(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    probes: int = 100,
    names: Collection[str] | None = None,
    generator: torch.Generator | None = None,
) -> HessianDiagonal:
    """Hutchinson's estimate of the diagonal, with the error of each entry.

    Each batch has probes of its own, so more batches make it better at no cost. With fewer than about a hundred in all
    the order is mostly noise; sums over a channel need fewer.

    Args:
        model: any module.
        batches: of (inputs, targets).
        loss_fn: (outputs, targets) -> mean over the samples.
        probes: for each batch, at least 2; each costs about two backward passes.
        names: as in ``scored_weights``.
        generator: draws the signs; one seeded with 0 if None.

    Raises:
        ValueError: fewer than 2 probes, no batch, weights, data or loss not finite, or no weight to score.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> batches = [(torch.eye(2), None)]  # L = (w_0^2 + w_1^2) / 2: H is the identity, each probe is exact
        >>> found = hessian_diagonal(layer, batches, lambda y, t: y.square().mean(), probes=2)
        >>> found.values["weight"].tolist(), found.standard_error["weight"].tolist()
        ([[1.0, 1.0]], [[0.0, 0.0]])
    """
    if not isinstance(probes, int) or probes < 2:
        raise ValueError(f"probes={probes!r} must be a whole number of at least 2, for an error to be known; try 100")
    weights = scored_weights(model, names)
    parameters = list(weights.values())
    generator = torch.Generator(parameters[0].device).manual_seed(0) if generator is None else generator
    zeros = [torch.zeros_like(p, dtype=wide(p)) for p in parameters]
    value, variance, gradient, samples = list(zeros), list(zeros), list(zeros), 0
    options = {"allow_unused": True, "materialize_grads": True}
    with scoring(model, weights), twice_differentiable():
        for inputs, targets in read(batches):
            n = len(inputs)
            loss = checked_loss(loss_fn(model(inputs), targets))
            g = torch.autograd.grad(loss, parameters, create_graph=True, **options)
            mean, squares = list(zeros), list(zeros)  # Welford's, over the probes of this batch
            for count in range(1, probes + 1):
                signs = [torch.randint(0, 2, p.shape, generator=generator, device=p.device).mul_(2).sub_(1) for p in g]
                product = sum((a * v).sum() for a, v in zip(g, signs, strict=True))
                second = (
                    torch.autograd.grad(product, parameters, retain_graph=count < probes, **options)
                    if product.requires_grad
                    else zeros  # the loss is linear
                )
                for place, (hv, v) in enumerate(zip(second, signs, strict=True)):
                    away = hv.to(mean[place].dtype) * v - mean[place]
                    mean[place] = mean[place] + away / count
                    squares[place] = squares[place] + away * (hv * v - mean[place])
            samples += n
            value = [a + n * b for a, b in zip(value, mean, strict=True)]
            variance = [a + n**2 * b / (probes - 1) / probes for a, b in zip(variance, squares, strict=True)]
            gradient = [a + n * b.detach() for a, b in zip(gradient, g, strict=True)]

    def named(tensors: list[torch.Tensor]) -> Scores:
        return {name: tensor / samples for name, tensor in zip(weights, tensors, strict=True)}

    return HessianDiagonal(named(value), named([v.sqrt() for v in variance]), named(gradient), probes)


def hessian_scores(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    probes: int = 100,
    first_order: bool = False,
    names: Collection[str] | None = None,
    generator: torch.Generator | None = None,
) -> Scores:
    """The saliency of optimal brain damage by weight: 1/2 h w^2, the change of the loss if it is removed at an optimum.

    It is signed: where the curvature is negative, removing lowers the loss (or the estimate has too few probes).

    Args:
        model: trained.
        batches: of (inputs, targets).
        loss_fn: (outputs, targets) -> mean over the samples.
        probes: as in ``hessian_diagonal``.
        first_order: add -g w, for a network that is not at an optimum of this loss.
        names: as in ``scored_weights``.
        generator: draws the signs; one seeded with 0 if None.

    Raises:
        ValueError: as in ``hessian_diagonal``.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 3.0)
        >>> batches, loss_fn = [(torch.ones(1, 1), None)], lambda y, t: y.square().mean()  # L = w^2: 9, then 0
        >>> hessian_scores(layer, batches, loss_fn)["weight"].item()  # 1/2 * 2 * 3^2
        9.0
        >>> hessian_scores(layer, batches, loss_fn, first_order=True)["weight"].item()  # 9 - 6 * 3
        -9.0
    """
    found = hessian_diagonal(model, batches, loss_fn, probes=probes, names=names, generator=generator)
    scores = {}
    for name, h in found.values.items():
        w = model.get_parameter(name).detach()
        scores[name] = h * w.square() / 2 - (found.gradient[name] * w if first_order else 0)
    return scores
