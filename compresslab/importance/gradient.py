"""The size of the gradient as importance: how fast the loss changes with the weight. It is not what removal costs.

    |g|,  g = the gradient of the mean loss over all samples

Removing w changes it by -w, not by an infinitely small step: a large gradient on a tiny weight counts for nothing.
``taylor.py`` mends that by one multiplication. The mean comes before the absolute value, so the score does not depend on
how the samples are batched.

    Mozer and Smolensky, "Skeletonization", 1988, https://papers.nips.cc/paper/119 (relevance by a derivative)
"""

from __future__ import annotations

from collections.abc import Collection

import torch  # noqa: F401 (the example)
from torch import nn

from compresslab.importance.scored import Batches, Loss, Scores, mean_gradients, scored_weights, scoring

__all__ = ["gradient_scores"]


def gradient_scores(
    model: nn.Module, batches: Batches, loss_fn: Loss, *, names: Collection[str] | None = None
) -> Scores:
    """The absolute gradient of the mean loss, by weight.

    Args:
        model: any module.
        batches: of (inputs, targets).
        loss_fn: (outputs, targets) -> mean over the samples.
        names: as in ``scored_weights``.

    Raises:
        ValueError: no batch, weights, data or loss not finite, or no weight to score.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> batches = [(torch.tensor([[1.0, -2.0]]), None), (torch.tensor([[3.0, 0.0]]), None)]
        >>> gradient_scores(layer, batches, lambda y, t: y.mean())["weight"].tolist()  # |1 + 3| / 2, |-2 + 0| / 2
        [[2.0, 1.0]]
    """
    weights = scored_weights(model, names)
    with scoring(model, weights):
        gradients = mean_gradients(model, batches, loss_fn, weights=weights)
    return {name: gradient.abs() for name, gradient in gradients.items()}
