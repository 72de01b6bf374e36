"""A small vision transformer: an image is a sequence of patches.

Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, https://arxiv.org/abs/2010.11929. The blocks are those of
the GPT without the causal mask; the mean over patches takes the place of the class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compresslab.workbench.models.gpt import Block, init_transformer

__all__ = ["ViT"]


class ViT(nn.Module):
    """Patches as tokens with learned positions, ``depth`` blocks, the mean over tokens, a linear classifier.

    Args:
        in_channels: channels of the images.
        classes: number of logits.
        size: height and width of the images, in pixels.
        patch: height and width of a patch, in pixels.
        width: size of the stream (D).
        depth: number of blocks.
        heads: attention heads in each block.

    Example:
        >>> import torch
        >>> ViT(in_channels=3, classes=10, depth=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_channels: int = 1,
        classes: int = 62,
        size: int = 32,
        patch: int = 4,
        width: int = 64,
        depth: int = 3,
        heads: int = 4,
    ):
        super().__init__()
        if size % patch:
            raise ValueError(f"patch={patch} must divide size={size}; try 4 or 8")
        self.patch_embed = nn.Conv2d(in_channels, width, patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.empty(1, (size // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.apply(init_transformer)
        nn.init.normal_(self.pos_embed, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:  # (B, C, size, size)
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, L, D), L = (size / patch)^2
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # (B, classes)
