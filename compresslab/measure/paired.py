"""Is the difference between two models real? Compared on the same samples, one by one.

Two accuracies with overlapping intervals may still differ surely: what counts are the samples where just one of the
two is right. To ``metrics.py`` this adds tests for pairs, and how far a model's answers moved from a reference.

    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947
    Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", Journal of Educational and Behavioral Statistics 2012
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compresslab.measure.estimates import Estimate, bootstrap, normal_quantile, wilson

__all__ = ["Paired", "agreement", "kl_divergence", "mcnemar", "paired_bootstrap", "sqnr_db"]


@dataclass(frozen=True)
class Paired:
    """A difference between two models on the same samples, and how likely chance alone makes one as large."""

    difference: Estimate  # the other less the reference
    p_value: float


def mcnemar(reference: Tensor, other: Tensor, *, confidence: float = 0.95) -> Paired:
    """The difference in accuracy of two models on the same samples, with McNemar's exact p-value.

    Where both are right or both wrong says nothing about which is better. Of the n samples where one alone is right,
    each model would have half if they were equal: the p-value is a two-sided binomial test of that.

    Args:
        reference: whether the reference was right, bool, any shape.
        other: whether the other was right on the same samples, the same shape.
        confidence: of Bonett and Price's interval.

    Raises:
        TypeError: the tensors are not bool.
        ValueError: they differ in shape, are empty, or ``confidence`` is out of range.

    Example:
        >>> a = torch.tensor([True] * 9 + [False])
        >>> b = torch.tensor([False] * 5 + [True] * 5)  # 5 times a alone was right, once b alone
        >>> result = mcnemar(a, b)
        >>> round(result.difference.value, 2), result.p_value  # 2 * (1 + 6) / 2**6
        (-0.4, 0.21875)
    """
    _check_pair(reference, other)
    if reference.dtype is not torch.bool or other.dtype is not torch.bool:
        raise TypeError(
            f"reference and other must be bool, got {reference.dtype} and {other.dtype}; try predicted == labels"
        )
    count = reference.numel()
    lost, won = int((reference & ~other).sum()), int((other & ~reference).sum())
    tail, term = 0, 1  # sum of binomial coefficients (n over 0..k), in whole numbers
    for chosen in range(min(lost, won) + 1):
        tail += term
        term = term * (lost + won - chosen) // (chosen + 1)
    p_value = min(1.0, 2 * tail / 2 ** (lost + won))
    share_lost, share_won = (lost + 1) / (count + 2), (won + 1) / (count + 2)
    center = share_won - share_lost
    half = normal_quantile(confidence) * math.sqrt((share_won + share_lost - center**2) / (count + 2))
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return Paired(Estimate((won - lost) / count, low, high, count, "points"), p_value)


def paired_bootstrap(
    reference: Tensor,
    other: Tensor,
    *,
    statistic: Callable[[Tensor], float] = lambda values: values.double().mean().item(),
    resamples: int = 1000,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> Paired:
    """The difference of a statistic between two models, over samples drawn again for both alike.

    The p-value is twice the share of resamples on the far side of zero; the least it can say is 2 / (resamples + 1).

    Args:
        reference: values of the reference, first axis N samples.
        other: values of the other on the same samples, the same shape.
        statistic: of the values of the samples drawn; the mean by default.
        resamples: how many times to draw.
        confidence: 0..1, ends excluded.
        generator: draws the samples; None starts from seed 0.

    Raises:
        ValueError: the shapes differ, there is no sample, or a number is out of range.

    Example:
        >>> losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> paired_bootstrap(losses, losses + 0.5).difference
        Estimate(value=0.5, low=0.5, high=0.5, count=4, unit='')
    """
    _check_pair(reference, other)
    difference, drawn = bootstrap(
        lambda index: statistic(other[index]) - statistic(reference[index]),
        len(reference),
        resamples=resamples,
        confidence=confidence,
        generator=generator,
    )
    far = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return Paired(difference, min(1.0, 2 * (far + 1) / (resamples + 1)))


def agreement(reference: Tensor, other: Tensor, *, confidence: float = 0.95) -> Estimate:
    """The share of samples on which two models predict the same class, right or wrong, with Wilson's interval.

    Args:
        reference: predicted classes, any shape.
        other: predicted classes on the same samples, the same shape.
        confidence: 0..1, ends excluded.

    Raises:
        TypeError: the predictions are floats, as logits are.
        ValueError: the shapes differ, there is no sample, or ``confidence`` is out of range.

    Example:
        >>> print(agreement(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])))
        75.0 % [30.1, 95.4]
    """
    _check_pair(reference, other)
    if reference.is_floating_point() or other.is_floating_point():
        raise TypeError(f"predictions must be classes, got {reference.dtype} and {other.dtype}; take logits.argmax(-1)")
    return wilson(int((reference == other).sum()), reference.numel(), confidence=confidence)


def sqnr_db(reference: Tensor, other: Tensor) -> float:
    """Signal to quantization noise in decibels: 10 log10 of sum(ref^2) / sum((ref - other)^2); infinite when equal.

    20 dB is an error of a tenth of the signal, 40 dB of a hundredth; one bit more is about 6 dB.

    Raises:
        ValueError: the shapes differ, there is nothing, a value is not finite, or the reference is all zeros.

    Example:
        >>> round(sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])), 6)  # 25 to 0.25
        20.0
    """
    _check_pair(reference, other)
    reference, other = reference.detach().double(), other.detach().double()
    if bad := int((~reference.isfinite() | ~other.isfinite()).sum()):
        raise ValueError(f"{bad} of {reference.numel()} pairs hold NaN or infinity; SQNR needs finite values")
    signal, noise = reference.square().sum().item(), (reference - other).square().sum().item()
    if not signal:
        raise ValueError(f"reference is all zeros ({reference.numel()} values): there is no signal to compare with")
    return 10 * math.log10(signal / noise) if noise else math.inf


def kl_divergence(reference: Tensor, other: Tensor) -> float:
    """Mean over samples of KL(softmax(reference) || softmax(other)) in nats: 0 where both believe the same.

    Args:
        reference: logits, (..., C).
        other: logits of the other model, the same shape.

    Raises:
        ValueError: the shapes differ or there is nothing.

    Example:
        >>> sure, even = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]])
        >>> round(kl_divergence(sure, even), 4)  # log 2
        0.6931
    """
    _check_pair(reference, other)
    log_p, log_q = (F.log_softmax(logits.detach().double(), -1) for logits in (reference, other))
    terms = torch.where(log_p.exp() > 0, log_p.exp() * (log_p - log_q), 0.0)
    return terms.sum(-1).mean().item()


def _check_pair(reference: Tensor, other: Tensor) -> None:
    if reference.shape != other.shape or not reference.numel():
        shapes = f"{tuple(reference.shape)} and {tuple(other.shape)}"
        raise ValueError(f"reference and other, of shapes {shapes}, must hold the same samples, at least one")
