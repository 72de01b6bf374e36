"""Does "90 % sure" mean right nine times of ten? Calibration of a classifier's confidence.

Samples are sorted by confidence (the largest softmax probability) into bins; in each, accuracy should equal mean
confidence. The expected calibration error weighs the gaps by the samples in the bins B_m, of n in all:

    ECE = sum_m |B_m| / n  |acc(B_m) - conf(B_m)|                                       Guo, equation 3

Most samples of a good model sit in the last bin of equal width. Bins of equal *mass* hold as many samples each.
A single number often mends what compression (or training) did: divide all logits by the temperature that gives the
labels their highest likelihood on held-out data (Guo, section 4.2). No prediction changes.

    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", 2017, https://arxiv.org/abs/1706.04599
    Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language processing models", 2015,
    https://arxiv.org/abs/1508.05154 (bins of equal mass)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compresslab.measure.predictions import Predictions

__all__ = ["Calibration", "calibration_error", "fit_temperature"]


@dataclass(frozen=True, eq=False)
class Calibration:
    """The error, and the bins to draw. Bins without a sample are left out."""

    ece: float  # 0..1
    confidence: Tensor  # (M,) mean confidence of each bin, 0..1
    accuracy: Tensor  # (M,) share of right answers
    count: Tensor  # (M,) samples

    @property
    def overconfidence(self) -> float:
        """Mean confidence less accuracy, over all samples: above 0 the model claims too much."""
        return ((self.confidence - self.accuracy) * self.count).sum().item() / self.count.sum().item()


def calibration_error(predictions: Predictions, *, bins: int = 15, equal_mass: bool = False) -> Calibration:
    """The expected calibration error of a classifier, with its bins.

    Args:
        predictions: of N samples.
        bins: at least 1.
        equal_mass: bins with as many samples each (to within one), instead of bins of width 1 / bins.

    Raises:
        ValueError: ``bins`` is below 1.

    Example:
        >>> sure = torch.tensor([0.8, 0.2]).log()
        >>> result = calibration_error(Predictions(sure.expand(2, 2), torch.tensor([0, 1])))  # 80 % sure, 50 % right
        >>> round(result.ece, 6), round(result.overconfidence, 6), result.count.tolist()
        (0.3, 0.3, [2])
    """
    if not isinstance(bins, int) or bins < 1:
        raise ValueError(f"bins={bins!r} must be a whole number, at least 1; try 15")
    probabilities = predictions.logits.double().flatten(0, -2).softmax(-1)
    confidence, correct = probabilities.amax(-1), predictions.correct.flatten().double()
    if equal_mass:
        order = confidence.argsort(stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order)) * bins // len(order)
    else:
        place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)  # (m - 1) / M < confidence <= m / M
    count = torch.bincount(place, minlength=bins).double()
    sums = [torch.bincount(place, weights=values, minlength=bins) for values in (confidence, correct)]
    filled = count > 0
    mean_confidence, accuracy = (total[filled] / count[filled] for total in sums)
    ece = ((mean_confidence - accuracy).abs() * count[filled]).sum().item() / len(confidence)
    return Calibration(ece, mean_confidence, accuracy, count[filled].long())


def fit_temperature(predictions: Predictions) -> float:
    """The temperature T for which softmax(logits / T) gives the labels their highest likelihood.

    Args:
        predictions: of held-out samples, at least one of them wrong: otherwise the best T is 0.

    Returns:
        T, within 0.01..100; above 1 the model was overconfident.

    Raises:
        ValueError: every sample is right, or the labels are no likelier for any T.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0]]).expand(4, 2)  # right three times of four: log 3 would be honest
        >>> round(fit_temperature(Predictions(logits, torch.tensor([0, 0, 0, 1]))), 4)  # 4 / log 3
        3.641
    """
    if predictions.correct.all():
        count = predictions.labels.numel()
        raise ValueError(f"all {count} samples are right, so any T is too large; give more held-out samples")
    logits, labels = predictions.logits.double().flatten(0, -2), predictions.labels.flatten()

    def slope(log_beta: float) -> float:
        """Of the mean loss by beta = 1 / T, which rises with beta: the loss is convex in it."""
        beta = torch.tensor(log_beta, dtype=torch.float64).exp().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(F.cross_entropy(beta * logits, labels), beta)[0].item()

    low, high = -4.605170185988091, 4.605170185988091  # log 0.01, log 100
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return torch.tensor(-(low + high) / 2, dtype=torch.float64).exp().item()
