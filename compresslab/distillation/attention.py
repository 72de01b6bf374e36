"""Attention transfer: the student learns where in the picture the teacher has large activations.

    a = flatten(mean over channels of h^2), scaled to length 1          L = mean (a_s - a_t)^2

The channels are averaged away, so student and teacher may differ in width and nothing has to be projected. The numbers
are small, for a has length 1: the weight beside the other losses is around 1000 (the released code; the paper writes
beta / 2 times the length of the difference).

    Zagoruyko and Komodakis, "Paying more attention to attention", 2017, https://arxiv.org/abs/1612.03928, section 3.1
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from compresslab.distillation.features import check_samples, same_size
from compresslab.distillation.logits import check_pair

__all__ = ["attention_loss", "attention_map"]


def attention_map(features: Tensor) -> Tensor:
    """Where the activations are large: one number for each position, of length 1 for each sample.

    Args:
        features: (B, C, H, W), or tokens (B, L, D).

    Returns:
        (B, H * W) or (B, L), at least 0, float32 or wider; all 0 where all activations are.

    Raises:
        ValueError: the features have no positions.

    Example:
        >>> attention_map(torch.tensor([[[[1.0, 2.0]], [[2.0, 1.0]]]])).tolist()  # (1 + 4) / 2 both, over their length
        [[0.7071067690849304, 0.7071067690849304]]
    """
    if features.dim() not in (3, 4):
        raise ValueError(f"features {tuple(features.shape)} must have positions: (B, C, H, W) or tokens (B, L, D)")
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(wide.square().mean(1 if features.dim() == 4 else -1).flatten(1), dim=1)


def attention_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """The mean squared difference of the maps of student and teacher.

    Args:
        student_features: (B, C, H, W) or (B, L, D), any number of channels.
        teacher_features: likewise; no gradient goes there. The larger maps are averaged down.

    Returns:
        A scalar, 0 to 2 / positions.

    Raises:
        ValueError: not of the same samples, or no positions, or not as many tokens.

    Example:
        >>> attention_loss(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]))  # (1, 0), (0, 1)
        tensor(1.)
    """
    check_samples(student_features, teacher_features)
    student, teacher = (attention_map(part) for part in same_size(student_features, teacher_features.detach()))
    check_pair(student, teacher, "features")
    return (student - teacher).square().mean()
