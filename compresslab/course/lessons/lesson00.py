"""Checks of lesson 00, "Measure first"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import nn

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make()


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight


@exercise("00.1", title="Bytes of a model", minutes=10, difficulty=1)
def bytes_of_a_model(answer: Callable) -> str:
    """``answer(model)``: bytes of all parameters and buffers, each counted once."""
    what = "for nn.Linear(3, 2), the size"
    linear = _seeded(lambda: nn.Linear(3, 2))
    mistakes = {
        8: "that is the number of parameters of nn.Linear(3, 2); each float32 takes 4 bytes",
        24: "that is the weight of nn.Linear(3, 2) alone; its bias is a parameter too",
        256: "those are bits; a byte has eight of them",
    }
    expect_number(call(answer, linear), 32, what=what, wrong=mistakes)
    mistakes = {32: "nn.Linear(3, 2) in float16 takes 2 bytes a number, not 4: ask each tensor (element_size)"}
    half = _seeded(lambda: nn.Linear(3, 2)).half()
    expect_number(call(answer, half), 16, what="for nn.Linear(3, 2) in float16, the size", wrong=mistakes)
    norm = _seeded(lambda: nn.BatchNorm1d(5))  # 2 x 5 parameters, 2 x 5 float32 buffers, one int64 counter
    mistakes = {
        40: "nn.BatchNorm1d(5) also saves its running mean, variance and counter: buffers are in the file too",
        80: "nn.BatchNorm1d(5) has a counter of batches too, one int64 of 8 bytes",
        84: "the counter of nn.BatchNorm1d(5) is an int64: 8 bytes, not 4",
    }
    expect_number(call(answer, norm), 88, what="for nn.BatchNorm1d(5), the size", wrong=mistakes)
    mistakes = {320: "a tied weight (one tensor under two names) is stored once; do not count it twice"}
    tied = _seeded(_Tied)
    expect_number(call(answer, tied), 160, what="for a model with a tied weight, the size", wrong=mistakes)
    return "weights, buffers, half precision and tied weights all counted right"


@exercise("00.2", title="MACs of a convolution", minutes=10, difficulty=1)
def macs_of_a_convolution(answer: Callable) -> str:
    """``answer(in_channels, out_channels, kernel, height, width, groups)``: MACs for one image; sizes of the output."""
    right = 4 * 8 * 3 * 3 * 10 * 10
    mistakes = {
        2 * right: "those are FLOPs; one multiply-accumulate is two of them",
        8 * (4 * 9 + 1) * 100: "the bias is an addition, not a multiply-accumulate; leave it out",
        4 * 8 * 3 * 10 * 10: "the kernel is a square: 3 x 3 weights, not 3",
        4 * 8 * 9: "that is the number of weights; each is used once for every output position (10 x 10)",
        8 * 9 * 100: "each output sums over all 4 input channels",
    }
    expect_number(call(answer, 4, 8, 3, 10, 10, 1), right, what="for 4 -> 8 channels, 3x3, 10x10 out", wrong=mistakes)
    mistakes = {
        8 * 8 * 9 * 16: "with groups=8 each output sees 8 / 8 = 1 input channel, not all of them",
        8 * 8 * 9 * 16 / 64: "groups divide the work once: every output still costs (in / groups) x 3 x 3",
    }
    expect_number(call(answer, 8, 8, 3, 4, 4, 8), 8 * 9 * 16, what="for a depthwise 3x3 on 8 channels", wrong=mistakes)
    expect_number(call(answer, 16, 32, 1, 5, 7, 1), 16 * 32 * 35, what="for a 1x1 convolution with 5x7 outputs")
    return "plain, depthwise and 1x1 convolutions"


@exercise("00.3", title="How many test images?", minutes=10, difficulty=2)
def images_needed(answer: Callable) -> str:
    """``answer(accuracy, half_width)``: images for a 95 % interval of that half width (normal approximation)."""
    right = 0.8 * 0.2 * (1.96 / 0.01) ** 2
    mistakes = {
        0.8
        * 0.2
        * (1.96 / 0.02) ** 2: "half_width is already half of the interval: 0.01 means plus or minus one point",
        0.8 * 0.2 / 0.01**2: "that is one standard error; a 95 % interval reaches 1.96 of them to each side",
        math.sqrt(right): "the width shrinks with the square root of n, so n grows with the square: square the ratio",
        0.25 * (1.96 / 0.01) ** 2: "0.25 is the worst case (accuracy 0.5); use accuracy * (1 - accuracy)",
        0.8 * (1.96 / 0.01) ** 2: "the variance of one right-or-wrong answer is accuracy * (1 - accuracy)",
    }
    value = call(answer, 0.8, 0.01)
    expect_number(value, right, what="for 80 % and one point", tolerance=2e-4, wrong=mistakes)
    expect_number(
        call(answer, 0.9, 0.005), 0.09 * (1.96 / 0.005) ** 2, what="for 90 % and half a point", tolerance=2e-4
    )
    return f"to know 80 % to one point takes {math.ceil(float(value)):,} images"


@exercise("00.4", title="Under the roof", minutes=10, difficulty=2)
def attainable(answer: Callable) -> str:
    """``answer(intensity, peak, bandwidth)``: attainable FLOP/s of the roofline model."""
    value = call(answer, 2.0, 100e9, 20e9)  # memory-bound: 2 FLOP/byte x 20 GB/s = 40 GFLOP/s
    mistakes = {
        100e9: "at 2 FLOP for each byte the memory is the limit: 20 GB/s feed only 40 GFLOP/s",
        20e9: "bandwidth counts bytes; multiply it by the intensity (FLOP for each byte)",
        140e9: "the two limits do not add up: the lower one rules",
        10e9: "bandwidth times intensity, not divided by it: bytes/s x FLOP/byte = FLOP/s",
    }
    expect_number(value, 40e9, what="below the ridge, the attainable speed", wrong=mistakes)
    value = call(answer, 50.0, 100e9, 20e9)
    mistakes = {1000e9: "no layer is faster than the machine's peak: take the smaller of the two limits"}
    expect_number(value, 100e9, what="beyond the ridge, the attainable speed", wrong=mistakes)
    return "the ridge of this example lies at 5 FLOP for each byte"


@exercise("00.5", title="Find the bug: a timer", minutes=15, difficulty=3)
def median_latency(answer: Callable) -> str:
    """``answer(run, clock, warmup, repeats)``: median seconds of ``repeats`` calls after ``warmup`` calls."""
    durations = [9.0, 5.0, 2.0, 1.0, 1.0, 40.0, 3.0]  # two cold calls, then five: sorted 1 1 2 3 40, median 2
    value, calls = _timed(answer, durations, warmup=2, repeats=5)
    mean = sum(durations[2:]) / 5
    if calls < 7:
        raise NotYet(f"run() was called {calls} times; two for the warm-up and five that count make 7")
    if calls > 7:
        raise NotYet(f"run() was called {calls} times; 7 are enough: two for the warm-up, five that count")
    mistakes = {
        mean: "that is the mean: one call of 40 s, when something else ran, rules it; take the median",
        sum(durations) / 7: "that is the mean over the cold calls too: leave the warm-up out, take the median",
        3.0: "the first two calls are the warm-up: they run, but do not count",
        1.0: "that is the fastest call: the median is the middle of the sorted times",
        9.0: "that is the first call alone, the coldest of all",
    }
    expect_number(value, 2.0, what="for calls of 9 5 | 2 1 1 40 3 seconds, the median", wrong=mistakes)
    value, _ = _timed(answer, [1.0, 4.0, 2.0], warmup=1, repeats=2)
    expect_number(value, 3.0, what="for an even number of calls (4 and 2 seconds), the median")
    return "the warm-up is left out, and one slow call changes nothing"


def _timed(answer: Callable, durations: list[float], *, warmup: int, repeats: int) -> tuple[float, int]:
    """Give the answer a clock that only ``run`` moves; returns its value and how often it ran."""
    now, calls = [100.0], [0]
    steps: Iterator[float] = iter(durations)

    def run() -> None:
        calls[0] += 1
        now[0] += next(steps, 1.0)

    return call(answer, run, lambda: now[0], warmup, repeats), calls[0]
