"""Decoupled distillation (DKD): how sure the teacher is, and what it thinks of the other classes, weighted apart.

With y the right class, b = (p_y, 1 - p_y) and q the other classes alone, scaled to add up to 1, all at temperature T:

    KL(p_t || p_s) = KL(b_t || b_s) + (1 - p_ty) KL(q_t || q_s)        = TCKD + (1 - p_ty) NCKD
    L = T^2 (alpha TCKD + beta NCKD)

In plain distillation a teacher that is sure of itself (p_ty near 1) says next to nothing about the other classes. Here
beta says how much that counts; with beta = 1 - p_ty of each sample it is plain distillation again. The other classes are
gathered into a tensor of their own, so nothing has to be masked by a large negative number.

    Zhao, Cui, Song, Qiu and Liang, "Decoupled knowledge distillation", 2022, https://arxiv.org/abs/2203.08679,
    equations 6 and 7
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.distillation.logits import as_log_probabilities, check_pair, divergence, mean_over

__all__ = ["Decoupled", "decoupled_loss", "decoupled_parts"]


@dataclass(frozen=True, eq=False)
class Decoupled:
    """The two parts of the divergence for each sample or token, without the T^2; 0 where it has no target."""

    target: Tensor  # TCKD, in nats
    others: Tensor  # NCKD, in nats
    unsure: Tensor  # 1 - p_ty: what the teacher gives to the other classes, 0..1
    counted: Tensor  # bool: has a target


def decoupled_parts(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, *, temperature: float = 4.0, ignore: int = -100
) -> Decoupled:
    """TCKD and NCKD of each sample.

    Args:
        student_logits: (..., C) with at least two classes.
        teacher_logits: the same shape; no gradient goes there.
        targets: (...) int64, classes, or ``ignore``.
        temperature: T > 0.
        ignore: stands for no target.

    Raises:
        ValueError: shapes differ, a target is not a class, fewer than two classes, or the temperature is not above 0.

    Example:
        >>> teacher, student = torch.tensor([[6.0, 3.0, 1.0]]).log(), torch.zeros(1, 3)
        >>> parts = decoupled_parts(student, teacher, torch.tensor([0]), temperature=1.0)
        >>> parts.target, parts.others  # KL((.6, .4) || (1/3, 2/3)), KL((3/4, 1/4) || (1/2, 1/2))
        (tensor([0.1483]), tensor([0.1308]))
    """
    check_pair(student_logits, teacher_logits)
    classes = student_logits.shape[-1]
    if classes < 2:
        raise ValueError(
            f"student_logits {tuple(student_logits.shape)} must have at least two classes on the last axis"
        )
    if targets.shape != student_logits.shape[:-1]:
        raise ValueError(
            f"targets {tuple(targets.shape)} must be one for each of {tuple(student_logits.shape[:-1])} logits"
        )
    counted = targets != ignore
    wrong = targets[counted & ((targets < 0) | (targets >= classes))]
    if len(wrong):
        raise ValueError(f"targets must be classes in 0..{classes - 1}, or {ignore} for none; got {int(wrong[0])}")
    y = targets.masked_fill(~counted, 0).unsqueeze(-1)
    other = torch.arange(classes - 1, device=y.device)
    other = other + (other >= y)  # (..., C - 1): all classes but y
    log_s, log_t = (as_log_probabilities(z, temperature) for z in (student_logits, teacher_logits.detach()))

    def binary(log_p: Tensor) -> Tensor:
        """(log p_y, log (1 - p_y)); the second as a sum over the others, for p_y may round to 1."""
        return torch.cat([log_p.gather(-1, y), log_p.gather(-1, other).logsumexp(-1, keepdim=True)], -1)

    b_s, b_t = binary(log_s), binary(log_t)
    q_s, q_t = (log_p.gather(-1, other).log_softmax(-1) for log_p in (log_s, log_t))
    parts = divergence(b_t, b_s), divergence(q_t, q_s), b_t[..., 1].exp()
    return Decoupled(*(part.masked_fill(~counted, 0) for part in parts), counted)


def decoupled_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    target_weight: float = 1.0,
    others_weight: float = 8.0,
    temperature: float = 4.0,
    ignore: int = -100,
) -> Tensor:
    """T^2 times the weighted sum of both parts, on average over the samples or tokens that have a target.

    Args:
        student_logits, teacher_logits, targets, temperature, ignore: as in ``decoupled_parts``.
        target_weight: alpha of the paper.
        others_weight: beta of the paper; 1 to 8 there. Large ones want a warm-up.

    Raises:
        ValueError: as ``decoupled_parts``.

    Example:
        >>> teacher, student = torch.tensor([[6.0, 3.0, 1.0]]).log(), torch.zeros(1, 3)
        >>> decoupled_loss(student, teacher, torch.tensor([0]), temperature=1.0)  # 0.1483 + 8 x 0.1308
        tensor(1.1948)
    """
    parts = decoupled_parts(student_logits, teacher_logits, targets, temperature=temperature, ignore=ignore)
    mixed = target_weight * parts.target + others_weight * parts.others
    return temperature**2 * mean_over(mixed, parts.counted)
