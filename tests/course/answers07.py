"""Lesson 07: answers that solve its exercises, and typical wrong ones with the words they must be told."""

from __future__ import annotations

import torch


def taylor(gradients, weights):
    return (gradients * weights).flatten(1).sum(1).square()


def fisher(deltas, inputs):
    return deltas.square().T @ inputs.square() / len(inputs)


def hutchinson(product, size, probes, generator, *, same=False, gauss=False, times=True, mean=True, sign=True):
    total = torch.zeros(size)
    for _ in range(probes):
        v = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1
        v = torch.ones(size) if same else torch.randn(size, generator=generator) if gauss else v
        total += (v if times else 1) * product(v)
    total = total / probes if mean else total
    return total if sign else total.abs()


def mix(first, second, *, within=False, start=1, divide=True, halves=2, descending=False, min_max=False):
    names, total = list(first), 0

    def place(flat):
        if min_max:
            return (flat - flat.min()) / (flat.max() - flat.min())
        ranks = flat.argsort(descending=descending).argsort() + start
        return ranks / (len(flat) if divide else 1)

    for scores in (first, second):
        if within:
            total = total + torch.cat([place(scores[name].flatten()) for name in names]) / halves
        else:
            total = total + place(torch.cat([scores[name].flatten() for name in names])) / halves
    parts = total.split([first[name].numel() for name in names])
    return {name: part.view_as(first[name]) for name, part in zip(names, parts, strict=True)}


@torch.no_grad()
def take_out(model, name, loss, *, restore="each", relative=True, columns=False):
    weight, whole, found = model.get_parameter(name), float(loss(model)), []
    before = weight.clone()
    for channel in range(weight.shape[1] if columns else len(weight)):
        if columns:
            weight[:, channel] = 0
        else:
            weight[channel] = 0
        found.append(float(loss(model)) - (whole if relative else 0))
        if restore == "each":
            weight.copy_(before)
    if restore == "end":
        weight.copy_(before)
    return torch.tensor(found)


SOLUTIONS = {"07.1": taylor, "07.2": fisher, "07.3": hutchinson, "07.4": mix, "07.5": take_out}
WRONG = {
    "07.1": [
        (lambda g, w: (g * w).square().flatten(1).sum(1), "square after the sum"),
        (lambda g, w: (g * w).abs().flatten(1).sum(1), "absolute values is another score"),
        (lambda g, w: (g * w).flatten(1).sum(1), "the square at the end"),
        (lambda g, w: g.flatten(1).sum(1).square(), "the gradient alone"),
        (lambda g, w: (g * w).flatten(1).mean(1).square(), "not the mean"),
        (lambda g, w: (g * w).sum(2).square(), "should be a tensor of shape"),
    ],
    "07.2": [
        (lambda d, a: (d.T @ a / len(a)).square(), "the batch's gradient"),
        (lambda d, a: (d.T @ a).square(), "the summed gradient"),
        (lambda d, a: fisher(d, a) * len(a), "divide by their number"),
        (lambda d, a: d.T @ a / len(a), "the squares are missing"),
        (lambda d, a: d.T @ a.square() / len(a), "what comes back"),
        (lambda d, a: d.square().T @ a / len(a), "what goes in"),
        (lambda d, a: fisher(d, a).T, "should be a tensor of shape"),
    ],
    "07.3": [
        (lambda *args: hutchinson(*args, same=True), "sums of rows"),
        (lambda *args: hutchinson(*args, gauss=True), "random signs"),
        (lambda *args: hutchinson(*args, times=False), "multiply H v by v"),
        (lambda *args: hutchinson(*args, mean=False), "take the mean"),
        (lambda *args: hutchinson(*args, sign=False), "may be negative"),
        (lambda product, size, probes, g: hutchinson(product, size, 10, g), "400 products"),
        (lambda *args: torch.ones(3), "only be reached through product"),
    ],
    "07.4": [
        (lambda a, b: mix(a, b, within=True), "within each tensor"),
        (lambda a, b: mix(a, b, start=0), "ranks from 0"),
        (lambda a, b: mix(a, b, divide=False), "divide by the number"),
        (lambda a, b: mix(a, b, halves=1), "take the mean"),
        (lambda a, b: mix(a, b, descending=True), "the highest rank"),
        (lambda a, b: mix(a, b, min_max=True), "one enormous value rule"),
        (lambda a, b: {name: value.flatten() for name, value in mix(a, b).items()}, "keep its shape"),
        (lambda a, b: mix(a, b)["a"], "return a dict"),
    ],
    "07.5": [
        (lambda *args: take_out(*args, relative=False), "that is the loss itself"),
        (lambda *args: -take_out(*args), "the wrong way round"),
        (lambda *args: take_out(*args, restore="end"), "taken out alone"),
        (lambda *args: take_out(*args, restore="never"), "not what it was"),
        (lambda *args: take_out(*args).abs(), "negative increase"),
        (lambda *args: take_out(*args, columns=True), "should be a tensor of shape"),
    ],
}
