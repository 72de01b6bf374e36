"""Soft targets: the student learns the teacher's probabilities of all classes, not only which is the right one.

    L = T^2 KL(p_t(T) || p_s(T)) = T^2 sum_i p_ti (log p_ti - log p_si)        mean over samples or tokens
    dL / dz_s = T (p_s - p_t)   ->   ((z_s - mean z_s) - (z_t - mean z_t)) / C     for large T

The T^2 keeps the gradient at one size while T changes (equation 2 to 4), so the weight beside the hard labels needs no
new tuning. Towards high temperatures it is the squared distance of the logits. KL(student || teacher), the other way
round, lets the student leave out what it cannot do; Jensen and Shannon's divergence lies between and is bounded by log 2.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015, https://arxiv.org/abs/1503.02531
    Gu, Dong, Wei and Huang, "MiniLLM", 2024, https://arxiv.org/abs/2306.08543 (the other way round)
    Agarwal and others, "On-policy distillation of language models", 2024, https://arxiv.org/abs/2306.13649 (Jensen-Shannon)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compresslab.distillation.logits import as_log_probabilities, check_pair, divergence, mean_over

__all__ = ["jensen_shannon_loss", "reverse_kl_loss", "soft_target_loss"]


def soft_target_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    axis: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    """T^2 times KL(teacher || student) at temperature T, on average over samples or tokens.

    Args:
        student_logits: (B, C), (B, L, C) for tokens, or any shape with an axis of classes.
        teacher_logits: the same shape; no gradient goes there.
        temperature: T > 0. At 1 the probabilities are as they are, at 4 to 8 the small ones are seen.
        axis: of the classes; 1 for pictures of classes (B, C, H, W).
        mask: bool, the shape of the logits without the classes, True counts: the tokens that are no padding.

    Returns:
        A scalar in float32 or wider; 0 where student and teacher agree, or nothing counts.

    Raises:
        ValueError: shapes differ, or the temperature is not above 0. TypeError: a dtype does not fit.

    Example:
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> soft_target_loss(student, teacher, temperature=1.0)  # 3/4 log(3/2) + 1/4 log(1/2)
        tensor(0.1308)
    """
    log_s, log_t = _both(student_logits, teacher_logits, temperature, axis)
    return temperature**2 * mean_over(divergence(log_t, log_s, axis), mask)


def reverse_kl_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    axis: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    """T^2 times KL(student || teacher): a student too small for all the teacher does chooses a part of it.

    Args:
        student_logits, teacher_logits, temperature, axis, mask: as in ``soft_target_loss``.

    Raises:
        ValueError, TypeError: as ``soft_target_loss``.

    Example:
        >>> teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> reverse_kl_loss(student, teacher)  # 1/2 log(2/3) + 1/2 log 2
        tensor(0.1438)
    """
    log_s, log_t = _both(student_logits, teacher_logits, temperature, axis)
    return temperature**2 * mean_over(divergence(log_s, log_t, axis), mask)


def jensen_shannon_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    axis: int = -1,
    mask: Tensor | None = None,
) -> Tensor:
    """T^2 times the mean divergence of student and teacher from the mean m of both: at most T^2 log 2.

    Args:
        student_logits, teacher_logits, temperature, axis, mask: as in ``soft_target_loss``.

    Raises:
        ValueError, TypeError: as ``soft_target_loss``.

    Example:
        >>> teacher, student = torch.tensor([[60.0, 0.0]]), torch.tensor([[0.0, 60.0]])  # nothing in common
        >>> jensen_shannon_loss(student, teacher)
        tensor(0.6931)
    """
    log_s, log_t = _both(student_logits, teacher_logits, temperature, axis)
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    both = (divergence(log_t, log_m, axis) + divergence(log_s, log_m, axis)) / 2
    return temperature**2 * mean_over(both, mask)


def _both(student_logits: Tensor, teacher_logits: Tensor, temperature: float, axis: int) -> tuple[Tensor, Tensor]:
    check_pair(student_logits, teacher_logits)
    student = as_log_probabilities(student_logits, temperature, axis)
    return student, as_log_probabilities(teacher_logits.detach(), temperature, axis)
