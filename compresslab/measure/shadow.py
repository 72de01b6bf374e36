"""A shadow comparison: both models answer the same requests, and one looks at the result whenever one likes.

A p-value of McNemar's test is right if one looks once, at a number of samples fixed before. Looked at after every
request, it falls below 0.05 sooner or later, with certainty, though the models are equal. What may be watched is a
bet. Let d be 1 where the candidate alone is right, -1 where the reference alone is, 0 else. Somebody who holds that the
mean of d is m cannot object to a fair bet on it: capital, at first 1, is multiplied by

    1 + lambda (d - m),        lambda drawn beforehand between 0 and 1 / (1 + m)

for each sample. If m (or less) is the mean, whatever came before, its expectation never grows, so it *ever* reaches
1 / alpha with a chance of at most alpha (Ville). The means m at which nobody could have become rich are a confidence
sequence: valid at all times at once, for any distribution of that mean. Bets at many lambdas are averaged.

    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2020,
    https://arxiv.org/abs/2010.09686, section 4
    Johari, Koomen, Pekelis and Walsh, "Peeking at A/B tests: why it matters, and what to do about it", 2017,
    https://doi.org/10.1145/3097983.3097992 (always-valid p-values)
    Ville, "Etude critique de la notion de collectif", 1939 (the inequality)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.measure.estimates import Estimate

__all__ = ["Verdict", "always_valid_p", "confidence_sequence", "judge_shadow"]

BETS = 64  # values of lambda: shares of the largest one, evenly spaced in the logarithm down to 1 / 1000
PART = 2**14  # samples at a time, for memory


@dataclass(frozen=True)
class Verdict:
    """What to do, and after how many requests that was clear."""

    decision: str  # "roll back", "promote", or "go on" where neither is clear yet
    samples: int  # when it was clear, or all there were
    won: int  # until then: the candidate alone was right
    lost: int  # the reference alone was right
    difference: Estimate  # accuracy of the candidate less that of the reference, valid whenever one stops


def always_valid_p(reference: Tensor, candidate: Tensor, *, margin: float = 0.0, worse: bool = True) -> Tensor:
    """A p-value after every request that may be looked at after every request.

    Args:
        reference: whether the reference was right, (N,) bool, in the order of the requests.
        candidate: whether the candidate was right, (N,) bool. Without labels: all True, and whether both agree.
        margin: the loss of accuracy that would be accepted, 0..1, 1 excluded.
        worse: small values say that the candidate has lost more than the margin; False: that it has lost less.

    Returns:
        (N,) float64, the least so far: it never rises.

    Raises:
        TypeError: they are not bool.
        ValueError: they are not of one shape (N,) with at least one sample, or the margin is out of range.

    Example:
        >>> right, wrong = torch.ones(40, dtype=torch.bool), torch.zeros(40, dtype=torch.bool)
        >>> p = always_valid_p(right, wrong)
        >>> p[0].item() > 0.5, p[-1].item() < 1e-6
        (True, True)
    """
    d = _differences(reference, candidate)
    if not 0 <= margin < 1:
        raise ValueError(f"margin={margin} must be a share of accuracy, 0..1, 1 excluded; try 0.01")
    counts = [(d == value).double().cumsum(0) for value in (1, 0, -1)]  # won, tied, lost: (N,) each
    counts, mean = (counts[::-1], margin) if worse else (counts, -margin)
    parts = zip(*(count.split(PART) for count in counts), strict=True)
    log_capital = torch.cat([_log_capital(part, mean) for part in parts])
    return (-log_capital.cummax(0).values).exp().clamp(max=1.0)


def confidence_sequence(reference: Tensor, candidate: Tensor, *, confidence: float = 0.95) -> Estimate:
    """The difference in accuracy so far, with an interval that holds however often one looked.

    Args:
        reference: whether the reference was right, (N,) bool.
        candidate: whether the candidate was right, (N,) bool.
        confidence: 0..1, ends excluded: the chance that at all times the true difference lies inside.

    Raises:
        TypeError: they are not bool.
        ValueError: as in ``always_valid_p``, or ``confidence`` is out of range.

    Example:
        >>> right = torch.ones(1000, dtype=torch.bool)
        >>> print(confidence_sequence(right, right))
        +0.0 points [-0.8, +0.8]
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1; try 0.95")
    d = _differences(reference, candidate)
    counts = [(d == value).double().sum().reshape(1) for value in (1, 0, -1)]
    bound = math.log(2 / (1 - confidence))  # half of the risk on each side

    def least(counts: Sequence[Tensor]) -> float:
        """The smallest mean at which a bet on more would not have made rich: capital falls as the mean grows."""
        low, high = -1.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if _log_capital(counts, middle).item() >= bound else (low, middle)
        return low

    return Estimate(d.double().mean().item(), least(counts), -least(counts[::-1]), len(d), "points")


def judge_shadow(reference: Tensor, candidate: Tensor, *, margin: float = 0.01, alpha: float = 0.05) -> Verdict:
    """The roll-back rule: stop at the first request after which it is clear that more than the margin is lost, or less.

    Args:
        reference: whether the reference was right, (N,) bool, in the order of the requests.
        candidate: whether the candidate was right, (N,) bool.
        margin: the loss of accuracy that is accepted, 0..1, 1 excluded.
        alpha: the chance, at most, to roll a good candidate back; and to promote a bad one; 0..1, ends excluded.

    Returns:
        The decision. Both answers may be right for a candidate that loses just the margin.

    Raises:
        TypeError: they are not bool.
        ValueError: as in ``always_valid_p``, or ``alpha`` is out of range.

    Example:
        >>> right = torch.ones(1000, dtype=torch.bool)
        >>> [judge_shadow(*pair).decision for pair in ((right, ~right), (right, right), (right[:9], right[:9]))]
        ['roll back', 'promote', 'go on']
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha={alpha} must lie between 0 and 1; try 0.05")
    clear = {
        name: (always_valid_p(reference, candidate, margin=margin, worse=worse) <= alpha).nonzero().flatten()
        for name, worse in (("roll back", True), ("promote", False))
    }
    first = {name: int(when[0]) + 1 for name, when in clear.items() if len(when)}
    decision = min(first, key=first.get) if first else "go on"
    samples = first.get(decision, len(reference))
    seen = reference[:samples], candidate[:samples]
    won, lost = (int((a & ~b).sum()) for a, b in (seen[::-1], seen))
    return Verdict(decision, samples, won, lost, confidence_sequence(*seen))


def _log_capital(counts: Sequence[Tensor], mean: float) -> Tensor:
    """Of bets that d is more than ``mean``: log of the average over lambdas, from how often d was 1, 0 and -1."""
    shares = torch.logspace(-3, 0, BETS + 1, dtype=torch.float64)[:-1]  # the last would risk everything
    bets = shares / (1 + mean)
    logs = sum(count[:, None] * (bets * (d - mean)).log1p() for count, d in zip(counts, (1, 0, -1), strict=True))
    return logs.logsumexp(1) - math.log(BETS)


def _differences(reference: Tensor, candidate: Tensor) -> Tensor:
    """1 where the candidate alone is right, -1 where the reference alone is, else 0; (N,) int8."""
    if reference.dtype is not torch.bool or candidate.dtype is not torch.bool:
        raise TypeError(
            f"reference and candidate must be bool, got {reference.dtype} and {candidate.dtype}; try predicted == labels"
        )
    if reference.shape != candidate.shape or reference.dim() != 1 or not len(reference):
        shapes = f"{tuple(reference.shape)} and {tuple(candidate.shape)}"
        raise ValueError(f"reference and candidate, of shapes {shapes}, must be (N,), with at least one sample")
    return candidate.to(torch.int8) - reference.to(torch.int8)
