"""The roofline: is it the arithmetic that limits a layer, or the memory?

A layer that does few operations for each byte it moves waits for memory, however fast the arithmetic is: then fewer
bytes help (4-bit weights) and fewer operations do not. Arithmetic intensity I is FLOPs / byte moved; what a machine
can reach is min(peak, I * bandwidth), two straight lines on logarithmic axes.

    Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore architectures",
    Communications of the ACM 2009
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from compresslab.measure.latency import time_once
from compresslab.measure.running import use_threads

__all__ = ["Machine", "Work", "measure_machine"]


@dataclass(frozen=True)
class Work:
    """What a layer or a model did in one forward pass.

    Example:
        >>> work = Work(macs=1_000, bytes_moved=500, latency_s=1e-6)
        >>> work.intensity, work.flops_per_s, work.bytes_per_s
        (4.0, 2000000000.0, 500000000.0)
    """

    macs: int
    bytes_moved: int  # weights, inputs and outputs
    latency_s: float

    @property
    def intensity(self) -> float:
        """FLOPs for each byte moved; one MAC is two FLOPs."""
        return 2 * self.macs / self.bytes_moved

    @property
    def flops_per_s(self) -> float:
        """Achieved arithmetic."""
        return 2 * self.macs / self.latency_s

    @property
    def bytes_per_s(self) -> float:
        """Achieved bandwidth."""
        return self.bytes_moved / self.latency_s


@dataclass(frozen=True)
class Machine:
    """The two roofs of a machine, as measured.

    Example:
        >>> machine = Machine(flops_per_s=100e9, bytes_per_s=10e9, threads=1, dtype=torch.float32)
        >>> machine.ridge, machine.attainable(2.0), machine.attainable(50.0)
        (10.0, 20000000000.0, 100000000000.0)
        >>> machine.bandwidth_utilization(Work(macs=1_000, bytes_moved=500, latency_s=1e-7))
        0.5
    """

    flops_per_s: float  # of large matrix products
    bytes_per_s: float  # of large copies: what is read and what is written
    threads: int
    dtype: torch.dtype

    @property
    def ridge(self) -> float:
        """The intensity where both roofs meet, FLOPs / byte: below it memory is the limit."""
        return self.flops_per_s / self.bytes_per_s

    def attainable(self, intensity: float) -> float:
        """FLOPs per second that work of this intensity can reach at best."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)

    def bandwidth_utilization(self, work: Work) -> float:
        """Achieved over measured bandwidth; above 1 means that the bytes came from a cache."""
        return work.bytes_per_s / self.bytes_per_s


def measure_machine(
    *,
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
    device: str | torch.device = "cpu",
    matrix_size: int = 1024,
    buffer_bytes: int = 2**27,
    repeats: int = 5,
) -> Machine:
    """The roofs of this machine: the best of several large matrix products and of several large copies.

    Args:
        dtype: of the matrices, a floating point type.
        threads: CPU threads of torch.
        device: where to measure.
        matrix_size: side of the square matrices.
        buffer_bytes: size of the buffer copied; many times the last cache, or the cache is what is measured.
        repeats: how many times each; the best counts, since a roof is what is possible.

    Raises:
        ValueError: ``dtype`` is not floating point, or a number is below 1.

    Example:
        >>> machine = measure_machine(matrix_size=64, buffer_bytes=4096, repeats=1)  # far too small to be true
        >>> machine.ridge == machine.flops_per_s / machine.bytes_per_s
        True
    """
    if not dtype.is_floating_point:
        raise ValueError(f"dtype={dtype} must be a floating point type; try torch.float32 or torch.bfloat16")
    if min(matrix_size, buffer_bytes, repeats) < 1:
        raise ValueError(
            f"matrix_size={matrix_size}, buffer_bytes={buffer_bytes}, repeats={repeats} must be at least 1"
        )
    source = torch.ones(buffer_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    matrix = torch.ones(matrix_size, matrix_size, dtype=dtype, device=device)
    product = torch.empty_like(matrix)
    with use_threads(threads), torch.inference_mode():
        copy_s = _best(lambda: target.copy_(source), repeats)
        product_s = _best(lambda: torch.mm(matrix, matrix, out=product), repeats)
    return Machine(2 * matrix_size**3 / product_s, 2 * buffer_bytes / copy_s, threads, dtype)


def _best(run: Callable[[], object], repeats: int) -> float:
    run()
    return min(time_once(run) for _ in range(repeats))
