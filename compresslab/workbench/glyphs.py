"""Glyphs: pictures of letters and digits, rendered from the fonts that come with matplotlib.

Each character is drawn once per font, large, by Pillow. An image is such a drawing, turned, sheared, scaled and shifted
at random, given a random contrast (always light on dark) and noise. Some pairs can hardly be told apart in some fonts
(O and 0, I and l, and the lower-case letters that are small upper-case ones, as each drawing is centered): accuracy
ends well below 100 %, so there is always something to lose.
"""

from __future__ import annotations

import difflib
import functools
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CHARACTERS", "Glyphs", "font_path", "fonts", "render", "versions", "warp"]

RENDERER = 1  # counted up whenever the same arguments give other images

CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits

# The text fonts of matplotlib that draw every one of CHARACTERS: no symbols, no display sizes, no old-style digits.
_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-BoldOblique", "-Oblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-BoldItalic", "-Italic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "BolIta", "Italic")),
    *("cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)

_OVERSAMPLING = 2  # drawings are this many times larger than images
_BATCH = 256  # images warped at a time: the memory used beside the result stays below 16 MB at size 32


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Rendered images: ``images`` (N, 1, size, size) uint8, ``labels`` and ``groups`` (N,) int64.

    A label is an index into the characters asked for, a group an index into the fonts asked for.
    """

    images: Tensor
    labels: Tensor
    groups: Tensor


def render(
    count: int,
    *,
    characters: str = CHARACTERS,
    fonts: Sequence[str] | None = None,
    size: int = 32,
    generator: torch.Generator | None = None,
) -> Glyphs:
    """Render random images of characters, every character in every font equally often (to within one).

    Args:
        count: how many images.
        characters: two or more of ``CHARACTERS``; the classes, in this order.
        fonts: one or more of ``fonts()``; all of them if None.
        size: height and width in pixels, at least 8.
        generator: source of randomness; one seeded with 0 if None. The images depend on nothing else: not on the
            number of threads.

    Raises:
        ValueError: a count or size too small, an unknown font or character.

    Example:
        >>> glyphs = render(124, fonts=["DejaVuSans", "cmr10"])
        >>> tuple(glyphs.images.shape), glyphs.labels.bincount().unique().tolist()
        ((124, 1, 32, 32), [2])
    """
    fonts = _FONTS if fonts is None else tuple(fonts)
    _check(count, characters, fonts, size)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawings = _draw(characters, fonts, size * _OVERSAMPLING)  # (fonts * characters, H, W) uint8
    rounds = math.ceil(count / len(drawings))
    picks = torch.cat([torch.randperm(len(drawings), generator=generator) for _ in range(rounds)])[:count]
    images = torch.empty(count, 1, size, size, dtype=torch.uint8)
    for start in range(0, count, _BATCH):
        batch = slice(start, start + _BATCH)
        images[batch] = warp(drawings[picks[batch]], size, generator)
    return Glyphs(images, picks % len(characters), picks // len(characters))


def fonts() -> tuple[str, ...]:
    """The names of the fonts, in a fixed order: 21 text fonts, upright and slanted, light and bold, with serifs or not.

    Example:
        >>> len(fonts()), fonts()[0]
        (21, 'DejaVuSans')
    """
    return _FONTS


def font_path(name: str) -> Path:
    """The file of one of ``fonts()`` inside matplotlib.

    Raises:
        ValueError: not one of ``fonts()``.
        FileNotFoundError: this matplotlib comes without it.
    """
    import matplotlib

    if name not in _FONTS:
        close = difflib.get_close_matches(name, _FONTS, n=1)
        raise ValueError(f"font {name!r} must be one of {_FONTS}" + (f"; did you mean {close[0]!r}?" if close else ""))
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise FileNotFoundError(f"matplotlib {matplotlib.__version__} comes without {path}; install matplotlib again")
    return path


def versions() -> dict[str, str]:
    """What else decides the images: the version of this file, of matplotlib (its fonts) and of Pillow's FreeType."""
    import matplotlib
    from PIL import features

    freetype = str(features.version("freetype2"))
    return {"renderer": str(RENDERER), "matplotlib": matplotlib.__version__, "freetype": freetype}


def _check(count: int, characters: str, fonts: tuple[str, ...], size: int) -> None:
    if count < 1:
        raise ValueError(f"count={count} must be at least 1; try 1000")
    if size < 8:
        raise ValueError(f"size={size} must be at least 8 pixels; try 32")
    if not fonts:
        raise ValueError("fonts=() must name at least one font; see compresslab.workbench.glyphs.fonts()")
    if len(set(fonts)) < len(fonts):
        raise ValueError(f"fonts={fonts} must be distinct; name each once")
    if len(characters) < 2 or len(set(characters)) < len(characters) or not set(characters) <= set(CHARACTERS):
        raise ValueError(f"characters={characters!r} must be two or more distinct letters A-Z, a-z or digits")
    for font in fonts:
        font_path(font)


@functools.lru_cache(maxsize=2)
def _draw(characters: str, fonts: tuple[str, ...], side: int) -> Tensor:
    """Each character in each font, centered: (fonts * characters, side, side) uint8, ink is 255."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    drawings = np.empty((len(fonts) * len(characters), side, side), dtype=np.uint8)
    for i, name in enumerate(fonts):
        # The basic layout engine is part of every Pillow; the other one is not, and places glyphs differently.
        font = ImageFont.truetype(str(font_path(name)), 3 * side // 4, layout_engine=ImageFont.Layout.BASIC)
        for j, character in enumerate(characters):
            left, top, right, bottom = font.getbbox(character)
            image = Image.new("L", (side, side))
            corner = ((side - left - right) // 2, (side - top - bottom) // 2)
            ImageDraw.Draw(image).text(corner, character, fill=255, font=font)
            drawings[i * len(characters) + j] = np.asarray(image)
    return torch.from_numpy(drawings)


def warp(drawings: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Turn, shear, scale and shift each drawing at random, give it a contrast and noise: (N, 1, size, size) uint8."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(drawings), 1, 1, generator=generator) * (high - low) + low  # (N, 1, 1)

    angle, shear, zoom = uniform(-0.5, 0.5), uniform(-0.4, 0.4), uniform(0.65, 1.25)
    shift_x, shift_y = uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    dark, contrast, sigma = uniform(0.0, 0.35), uniform(0.2, 0.65), uniform(0.02, 0.16)
    # Where each pixel of the image comes from in the drawing. Written out, product by product: a batched matrix
    # product may round differently with another number of threads.
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1  # (S,) centers of the pixels, the image spans -1..1
    u, v = axis.view(1, 1, size), axis.view(1, size, 1)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    x, y = cos * u - sin * v + shift_x, sin * u + cos * v + shift_y  # (N, S, S)
    grid = torch.stack((x + shear * y, y), dim=-1)  # (N, S, S, 2)
    ink = F.grid_sample(drawings.unsqueeze(1).float(), grid, align_corners=False) / 255  # (N, 1, S, S)
    noise = torch.randn(ink.shape, generator=generator)
    image = dark.unsqueeze(1) + contrast.unsqueeze(1) * ink + sigma.unsqueeze(1) * noise
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
