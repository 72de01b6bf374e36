"""Relational distillation (RKD): not what each sample looks like, but how samples lie to one another.

    psi_D(x_i, x_j) = |x_i - x_j| / mean of the distances above 0
    psi_A(x_i, x_j, x_k) = cos of the angle at x_j           L = Huber(psi(student), psi(teacher)), mean

Distances and angles do not depend on the width or the axes of a space, so nothing has to be projected. Two samples in
one place have distance 0, where a plain square root has an infinite slope; here it is 0.

    Park, Kim, Lu and Cho, "Relational knowledge distillation", 2019, https://arxiv.org/abs/1904.05068,
    equations 4 to 9
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compresslab.distillation.features import check_samples

__all__ = ["angle_loss", "distance_loss", "relational_loss"]


def distance_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The Huber loss of all pairs of distances, each divided by the mean distance.

    Args:
        student_features: (B, ...), flattened; any width.
        teacher_features: (B, ...), any width; no gradient goes there.

    Raises:
        ValueError: not of the same samples.

    Example:
        >>> teacher = torch.tensor([[0.0], [1.0], [3.0]])  # distances 1, 2, 3: 0.5, 1, 1.5 of the mean
        >>> student = torch.tensor([[0.0], [2.0], [4.0]])  # 2, 2, 4: 0.75, 0.75, 1.5
        >>> distance_loss(student, teacher)  # two of six differ by 1/4: (0.25^2 / 2) x 4 / 9
        tensor(0.0139)
    """
    student, teacher = _flat(student_features, teacher_features)
    return F.smooth_l1_loss(_distances(student), _distances(teacher))


def angle_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The Huber loss of the cosines of all angles between three samples; B^3 numbers.

    Args:
        student_features, teacher_features: as in ``distance_loss``.

    Raises:
        ValueError: not of the same samples.

    Example:
        >>> corner = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
        >>> angle_loss(4 * corner.flip(1), corner)  # mirrored and enlarged: the same
        tensor(0.)
        >>> flat = torch.tensor([[-1.0], [0.0], [1.0]])  # cosines at the three: 1, -1, 1
        >>> angle_loss(flat, corner)  # 0.7071, 0, 0.7071; each twice: (2 x 0.2929^2 / 2 + 1 / 2) x 2 / 27
        tensor(0.0434)
    """
    student, teacher = _flat(student_features, teacher_features)
    return F.smooth_l1_loss(_cosines(student), _cosines(teacher))


def relational_loss(
    student_features: Tensor, teacher_features: Tensor, *, distance_weight: float = 1.0, angle_weight: float = 2.0
) -> Tensor:
    """The weighted sum of both, with the weights of the paper.

    Args:
        student_features, teacher_features: as in ``distance_loss``.
        distance_weight: lambda_D of the paper.
        angle_weight: lambda_A of the paper.

    Raises:
        ValueError: not of the same samples.

    Example:
        >>> relational_loss(torch.eye(3), 2 * torch.eye(3))
        tensor(0.)
    """
    return distance_weight * distance_loss(student_features, teacher_features) + angle_weight * angle_loss(
        student_features, teacher_features
    )


def _flat(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student, teacher = student.flatten(1), teacher.detach().flatten(1)  # (B, D)
    check_samples(student, teacher)
    wide = torch.promote_types(student.dtype, torch.float32)
    return student.to(wide), teacher.to(wide)


def _distances(x: Tensor) -> Tensor:  # (B, D)
    # From the differences, not from a matrix product: that cancels, and its slope at 0 is not 0.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # (B, B)
    above = (distances > 0).sum().clamp_min(1)
    return distances / (distances.sum() / above).clamp_min(torch.finfo(x.dtype).tiny)


def _cosines(x: Tensor) -> Tensor:
    to_others = F.normalize(x.unsqueeze(1) - x.unsqueeze(0), dim=-1)  # (B, B, D); [i, j] points from j to i
    at_each = to_others.movedim(1, 0)  # (B, B, D); [j, i]
    return at_each @ at_each.mT  # (B, B, B): [j, i, k]
