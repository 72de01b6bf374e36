"""Lesson 06: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn


def weights_left(widths, ratio, *, ends=True):
    scaled = [round(width * (1 - ratio)) for width in widths]
    if ends:
        scaled[0], scaled[-1] = widths[0], widths[-1]
    return sum(a * b for a, b in itertools.pairwise(scaled))


def whole(widths, ratio):
    return sum(a * b for a, b in itertools.pairwise(widths))


def inner_only(widths, ratio):
    parts = [a * b for a, b in itertools.pairwise(widths)]
    return sum(parts) - 0.75 * sum(parts[1:-1])


@torch.no_grad()
def drop_neurons(first, second, keep, *, bias=True, roll=False, first_bias=True):
    one, two = nn.Linear(first.in_features, len(keep)), nn.Linear(len(keep), second.out_features, bias=True)
    one.weight.copy_(first.weight[keep])
    one.bias.copy_(first.bias[keep] if first_bias else first.bias[: len(keep)])
    two.weight.copy_(second.weight[:, list(reversed(keep)) if roll else keep])
    two.bias.copy_(second.bias if bias else torch.zeros_like(second.bias))
    return one, two


@torch.no_grad()
def zeroed(first, second, keep):
    first, second = copy.deepcopy(first), copy.deepcopy(second)
    gone = [i for i in range(first.out_features) if i not in keep]
    second.weight[:, gone] = 0
    return first, second


@torch.no_grad()
def in_place(first, second, keep):
    answer = drop_neurons(first, second, keep)
    first.weight.zero_()
    return answer


def classes(count, meetings, *, low=min, whole_class=True):
    found = list(range(count))
    for a, b in meetings:
        keep = low(found[a], found[b])
        if whole_class:
            gone = {found[a], found[b]}
            found = [keep if value in gone else value for value in found]
        else:
            found[a] = found[b] = keep
    return found


def head_rows(head, heads, width, *, parts=3):
    size = width // heads
    return [part * width + head * size + i for part in range(parts) for i in range(size)]


def refit(inputs, outputs):
    return torch.linalg.lstsq(inputs, outputs).solution.T


SOLUTIONS = {"06.1": weights_left, "06.2": drop_neurons, "06.3": classes, "06.4": head_rows, "06.5": refit}
WRONG = {
    "06.1": [
        (whole, "nothing was removed"),
        (lambda w, r: whole(w, r) * (1 - r), "not half of the weights"),
        (lambda w, r: weights_left(w, r, ends=False), "outputs of the chain stay"),
        (inner_only, "the first and the last too"),
        (lambda w, r: weights_left(w, r) if len(w) > 2 else 12, "a single layer"),
        (lambda w, r: weights_left(w, 0.5), "at 75 %"),
    ],
    "06.2": [
        (zeroed, "zeros are no removal"),
        (in_place, "make new ones"),
        (lambda *args: drop_neurons(*args, bias=False), "bias is missing"),
        (lambda *args: drop_neurons(*args, roll=True), "compute something else"),
        (lambda *args: drop_neurons(*args, first_bias=False), "rows of the weight and of the bias"),
        (lambda *args: drop_neurons(*args)[0], "return the two new layers"),
        (lambda first, second, keep: (drop_neurons(first, second, keep)[0], second), "columns of the second"),
    ],
    "06.3": [
        (lambda count, meetings: list(range(count)), "no class was joined"),
        (lambda *args: classes(*args, low=max), "not its largest"),
        (lambda *args: classes(*args, whole_class=False), "join as a whole"),
        (lambda *args: {0: [0, 3]}, "return a list"),
        (lambda count, meetings: classes(count, sorted(meetings)[:1]), "it should be [0, 1, 2, 0, 4, 4]"),
        (lambda count, meetings: classes(count, [m for m in meetings if m[0] < m[1]]), "the order within a pair"),
    ],
    "06.4": [
        (lambda *args: head_rows(*args, parts=1), "three parts"),
        (lambda head, heads, width: [6, 7, 8, 9, 10, 11], "below each other"),
        (lambda head, heads, width: head_rows(head - 1, heads, width), "counted from 0"),
        (lambda head, heads, width: head_rows(head, heads, width)[::2], "rows in each part"),
        (lambda *args: head_rows(*args)[::-1], "not ascending"),
        (lambda head, heads, width: [*range(12)], "has the rows"),
        (lambda head, heads, width: head_rows(1, 2, 4), "from 0, 9 and 18"),
    ],
    "06.5": [
        (lambda x, y: refit(x, y).T, "transpose it"),
        (lambda x, y: y.T @ x / len(x), "uncorrelated"),
        (lambda x, y: 0.9 * refit(x, y), "is possible"),
        (lambda x, y: refit(x, y)[:1], "should have shape"),
        (lambda x, y: 1.0, "return the weight"),
    ],
}
