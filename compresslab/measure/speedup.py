"""Which one is faster: candidates timed in turns, and the ratio of their times with an interval.

Two latencies measured one after the other differ by what else the machine did meanwhile. Here every round calls each
candidate once, in a new random order, so that a slow minute hits all of them; the ratio is taken within each round.
The interval speaks of this run: another day, another machine or another batch size has another ratio.
To ``latency.py`` this adds the turns, the ratio, and the interval of its median (by the sign test, which holds for
any distribution).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from compresslab.measure.estimates import Estimate, normal_quantile
from compresslab.measure.latency import MOST_REPEATS, Latency, check_timing, time_once
from compresslab.measure.running import batch_size_of, call, evaluating, use_threads

__all__ = ["Speedups", "compare_latency"]


@dataclass(frozen=True)
class Speedups:
    """Latencies of several candidates from one interleaved run, and how many times faster than the reference."""

    reference: str
    latency: dict[str, Latency]
    speedup: dict[str, Estimate]  # reference time / candidate time: the median over rounds; above 1 is faster


def compare_latency(
    candidates: Mapping[str, Callable],
    inputs: Any = (),
    *,
    reference: str | None = None,
    rounds: int = 30,
    warmup: int = 3,
    min_time_s: float = 0.2,
    threads: int = 1,
    generator: torch.Generator | None = None,
) -> Speedups:
    """Latency of each candidate and its speed-up over the reference, all timed in the same rounds.

    Args:
        candidates: name to module or callable; all get the same ``inputs``.
        inputs: as in ``measure_latency``; without them the candidates are called without arguments.
        reference: the name that the others are compared with; None is the first.
        rounds: the fewest rounds, at least 1; each calls every candidate once.
        warmup: calls of each candidate before them, not timed, besides the cold one.
        min_time_s: go on until the rounds took this many seconds for each candidate on average.
        threads: CPU threads of torch.
        generator: draws the order within the rounds; None starts from seed 0.

    Raises:
        TypeError: a candidate cannot be called.
        ValueError: no candidates, ``reference`` is none of them, or a number is too small.

    Example:
        >>> functions = {"one": lambda x: x @ x, "three": lambda x: x @ x @ x @ x}
        >>> speedups = compare_latency(functions, torch.ones(64, 64), min_time_s=0.0)
        >>> speedups.reference, speedups.speedup["one"].value, speedups.speedup["three"].value < 1
        ('one', 1.0, True)
    """
    check_timing(rounds, warmup, min_time_s)
    names = list(candidates)
    if not names:
        raise ValueError("candidates is empty; give at least one, as {name: model}")
    reference = names[0] if reference is None else reference
    if reference not in names:
        raise ValueError(f"reference={reference!r} must be one of the candidates {names}")
    for name, candidate in candidates.items():
        if not callable(candidate):
            raise TypeError(f"candidates[{name!r}] must be a module or a callable, got {type(candidate).__name__}")
    generator = generator or torch.Generator().manual_seed(0)
    runs = {name: partial(call, candidate, inputs) for name, candidate in candidates.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        for candidate in candidates.values():
            stack.enter_context(evaluating(candidate))
        stack.enter_context(use_threads(threads))
        cold = {name: time_once(run) for name, run in runs.items()}
        stack.enter_context(torch.inference_mode())
        for run in runs.values():
            for _ in range(warmup):
                run()
        done, spent = 0, 0.0
        while done < rounds or (spent < min_time_s * len(names) and done < MOST_REPEATS):
            for place in torch.randperm(len(names), generator=generator).tolist():
                times[names[place]].append(time_once(runs[names[place]]))
                spent += times[names[place]][-1]
            done += 1
    batch_size = batch_size_of(inputs)
    return Speedups(
        reference=reference,
        latency={n: Latency.of(times[n], cold_s=cold[n], batch_size=batch_size, threads=threads) for n in names},
        speedup={name: _ratio(times[reference], times[name]) for name in names},
    )


def _ratio(reference_s: list[float], candidate_s: list[float]) -> Estimate:
    """The median of the ratios, between two of them: of n, as many lie below the true median as heads in n tosses."""
    ratios = sorted(one / other for one, other in zip(reference_s, candidate_s, strict=True))
    count = len(ratios)
    outside = max(0, math.floor((count - normal_quantile(0.95) * math.sqrt(count)) / 2))
    return Estimate(median(ratios), ratios[outside], ratios[-1 - outside], count, "x")
