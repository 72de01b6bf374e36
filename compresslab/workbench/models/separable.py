"""A small MobileNet: each convolution split into one that looks around and one that mixes channels.

Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications", 2017,
https://arxiv.org/abs/1704.04861. A 3x3 convolution of C to O channels costs 9 C O multiplications a pixel; a depthwise
3x3 and a pointwise 1x1 cost 9 C + C O.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SeparableBlock", "SeparableNet"]


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution, each followed by batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False
        )
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        x = self.relu1(self.bn1(self.depthwise(x)))
        return self.relu2(self.bn2(self.pointwise(x)))


class SeparableNet(nn.Module):
    """A stem of stride 2 and three stages of ``depth`` separable blocks, of 2, 4 and 8 times ``width`` channels.

    Example:
        >>> import torch
        >>> SeparableNet(in_channels=3, classes=10, width=8)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, classes: int = 62, width: int = 16, depth: int = 2):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks = []
        channels = width
        for stage in range(3):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(SeparableBlock(channels, width * 2 ** (stage + 1), stride))
                channels = width * 2 ** (stage + 1)
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        x = self.blocks(self.stem(images))  # (B, 8 * width, H / 8, W / 8)
        return self.linear(x.mean((2, 3)))  # (B, classes)
