"""The three losses of DistilBERT: the teacher's distribution, the text itself, and the direction of the hidden states.

    L = 5 L_soft + 2 L_hard + 1 L_cos
    L_soft = T^2 KL(teacher || student), T = 2, mean over the tokens that are no padding
    L_hard = cross-entropy, mean over the tokens that have a target (the masked ones, or the next of each)
    L_cos  = mean of 1 - cos(h_s, h_t) over the tokens that are no padding, h the last hidden states

The student has the teacher's width and half of its blocks, and starts as every other block of it (``ladder.py``).

    Sanh, Debut, Chaumond and Wolf, "DistilBERT", 2019, https://arxiv.org/abs/1910.01108, section 3; the weights and T
    are those of the released training command
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from compresslab.distillation.logits import check_pair, mean_over
from compresslab.distillation.soft import soft_target_loss

__all__ = ["TripleLoss", "cosine_loss", "hard_label_loss", "triple_loss"]


@dataclass(frozen=True, eq=False)
class TripleLoss:
    """The sum and its parts before weighting, scalars."""

    total: Tensor
    soft: Tensor
    hard: Tensor
    cosine: Tensor


def triple_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    hidden: tuple[Tensor, Tensor],
    mask: Tensor | None = None,
    temperature: float = 2.0,
    weights: tuple[float, float, float] = (5.0, 2.0, 1.0),
) -> TripleLoss:
    """The weighted sum of the three losses.

    Args:
        student_logits: (B, L, V).
        teacher_logits: the same shape; no gradient goes there.
        targets: (B, L) int64, tokens, or -100 where there is none.
        hidden: last hidden states of student and teacher, (B, L, D) each.
        mask: (B, L) bool, True where a token is no padding; None for all.
        temperature: T > 0.
        weights: of the soft, the hard and the cosine loss.

    Raises:
        ValueError: shapes differ, or the temperature is not above 0.

    Example:
        >>> logits, states = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]])
        >>> triple_loss(logits, logits, torch.tensor([[0]]), hidden=(states, -states)).total  # 0 + 2 log 2 + 2
        tensor(3.3863)
    """
    soft = soft_target_loss(student_logits, teacher_logits, temperature=temperature, mask=mask)
    hard = hard_label_loss(student_logits, targets)
    cosine = cosine_loss(*hidden, mask=mask)
    total = sum(weight * part for weight, part in zip(weights, (soft, hard, cosine), strict=True))
    return TripleLoss(total, soft, hard, cosine)


def cosine_loss(student_features: Tensor, teacher_features: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """One minus the cosine of student and teacher, on average over samples or tokens: 0 same direction, 2 opposite.

    Args:
        student_features: (..., D).
        teacher_features: the same shape; no gradient goes there.
        mask: (...) bool, True counts; None for all.

    Raises:
        ValueError: shapes differ. TypeError: a dtype does not fit.

    Example:
        >>> cosine_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]))
        tensor(1.)
    """
    check_pair(student_features, teacher_features, "features")
    wide = torch.promote_types(student_features.dtype, torch.float32)
    cosine = F.cosine_similarity(student_features.to(wide), teacher_features.detach().to(wide), dim=-1)
    return mean_over(1 - cosine, mask)


def hard_label_loss(logits: Tensor, targets: Tensor, *, ignore: int = -100) -> Tensor:
    """Cross-entropy, on average over the samples or tokens that have a target; 0 where none has.

    Args:
        logits: (..., C).
        targets: (...) int64, classes, or ``ignore``.
        ignore: stands for no target.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> hard_label_loss(torch.zeros(2, 4), torch.tensor([3, -100]))  # log 4
        tensor(1.3863)
    """
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets {tuple(targets.shape)} must be one for each of {tuple(logits.shape[:-1])} logits")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    total = F.cross_entropy(wide, targets.flatten(), ignore_index=ignore, reduction="sum")
    return total / (targets != ignore).sum().clamp_min(1)
