"""GraSP: keep the weights without which the gradient could no longer flow.

SNIP keeps the loss as it is, at a moment when the loss is bad anyway. GraSP looks at how much a step of training would
lower it, g^T g, and at how that changes when a weight is removed:

    (g^T g)(w) - (g^T g)(0)  ~  2 w (H g)        score  w (H g), the largest are kept

The paper removes the largest S(-w) = -w H g; the sign here is the other one, since higher means keep. Logits are divided
by 200, which keeps the softmax of a fresh network far from saturation.

    Wang, Zhang and Grosse, "Picking winning tickets before training by preserving gradient flow", 2020,
    https://arxiv.org/abs/2002.07376, equations 7 and 8, algorithm 1
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from compresslab.importance.hessian import twice_differentiable
from compresslab.importance.scored import (
    Batches,
    Loss,
    Scores,
    checked_loss,
    mean_gradients,
    read,
    scored_weights,
    scoring,
)

__all__ = ["grasp_scores"]


def grasp_scores(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    temperature: float = 200.0,
    names: Collection[str] | None = None,
) -> Scores:
    """w (H g) by weight, signed: below 0, removing the weight lets more gradient through.

    Args:
        model: freshly initialized.
        batches: of (inputs, targets); they are kept, since they are gone through twice.
        loss_fn: (outputs, targets) -> mean over the samples.
        temperature: the outputs are divided by it, > 0.
        names: as in ``scored_weights``.

    Raises:
        ValueError: a temperature that is not above 0, no batch, weights, data or loss not finite, no weight to score.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 3.0)
        >>> batches = [(torch.ones(1, 1), None)]  # L = w^2: g = 6, H = 2, w H g = 36
        >>> grasp_scores(layer, batches, lambda y, t: y.square().mean(), temperature=1.0)["weight"].tolist()
        [[36.0]]
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r} must be above 0; the paper has 200")
    weights, batches = scored_weights(model, names), list(batches)

    def cooled(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss_fn(outputs / temperature, targets)

    with scoring(model, weights, batch_statistics=True), twice_differentiable():
        constant = mean_gradients(model, batches, cooled, weights=weights)  # g, no function of the weights
        samples = sum(len(inputs) for inputs, _ in batches)
        total = {name: torch.zeros_like(gradient) for name, gradient in constant.items()}
        for inputs, targets in read(batches):
            loss = checked_loss(cooled(model(inputs), targets))
            options = {"allow_unused": True, "materialize_grads": True}
            g = torch.autograd.grad(loss, list(weights.values()), create_graph=True, **options)
            product = sum((a * constant[name].to(a.dtype)).sum() for a, name in zip(g, weights, strict=True))
            if product.requires_grad:  # else the loss is linear, and H is 0
                second = torch.autograd.grad(product, list(weights.values()), **options)  # H g of this batch
                for name, part in zip(weights, second, strict=True):
                    total[name] += part * (len(inputs) / samples)
    return {name: hg * weights[name].detach() for name, hg in total.items()}
