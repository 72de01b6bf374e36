"""Lesson 03: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import copy
import math

import torch
from torch.nn import functional as F


def fake(x, scale, low, high, *, detach="difference", clamp_gradient=True):
    levels = (x / scale).round().clamp(low, high)
    if detach == "all":
        return (levels * scale).detach()
    if detach == "none":
        return (x / scale).round().clamp(low, high) * scale
    base = x.clamp(low * scale, high * scale) if clamp_gradient else x
    return base + (levels * scale - base).detach()


def step_gradient(v, s, q_n, q_p, *, inside=lambda r: r.round() - r, low=None, high=None):
    r = v / s
    low, high = (-q_n if low is None else low), (q_p if high is None else high)
    return torch.where(r <= -q_n, float(low), torch.where(r >= q_p, float(high), inside(r)))


def start(weight, bits, *, q=None, twice=2, root=math.sqrt, n=True, magnitude=torch.abs):
    q_p = 2 ** (bits - 1) - 1 if q is None else q(bits)
    step = twice * magnitude(weight).mean().item() / root(q_p)
    return step, 1 / root((weight.numel() if n else 1) * q_p)


def rate(step, steps, warmup, peak, *, from_zero=False):
    if step < warmup:
        return peak * step / warmup
    t = step / steps if from_zero else (step - warmup) / (steps - warmup)
    return peak * (1 + math.cos(math.pi * t)) / 2


def train(model, prepare, inputs, labels, *, optimize="prepared", result="prepared", clear=True, lr=0.1, sign=1):
    prepared = prepare(model)
    optimized = {"prepared": prepared, "model": model}[optimize]
    optimizer = torch.optim.SGD(optimized.parameters(), lr=lr)
    for _ in range(20):
        loss = sign * F.cross_entropy(prepared(inputs), labels)
        if clear:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"prepared": prepared, "model": model, "copy": copy.deepcopy(prepared)}[result]


def train_both(model, prepare, inputs, labels):
    train(model, lambda given: given, inputs, labels)
    return train(model, prepare, inputs, labels)


SOLUTIONS = {"03.1": fake, "03.2": step_gradient, "03.3": start, "03.4": rate, "03.5": train}
WRONG = {
    "03.1": [
        (lambda x, s, low, high: x + ((x / s).round() * s - x).detach(), "does not clamp"),
        (lambda x, s, low, high: fake(x, s, low, high) / s, "these are levels"),
        (lambda x, s, low, high: fake(x, s, low, high, detach="all"), "has no gradient"),
        (lambda x, s, low, high: fake(x, s, low, high, detach="none"), "round is flat"),
        (lambda x, s, low, high: fake(x, s, low, high, clamp_gradient=False), "1 outside of the grid too"),
        (lambda x, s, low, high: 3 * fake(x, s, low, high), "forward should give"),
        (lambda x, s, low, high: x.sum(), "should be a tensor of shape"),
    ],
    "03.2": [
        (lambda v, s, n, p: (v / s).round().clamp(-n, p), "moving the step moves the value"),
        (lambda v, s, n, p: step_gradient(v, s, n, p, inside=lambda r: r - r.round()), "the wrong way round"),
        (lambda v, s, n, p: step_gradient(v, s, n, p, low=0, high=0), "not 0"),
        (lambda v, s, n, p: step_gradient(v, s, n, p, low=n), "the sign is missing there"),
        (lambda v, s, n, p: (v / s).round() - v / s, "stay at its end"),
        (lambda v, s, n, p: v / s, "it should be"),
    ],
    "03.3": [
        (lambda w, b: start(w, b, q=lambda bits: 2**bits - 1), "weights have a sign"),
        (lambda w, b: start(w, b, q=lambda bits: 2 ** (bits - 1)), "that is Q_N"),
        (lambda w, b: start(w, b, twice=1), "twice the mean magnitude"),
        (lambda w, b: start(w, b, root=lambda value: value), "divide by the square root"),
        (lambda w, b: (start(w, b)[0], start(w, b, n=False)[1]), "is missing"),
        (lambda w, b: (start(w, b)[0], 1 / start(w, b)[1]), "many weights pull"),
        (lambda w, b: start(w, b)[0], "return two numbers"),
    ],
    "03.4": [
        (lambda *args: rate(*args, from_zero=True) if args[0] != args[2] else args[3], "not at step 0"),
        (lambda step, steps, warmup, peak: min(step / warmup, 1) * peak, "must fall"),
        (lambda step, steps, warmup, peak: peak * min(1, (steps - step) / (steps - warmup)), "the warm-up is missing"),
        (lambda step, *rest: rate(step, *rest) + (1e-3 if step == 110 else 0), "should be 0"),
        (
            lambda s, n, w, p: rate(s, n, w, p) if s < w else p * math.cos(math.pi / 2 * (s - w) / (n - w)),
            "use the half cosine",
        ),
        (lambda s, n, w, p: rate(s, n, w, p) if s <= w else p * math.cos(math.pi * (s - w) / (n - w)), "the 1 +"),
    ],
    "03.5": [
        (lambda *args: train(*args, optimize="model"), "another model"),
        (lambda *args: train(*args, result="model"), "that is the float model"),
        (lambda *args: train(*args, result="copy"), "the very model"),
        (lambda *args: train_both(*args), "the float model changed too"),
        (lambda *args: train(*args, sign=-1), "the loss rose"),
        (lambda *args: train(*args, lr=1e-6), "the loss fell only"),
        (lambda *args: 1.0, "return the trained model"),
    ],
}
