"""Numbers that say how sure they are: the vocabulary of everything that is estimated from samples.

An accuracy of 83 % on 300 images and one on 30,000 are different statements. An ``Estimate`` carries its interval: in
repeated experiments 95 % of such intervals hold the true value.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927 (the score interval)
    Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979 (the percentile interval)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

__all__ = ["Estimate", "bootstrap", "normal_quantile", "si", "wilson"]


@dataclass(frozen=True)
class Estimate:
    """A value, the two ends of its interval, and how many samples it rests on.

    ``unit`` says how it prints: "%" for a fraction, "points" for a difference of two fractions, "x" for a ratio.

    Example:
        >>> print(Estimate(0.832, 0.82, 0.843, 4000, "%"))
        83.2 % [82.0, 84.3]
        >>> print(Estimate(-0.004, -0.01, 0.002, 4000, "points"))
        -0.4 points [-1.0, +0.2]
        >>> print(Estimate(1.92, 1.85, 2.0, 50, "x"))
        1.92x [1.85, 2.00]
    """

    value: float
    low: float
    high: float
    count: int
    unit: str = ""

    def __str__(self) -> str:
        if self.unit == "%":
            return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        if self.unit == "points":
            return f"{100 * self.value:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{self.value:.2f}{self.unit} [{self.low:.2f}, {self.high:.2f}]"


def normal_quantile(confidence: float) -> float:
    """The z with ``confidence`` of the normal distribution between -z and z.

    Raises:
        ValueError: ``confidence`` is not between 0 and 1.

    Example:
        >>> round(normal_quantile(0.95), 2)
        1.96
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1; try 0.95")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: int, count: int, *, confidence: float = 0.95) -> Estimate:
    """A fraction with Wilson's score interval, which stays within 0..1 and is honest for few samples.

    Args:
        successes: how many of the samples succeeded, 0..count.
        count: number of samples, at least 1.
        confidence: 0..1, ends excluded.

    Raises:
        ValueError: ``count`` is below 1, ``successes`` outside 0..count, or ``confidence`` outside 0..1.

    Example:
        >>> print(wilson(90, 100))
        90.0 % [82.6, 94.5]
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"successes={successes} of count={count} must be 0..count with count at least 1")
    z, share = normal_quantile(confidence), successes / count
    center = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    low = 0.0 if successes == 0 else center - half  # exact ends: rounding would leave 1e-18 or 1 - 1e-16
    high = 1.0 if successes == count else center + half
    return Estimate(share, low, high, count, "%")


def bootstrap(
    statistic: Callable[[Tensor], float],
    count: int,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[Estimate, Tensor]:
    """A statistic of ``count`` samples with its percentile interval over samples drawn again with replacement.

    Args:
        statistic: takes the indices (count,) of the samples drawn, gives a number.
        count: number of samples, at least 1.
        resamples: how many times to draw; at least 1.
        confidence: 0..1, ends excluded.
        generator: draws the samples; None starts from seed 0, so the same call gives the same interval.

    Returns:
        The estimate, and the statistic of every resample, (resamples,) float64.

    Raises:
        ValueError: ``count`` or ``resamples`` is below 1, or ``confidence`` outside 0..1.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> estimate, drawn = bootstrap(lambda index: values[index].mean().item(), 4)
        >>> estimate.value, estimate.low < 2.5 < estimate.high, len(drawn)
        (2.5, True, 1000)
    """
    if count < 1 or resamples < 1:
        raise ValueError(f"count={count} and resamples={resamples} must be at least 1")
    normal_quantile(confidence)
    generator = generator or torch.Generator().manual_seed(0)
    draws = (torch.randint(count, (count,), generator=generator) for _ in range(resamples))
    values = torch.tensor([statistic(index) for index in draws], dtype=torch.float64)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = torch.quantile(values, ends).tolist()
    return Estimate(statistic(torch.arange(count)), low, high, count), values


def si(value: float, unit: str = "") -> str:
    """A number with three digits and a decimal prefix: 1 kB is 1,000 bytes.

    Example:
        >>> si(44_700_000, "B"), si(0.00123, "s"), si(1_814_000_000, "MACs"), si(0, "B")
        ('44.7 MB', '1.23 ms', '1.81 GMACs', '0 B')
    """
    value = float(f"{value:.3g}")
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, ""), (-3, "m"), (-6, "µ"), (-9, "n")):
        if abs(value) >= 10.0**power:
            return f"{value / 10.0**power:.3g} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()
