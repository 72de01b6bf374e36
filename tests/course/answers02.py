"""Lesson 02: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import math

import torch


def grid(low, high, bits, *, steps=-1, widen=True, nearest=round, sign=1):
    low, high = (min(low, 0.0), max(high, 0.0)) if widen else (low, high)
    scale = (high - low) / (2**bits + steps)
    return scale, sign * nearest(-low / scale)


def dot(a, z, w, *, sign=-1):
    return int(((a.int() + sign * z) * w.int()).sum())


def fold(weight, bias, gamma, beta, mean, variance, eps, *, root=True, axis=0, with_gamma=True, scale_bias=True):
    factor = (gamma if with_gamma else 1) / ((variance + eps).sqrt() if root else variance + eps)
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    scaled = (bias - mean) * factor if scale_bias else bias - mean * factor
    return weight * factor.reshape(shape), scaled + beta


def fold_with_bias(new_bias):
    def answer(weight, bias, gamma, beta, mean, variance, eps):
        factor = gamma / (variance + eps).sqrt()
        return weight * factor.reshape(-1, 1, 1, 1), new_bias(bias, factor, beta, mean)

    return answer


def shifted(m, *, bits=31, extra=0, nearest=round):
    fraction, exponent = math.frexp(m)
    return nearest(fraction * 2**bits), bits - exponent + extra


def channels(weight, *, largest=7, shape=(-1, 1, 1, 1), zero=1.0):
    scale = weight.abs().flatten(1).amax(1) / largest
    scale = torch.where(scale == 0, zero, scale).reshape(shape)
    return (weight / scale).round() * scale


SOLUTIONS = {"02.1": grid, "02.2": dot, "02.3": fold, "02.4": shifted, "02.5": channels}
WRONG = {
    "02.1": [
        (lambda a, b, bits: grid(a, b, bits, steps=0), "255 steps between them"),
        (lambda a, b, bits: (max(-a, b) / (2 ** (bits - 1) - 1), 0), "that is the symmetric grid"),
        (lambda a, b, bits: grid(a, b, bits, nearest=int), "63.75 rounds to 64"),
        (lambda a, b, bits: grid(a, b, bits, nearest=float), "it must be an integer"),
        (lambda a, b, bits: grid(a, b, bits, sign=-1), "it is positive"),
        (lambda a, b, bits: grid(a, b, bits, widen=False), "0.5..2 must be widened"),
        (lambda a, b, bits: grid(min(a, 0), b, bits, widen=b < 0 < 1) if b > 0 else (1 / 15, 15), "becomes -2..0"),
        (lambda a, b, bits: 1.0, "return two things"),
    ],
    "02.2": [
        (lambda a, z, w: int(((a - z) * w).sum()), "10 - 128 wrapped around"),
        (lambda a, z, w: int((a.int() * w.int()).sum()), "the zero point is missing"),
        (lambda a, z, w: dot(a, z, w, sign=1), "subtracted, not added"),
        (lambda a, z, w: dot(a, z, w) % 256, "does not fit into 8 bits"),
        (lambda a, z, w: int(((a.short() - z) * w).cumsum(0, dtype=torch.int16)[-1]), "overflowed 16 bits"),
    ],
    "02.3": [
        (lambda *args: fold(*args[:-1], 0.0), "eps is missing"),
        (lambda *args: fold(*args, root=False), "the square root"),
        (lambda *args: fold(*args, with_gamma=False), "gamma is missing"),
        (lambda *args: fold(*args, axis=3), "another axis"),
        (lambda *args: fold(*args, axis=1), "another axis"),
        (lambda *args: fold(*args, scale_bias=False), "passes through the norm too"),
        (fold_with_bias(lambda b, f, beta, mean: b * f + beta), "the mean is missing"),
        (fold_with_bias(lambda b, f, beta, mean: (b - mean) * f), "beta is missing"),
        (fold_with_bias(lambda b, f, beta, mean: b * f - mean + beta), "it is scaled as well"),
        (fold_with_bias(lambda b, f, beta, mean: b), "push the old bias"),
    ],
    "02.4": [
        (lambda m: shifted(m, bits=32), "does not fit into a signed 32-bit"),
        (lambda m: shifted(m, bits=8), "wastes leading bits"),
        (lambda m: shifted(m, extra=1), "off by one"),
        (lambda m: (shifted(m)[0] * 1.0, 31), "Python integers"),
        (lambda m: shifted(m, nearest=int), "round, do not cut"),
        (lambda m: (2**30, 31), "multiplier / 2^shift is"),
    ],
    "02.5": [
        (lambda w: channels(w, shape=(-1,)), "went along the last axis"),
        (lambda w: channels(w, shape=(-1,), zero=0.0), "met a weight of another channel"),
        (lambda w: channels(w, zero=0.0), "the channel of zeros became NaN"),
        (lambda w: channels(w, largest=8), "level 8 does not exist"),
        (lambda w: channels(w, largest=15), "from -8 to 7"),
        (lambda w: (w / (w.abs().max() / 7)).round() * w.abs().max() / 7, "share the scale of the largest"),
        (lambda w: channels(w).flatten(), "return a tensor of the shape"),
        (lambda w: channels(w) if w.shape[-1] == 3 else channels(w, shape=(-1, 1)), "look at the broadcasting"),
    ],
}
