"""Hints: a layer in the middle of the student learns to say what a layer in the middle of the teacher says.

    L = mean (r(h_s) - h_t)^2            r: a linear map from the student's channels to the teacher's

The student is narrower, so a projection r stands between. It is built once, trained together with the student, and
thrown away in the end. One that is made anew at each step teaches nothing: its target changes faster than anything can
follow.

    Romero, Ballas, Kahou, Chassang, Gatta and Bengio, "FitNets: hints for thin deep nets", 2015,
    https://arxiv.org/abs/1412.6550, equation 3 (a half of the sum there, the mean over elements here)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslab.distillation.features import check_samples, same_size
from compresslab.distillation.logits import check_pair

__all__ = ["Projection", "hint_loss"]


class Projection(nn.Module):
    """A trainable linear map of the channels: of (B, C, H, W) along axis 1, of anything else along the last.

    Args:
        student_channels: that come in.
        teacher_channels: that go out.
        generator: of its weights; None starts from seed 0.

    Raises:
        ValueError: a number of channels below 1.

    Example:
        >>> Projection(2, 5)(torch.zeros(8, 2, 4, 4)).shape, Projection(2, 5)(torch.zeros(8, 10, 2)).shape
        (torch.Size([8, 5, 4, 4]), torch.Size([8, 10, 5]))
    """

    def __init__(
        self, student_channels: int, teacher_channels: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if student_channels < 1 or teacher_channels < 1:
            raise ValueError(f"channels {student_channels} and {teacher_channels} must be at least 1")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        weight = torch.randn(teacher_channels, student_channels, generator=generator, device=generator.device)
        self.weight = nn.Parameter(weight / student_channels**0.5)
        self.bias = nn.Parameter(torch.zeros(teacher_channels))

    def forward(self, features: Tensor) -> Tensor:  # (B, C, H, W) or (..., D)
        axis = 1 if features.dim() == 4 else -1
        return nn.functional.linear(features.movedim(axis, -1), self.weight, self.bias).movedim(-1, axis)


def hint_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The mean squared difference of features, the student's already projected.

    Args:
        student_features: (B, D), (B, L, D) or (B, C, H, W), with the teacher's channels.
        teacher_features: the same; no gradient goes there. Of maps, the larger ones are averaged down.

    Returns:
        A scalar in float32 or wider, in squared units of the features.

    Raises:
        ValueError: shapes differ in more than the size of maps.

    Example:
        >>> hint_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 2.0]]))  # (4 + 0) / 2
        tensor(2.)
    """
    check_samples(student_features, teacher_features)
    student, teacher = same_size(student_features, teacher_features.detach())
    check_pair(student, teacher, "features")
    wide = torch.promote_types(student.dtype, torch.float32)
    return (student.to(wide) - teacher.to(wide)).square().mean()
