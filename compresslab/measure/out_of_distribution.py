"""Does the model know what it does not know? Scores that should be low on inputs of another kind.

A classifier names a class for anything, noise too. Two scores come for free with its logits f: the largest softmax
probability, and the energy, which unlike the softmax also sees how large the logits are (here its negative, so that
in both cases higher means "like the training data"):

    max_i softmax_i(f)                              Hendrycks and Gimpel
    -E = T log sum_i exp(f_i / T)                   Liu and others, equation 4

AUROC is the chance that an input of the known kind scores above one of another kind, ties counted half. FPR at 95: the
share of the other kind that passes where 95 % of the known kind do.

    Hendrycks and Gimpel, "A baseline for detecting misclassified and out-of-distribution examples in neural networks",
    2016, https://arxiv.org/abs/1610.02136
    Liu, Wang, Owens and Li, "Energy-based out-of-distribution detection", 2020, https://arxiv.org/abs/2010.03759
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Detection", "auroc", "detect", "energy_score", "softmax_score"]


@dataclass(frozen=True)
class Detection:
    """How well a score tells two kinds of inputs apart."""

    auroc: float  # 0..1; 0.5 is chance
    fpr: float  # share of the other kind that is taken for the known one at the threshold
    threshold: float  # of the score: at least this is taken for known


def softmax_score(logits: Tensor) -> Tensor:
    """The largest softmax probability of each sample, (N,) float64.

    Args:
        logits: (N, C).

    Example:
        >>> softmax_score(torch.tensor([[0.0, 0.0], [0.0, 50.0]])).tolist()
        [0.5, 1.0]
    """
    return logits.double().softmax(-1).amax(-1)


def energy_score(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The negative energy of each sample, (N,) float64: large where some logit is large.

    Args:
        logits: (N, C).
        temperature: above 0.

    Raises:
        ValueError: the temperature is not above 0.

    Example:
        >>> [round(score, 4) for score in energy_score(torch.tensor([[0.0, 0.0], [3.0, 3.0]])).tolist()]  # log 2 more
        [0.6931, 3.6931]
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature} must be above 0; try 1.0")
    return temperature * (logits.double() / temperature).logsumexp(-1)


def auroc(known: Tensor, other: Tensor) -> float:
    """The chance that a score of ``known`` lies above one of ``other``; ties count half.

    Args:
        known: (N,) scores of inputs of the known kind.
        other: (M,) scores of inputs of another kind.

    Raises:
        ValueError: one of them is empty, not one axis, or holds NaN.

    Example:
        >>> auroc(torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0]))  # three pairs won, one tied
        0.875
    """
    _check(known, other)
    known, other = known.double(), other.double().sort().values
    below = torch.searchsorted(other, known, side="left") + torch.searchsorted(other, known, side="right")
    return below.double().mean().item() / (2 * len(other))


def detect(known: Tensor, other: Tensor, *, recall: float = 0.95) -> Detection:
    """How well a threshold on the scores tells the two kinds apart.

    Args:
        known: (N,) scores of inputs of the known kind, from ``softmax_score``, ``energy_score`` or another.
        other: (M,) scores of inputs of another kind.
        recall: the share of the known kind that must pass, 0..1, 0 excluded. The threshold is the highest score that
            lets it pass.

    Raises:
        ValueError: as in ``auroc``, or ``recall`` is out of range.

    Example:
        >>> detect(torch.tensor([5.0, 4.0, 3.0, 2.0]), torch.tensor([4.5, 1.0]), recall=0.75)
        Detection(auroc=0.625, fpr=0.5, threshold=3.0)
    """
    if not 0 < recall <= 1:
        raise ValueError(f"recall={recall} must lie in 0..1, 0 excluded; try 0.95")
    value = auroc(known, other)
    place = math.ceil(recall * len(known) - 1e-9)  # so many must pass; the slack is for 0.95 * 20 = 19.000000000000004
    threshold = known.double().sort(descending=True).values[place - 1]
    return Detection(value, (other.double() >= threshold).double().mean().item(), threshold.item())


def _check(known: Tensor, other: Tensor) -> None:
    for name, scores in (("known", known), ("other", other)):
        if scores.dim() != 1 or not len(scores):
            raise ValueError(f"{name} {tuple(scores.shape)} must be (N,) with at least one score")
        if scores.isnan().any():
            raise ValueError(f"{name} holds {int(scores.isnan().sum())} NaN; a score must be a number")
