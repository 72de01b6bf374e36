"""Checks of lesson 02, "Post-training quantization"."""

from __future__ import annotations

from collections.abc import Callable

import torch

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


def pair(value: object, what: str) -> tuple:
    """The two numbers or tensors that were asked for."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise NotYet(f"return two things: {what}")
    return tuple(value)


@exercise("02.1", title="Lay a grid over a range", minutes=10, difficulty=1)
def grid_of_a_range(answer: Callable) -> str:
    """``answer(minimum, maximum, bits)``: (scale, zero_point) of the asymmetric grid with levels 0..2^bits - 1."""
    scale, zero_point = pair(call(answer, -1.0, 3.0, 8), "the scale and the zero point")
    mistakes = {
        4 / 256: "256 levels have 255 steps between them, as 6 fence posts have 5 gaps",
        3 / 127: "that is the symmetric grid; here the levels run from 0 to 255 over the whole range",
        3 / 255: "the range is 4 wide, from -1 to 3",
    }
    expect_number(scale, 4 / 255, what="the scale of -1..3 with 8 bits", wrong=mistakes)
    mistakes = {
        63: "63.75 rounds to 64, cutting it moves every value",
        63.75: "the zero point is a level, so it must be an integer: otherwise 0.0 is not on the grid",
        -64: "the zero point is the level that stands for 0.0; with levels from 0 it is positive",
        -1: "the zero point is a level, not a value: how many steps above the minimum does 0.0 lie?",
    }
    expect_number(zero_point, 64, what="the zero point of -1..3 with 8 bits", wrong=mistakes)
    scale, zero_point = pair(call(answer, 0.5, 2.0, 4), "the scale and the zero point")
    mistakes = {0.1: "0.5..2 must be widened to hold 0.0, or padding with zeros is no longer exact"}
    expect_number(scale, 2 / 15, what="the scale of 0.5..2 with 4 bits", wrong=mistakes)
    expect_number(zero_point, 0, what="the zero point of 0.5..2 with 4 bits", tolerance=0)
    scale, zero_point = pair(call(answer, -2.0, -1.0, 4), "the scale and the zero point")
    mistakes = {1 / 15: "-2..-1 must be widened to hold 0.0 as well: it becomes -2..0"}
    expect_number(scale, 2 / 15, what="the scale of -2..-1 with 4 bits", wrong=mistakes)
    expect_number(zero_point, 15, what="the zero point of -2..-1 with 4 bits")
    return "zero is on the grid, whatever the range"


@exercise("02.2", title="A product of integers", minutes=10, difficulty=2)
def integer_dot(answer: Callable) -> str:
    """``answer(a, zero_point, w)``: sum (a - zero_point) * w of uint8 and int8 levels, as a Python int."""
    a, w = torch.tensor([200, 10], dtype=torch.uint8), torch.tensor([100, -50], dtype=torch.int8)
    mistakes = {
        300: "10 - 128 wrapped around to 138, since uint8 has no negative numbers: widen before you subtract",
        19500: "the zero point is missing: level 128 stands for 0.0 here",
        25900: "the zero point is subtracted, not added",
        44: "the sum does not fit into 8 bits: 13,100 modulo 256 is 44; accumulate in 32 bits",
        13056 + 44 - 65536: "the sum overflowed 16 bits: accumulate in 32",
    }
    expect_number(call(answer, a, 128, w), 13100, what="(200 - 128) 100 + (10 - 128) (-50)", wrong=mistakes)
    a, w = torch.full((1000,), 255, dtype=torch.uint8), torch.full((1000,), 127, dtype=torch.int8)
    wrapped = ((255 * 127 * 1000 + 2**15) % 2**16) - 2**15
    mistakes = {wrapped: "the sum of a thousand products overflowed 16 bits: accumulate in 32"}
    expect_number(call(answer, a, 0, w), 255 * 127 * 1000, what="a thousand times 255 * 127", wrong=mistakes)
    return "each product takes 16 bits, the sum 32"


@exercise("02.3", title="Fold a batch norm", minutes=15, difficulty=2)
def fold(answer: Callable) -> str:
    """``answer(weight, bias, gamma, beta, mean, variance, eps)``: (weight, bias) of the one convolution."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(3, 3, 3, 3, generator=generator), torch.randn(3, generator=generator)
    gamma, beta, mean = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([0.5, 1.0, -1.0]), torch.tensor([1.0, 0.0, -2.0])
    variance, eps = torch.tensor([4.0, 0.25, 1.0]), 0.25
    result = call(answer, *(part.clone() for part in (weight, bias, gamma, beta, mean, variance)), eps)
    new_weight, new_bias = pair(result, "the new weight and the new bias")

    def same(value: object, wanted: torch.Tensor) -> bool:
        return isinstance(value, torch.Tensor) and value.shape == wanted.shape and torch.allclose(value, wanted)

    factor = gamma / (variance + eps).sqrt()
    wrong = {
        "eps is missing: it is 0.25 here, and it counts": gamma / variance.sqrt(),
        "divide by the standard deviation, the square root of variance + eps": gamma / (variance + eps),
        "gamma is missing": 1 / (variance + eps).sqrt(),
    }
    for reason, other in wrong.items():
        if same(new_weight, weight * other.reshape(-1, 1, 1, 1)):
            raise NotYet(reason)
    if same(new_weight, weight * factor) or same(new_weight, weight * factor.reshape(-1, 1, 1)):
        raise NotYet("the factor belongs to the output channel, axis 0; yours went along another axis of the weight")
    if not same(new_weight, weight * factor.reshape(-1, 1, 1, 1)):
        raise NotYet("the weight is not right: multiply each output channel by gamma / sqrt(variance + eps)")
    wrong = {
        "the old bias passes through the norm too: it is scaled by the same factor": bias - mean * factor + beta,
        "the mean is missing: the norm subtracts it before it scales": bias * factor + beta,
        "beta is missing: the norm adds it at the end": (bias - mean) * factor,
        "the mean is subtracted before the scaling, so it is scaled as well": bias * factor - mean + beta,
    }
    for reason, other in wrong.items():
        if same(new_bias, other):
            raise NotYet(reason)
    if not same(new_bias, (bias - mean) * factor + beta):
        raise NotYet("the bias is not right: push the old bias through the batch norm, as if it were an output")
    return "one layer less, the same function"


@exercise("02.4", title="A multiplier and a shift", minutes=15, difficulty=3)
def multiplier_and_shift(answer: Callable) -> str:
    """``answer(m)``: integers (multiplier, shift), 2^30 <= multiplier < 2^31, with m = multiplier / 2^shift nearly."""
    for m, wanted in ((0.75, (1610612736, 31)), (0.25, (2**30, 32)), (0.3, (1288490189, 32)), (0.0007, (0, 0))):
        multiplier, shift = pair(call(answer, m), "the multiplier and the shift")
        if not all(isinstance(part, int) for part in (multiplier, shift)):
            raise NotYet(f"both must be Python integers, got {type(multiplier).__name__} and {type(shift).__name__}")
        if multiplier >= 2**31:
            raise NotYet(f"m = {m}: {multiplier} does not fit into a signed 32-bit register; it must be below 2^31")
        if multiplier < 2**30:
            raise NotYet(
                f"m = {m}: {multiplier} wastes leading bits, and with them precision; shift further, until it is "
                "at least 2^30"
            )
        found = multiplier / 2**shift
        if found in (2 * m, m / 2):
            raise NotYet(f"m = {m}: multiplier / 2^shift is {found}, a factor of two off: the shift is off by one")
        if abs(found / m - 1) > 2**-30:
            raise NotYet(f"m = {m}: multiplier / 2^shift is {found}")
        if wanted[0] and multiplier != wanted[0]:
            raise NotYet(f"m = {m}: the nearest multiplier is {wanted[0]}, you have {multiplier}: round, do not cut")
    return "31 bits of precision without a single float"


@exercise("02.5", title="Find the bug: a scale for each channel", minutes=15, difficulty=2)
def scale_for_each_channel(answer: Callable) -> str:
    """``answer(weight)``: (O, C, K, K) rounded to a symmetric 4-bit grid per output channel, in floating point."""
    weight = torch.tensor([[7.0, 2.4, -2.6], [0.7, 0.24, -0.7], [0.0, 0.0, 0.0]]).reshape(3, 1, 1, 3)
    wanted = torch.tensor([[7.0, 2.0, -3.0], [0.7, 0.2, -0.7], [0.0, 0.0, 0.0]]).reshape(3, 1, 1, 3)
    result = call(answer, weight.clone())
    if not isinstance(result, torch.Tensor) or result.shape != weight.shape:
        raise NotYet(f"return a tensor of the shape of the weight, {tuple(weight.shape)}")
    if result[:2].isnan().any():
        raise NotYet("the first two channels hold NaN: a scale met a weight of another channel (0 / 0)")
    if result.isnan().any():
        raise NotYet("the channel of zeros became NaN: 0 / 0; what should its scale be?")
    if torch.allclose(result, wanted):
        square = torch.arange(1.0, 17.0).reshape(2, 2, 2, 2)
        levels = call(answer, square).flatten(1) / (square.flatten(1).amax(1, keepdim=True) / 7)
        if not torch.allclose(levels, levels.round(), atol=1e-4):
            raise NotYet("with a (2, 2, 2, 2) weight the scales of two channels get mixed: look at the broadcasting")
        return "one scale for each channel, and zeros stay zeros"
    along_last = torch.tensor([1.0, 0.1, 1.0])  # the scales of the channels, on the last axis
    if torch.allclose(result, (weight / along_last).round() * along_last):
        raise NotYet("the scales went along the last axis, not the channels: shape them (-1, 1, 1, 1)")
    per_tensor = (weight / 1.0).round()
    if torch.allclose(result, per_tensor):
        raise NotYet("all channels share the scale of the largest one: the second channel lost its small weights")
    if torch.allclose(result[0], (weight[0] / (7 / 8)).round() * 7 / 8):
        raise NotYet("the scale is max / 8: with 4 bits the symmetric levels end at 7, so level 8 does not exist")
    if torch.allclose(result[0], weight[0].div(7 / 15).round() * 7 / 15):
        raise NotYet("16 levels would go from -8 to 7: on the symmetric grid the largest level is 7")
    raise NotYet(f"the first channel is {result[0].flatten().tolist()}, it should be {wanted[0].flatten().tolist()}")
