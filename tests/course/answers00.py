"""Lesson 00: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import math
import statistics


def bytes_of(model):
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def timer(run, clock, warmup, repeats, *, summary=statistics.median, skip=True):
    times = []
    for _ in range(warmup + repeats):
        start = clock()
        run()
        times.append(clock() - start)
    return summary(times[warmup:] if skip else times)


def too_short(run, clock, warmup, repeats):
    return timer(run, clock, 0, repeats)


def forever(run, clock, warmup, repeats):
    return timer(run, clock, warmup, 2 * repeats)


def first_call(run, clock, warmup, repeats):
    return timer(run, clock, 0, 7, summary=lambda times: times[0])


SOLUTIONS = {
    "00.1": bytes_of,
    "00.2": lambda i, o, k, h, w, g: i // g * o * k * k * h * w,
    "00.3": lambda a, h: math.ceil(a * (1 - a) * (1.96 / h) ** 2),
    "00.4": lambda i, p, b: min(p, i * b),
    "00.5": timer,
}
WRONG = {
    "00.1": [
        (lambda m: sum(p.numel() for p in m.parameters()), "that is the number of parameters"),
        (lambda m: sum(p.numel() * 4 for p in m.parameters()), "takes 2 bytes a number, not 4"),
        (lambda m: sum(p.numel() * p.element_size() for p in m.parameters()), "buffers are in the file too"),
        (lambda m: sum(t.numel() * t.element_size() for t in m.state_dict().values()), "stored once"),
        (lambda m: sum(p.numel() * 32 for p in m.parameters()), "those are bits"),
        (lambda m: m.weight.numel() * 4, "its bias is a parameter too"),
    ],
    "00.2": [
        (lambda i, o, k, h, w, g: 2 * i * o * k * k * h * w, "those are FLOPs"),
        (lambda i, o, k, h, w, g: o * (i * k * k + 1) * h * w, "the bias is an addition"),
        (lambda i, o, k, h, w, g: i * o * k * k, "that is the number of weights"),
        (lambda i, o, k, h, w, g: i * o * k * k * h * w, "groups=8"),
        (lambda i, o, k, h, w, g: i * o * k * h * w, "the kernel is a square"),
        (lambda i, o, k, h, w, g: i // g * o // g * k * k * h * w, "groups divide the work once"),
    ],
    "00.3": [
        (lambda a, h: a * (1 - a) / h**2, "that is one standard error"),
        (lambda a, h: math.sqrt(a * (1 - a)) * 1.96 / h, "grows with the square"),
        (lambda a, h: 0.25 * (1.96 / h) ** 2, "worst case"),
        (lambda a, h: a * (1 - a) * (1.96 / (2 * h)) ** 2, "already half"),
        (lambda a, h: a * (1.96 / h) ** 2, "the variance of one right-or-wrong answer"),
    ],
    "00.4": [
        (lambda i, p, b: max(p, i * b), "the memory is the limit"),
        (lambda i, p, b: i * b, "no layer is faster than the machine's peak"),
        (lambda i, p, b: min(p, b), "multiply it by the intensity"),
        (lambda i, p, b: p + i * b, "do not add up|too large"),
        (lambda i, p, b: min(p, b / i), "not divided by it"),
    ],
    "00.5": [
        (lambda r, c, w, n: timer(r, c, w, n, summary=statistics.mean), "that is the mean: one call"),
        (lambda r, c, w, n: timer(r, c, w, n, skip=False), "the first two calls are the warm-up"),
        (lambda r, c, w, n: timer(r, c, w, n, summary=min), "the fastest call"),
        (too_short, "called 5 times; two for the warm-up"),
        (forever, "called 12 times; 7 are enough"),
        (first_call, "the coldest of all"),
        (lambda r, c, w, n: timer(r, c, w, n, summary=lambda t: sorted(t)[len(t) // 2]), "for an even number"),
        (lambda r, c, w, n: timer(r, c, w, n, summary=statistics.mean, skip=False), "over the cold calls too"),
    ],
}
