"""Images that were damaged on the way: nine kinds of damage, each at five strengths.

A camera shakes, a lens is dirty, a file is small. Hendrycks and Dietterich made a benchmark of such corruptions; this
is a small set after theirs for grey and colour images of any size. Sizes are shares of the image, so that strength 3
means the same on 32 and on 224 pixels. Nothing here depends on the order of calls: the generator decides.

    Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019,
    https://arxiv.org/abs/1903.12261, section 4
    Wallace, "The JPEG still picture compression standard", 1991 (blocks of 8 x 8, cosines, coarse steps)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CORRUPTIONS", "STRENGTHS", "corrupt"]

STRENGTHS = (1, 2, 3, 4, 5)


def corrupt(images: Tensor, kind: str, strength: int, *, generator: torch.Generator | None = None) -> Tensor:
    """The images with one kind of damage.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or floats in 0..1; before any normalization.
        kind: one of ``CORRUPTIONS``.
        strength: 1 (weak) to 5.
        generator: of noise, places and directions; None starts from seed 0.

    Returns:
        New images of the same shape and dtype.

    Raises:
        TypeError: images are neither uint8 nor floats.
        ValueError: an axis is missing, floats lie outside 0..1 (they are normalized already), or kind or strength is
            not known.

    Example:
        >>> corrupt(torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3), "brightness", 1).flatten().tolist()
        [0.10000000149011612, 0.6000000238418579, 1.0]
    """
    if kind not in _DAMAGES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(CORRUPTIONS)}")
    if strength not in STRENGTHS:
        raise ValueError(f"strength={strength!r} must be one of 1, 2, 3, 4, 5")
    if images.dim() != 4 or 0 in images.shape:
        raise ValueError(f"images {tuple(images.shape)} must be (N, C, H, W) with at least one image")
    if images.dtype is not torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 in 0..255 or floats in 0..1, got {images.dtype}")
    pixels = images.float() / 255 if images.dtype is torch.uint8 else images.float()
    low, high = pixels.aminmax()
    if not (low >= 0 and high <= 1):
        ends = f"{low.item():.3g}..{high.item():.3g}"
        raise ValueError(f"images in {ends} must be floats in 0..1: corrupt them before they are normalized")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    damage, amounts = _DAMAGES[kind]
    damaged = damage(pixels, amounts[strength - 1], generator).clamp(0, 1)
    return (damaged * 255).round().to(torch.uint8) if images.dtype is torch.uint8 else damaged.to(images.dtype)


def _noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator).to(x.device)


def _dots(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper: a share of the pixels is black or white."""
    drawn = torch.rand((len(x), 1, *x.shape[2:]), generator=generator).to(x.device)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn < share, 1.0, x))


def _blur(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Gaussian, whose deviation is a share of the shorter side."""
    sigma = share * min(x.shape[2:])
    places = torch.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 1, device=x.device)
    weights = (-0.5 * (places / sigma) ** 2).exp()
    for axis in (2, 3):
        size = x.shape[axis]
        near = (torch.arange(size, device=x.device)[:, None] + places).clamp(0, size - 1)  # the edge goes on outside
        mix = torch.zeros(size, size, device=x.device).scatter_add_(1, near, weights.expand(size, -1).contiguous())
        x = torch.einsum("nchw,oh->ncow" if axis == 2 else "nchw,ow->ncho", x, mix / weights.sum())
    return x


def _contrast(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + factor * (x - mean)


def _occlusion(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A grey square whose side is a share of the shorter side, somewhere."""
    height, width = x.shape[2:]
    side = max(1, round(share * min(height, width)))
    top, left = (
        torch.randint(size - side + 1, (len(x), 1, 1, 1), generator=generator).to(x.device) for size in (height, width)
    )
    rows, columns = torch.arange(height, device=x.device).view(-1, 1), torch.arange(width, device=x.device)
    inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    return torch.where(inside, 0.5, x)


def _shift(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Moved by a share of each side, up or down and left or right; the edge is repeated."""
    for axis in (2, 3):
        size = x.shape[axis]
        sign = 2 * torch.randint(2, (len(x), 1), generator=generator).to(x.device) - 1
        index = (torch.arange(size, device=x.device) + sign * round(share * size)).clamp(0, size - 1)  # (N, size)
        index = index[:, None, :, None] if axis == 2 else index[:, None, None, :]
        x = x.gather(axis, index.expand_as(x))
    return x


def _pixelate(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Made smaller, to a share of its sides, and large again."""
    small = [max(1, round(share * side)) for side in x.shape[2:]]
    return F.interpolate(F.interpolate(x, small, mode="area"), x.shape[2:], mode="nearest-exact")


def _jpeg(x: Tensor, step: float, generator: torch.Generator) -> Tensor:
    """Cosines of blocks of 8 x 8, rounded to steps that grow with the frequency; colours are not mixed."""
    k = torch.arange(8, device=x.device)
    dct = torch.cos(math.pi * (k + 0.5) * k[:, None] / 8) * torch.where(k == 0, 0.125, 0.25)[:, None].sqrt()
    steps = step * (1 + k + k[:, None])  # (8, 8)
    height, width = x.shape[2:]
    down, right = -height % 8, -width % 8
    padded = F.pad(x, (0, right, 0, down), mode="replicate").unflatten(3, (-1, 8)).unflatten(2, (-1, 8))
    blocks = torch.einsum("ui,ncaibj,vj->ncaubv", dct, padded, dct)
    blocks = (blocks / steps[:, None]).round() * steps[:, None]
    return torch.einsum("ui,ncaubv,vj->ncaibj", dct, blocks, dct).flatten(4).flatten(2, 3)[:, :, :height, :width]


_DAMAGES: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "noise": (_noise, (0.04, 0.08, 0.12, 0.18, 0.26)),
    "dots": (_dots, (0.01, 0.03, 0.06, 0.1, 0.17)),
    "blur": (_blur, (0.02, 0.03, 0.04, 0.055, 0.075)),
    "contrast": (_contrast, (0.7, 0.5, 0.35, 0.2, 0.1)),
    "brightness": (lambda x, amount, _: x + amount, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "occlusion": (_occlusion, (0.15, 0.22, 0.3, 0.4, 0.5)),
    "shift": (_shift, (0.06, 0.1, 0.14, 0.18, 0.22)),
    "pixelate": (_pixelate, (0.75, 0.5, 0.4, 0.3, 0.2)),
    "jpeg": (_jpeg, (0.02, 0.04, 0.07, 0.11, 0.17)),
}
CORRUPTIONS = tuple(_DAMAGES)
