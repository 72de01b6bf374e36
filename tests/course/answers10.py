"""Lesson 10: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import torch


def counts(chosen, experts):
    return torch.bincount(chosen.flatten(), minlength=experts)


def balance(probs, chosen, *, factor=True, per_token=False, share=None, mean=None):
    experts = probs.shape[1]
    f = counts(chosen, experts) / (len(chosen) if per_token else chosen.numel())
    p = probs.mean(0)
    return (experts if factor else 1) * ((p if share else f) * (f if mean else p)).sum()


def contribution(chosen, gates, outputs, experts, *, gate=True, norm=True, over="own", empty=0.0):
    each = (gates if gate else 1) * (outputs.norm(dim=-1) if norm else torch.ones_like(gates))
    found = torch.full((experts,), empty)
    for expert in range(experts):
        here = chosen == expert
        if here.any():
            total = each[here].sum()
            found[expert] = total / {"own": here.sum(), "all": len(chosen), "none": 1}[over]
    return found


def take_out(router, experts, gone, *, cut=True, shift=False):
    keep = [number for number in range(len(experts)) if number not in gone]
    rows = list(range(len(keep))) if shift else keep
    return (router[rows] if cut else router), [experts[number] for number in keep]


def in_place(router, experts, gone):
    for number in sorted(gone, reverse=True):
        del experts[number]
    return router[[0, 3, 4]], experts


def moved_up(router, experts, gone):
    left = list(experts)
    for number in sorted(gone):
        del left[number]
    return router[[0, 3, 4]], left


def skip(gates, threshold, *, again=True, limit="own"):
    largest = gates.amax(1, keepdim=True)
    line = {"own": threshold * largest, "first": threshold * gates[:, :1], "absolute": torch.full_like(largest, 0.35)}
    kept = torch.where(gates < line[limit], 0.0, gates)
    return kept / kept.sum(1, keepdim=True) if again else kept


def skip_here(gates, threshold):
    result = skip(gates, threshold)
    return gates.copy_(result)


SOLUTIONS = {
    "10.1": lambda chosen, experts: counts(chosen, experts) * experts / chosen.numel(),
    "10.2": balance,
    "10.3": contribution,
    "10.4": take_out,
    "10.5": skip,
}
WRONG = {
    "10.1": [
        (lambda c, e: counts(c, 0) * e / c.numel(), "never chosen"),
        (lambda c, e: counts(c, e), "these are counts"),
        (lambda c, e: counts(c, e) / c.numel(), "these are shares"),
        (lambda c, e: counts(c, e) * e / len(c), "T k / E"),
        (lambda c, e: counts(c, e).tolist(), "tensor of shape"),
        (lambda c, e: counts(c, e) * 4 / c.numel(), "with 64 experts"),
        (lambda c, e: counts(c, e) / counts(c, e).max(), "it should be"),
    ],
    "10.2": [
        (lambda p, c: balance(p, c, factor=False), "factor E"),
        (lambda p, c: balance(p, c, per_token=True), "T k assignments"),
        (lambda p, c: balance(p, c, share=True), "not the mean probability"),
        (lambda p, c: balance(p, c, mean=True), "not the count"),
        (lambda p, c: balance(p, c).item(), "a gradient reaches"),
    ],
    "10.3": [
        (lambda *a: contribution(*a, empty=torch.nan), "no token"),
        (lambda *a: contribution(*a, over="none"), "that is the sum"),
        (lambda *a: contribution(*a, over="all"), "not over all tokens"),
        (lambda *a: contribution(*a, gate=False), "gate is missing"),
        (lambda *a: contribution(*a, norm=False), "the mean gate"),
        (lambda c, g, o, e: contribution(c, g, o.abs().sum(-1, keepdim=True), e), "the norm is that"),
    ],
    "10.4": [
        (lambda r, e, g: take_out(r, e, g, cut=False), "still has 5 rows"),
        (lambda r, e, g: take_out(r, e, g, shift=True), "belong together"),
        (lambda r, e, g: (r[[1, 2]], ["b", "c"]), "should go"),
        (lambda r, e, g: r[[0, 3, 4]], "two things"),
        (in_place, "stay as it was"),
        (moved_up, "moved up"),
    ],
    "10.5": [
        (lambda g, t: skip(g, t, again=False), "sum to 1"),
        (lambda g, t: skip(g, t, limit="absolute"), "not the same for all"),
        (lambda g, t: skip(g, t, limit="first"), "need not stand first"),
        (lambda g, t: skip(g, 2.0), "skips all"),
        (skip_here, "work on a copy"),
    ],
}
