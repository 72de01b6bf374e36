"""Fisher information: the mean of squared gradients, one sample at a time.

    F_k = 1/N sum_i (d l_i / d w_k)^2        saliency of removing w_k: 1/2 F_k w_k^2

The square comes before the mean. The gradient of a batch, squared, is something else: at the optimum the samples'
gradients cancel, and what is left is noise that shrinks with the batch. F alone is no importance either: it is the price
of a step of size 1, and removing w_k is a step of size w_k.

Three kinds of labels: those of the data (the empirical Fisher), labels drawn from the model's own answer, or all labels
weighted by their probability (the true Fisher, which is the Gauss-Newton part of the Hessian).

    Amari, "Natural gradient works efficiently in learning", 1998, https://doi.org/10.1162/089976698300017746;
    Theis, Korshunova, Tejani and Huszar, "Faster gaze prediction with dense networks and Fisher pruning", 2018,
    https://arxiv.org/abs/1801.05787, equations 7 and 9; Kunstner, Balles and Hennig, "Limitations of the empirical
    Fisher approximation for natural gradient descent", 2019, https://arxiv.org/abs/1905.12558
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from compresslab.importance.gates import gate_gradients
from compresslab.importance.per_sample import sum_of_squares
from compresslab.importance.scored import Batches, Loss, Scores, read, scored_weights, scoring, wide

__all__ = ["fisher_channel_scores", "fisher_diagonal", "fisher_scores"]

LABELS = ("data", "sampled", "exact")


def fisher_diagonal(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    labels: str = "data",
    names: Collection[str] | None = None,
    generator: torch.Generator | None = None,
) -> Scores:
    """The mean over the samples of each one's squared gradient, by weight.

    Args:
        model: any module. In eval mode one sample's output must not depend on the others.
        batches: of (inputs, targets), samples along the first axis. A sequence is one sample.
        loss_fn: (outputs, targets) -> a number; it is called for each sample by itself.
        labels: ``"data"`` (empirical); for the true Fisher of a classifier whose ``loss_fn`` is the cross-entropy,
            ``"sampled"`` from softmax(outputs) along the last axis, or ``"exact"``: outputs (B, C), C backward passes.
        names: as in ``scored_weights``.
        generator: draws the labels; one seeded with 0 if None.

    Raises:
        ValueError: other ``labels``, no batch, weights, data or loss not finite, or no weight to score.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> batches = [(torch.tensor([[1.0], [-3.0]]), torch.zeros(2))]  # gradients 1 and -3
        >>> fisher_diagonal(layer, batches, lambda y, t: y.sum())["weight"].item()  # not (1 - 3)^2
        5.0
    """
    if labels not in LABELS:
        raise ValueError(f"labels={labels!r} must be one of {LABELS}")
    weights, samples = scored_weights(model, names), 0
    generator = torch.Generator(next(model.parameters()).device).manual_seed(0) if generator is None else generator
    total = {name: torch.zeros_like(weight, dtype=wide(weight)) for name, weight in weights.items()}
    with scoring(model, weights):
        for inputs, targets in read(batches):
            answers = [(targets, torch.ones(len(inputs)))]
            if labels != "data":
                with torch.no_grad():
                    answers = _answers(model(inputs), labels, generator)
            found = sum_of_squares(model, inputs, answers, loss_fn, weights=weights)
            for name, square in found.items():
                total[name] += square
            samples += len(inputs)
    return {name: square / samples for name, square in total.items()}


def fisher_scores(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    labels: str = "data",
    names: Collection[str] | None = None,
    generator: torch.Generator | None = None,
) -> Scores:
    """1/2 F w^2 by weight: what removing it adds to the loss, if F is the curvature.

    Args:
        model, batches, loss_fn, labels, names, generator: as in ``fisher_diagonal``.

    Raises:
        ValueError: as in ``fisher_diagonal``.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> batches = [(torch.tensor([[1.0], [-3.0]]), torch.zeros(2))]
        >>> fisher_scores(layer, batches, lambda y, t: y.sum())["weight"].item()  # 1/2 * 5 * 4
        10.0
    """
    diagonal = fisher_diagonal(model, batches, loss_fn, labels=labels, names=names, generator=generator)
    return {name: f * model.get_parameter(name).detach().square() / 2 for name, f in diagonal.items()}


def fisher_channel_scores(
    model: nn.Module, batches: Batches, loss_fn: Loss, *, names: Collection[str] | None = None
) -> Scores:
    """1/2 the mean over the samples of (sum of g w over the channel)^2: the sum first, then the square (equation 9).

    Args:
        model: any module.
        batches: of (inputs, targets), samples along the first axis.
        loss_fn: (outputs, targets) -> a number; it is called for each sample by itself.
        names: of weights of Linear and convolution layers; None for all but output layers.

    Returns:
        By weight name, (O,).

    Raises:
        ValueError: no batch, weights, data or loss not finite, or a layer without channels to gate.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for layer, weight in zip(model, (2.0, 3.0)):
        ...     _ = nn.init.constant_(layer.weight, weight)
        >>> batches = [(torch.tensor([[1.0], [-3.0]]), torch.zeros(2))]  # y = 6 x: derivatives by the gate 6 and -18
        >>> fisher_channel_scores(model, batches, lambda y, t: y.sum())["0.weight"].tolist()  # (36 + 324) / 4
        [90.0]
    """
    total, samples = {}, 0
    for _, found in gate_gradients(model, batches, loss_fn, names=names):
        for name, derivative in found.items():
            total[name] = total.get(name, 0) + derivative.square().sum(0) / 2
        samples += len(next(iter(found.values())))
    return {name: tensor / samples for name, tensor in total.items()}


def _answers(outputs: Tensor, labels: str, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Labels for the batch, with their probabilities: drawn ones, or each class in turn."""
    p = outputs.to(wide(outputs)).softmax(-1)
    if labels == "sampled":
        drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator).reshape(p.shape[:-1])
        return [(drawn, torch.ones(len(p)))]
    if p.dim() != 2:
        raise ValueError(f"labels='exact' needs outputs (B, C), got {tuple(p.shape)}; use labels='sampled'")
    return [(torch.full(p.shape[:1], c, device=p.device), p[:, c]) for c in range(p.shape[1])]
