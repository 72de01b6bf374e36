"""A convolution as two: across the kernel (K x 1 and 1 x K), or across the channels (K x K to r channels, then 1 x 1).

A kernel (O, C, H, W) becomes a matrix in two ways, and each cut SVD is a pair of convolutions:

    spatial    (C H, O W): r vertical kernels (r, C, H, 1), and O horizontal ones (O, r, 1, W)
    channel    (O, C H W): r whole kernels (r, C, H, W), and a mixture of them (O, r, 1, 1)

Stride, padding and dilation go along with the axis they belong to; each group of a grouped convolution is a convolution
of its own. A stride is paid where it is taken: the first of the spatial pair still runs over all columns.

    Jaderberg, Vedaldi and Zisserman, "Speeding up convolutional neural networks with low rank expansions", 2014,
    https://arxiv.org/abs/1405.3866, section 2 (spatial); Zhang and others, "Accelerating very deep convolutional
    networks", 2015, https://arxiv.org/abs/1505.06798, section 3 (channel, there weighted by the responses)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslab.factorization.replacing import check_rank

__all__ = ["by_group", "channel_svd", "conv_like", "spatial_svd"]


def by_group(layer: nn.Module) -> Tensor:
    """The kernel with an axis for the groups: (G, O / G, C / G, K...), float64.

    Example:
        >>> by_group(nn.Conv2d(4, 6, 3, groups=2)).shape
        torch.Size([2, 3, 2, 3, 3])
    """
    return layer.weight.detach().double().unflatten(0, (layer.groups, -1))


def conv_like(layer: nn.Module, kernel: Tensor, *, axes: tuple[int, ...] = (), bias: bool = False) -> nn.Module:
    """A convolution with this kernel that strides, pads and dilates like ``layer``, along some axes of the image.

    Args:
        layer: Conv1d, Conv2d or Conv3d.
        kernel: (G, O / G, C / G, K...).
        axes: of the image, from 0; along the others it neither strides nor pads.
        bias: has that of the layer.

    Example:
        >>> layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        >>> conv_like(layer, torch.zeros(1, 5, 4, 3, 1), axes=(0,))
        Conv2d(4, 5, kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), bias=False)
    """
    count = kernel.dim() - 3
    stride = tuple(layer.stride[axis] if axis in axes else 1 for axis in range(count))
    dilation = tuple(layer.dilation[axis] if axis in axes else 1 for axis in range(count))
    if isinstance(layer.padding, str):
        padding = layer.padding if axes else 0
    else:
        padding = tuple(layer.padding[axis] if axis in axes else 0 for axis in range(count))
    groups, out, into, *size = kernel.shape
    made = type(layer)(
        groups * into, groups * out, tuple(size), stride, padding, dilation, groups, bias=False,
        padding_mode=layer.padding_mode if axes else "zeros", device="meta",
    )  # fmt: skip
    made.weight = nn.Parameter(kernel.flatten(0, 1).to(layer.weight.dtype).contiguous())
    if bias and layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.detach().clone())
    return made


def spatial_svd(layer: nn.Conv2d, rank: int) -> nn.Sequential:
    """A vertical and a horizontal convolution whose product is the nearest kernel of that rank.

    Args:
        layer: Conv2d, grouped or not.
        rank: channels between the two, for each group; at most min(C H, O W) of a group.

    Raises:
        ValueError: the rank is out of range.

    Example:
        >>> spatial_svd(nn.Conv2d(4, 6, 3, padding=1), 2)
        Sequential(
          (0): Conv2d(4, 2, kernel_size=(3, 1), stride=(1, 1), padding=(1, 0), bias=False)
          (1): Conv2d(2, 6, kernel_size=(1, 3), stride=(1, 1), padding=(0, 1))
        )
    """
    kernel = by_group(layer)  # (G, O, C, H, W)
    out, into, height, width = kernel.shape[1:]
    left, right = _cut(kernel.permute(0, 2, 3, 1, 4).reshape(len(kernel), into * height, out * width), rank)
    vertical = left.mT.reshape(-1, rank, into, height, 1)
    horizontal = right.reshape(-1, rank, out, width).permute(0, 2, 1, 3).unsqueeze(3)  # (G, O, r, 1, W)
    return nn.Sequential(conv_like(layer, vertical, axes=(0,)), conv_like(layer, horizontal, axes=(1,), bias=True))


def channel_svd(layer: nn.Module, rank: int) -> nn.Sequential:
    """A convolution to fewer channels and a 1 x 1 back, whose product is the nearest kernel of that rank.

    Args:
        layer: Conv1d, Conv2d or Conv3d, grouped or not.
        rank: channels between the two, for each group; at most min(O, C K...) of a group.

    Raises:
        ValueError: the rank is out of range.

    Example:
        >>> channel_svd(nn.Conv2d(4, 6, 3, stride=2), 2)
        Sequential(
          (0): Conv2d(4, 2, kernel_size=(3, 3), stride=(2, 2), bias=False)
          (1): Conv2d(2, 6, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    kernel = by_group(layer)
    left, right = _cut(kernel.flatten(2), rank)
    first = right.reshape(-1, rank, *kernel.shape[2:])
    mixed = left.reshape(*left.shape, *[1] * (kernel.dim() - 3))
    axes = tuple(range(kernel.dim() - 3))
    return nn.Sequential(conv_like(layer, first, axes=axes), conv_like(layer, mixed, bias=True))


def _cut(matrices: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    check_rank(rank, min(matrices.shape[1:]))
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s[:, :rank].sqrt()
    return u[:, :, :rank] * root.unsqueeze(1), root.unsqueeze(2) * vh[:, :rank]
