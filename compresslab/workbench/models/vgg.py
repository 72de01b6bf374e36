"""A small VGG: plain stacks of 3x3 convolutions with batch norm, halved by pooling.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014,
https://arxiv.org/abs/1409.1556. No shortcut anywhere: a layer depends only on the one before it, up to the flattening
in front of the classifier.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["VGG"]


class VGG(nn.Module):
    """Three stages of ``depth`` convolutions; the width doubles and the image halves from one stage to the next.

    Example:
        >>> import torch
        >>> VGG(in_channels=3, classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, classes: int = 62, size: int = 32, width: int = 16, depth: int = 2):
        super().__init__()
        if size % 8:
            raise ValueError(
                f"size={size} must be a multiple of 8, for it is halved three times; try {size // 8 * 8 + 8}"
            )
        layers = []
        channels = in_channels
        for stage_width in (width, 2 * width, 4 * width):
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, stage_width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(stage_width),
                    nn.ReLU(),
                ]
                channels = stage_width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * (size // 8) ** 2, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, size, size)
        x = self.features(images)  # (B, 4 * width, size / 8, size / 8)
        return self.classifier(x.flatten(1))  # (B, classes)
