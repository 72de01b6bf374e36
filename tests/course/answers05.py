"""Lesson 05: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import torch


def keep(scores, sparsity, *, count=round, descending=False):
    mask = torch.ones(scores.numel(), dtype=torch.bool)
    order = scores.flatten().argsort(stable=True, descending=descending)
    mask[order[: count(sparsity * scores.numel())]] = False
    return mask.view_as(scores)


def threshold(scores, sparsity):
    return scores > torch.quantile(scores, sparsity)


def cubic(step, start, end, initial, final, *, power=3, gone=False, shift=True, before=0.0):
    if step < start:
        return before
    way = min((step - start) / (end - start) if shift else step / end, 1)
    if step == start:
        way = 0
    share = way**power if gone else 1 - (1 - way) ** power
    return initial + (final - initial) * share


def step(model, optimizer, loss, masks, *, clear=True, run=True, mask="after", decay=False):
    if clear:
        optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():
        if mask == "gradient":
            for name, kept in masks.items():
                model.get_parameter(name).grad.mul_(kept)
        if mask == "before":
            for name, kept in masks.items():
                model.get_parameter(name).mul_(kept)
        if run:
            optimizer.step()
        if mask in ("after", "all"):
            for name, kept in masks.items():
                model.get_parameter(name).mul_(kept)
        if mask == "all":
            model.bias.zero_()
    return loss.item()


def two_of_four(weight, *, magnitude=True, largest=True, flat=False):
    groups = (weight.abs() if magnitude else weight).unflatten(1, (-1, 4))
    mask = torch.zeros_like(groups, dtype=torch.bool)
    if flat:
        return (weight.abs() >= weight.abs().flatten(1).median(1, keepdim=True).values).contiguous()
    return mask.scatter(-1, groups.topk(2, largest=largest).indices, True).flatten(1)


SOLUTIONS = {
    "05.1": keep,
    "05.2": cubic,
    "05.3": step,
    "05.4": two_of_four,
    "05.5": lambda value, index: index / (value + index),
}
WRONG = {
    "05.1": [
        (lambda s, a: keep(s, a).float(), "True and False"),
        (lambda s, a: keep(s, a).flatten(), "should be a tensor of shape"),
        (lambda s, a: ~keep(s, a), "True means stays"),
        (lambda s, a: keep(s, a, descending=True), "True means stays"),
        (threshold, "takes all or nothing"),
        (lambda s, a: keep(s, a, count=int) if a == 0.49 else keep(s, a), "should remove 10 of 20"),
        (lambda s, a: keep(s, a / 2), "half should go"),
    ],
    "05.2": [
        (lambda *a: cubic(*a, before=a[3]), "before start nothing"),
        (lambda *a: cubic(*a, gone=True), "not on the way gone"),
        (lambda *a: cubic(*a, power=1), "linear schedule"),
        (lambda *a: cubic(*a, shift=False), "the way begins at start"),
        (lambda s, b, e, i, f: cubic(s, b, e, 0, f) if s != b else i, "not at 0"),
        (lambda s, b, e, i, f: cubic(s, b, e, i, f) if s <= e else 0, "after end"),
    ],
    "05.3": [
        (lambda *a: step(*a, mask="gradient"), "not zero after the step"),
        (lambda *a: step(*a, mask="before"), "not zero after the step"),
        (lambda *a: step(*a, mask="none"), "not zero after the step"),
        (lambda *a: step(*a, run=False), "did not move"),
        (lambda *a: step(*a, clear=False), "clear the gradients"),
        (lambda *a: step(*a, mask="all"), "such as the bias"),
    ],
    "05.4": [
        (lambda w: two_of_four(w, largest=False), "True means stays"),
        (lambda w: two_of_four(w, magnitude=False), "take the magnitude"),
        (lambda w: two_of_four(w, flat=True), "should keep two"),
        (lambda w: two_of_four(w).float(), "True and False"),
        (lambda w: two_of_four(w).roll(1, 0), "it should be"),
    ],
    "05.5": [
        (lambda value, index: value / (value + index), "the share that stays"),
        (lambda value, index: index / value, "compare N values"),
        (lambda value, index: 1 + value / index, "a fraction"),
        (lambda value, index: 1 / 3, "4-byte indices"),
    ],
}
