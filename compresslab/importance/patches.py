"""What each position of a layer's output is computed from: im2col, as a view."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["columns", "patches"]


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows that a layer multiplies with its weight, as a view: (B, positions..., elements of a patch...).

    Args:
        layer: Linear, Conv1d, Conv2d or Conv3d.
        x: what the layer gets: (..., I), or (B, C, positions...) with or without B.

    Example:
        >>> import torch
        >>> layer = nn.Conv1d(1, 1, 2, stride=2)
        >>> patches(layer, torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])).tolist()  # (1 sample, 2 positions, 1 channel, 2)
        [[[[1.0, 2.0]], [[3.0, 4.0]]]]
    """
    if isinstance(layer, nn.Linear):
        return x
    x = _padded(layer, x)
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return x.movedim(1, 1 - layer.weight.dim())  # (B, C, P..., K...) -> (B, P..., C, K...)


def columns(layer: nn.Module, x: Tensor) -> Tensor:
    """The same, laid out in memory: (B, elements of a patch, positions).

    Args:
        layer: Linear, Conv1d, Conv2d or Conv3d.
        x: what the layer gets, with a batch axis.

    Example:
        >>> import torch
        >>> layer = nn.Conv1d(1, 1, 2, stride=2)
        >>> columns(layer, torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])).tolist()
        [[[1.0, 3.0], [2.0, 4.0]]]
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]).mT
    axes = layer.weight.dim() - 2
    rows = patches(layer, x).permute(0, *range(axes + 1, 2 * axes + 2), *range(1, axes + 1))  # (B, C, K..., P...)
    return rows.reshape(len(rows), rows[0].numel() // rows.shape[-axes:].numel(), -1)


def _padded(layer: nn.Module, x: Tensor) -> Tensor:
    """With a batch axis, and with what the layer puts around."""
    x = x if x.dim() == layer.weight.dim() else x.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)  # also for padding="same"
