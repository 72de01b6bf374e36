"""Depthwise-separable convolutions: look around in each channel alone, then mix the channels at each pixel.

A convolution of C to O channels with K = k * k costs K C O multiplications a pixel; a depthwise and a pointwise one
cost K C + C O, which is less by 1 / O + 1 / K: nearly K times. MobileNet (v1) is built of such pairs; v2 widens first
(1 x 1 to t C channels), looks around, and narrows again without an activation; EfficientNet scales depth, width and
resolution of such blocks together.

A trained kernel is no such product, but near one: what the channel c adds to the outputs is a matrix (O, K), and its
cut SVD is a mixture of a few depthwise kernels. The channels do not share them, so cutting each is the optimum.

    Howard and others, "MobileNets", 2017, https://arxiv.org/abs/1704.04861, section 3.1
    Sandler and others, "MobileNetV2", 2018, https://arxiv.org/abs/1801.04381, section 3.3
    Tan and Le, "EfficientNet", 2019, https://arxiv.org/abs/1905.11946, equation 3
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from compresslab.factorization.conv_svd import by_group, conv_like
from compresslab.factorization.replacing import Factorized, check_rank, find_layers, replace_layers

__all__ = [
    "Cost", "Scaling", "compound_scaling", "conv_cost", "inverted_residual_cost", "separable_conv", "separable_cost",
    "separate_convs",
]  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a layer takes, biases not counted."""

    parameters: int
    macs: int  # multiply-accumulates for one image

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.parameters + other.parameters, self.macs + other.macs)


@dataclass(frozen=True)
class Scaling:
    """By how much a network grows."""

    depth: float
    width: float
    resolution: float
    macs: float  # depth * width^2 * resolution^2


def conv_cost(in_channels: int, out_channels: int, *, kernel: int = 3, pixels: int = 1, groups: int = 1) -> Cost:
    """The cost of a convolution with a square kernel.

    Args:
        in_channels, out_channels: C and O.
        kernel: its side, k.
        pixels: height times width of the output.
        groups: C for a depthwise one.

    Raises:
        ValueError: the groups do not divide the channels.

    Example:
        >>> conv_cost(16, 32, pixels=100)  # 9 * 16 * 32
        Cost(parameters=4608, macs=460800)
    """
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} must divide {in_channels} and {out_channels} channels; try 1")
    parameters = kernel * kernel * in_channels // groups * out_channels
    return Cost(parameters, parameters * pixels)


def separable_cost(in_channels: int, out_channels: int, *, kernel: int = 3, pixels: int = 1) -> Cost:
    """The cost of a depthwise convolution and a pointwise one after it, as ``conv_cost``.

    Example:
        >>> separable_cost(16, 32, pixels=100)  # 9 * 16 + 16 * 32
        Cost(parameters=656, macs=65600)
    """
    depthwise = conv_cost(in_channels, in_channels, kernel=kernel, pixels=pixels, groups=in_channels)
    return depthwise + conv_cost(in_channels, out_channels, kernel=1, pixels=pixels)


def inverted_residual_cost(
    in_channels: int, out_channels: int, *, expansion: int = 6, kernel: int = 3, pixels: int = 1, stride: int = 1
) -> Cost:
    """The cost of MobileNetV2's block: 1 x 1 to ``expansion`` times the channels, depthwise, 1 x 1 down.

    Args:
        in_channels, out_channels, kernel: as ``conv_cost``.
        expansion: t; 1 leaves out the first part, as the paper's first block does.
        pixels: of the block's output; its first part runs on ``stride`` squared as many.
        stride: of the depthwise part.

    Example:
        >>> inverted_residual_cost(16, 24, expansion=6)  # 16 * 96 + 9 * 96 + 96 * 24
        Cost(parameters=4704, macs=4704)
    """
    hidden = expansion * in_channels
    widen = Cost(0, 0) if expansion == 1 else conv_cost(in_channels, hidden, kernel=1, pixels=pixels * stride**2)
    return widen + separable_cost(hidden, out_channels, kernel=kernel, pixels=pixels)


def compound_scaling(phi: float, *, depth: float = 1.2, width: float = 1.1, resolution: float = 1.15) -> Scaling:
    """EfficientNet's rule: depth^phi layers, width^phi channels and resolution^phi pixels a side.

    Args:
        phi: 0 is the network as it is; each 1 more takes about twice the arithmetic.
        depth, width, resolution: the paper's alpha, beta and gamma, with depth * width^2 * resolution^2 near 2.

    Example:
        >>> round(compound_scaling(1).macs, 2)  # 1.2 * 1.21 * 1.3225
        1.92
    """
    return Scaling(depth**phi, width**phi, resolution**phi, (depth * width**2 * resolution**2) ** phi)


def separable_conv(layer: nn.Module, terms: int = 1) -> nn.Sequential:
    """The nearest sum of depthwise-separable convolutions, as a depthwise and a pointwise one.

    Args:
        layer: Conv1d, Conv2d or Conv3d, grouped or not.
        terms: depthwise kernels for each input channel, at most min(O, K) of a group; then the product is exact.

    Raises:
        ValueError: ``terms`` is out of range.

    Example:
        >>> separable_conv(nn.Conv2d(4, 6, 3, stride=2, padding=1), 2)
        Sequential(
          (0): Conv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=4, bias=False)
          (1): Conv2d(8, 6, kernel_size=(1, 1), stride=(1, 1))
        )
    """
    kernel = by_group(layer)
    groups, _, into, *size = kernel.shape
    matrices = kernel.flatten(3).transpose(1, 2)  # (G, C, O, K)
    check_rank(terms, min(matrices.shape[2:]), name="terms")
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s[..., :terms].sqrt()
    around = (root.unsqueeze(-1) * vh[..., :terms, :]).reshape(groups * into, terms, 1, *size)
    mixed = (u[..., :terms] * root.unsqueeze(-2)).permute(0, 2, 1, 3).flatten(2)  # (G, O, C * terms)
    axes = tuple(range(len(size)))
    return nn.Sequential(
        conv_like(layer, around, axes=axes), conv_like(layer, mixed.reshape(*mixed.shape, *[1] * len(size)), bias=True)
    )


def separate_convs(model: nn.Module, *, terms: int = 1, skip: Collection[str] = ()) -> Factorized:
    """A new model whose convolutions are depthwise-separable, where that saves parameters.

    Args:
        model: any module.
        terms: depthwise kernels for each input channel, at least 1.
        skip: names of layers or modules to leave as they are.

    Raises:
        ValueError: ``terms`` is no whole number of at least 1, a name is unknown, a weight is not finite, or nothing was
            replaced.

    Example:
        >>> result = separate_convs(nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 8, 1)))
        >>> result.parameters, result.skipped  # 9 * 8 + 8 * 8, and 72
        (208, {'1': '1 terms save nothing: 72 numbers in place of 64'})
    """
    check_rank(terms, 2**31, name="terms")
    layers, skipped = find_layers(model, [nn.Conv1d, nn.Conv2d, nn.Conv3d], skip=skip)
    new = {}
    for name, layer in layers.items():
        kernel = by_group(layer)
        count = layer.in_channels * terms * (kernel[0, 0, 0].numel() + kernel.shape[1])
        if count >= kernel.numel():
            skipped[name] = f"{terms} terms save nothing: {count} numbers in place of {kernel.numel()}"
        else:
            new[name] = (separable_conv(layer, terms), (terms,))
    return replace_layers(model, new, skipped)
