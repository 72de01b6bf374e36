"""Lesson 04: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import torch


def size(parameters, bits, group_size, *, scale=16, zero=True, group=True, in_bytes=True):
    more = (scale + bits * zero) / (group_size if group else 1)
    return parameters * (bits + more) / (8 if in_bytes else 1)


def columns(w, hessian, *, sign=1, move=True, divide=1, whole=True):
    first = w[0].round()
    second = w[1] + sign * move * (w[0] - first) * hessian[0, 1] / hessian[divide, divide]
    return torch.stack([first, second.round() if whole else second])


def moved(gamma, beta, weight, s):
    return gamma / s, beta / s, weight * s


def perplexity(logs):
    return (-logs.mean()).exp()


def speed(weights, cache, context, bandwidth):
    return bandwidth / (weights + cache * context)


SOLUTIONS = {"04.1": size, "04.2": columns, "04.3": moved, "04.4": perplexity, "04.5": speed}
WRONG = {
    "04.1": [
        (lambda *args: size(*args, scale=0, zero=False), "scales and zero points are missing"),
        (lambda *args: size(*args, in_bytes=False), "divide by 8"),
        (lambda *args: size(*args, zero=False), "the zero point is missing"),
        (lambda *args: size(*args, scale=0), "the scale is missing"),
        (lambda n, bits, g: n * (bits + 16) / 8, "shared by the whole group"),
    ],
    "04.2": [
        (lambda w, h: columns(w, h, move=False), "rounded by itself"),
        (lambda w, h: columns(w, h.abs()), "mind the sign"),
        (lambda w, h: columns(w, h, divide=0), "the column that moves"),
        (lambda w, h: columns(w, h, whole=False), "whole numbers"),
        (lambda w, h: 1.0, "a tensor with the two"),
    ],
    "04.3": [
        (lambda g, b, w, s: (g * s, b * s, w / s), "divided by s"),
        (lambda g, b, w, s: (g / s, b, w * s), "beta has to be divided"),
        (lambda g, b, w, s: (g / s, b / s, w / s), "multiply it"),
        (lambda g, b, w, s: (g / s, b / s, w * s[:, None]), "its columns"),
        (lambda g, b, w, s: (g / s, b / s, w), "what they gave before"),
    ],
    "04.4": [
        (lambda logs: (-logs).exp().mean(), "mean of 1 / p"),
        (lambda logs: logs.mean().exp(), "the sign"),
        (lambda logs: -logs.mean(), "take its exponential"),
        (lambda logs: 2 ** -logs.mean(), "use exp"),
        (lambda logs: (-logs.sum()).exp(), "not the sum"),
    ],
    "04.5": [
        (lambda w, c, n, b: b / w, "the cache is missing"),
        (lambda w, c, n, b: b / (w + c), "one entry for each token"),
        (lambda w, c, n, b: (w + c * n) / b, "turn it round"),
    ],
}
