"""Latency: how long one call takes, said so that another can repeat it.

A single timing is no measurement. The first calls are slow (memory is fetched, kernels are chosen), a machine that is
shared interrupts some of the others, and the number of threads and the batch size change everything. So: the first
call is reported apart, some calls warm up, many are timed, and the median is given with the 10th and the 90th
percentile, the batch size and the number of threads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from compresslab.measure.running import batch_size_of, call, evaluating, synchronize, use_threads

__all__ = ["Latency", "check_timing", "measure_latency", "time_once"]

MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Latency:
    """Seconds for one call, over repeated calls. ``print`` shows the median with the range of the middle 80 %."""

    median_s: float
    p10_s: float
    p90_s: float
    cold_s: float  # the very first call
    repeats: int
    batch_size: int
    threads: int

    @classmethod
    def of(cls, times_s: list[float], *, cold_s: float, batch_size: int, threads: int) -> Latency:
        """The latency that ``times_s``, one for each repeat, amount to.

        Example:
            >>> Latency.of([0.3, 0.1, 0.2], cold_s=0.9, batch_size=10, threads=1).throughput
            50.0
        """
        p10, p90 = np.percentile(times_s, [10, 90]).tolist()
        return cls(statistics.median(times_s), p10, p90, cold_s, len(times_s), batch_size, threads)

    @property
    def throughput(self) -> float:
        """Samples per second at this batch size."""
        return self.batch_size / self.median_s

    def __str__(self) -> str:
        low, middle, high = (f"{1000 * seconds:.3g}" for seconds in (self.p10_s, self.median_s, self.p90_s))
        return f"{middle} ms [{low}, {high}] at batch size {self.batch_size}, threads: {self.threads}"


def measure_latency(
    model: Callable,
    inputs: Any = (),
    *,
    repeats: int = 30,
    warmup: int = 3,
    min_time_s: float = 0.2,
    threads: int = 1,
) -> Latency:
    """The latency of ``model`` on ``inputs``, in eval mode and inference mode.

    Args:
        model: a module or any callable, such as a runtime's session in a function.
        inputs: a tensor, a tuple of arguments or a mapping of keywords; the first axis of the first tensor is the
            batch. Without inputs the model is called without arguments, and the batch size is 1.
        repeats: the fewest calls to time, at least 1.
        warmup: calls before them, not timed, besides the cold one; at least 0.
        min_time_s: go on until the timed calls took this many seconds together (at most 10,000 calls), so that a
            model of microseconds is called often.
        threads: CPU threads of torch; other runtimes have settings of their own.

    Raises:
        TypeError: ``model`` cannot be called.
        ValueError: ``repeats``, ``warmup``, ``min_time_s`` or ``threads`` is too small.

    Example:
        >>> latency = measure_latency(torch.nn.Linear(8, 8), torch.zeros(4, 8), min_time_s=0.0)
        >>> latency.repeats, latency.batch_size, latency.p10_s <= latency.median_s <= latency.p90_s
        (30, 4, True)
    """
    check_timing(repeats, warmup, min_time_s)
    if not callable(model):
        raise TypeError(f"model must be a module or a callable, got {type(model).__name__}")
    run, times = partial(call, model, inputs), []
    with evaluating(model), use_threads(threads):
        cold = time_once(run)  # in no_grad: what a model keeps from its first call must not be inference tensors
        with torch.inference_mode():
            for _ in range(warmup):
                run()
            while len(times) < repeats or (sum(times) < min_time_s and len(times) < MOST_REPEATS):
                times.append(time_once(run))
    return Latency.of(times, cold_s=cold, batch_size=batch_size_of(inputs), threads=threads)


def time_once(run: Callable[[], Any]) -> float:
    """Seconds that ``run()`` takes, until the accelerator has done its part as well.

    Example:
        >>> time_once(lambda: None) < 1
        True
    """
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return max(time.perf_counter() - start, 1e-9)  # a coarse clock may not have moved


def check_timing(repeats: int, warmup: int, min_time_s: float) -> None:
    """Raise ValueError unless there is something to time.

    Raises:
        ValueError: one of the three is too small.

    Example:
        >>> check_timing(30, 3, 0.2)
    """
    if repeats < 1 or warmup < 0 or not min_time_s >= 0:
        given = f"repeats={repeats}, warmup={warmup}, min_time_s={min_time_s}"
        raise ValueError(f"{given} must be at least 1, 0 and 0; try 30, 3 and 0.2")
