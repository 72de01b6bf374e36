"""Right and wrong answers to the exercises of lesson 12."""

from __future__ import annotations


def bits_left(times, kept):
    return 32 / times / kept


def times_faster(shares, factors):
    return 1 / sum(share / factor for share, factor in zip(shares, factors, strict=True))


def on_front(points, beats=lambda a, b: a[0] <= b[0] and a[1] >= b[1] and a != b):
    return [not any(beats(other, point) for other in points) for point in points]


def kept_steps(steps, floor, *, strict=False, forget=True, alone=False, stop=False):
    kept, waiting = [], []
    for name, accuracy, judged in steps:
        waiting.append(name)
        if judged:
            good = accuracy > floor if strict else accuracy >= floor
            if good:
                kept += waiting
            elif stop:
                break
            if good or forget:
                waiting = []
            if not good and not forget:
                waiting = waiting[:-1]
            if not good and alone:
                kept += [other for other, _, was_judged in steps if not was_judged]
    return kept


def model_bytes(weights, others, bits, group_size):
    return weights * (bits + 16 / group_size) / 8 + 2 * others


SOLUTIONS = {
    "12.1": bits_left,
    "12.2": times_faster,
    "12.3": on_front,
    "12.4": kept_steps,
    "12.5": model_bytes,
}
WRONG = {
    "12.1": [
        (lambda times, kept: 32 / times, "share the bits of those that went"),
        (lambda times, kept: 32 / times * kept, "fewer weights leave more bits"),
        (lambda times, kept: 32 / times / (1 - kept) if kept < 1 else 8.0, "not the share that goes"),
        (lambda times, kept: 32 * kept, "begin with 32 / times"),
        (lambda times, kept: 4 / times / kept, "that is the number of bytes"),
        (lambda times, kept: 4.0, "4 times smaller"),
    ],
    "12.2": [
        (lambda shares, factors: sum(s * k for s, k in zip(shares, factors, strict=True)), "mean of the factors"),
        (lambda shares, factors: 1 / times_faster(shares, factors), "that is the time that is left"),
        (lambda shares, factors: max(factors), "the part that stays"),
        (lambda shares, factors: times_faster(shares, factors) / len(shares), "do not divide by how many"),
        (lambda shares, factors: 2.5 if factors[0] == 4 else 1.0, "it counts as well"),
    ],
    "12.3": [
        (lambda points: [not one for one in on_front(points)], "that is, not beaten"),
        (lambda points: on_front(points, lambda a, b: a[0] < b[0] and a[1] > b[1]), "as large and worse"),
        (lambda points: on_front(points, lambda a, b: a[0] <= b[0] and a[1] > b[1]), "as accurate and larger"),
        (lambda points: [True] * len(points), "is larger and worse than"),
        (lambda points: [on_front(points)[i] and points.index(x) == i for i, x in enumerate(points)], "both stay"),
        (lambda points: [0], "one bool for each"),
        (lambda points: True, "return a list of bools"),
    ],
    "12.4": [
        (lambda steps, floor: [name for name, accuracy, _ in steps if accuracy >= floor], "training has repaired it"),
        (lambda steps, floor: [name for name, *_ in steps], "below the floor and undone"),
        (lambda steps, floor: kept_steps(steps, floor, strict=True), "is not below it"),
        (lambda steps, floor: kept_steps(steps, floor, alone=True), "goes with it"),
        (lambda steps, floor: kept_steps(steps, floor, stop=True), "it goes on"),
        (lambda steps, floor: kept_steps(steps, floor, forget=False), "does not come back"),
        (lambda steps, floor: 3, "return a list of names"),
    ],
    "12.5": [
        (lambda w, o, b, g: w * b / 8 + 2 * o, "has a scale of 2 bytes"),
        (lambda w, o, b, g: w * b / 8 + 2 * w / g, "the others are in the file as well, 2 bytes each"),
        (lambda w, o, b, g: w * b / 8, "scales and the others"),
        (lambda w, o, b, g: w * b / 8 + 2 * w / g + o, "also for the others"),
        (lambda w, o, b, g: w * b / 8 + w / g + 2 * o, "a scale has 16 bits"),
        (lambda w, o, b, g: (w + o) * b / 8 + 2 * w / g, "they are not rounded"),
        (lambda w, o, b, g: 8 * model_bytes(w, o, b, g), "that is in bits"),
        (lambda w, o, b, g: w * b / 8 + 2 * w + 2 * o, "not for each weight"),
        (lambda w, o, b, g: w * b / 8 + 2 * g + 2 * o, "not group_size"),
    ],
}
