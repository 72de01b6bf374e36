"""Lesson 01: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import math


def value_of(bits, e, m, *, bias=None, lead=1, unit=None, signed=True, subnormal=True):
    bias = 2 ** (e - 1) - 1 if bias is None else bias
    sign = -1 if bits[0] == "1" and signed else 1
    stored, mantissa = int(bits[1 : 1 + e], 2), int(bits[1 + e :], 2)
    fraction = mantissa / (2**m if unit is None else unit)
    if stored == 0 and subnormal:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (lead + fraction) * 2.0 ** (stored - bias)


def nearest(x, m, *, how=round):
    step = 2.0 ** (math.floor(math.log2(x)) - m)
    return how(x / step) * step


def unscale(gradients, scale):
    converted = [gradient.float() / scale for gradient in gradients]
    return converted if all(one.isfinite().all() for one in converted) else "skip"


SOLUTIONS = {
    "01.1": value_of,
    "01.2": lambda e, m: ((2 - 2.0**-m) * 2.0 ** (2**e - 2 - (2 ** (e - 1) - 1)), 2.0**-m),
    "01.3": nearest,
    "01.4": lambda bits, block, scale: bits + scale / block,
    "01.5": unscale,
}
WRONG = {
    "01.1": [
        (lambda b, e, m: value_of(b, e, m, lead=0), "the implicit 1 is missing"),
        (lambda b, e, m: value_of(b, e, m, bias=0), "the bias is missing"),
        (lambda b, e, m: value_of(b, e, m, bias=8), "not 8"),
        (lambda b, e, m: value_of(b, e, m, signed=False), "the first bit is the sign"),
        (lambda b, e, m: value_of(b, e, m, subnormal=False), "a stored exponent of 0 is subnormal"),
        (lambda b, e, m: value_of(b, e, m, lead=0, unit=1), "a fraction, not the whole number"),
    ],
    "01.2": [
        (lambda e, m: ((2 - 2.0**-m) * 2.0 ** (2 ** (e - 1)), 2.0**-m), "the exponent of all ones is taken"),
        (lambda e, m: (2.0 ** (2 ** (e - 1)), 2.0**-m), "just out of reach"),
        (lambda e, m: (2.0 ** (2 ** (e - 1) - 1), 2.0**-m), "largest power of two"),
        (lambda e, m: (SOLUTIONS["01.2"](e, m)[0], 2.0 ** -(m + 1)), "half a step"),
        (lambda e, m: SOLUTIONS["01.2"](e, m)[0], "return two numbers"),
        (lambda e, m: (SOLUTIONS["01.2"](e, m)[0], 2.0**-24), "smallest subnormal"),
    ],
    "01.3": [
        (lambda x, m: round(x * 2**m) / 2**m, "four times as wide"),
        (lambda x, m: nearest(x, m, how=math.floor), "round, do not cut"),
        (lambda x, m: nearest(x, m, how=lambda v: math.floor(v + 0.5)), "the even one is 1"),
        (lambda x, m: nearest(x, m, how=lambda v: math.ceil(v - 0.5)), "1.5 wins"),
        (lambda x, m: float(round(x)), "nearer to 1.25"),
    ],
    "01.4": [
        (lambda bits, block, scale: bits, "the scales are stored too"),
        (lambda bits, block, scale: bits + scale, "shared by the whole block"),
        (lambda bits, block, scale: bits + block / scale, "not the other way round"),
        (lambda bits, block, scale: bits + 4 / block, "a quarter of a bit"),
    ],
    "01.5": [
        (lambda g, s: [one / s for one in g], "divide in float32"),
        (lambda g, s: [(one / s).float() for one in g], "the division happened in float16"),
        (lambda g, s: [one.float() * s for one in g], "must be divided"),
        (lambda g, s: [one.float() / s for one in g], "an infinity"),
        (lambda g, s: "skip", "all finite"),
        (lambda g, s: "skip" if any(one.isinf().any() for one in g) else [one.float() / s for one in g], "a NaN"),
    ],
}
