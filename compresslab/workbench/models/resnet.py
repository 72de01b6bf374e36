"""Residual network in the style that He et al. used for CIFAR-10: the baseline of the course.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2015, https://arxiv.org/abs/1512.03385,
section 4.2. With ``depth=3, width=16, shortcut="pad"`` it is their ResNet-20, and the names of its tensors are those
of the public CIFAR weights.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BasicBlock", "PadShortcut", "ResNet"]


class PadShortcut(nn.Module):
    """Option A of the paper: every ``stride``-th pixel, and channels of zeros around those there are. No weights."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        before = (out_channels - in_channels) // 2
        self.padding = (before, out_channels - in_channels - before)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions whose result is added to their input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(in_channels, out_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and three stages of ``depth`` blocks; the width doubles and the image halves from stage to stage.

    Args:
        in_channels: channels of the images.
        classes: number of logits.
        width: channels of the first stage.
        depth: blocks in each stage (the n of the paper; it has 6n + 2 layers).
        stride: of the stem; 2 makes everything after it four times cheaper.
        shortcut: where the shape changes, ``"conv"`` (a 1x1 convolution) or ``"pad"`` (option A, no weights).

    Example:
        >>> import torch
        >>> ResNet(in_channels=3, classes=10, width=8, depth=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 62,
        width: int = 16,
        depth: int = 3,
        stride: int = 1,
        shortcut: str = "conv",
    ):
        super().__init__()
        if shortcut not in ("conv", "pad"):
            raise ValueError(f"shortcut={shortcut!r} must be 'conv' or 'pad'")
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, depth, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, depth, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, depth, 2, shortcut)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W)
        x = self.relu(self.bn1(self.conv1(images)))  # (B, width, H / stride, W / stride)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 4 * width, H / stride / 4, W / stride / 4)
        return self.linear(x.mean((2, 3)))  # (B, classes)


def _stage(in_channels: int, out_channels: int, depth: int, stride: int, shortcut: str) -> nn.Sequential:
    blocks = [BasicBlock(in_channels, out_channels, stride, shortcut)]
    blocks += [BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)
