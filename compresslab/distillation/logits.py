"""The vocabulary of lesson 08: two sets of logits that belong together, as probabilities at a temperature.

    p_i(T) = exp(z_i / T) / sum_j exp(z_j / T)          KL(p || q) = sum_i p_i (log p_i - log q_i)

A high temperature T makes the small probabilities visible. Everything is computed from logarithms of probabilities, for
the logarithm of a probability that has underflowed to 0 is lost, and in float32 or wider, for the losses are multiplied
by T^2, and so is their rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["as_log_probabilities", "check_pair", "check_temperature", "divergence", "mean_over"]


def as_log_probabilities(logits: Tensor, temperature: float, axis: int = -1) -> Tensor:
    """The logarithms of the probabilities at a temperature, in float32 or wider.

    Args:
        logits: any shape.
        temperature: T > 0.
        axis: of the classes.

    Raises:
        ValueError: the temperature is not above 0.

    Example:
        >>> as_log_probabilities(torch.tensor([0.0, 2 * math.log(3)]), 2.0).exp()
        tensor([0.2500, 0.7500])
    """
    check_temperature(temperature)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.log_softmax(wide / temperature, axis)


def divergence(log_p: Tensor, log_q: Tensor, axis: int = -1) -> Tensor:
    """KL(p || q) along one axis.

    Args:
        log_p, log_q: logarithms of probabilities, finite.
        axis: that they add up along.

    Example:
        >>> p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
        >>> divergence(p.log(), q.log())  # (log 2 + log 2/3) / 2 = log(4 / 3) / 2
        tensor(0.1438)
    """
    return (log_p.exp() * (log_p - log_q)).sum(axis)


def mean_over(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of what a mask lets through; 0 where it lets nothing through.

    Args:
        values: one for each sample or token.
        mask: bool, the same shape, True counts; None for all.

    Raises:
        ValueError: the shapes differ. TypeError: the mask is not bool.

    Example:
        >>> mean_over(torch.tensor([1.0, 5.0]), torch.tensor([True, False]))
        tensor(1.)
    """
    if mask is None:
        return values.mean()
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask must be bool, True where a token counts, got {mask.dtype}; pass mask.bool()")
    if mask.shape != values.shape:
        raise ValueError(f"mask {tuple(mask.shape)} must be one for each of {tuple(values.shape)} samples or tokens")
    # Not values * mask: what padding computes may be NaN, and NaN times 0 is NaN.
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp_min(1)


def check_pair(student: Tensor, teacher: Tensor, what: str = "logits") -> None:
    """Raise unless both have one shape: torch would broadcast (2, 3) and (1, 3) without a word.

    Example:
        >>> check_pair(torch.zeros(2, 3), torch.zeros(2, 3))
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student_{what} {tuple(student.shape)} and teacher_{what} {tuple(teacher.shape)} must have one shape"
        )
    if not student.is_floating_point() or not teacher.is_floating_point():
        raise TypeError(
            f"student_{what} and teacher_{what} must be floating point, got {student.dtype}, {teacher.dtype}"
        )


def check_temperature(temperature: float) -> None:
    """Raise unless a temperature is above 0 and finite.

    Example:
        >>> check_temperature(4.0)
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature={temperature!r} must be above 0 and finite; try 1 to 8")
