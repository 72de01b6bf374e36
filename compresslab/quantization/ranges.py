"""Calibration: which range of an activation the grid should span, from batches that pass by once.

What lies outside the range is clipped, what lies inside is rounded; a wider range trades the first error for the
second. An observer sees one batch at a time and keeps a few numbers or a histogram, however many batches come.

    minmax       everything seen; one outlier decides
    average      the mean over batches of their smallest and largest value, newer ones count more
    percentile   all but a given share
    mse          the least squared error
    entropy      the least information lost (KL divergence), as TensorRT does it; it clips hard where there are outliers

The histogram's bins are a power of two wide and start at 0. When a value falls outside, the width doubles and
neighbours are added up, so the counts are those of all the data binned at once: the range depends neither on the
batch size nor on the order of the batches. (Stretched or resampled bins do, and with them the scales.)

    Migacz, "8-bit inference with TensorRT", 2017,
    https://on-demand.gputechconf.com/gtc/2017/presentation/s7310-8-bit-inference-with-tensorrt.pdf (entropy)
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from compresslab.quantization.affine import Grid, check_finite, choose_grid, integer_levels

__all__ = [
    "OBSERVERS", "Entropy", "Histogram", "MinMax", "MovingAverage", "Percentile", "Range", "SquaredError", "calibrate",
]  # fmt: skip

HALF = 4096  # bins on each side of 0, at least half of which reach up to the largest value


@dataclass(frozen=True)
class Range:
    """The part of the real line that a grid should span; 0 is in it."""

    minimum: float
    maximum: float

    def grid(self, *, bits: int = 8, symmetric: bool = True) -> Grid:
        """The grid over this range.

        Example:
            >>> Range(-1.0, 2.0).grid(bits=2, symmetric=False).zero_point.item()
            1
        """
        return choose_grid(self.minimum, self.maximum, bits=bits, symmetric=symmetric)


class MinMax:
    """From the smallest to the largest value of all batches, and 0; the base of the other observers.

    Args:
        bits, symmetric: the grid that the range is for.
        name: of the layer, for error messages.

    Example:
        >>> observer = MinMax()
        >>> for batch in (torch.tensor([0.5, 2.0]), torch.tensor([-1.0])):
        ...     observer.update(batch)
        >>> observer.range()
        Range(minimum=-1.0, maximum=2.0)
    """

    def __init__(self, *, bits: int = 8, symmetric: bool = True, name: str = "") -> None:
        integer_levels(bits)  # raises
        self.bits, self.symmetric, self.batches = bits, symmetric, 0
        self.where = f"activations of {name!r}" if name else "activations"
        self.minimum, self.maximum = float("inf"), float("-inf")

    def update(self, x: Tensor) -> None:
        """Take in one batch: floating point, any shape.

        Raises:
            ValueError: a value is not finite; the message counts batches from 0.
        """
        ends = [end.item() for end in x.detach().aminmax()] if x.numel() and not x.is_meta else []
        if not (x.is_floating_point() and all(map(math.isfinite, ends))) or x.is_meta:  # quicker than to count at once
            check_finite(x, f"batch {self.batches} of {self.where}")
        self.batches += 1
        if ends:
            self._observe(x.detach().reshape(-1), *ends)

    def range(self) -> Range:
        """The range that the batches so far suggest.

        Raises:
            ValueError: there was no value, or none but 0.
        """
        if self.minimum > self.maximum:
            raise ValueError(f"{self.where}: no value in {self.batches} batches; pass at least one batch")
        if self.minimum == self.maximum == 0:
            raise ValueError(f"{self.where} never left 0 in {self.batches} batches; calibrate with real inputs")
        return self._choose()

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)

    def _choose(self) -> Range:
        return self._clip(self.minimum, self.maximum)

    def _clip(self, low: float, high: float) -> Range:
        """low..high without what was never seen, and with 0, as every grid has it."""
        return Range(min(max(self.minimum, low), 0.0), max(min(self.maximum, high), 0.0))


class MovingAverage(MinMax):
    """An exponential moving average of each batch's smallest and largest value; it depends on the order of batches."""

    momentum = 0.1  # weight of the newest batch

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        first = self.minimum > self.maximum
        self.minimum = low if first else self.minimum + self.momentum * (low - self.minimum)
        self.maximum = high if first else self.maximum + self.momentum * (high - self.maximum)


class Histogram(MinMax):
    """Counts of all values in bins ``width`` wide, HALF of them on each side of 0; its range is that of ``MinMax``."""

    width = 0.0
    counts: Tensor  # (2 * HALF,) int64

    def _observe(self, x: Tensor, low: float, high: float) -> None:
        super()._observe(x, low, high)
        # frexp gives the exponent with max|x| < 2^exponent; a batch of zeros must not set a width of its own.
        width = 2.0 ** math.frexp(max(-low, high, 1e-300))[1] / HALF
        if not self.width:
            self.width, self.counts = width, torch.zeros(2 * HALF, dtype=torch.int64, device=x.device)
        while self.width < width:
            self.counts = torch.nn.functional.pad(self.counts.reshape(HALF, 2).sum(1), (HALF // 2, HALF // 2))
            self.width *= 2
        # A product with a power of two is exact in any dtype that holds it; next to 0 a subnormal may change its bin.
        x = x.double() if self.width < 1e-30 else x.to(torch.promote_types(x.dtype, torch.float32))
        self.counts += torch.bincount((x * (1 / self.width)).floor().to(torch.int32) + HALF, minlength=2 * HALF)

    def _magnitudes(self) -> Tensor:
        """(HALF,) counts of |x|."""
        return self.counts[HALF:] + self.counts[:HALF].flip(0)


class Percentile(Histogram):
    """The range that holds ``percent`` of the values: of |x| if symmetric, else with the same share cut at each end."""

    percent = 99.99

    def _choose(self) -> Range:
        if self.symmetric:
            threshold = self._quantile(self._magnitudes(), self.percent / 100)
            return self._clip(-threshold, threshold)
        tail = (1 - self.percent / 100) / 2
        low, high = (self._quantile(self.counts, share) - HALF * self.width for share in (tail, 1 - tail))
        return self._clip(low, high)

    def _quantile(self, counts: Tensor, share: float) -> float:
        below = counts.cumsum(0).double()
        place = int((below < share * below[-1]).sum().clamp(max=len(counts) - 1))
        inside = (share * below[-1] - (below[place] - counts[place])) / counts[place].clamp(min=1)
        return (place + inside.item()) * self.width


class SquaredError(Histogram):
    """Of ``steps`` shrunken ranges, the one with the least squared error; if asymmetric, then each end by itself."""

    steps = 100

    def _choose(self) -> Range:
        kept = self.counts.nonzero()[:, 0]
        values, weights = (kept - HALF + 0.5) * self.width, self.counts[kept].double()
        shares = [step / self.steps for step in range(self.steps, 0, -1)]  # the widest first: it wins ties

        def least(found: list[Range]) -> Range:
            ends = torch.tensor([(each.minimum, each.maximum) for each in found], device=values.device)
            grids = choose_grid(*ends.T, bits=self.bits, symmetric=self.symmetric, axis=0)
            rounded = grids.quantize(values.expand(len(found), -1)).dequantize()
            return found[((rounded - values).square().double() @ weights).argmin()]

        if self.symmetric:
            return least([self._clip(-end, end) for end in (max(-self.minimum, self.maximum) * s for s in shares)])
        best = least([self._clip(share * self.minimum, share * self.maximum) for share in shares])
        best = least([self._clip(best.minimum, share * self.maximum) for share in shares])
        return least([self._clip(share * self.minimum, best.maximum) for share in shares])


class Entropy(Histogram):
    """The threshold on |x| whose clipped histogram loses least when it is merged into the grid's levels.

    The first bin is set to the second before: after ReLU nearly everything is exactly 0, which every threshold keeps,
    and a spike there drowns all else (it made the squared error 150 times that of min-max).
    """

    def _choose(self) -> Range:
        counts = self._magnitudes().double()
        counts[0] = counts[1]
        one_sided = not self.symmetric and (self.minimum >= 0 or self.maximum <= 0)
        used = int(max(-self.minimum, self.maximum) / self.width) + 1
        levels = min(used, 2 ** (self.bits if one_sided else self.bits - 1))
        # Candidates in steps of 1/256 to 1/128 of the largest value.
        best = min([*range(levels, used, HALF // 256), used], key=lambda size: _divergence(counts[:used], size, levels))
        return self._clip(-(best + 0.5) * self.width, (best + 0.5) * self.width)


def _divergence(counts: Tensor, size: int, levels: int) -> float:
    """KL(P || Q): P the first ``size`` bins with all that lies beyond put in the last, Q the same in ``levels`` steps."""
    kept = counts[:size]
    level = torch.arange(size, device=counts.device) * levels // size
    filled = (kept > 0).double()
    sums, bins = (torch.zeros_like(counts[:levels]).index_add(0, level, part) for part in (kept, filled))
    q = filled * (sums / bins.clamp(min=1))[level]
    p = kept.clone()
    p[-1] += counts[size:].sum()
    p, q = p / p.sum(), 0.9999 * q / q.sum().clamp(min=1) + 0.0001 / size  # the last bin of Q may be empty
    return torch.special.xlogy(p, p / q).sum().item()


OBSERVERS = {"minmax": MinMax, "average": MovingAverage, "percentile": Percentile, "mse": SquaredError}
OBSERVERS["entropy"] = Entropy


def calibrate(
    values: Iterable[Tensor], *, method: str = "minmax", bits: int = 8, symmetric: bool = True, name: str = ""
) -> Range:
    """The range for a stream of activations, read once.

    Args:
        values: batches, floating point, any shapes.
        method: a name in ``OBSERVERS``.
        bits, symmetric: the grid that the range is for.
        name: of the layer, for error messages.

    Raises:
        ValueError: no batch, a value that is not finite, or nothing but 0.
        ValueError: ``method`` or ``bits`` is unknown.

    Example:
        >>> calibrate([torch.tensor([0.5, 2.0]), torch.tensor([-1.0])])
        Range(minimum=-1.0, maximum=2.0)
    """
    if method not in OBSERVERS:
        raise ValueError(f"method={method!r} must be one of {', '.join(OBSERVERS)}")
    observer = OBSERVERS[method](bits=bits, symmetric=symmetric, name=name)
    for batch in values:
        observer.update(batch)
    return observer.range()
