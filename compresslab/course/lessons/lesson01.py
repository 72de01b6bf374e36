"""Checks of lesson 01, "Precision formats"."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


@exercise("01.1", title="Read the bits", minutes=10, difficulty=1)
def read_the_bits(answer: Callable) -> str:
    """``answer(bits, exponent_bits, mantissa_bits)``: the value of a finite code, given as text like "01000101"."""
    what = "0 1000 101 in E4M3"
    mistakes = {
        1.25: "the implicit 1 is missing: a normal number is 1 + 5/8, not 5/8",
        416.0: "the bias is missing: the stored exponent 8 stands for 8 - 7 = 1",
        1.625: "the bias of four exponent bits is 2^3 - 1 = 7, not 8",
        10.0: "the mantissa 101 is 5/8, a fraction, not the whole number 5: (1 + 5/8) x 2",
        26.0: "the mantissa counts eighths: divide it by 2^3",
    }
    expect_number(call(answer, "01000101", 4, 3), 3.25, what=what, wrong=mistakes)
    mistakes = {3.25: "the first bit is the sign: 1 is negative"}
    expect_number(call(answer, "11000101", 4, 3), -3.25, what="1 1000 101 in E4M3", wrong=mistakes)
    mistakes = {
        1.375 * 2**-7: "a stored exponent of 0 is subnormal: no implicit 1, and the exponent is 1 - 7 = -6",
        0.375 * 2**-7: "subnormal numbers use the exponent 1 - bias = -6, not -7",
        1.375 * 2**-6: "subnormal numbers have no implicit 1",
    }
    expect_number(call(answer, "00000011", 4, 3), 0.375 * 2**-6, what="0 0000 011 in E4M3", wrong=mistakes)
    expect_number(call(answer, "0011110000000000", 5, 10), 1.0, what="0 01111 0000000000 in FP16")
    return "signs, implicit ones and subnormal numbers"


@exercise("01.2", title="How far, how fine?", minutes=10, difficulty=2)
def range_and_step(answer: Callable) -> str:
    """``answer(exponent_bits, mantissa_bits)``: (largest finite number, step between 1 and 2) of an IEEE-like format."""
    value = call(answer, 5, 10)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise NotYet("return two numbers: the largest finite number and the step just above 1")
    mistakes = {
        131008.0: "the exponent of all ones is taken: infinities and NaN live there",
        65536.0: "that is 2^16, just out of reach: the mantissa reaches 2 - 2^-10, not 2",
        32768.0: "that is the largest power of two; the mantissa adds almost another factor of two",
        2047.0 * 2**16: "the bias of five exponent bits is 15",
    }
    expect_number(value[0], 65504.0, what="the largest FP16", wrong=mistakes)
    mistakes = {
        2**-11: "2^-11 is the largest rounding error above 1, half a step",
        2**-24: "that is the smallest subnormal number; just above 1 the steps are far larger",
        2**-9: "between 1 and 2 there are 2^10 steps",
    }
    expect_number(value[1], 2**-10, what="the step of FP16 above 1", wrong=mistakes)
    largest, step = call(answer, 8, 7)
    expect_number(largest, (2 - 2**-7) * 2.0**127, what="the largest BF16")
    expect_number(step, 2**-7, what="the step of BF16 above 1")
    return "FP16 is finer, BF16 reaches further"


@exercise("01.3", title="Round to nearest, ties to even", minutes=15, difficulty=2)
def round_to_nearest(answer: Callable) -> str:
    """``answer(x, mantissa_bits)``: the float ``x`` > 0 rounded to that many mantissa bits, any exponent."""
    mistakes = {1.0: "1.3 lies nearer to 1.25 than to 1: the step between 1 and 2 is 2^-2 with two mantissa bits"}
    expect_number(call(answer, 1.3, 2), 1.25, what="1.3 with 2 mantissa bits", wrong=mistakes)
    mistakes = {
        5.75: "above 4 the steps are four times as wide as above 1: 4, 5, 6, 7 with two mantissa bits",
        5.0: "5.7 is nearer to 6 than to 5: round, do not cut",
    }
    expect_number(call(answer, 5.7, 2), 6.0, what="5.7 with 2 mantissa bits", wrong=mistakes)
    mistakes = {1.25: "1.125 is a tie between 1 and 1.25: the even one is 1 (code 00), not the larger one"}
    expect_number(call(answer, 1.125, 2), 1.0, what="the tie 1.125", wrong=mistakes)
    mistakes = {1.25: "1.375 is a tie between 1.25 (odd code 01) and 1.5 (even code 10): 1.5 wins"}
    expect_number(call(answer, 1.375, 2), 1.5, what="the tie 1.375", wrong=mistakes)
    mistakes = {1.75: "1.9 is nearer to 2 than to 1.75: rounding may reach the next power of two"}
    expect_number(call(answer, 1.9, 2), 2.0, what="1.9 with 2 mantissa bits", wrong=mistakes)
    expect_number(call(answer, 0.01, 3), 0.009765625, what="0.01 with 3 mantissa bits")
    return "ties and all octaves"


@exercise("01.4", title="What a block costs", minutes=5, difficulty=1)
def block_costs(answer: Callable) -> str:
    """``answer(element_bits, block, scale_bits)``: bits for each element, its part of the scale counted."""
    mistakes = {
        4.0: "the scales are stored too: 8 bits for each 32 elements",
        12.0: "a scale is shared by the whole block: divide its bits by 32",
        4.125: "8 bits for 32 elements are a quarter of a bit each",
        8.0: "32 elements share one scale of 8 bits, not the other way round",
    }
    expect_number(call(answer, 4, 32, 8), 4.25, what="MXFP4", wrong=mistakes)
    expect_number(call(answer, 4, 64, 32), 4.5, what="NF4 with a float32 scale for 64 elements")
    expect_number(call(answer, 8, 1, 16), 24.0, what="a block of one element")
    return "a float32 for each 64 elements costs NF4 half a bit"


@exercise("01.5", title="Find the bug: unscaling gradients", minutes=15, difficulty=3)
def unscale(answer: Callable) -> str:
    """``answer(gradients, scale)``: float32 gradients divided by the scale, or the text "skip" for this step."""
    scale = 2.0**16
    tiny = torch.tensor([2.0**-9, 2.0**-5], dtype=torch.float16)  # 2^-25 and 2^-21 after unscaling
    given = [tiny, torch.tensor([1.0], dtype=torch.float16)]
    result = call(answer, given, scale)
    if isinstance(result, str):
        raise NotYet("these gradients are all finite: they should be unscaled, not skipped")
    if len(result) != 2 or not all(isinstance(one, torch.Tensor) for one in result):
        raise NotYet("return a list with one tensor for each gradient")
    if result[0].dtype is not torch.float32:
        raise NotYet(
            f"the result is {result[0].dtype}: divide in float32, or small gradients become zero again "
            "(2^-25 is below the smallest float16)"
        )
    wanted = [one.float() / scale for one in given]
    if torch.equal(result[0], given[0].float() * scale):
        raise NotYet("the loss was multiplied by the scale, so the gradients must be divided by it")
    if torch.equal(result[0], (tiny / scale).float()) and not torch.equal(result[0], wanted[0]):
        raise NotYet("the division happened in float16, before the conversion: convert first")
    if not all(torch.equal(one, other) for one, other in zip(result, wanted, strict=True)):
        raise NotYet(f"the first gradient is {result[0].tolist()}, it should be {wanted[0].tolist()}")
    for bad, word in ((math.inf, "an infinity"), (math.nan, "a NaN")):
        broken = [torch.ones(2, dtype=torch.float16), torch.tensor([1.0, bad], dtype=torch.float16)]
        if call(answer, broken, scale) != "skip":
            raise NotYet(f"the second gradient holds {word}: an overflow happened, the whole step must be skipped")
    return "small gradients survive, and an overflow skips the step"
