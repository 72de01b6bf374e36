"""Answers to the exercises of lesson 08: the solutions, and typical mistakes with what is said about them."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def soft(student, teacher, temperature, *, power=2, reduction="batchmean"):
    log_q, p = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    return temperature**power * F.kl_div(log_q, p, reduction=reduction)


def by_token(student, teacher, axis=-1):
    p, q = teacher.softmax(axis), student.softmax(axis)
    return (p * (p / q).log()).sum(-1)


def tokens(student, teacher, mask):
    return by_token(student, teacher)[mask].mean()


def without(logits, targets):
    keep = torch.ones_like(logits, dtype=torch.bool).scatter(1, targets[:, None], False)
    return logits[keep].view(len(logits), -1), keep


def others(student, teacher, targets):
    p, q = without(teacher, targets)[0].softmax(-1), without(student, targets)[0].softmax(-1)
    return (p * (p / q).log()).sum(-1)


def not_scaled(student, teacher, targets):
    p, q = without(teacher.softmax(-1), targets)[0], without(student.softmax(-1), targets)[0]
    return (p * (p / q).log()).sum(-1)


def zeroed(student, teacher, targets):
    keep = without(student, targets)[1]
    return by_token(student * keep, teacher * keep)


def masked(student, teacher, targets):
    keep = without(student, targets)[1]
    log_p, log_q = (z.masked_fill(~keep, -torch.inf).log_softmax(-1) for z in (teacher, student))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def attention(features, *, power=2, order=2):
    flat = features.abs().pow(power).mean(1).flatten(1)
    return F.normalize(flat, p=order, dim=1)


def match(student, teacher):
    return [(i + 1) * teacher // student - 1 for i in range(student)]


SOLUTIONS = {"08.1": soft, "08.2": tokens, "08.3": others, "08.4": attention, "08.5": match}
WRONG = {
    "08.1": [
        (lambda s, t, T: soft(s, t, T, power=0), "T squared is missing"),
        (lambda s, t, T: soft(s, t, T, power=1), "one factor T"),
        (lambda s, t, T: soft(s, t, T) / s.shape[1], "samples and classes"),
        (lambda s, t, T: soft(s, t, T, reduction="sum"), "sum over the samples"),
        (lambda s, t, T: soft(t, s, T), "KL(student || teacher)"),
        (lambda s, t, T: T**2 * soft(s, t, 1.0), "it is not there"),
        (lambda s, t, T: soft(s * T, t, T), "student's logits as well"),
        (lambda s, t, T: soft(s, t, T, reduction="none"), "should be a tensor of shape"),
    ],
    "08.2": [
        (lambda s, t, m: by_token(s, t).mean(), "the mask is not used"),
        (lambda s, t, m: (by_token(s, t) * m).mean(), "not by all tokens"),
        (lambda s, t, m: (by_token(s, t) * m).sum() / len(s), "not by the batch"),
        (lambda s, t, m: F.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="batchmean"), "first axis only"),
        (lambda s, t, m: (by_token(s, t) * m).sum(), "that is a sum"),
        (lambda s, t, m: by_token(s, t, 1)[m].mean(), "not over time"),
        (lambda s, t, m: ((by_token(s, t) * m).sum(1) / m.sum(1)).mean(), "not of each text"),
    ],
    "08.3": [
        (lambda s, t, y: by_token(s, t), "still in"),
        (not_scaled, "add up to 1 again"),
        (lambda s, t, y: (1 - t.softmax(-1).gather(1, y[:, None])[:, 0]) * others(s, t, y), "weighted by 1 - p"),
        (zeroed, "a logit of 0"),
        (lambda s, t, y: others(t, s, y), "KL(student || teacher)"),
        (lambda s, t, y: others(s, t, y).mean(), "not their mean"),
        (masked, "is not a number"),
    ],
    "08.4": [
        (lambda x: x.square().mean(1).flatten(1), "to length 1"),
        (lambda x: F.normalize(x.mean(1).flatten(1), dim=1), "square before the mean"),
        (lambda x: attention(x, power=1), "the squares are missing"),
        (lambda x: attention(x, order=1), "the squares add up to 1"),
        (lambda x: x.square().mean(1).flatten(1) / x.square().mean(1).norm(), "one by one"),
        (lambda x: F.normalize(x.square().flatten(2), dim=2).mean(1).view(2, 2, 2), "should be a tensor of shape"),
    ],
    "08.5": [
        (lambda s, t: list(range(s)), "what zip does"),
        (lambda s, t: [i * t // s for i in range(s)], "starts with the first block"),
        (lambda s, t: [(i + 1) * t // s for i in range(s)], "counts from 1"),
        (lambda s, t: [(i + 1) * t / s - 1 for i in range(s)], "are whole"),
        (lambda s, t: list(range(t)), "a list of"),
    ],
}
