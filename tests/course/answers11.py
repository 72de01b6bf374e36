"""Lesson 11: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import torch


def parity(reference, other):
    return ((reference - other).abs().max() / reference.abs().max()).item()


def relu_is_redundant(lowest, zero_point):
    return lowest == zero_point


def attack_step(x, gradient, epsilon, low, high):
    return (x + epsilon * gradient.sign()).clamp(low, high)


def step_in_place(x, gradient, epsilon, low, high):
    return x.add_(epsilon * gradient.sign()).clamp_(low, high)


def sign_without_zero(x, gradient, epsilon, low, high):
    return (x + epsilon * torch.where(gradient < 0, -1.0, 1.0)).clamp(low, high)


def auroc(known, other, *, tie=0.5):
    return ((known[:, None] > other).double() + tie * (known[:, None] == other).double()).mean().item()


def first_alarm(outcomes, share, alpha, *, sign=-1, start=1, multiply=True, strict=False, at_end=False, limit=None):
    capital, alarm = 1.0, 0
    for request, outcome in enumerate(outcomes, start):
        capital = capital * (1 + sign * share * outcome) if multiply else capital + sign * share * outcome
        limit = 1 / alpha if limit is None else limit
        if capital > limit or (capital == limit and not strict):
            if not at_end:
                return request
            alarm = request
        elif at_end:
            alarm = 0
    return alarm


SOLUTIONS = {
    "11.1": parity,
    "11.2": relu_is_redundant,
    "11.3": attack_step,
    "11.4": auroc,
    "11.5": first_alarm,
}
WRONG = {
    "11.1": [
        (lambda a, b: (a - b).abs().max().item(), "that is the difference itself"),
        (lambda a, b: ((a - b).abs() / a.abs()).max().item(), "lets logits near 0 decide"),
        (lambda a, b: ((a - b).abs().max() / a.max()).item(), "take the absolute value before"),
        (lambda a, b: ((b - a).max() / a.abs().max()).item(), "can go down as well"),
        (lambda a, b: ((a - b).abs().mean() / a.abs().max()).item(), "one wrong output among many"),
        (lambda a, b: parity(b, a), "not of the other"),
        (lambda a, b: 0.0625, "with itself"),
    ],
    "11.2": [
        (lambda lowest, zero_point: zero_point == 0, "it is not about the number 0"),
        (lambda lowest, zero_point: lowest == 0, "it is not about the number 0"),
        (lambda lowest, zero_point: lowest == 0 or zero_point == -128, "uint8 does not mean positive"),
        (lambda lowest, zero_point: True, "steps below 0"),
        (lambda lowest, zero_point: "yes", "return True or False"),
    ],
    "11.3": [
        (lambda x, g, e, low, high: attack_step(x, -g, e, low, high), "lowers the loss"),
        (lambda x, g, e, low, high: x + e * g.sign(), "no picture has such a pixel"),
        (lambda x, g, e, low, high: (x + e * g).clamp(low, high), "take the sign"),
        (lambda x, g, e, low, high: (e * g.sign()).clamp(low, high), "add the step to x"),
        (sign_without_zero, "nothing should move"),
        (step_in_place, "return new ones"),
        (lambda x, g, e, low, high: (x + e * g.sign()).clamp(0, 1), "use those that are given"),
        (lambda x, g, e, low, high: x, "should become 0.55"),
        (lambda x, g, e, low, high: 1.0, "return a tensor"),
    ],
    "11.4": [
        (lambda known, other: auroc(known, other) * len(known) * len(other), "divide by how many"),
        (lambda known, other: auroc(known, other, tie=0.0), "not nothing"),
        (lambda known, other: auroc(known, other, tie=1.0), "not whole"),
        (lambda known, other: auroc(other, known), "the opposite"),
        (lambda known, other: (known.mean() > other.mean()).item() * 1.0, "too large"),
        (lambda known, other: 5.5 / 8, "of a perfect score"),
    ],
    "11.5": [
        (lambda *a: first_alarm(*a, at_end=True), "what comes afterwards does not matter"),
        (lambda *a: first_alarm(*a, start=0), "count the requests from 1"),
        (lambda *a: first_alarm(*a, sign=1) or 5, "-1 multiplies by 1 + share"),
        (lambda *a: first_alarm(*a, limit=1.2), "not at the first loss"),
        (lambda *a: first_alarm(*a, strict=True), "of exactly 1 / alpha is enough"),
        (lambda *a: first_alarm(*a, multiply=False), "gains are bet again"),
        (lambda outcomes, share, alpha: first_alarm(outcomes, share, alpha) or len(outcomes), "no alarm"),
    ],
}
