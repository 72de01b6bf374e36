"""Multilayer perceptron: the smallest model of the course, nothing but matrices."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` neurons with ReLU between, and a linear classifier.

    Example:
        >>> import torch
        >>> MLP(classes=10)(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, classes: int = 62, size: int = 32, width: int = 88, depth: int = 2):
        super().__init__()
        widths = [in_channels * size * size] + [width] * depth
        layers = []
        for inputs, outputs in itertools.pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, size, size)
        return self.head(self.layers(images.flatten(1)))  # (B, classes)
