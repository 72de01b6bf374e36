"""Checks of lesson 11, "Export and deployment"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


@exercise("11.1", title="Parity", minutes=10, difficulty=1)
def parity(answer: Callable) -> str:
    """``answer(reference, other)``: the largest difference in units of the reference's largest value."""
    # differences 0.1, 0.5, 0.01; the reference's largest magnitude is 8
    reference, other = torch.tensor([[4.0, -8.0, 0.01]]), torch.tensor([[4.1, -8.5, 0.02]])
    mistakes = {
        0.5: "that is the difference itself; divide by the largest magnitude of the reference",
        1.0: "the ratio of each pair lets logits near 0 decide: divide the largest difference by the largest magnitude",
        0.125: "the largest magnitude is that of -8: take the absolute value before the largest",
        0.1 / 4: "a difference can go down as well: the one of -0.5 is larger than the one of 0.1",
        0.1 / 8: "a difference can go down as well: the one of -0.5 is larger than the one of 0.1",
        (0.61 / 3) / 8: "that is the mean; one wrong output among many would hide in it",
        0.5 / 8.5: "divide by the largest magnitude of the reference, not of the other",
    }
    expect_number(call(answer, reference, other), 0.0625, what="the parity", tolerance=1e-4, wrong=mistakes)
    expect_number(call(answer, reference[0], reference[0]), 0.0, what="the parity of a model with itself")
    return "floats summed in another order give about 1e-6, another model far more"


@exercise("11.2", title="Is the ReLU redundant?", minutes=10, difficulty=2)
def relu_is_redundant(answer: Callable) -> str:
    """``answer(lowest, zero_point)``: whether the grid clips where a ReLU does."""
    cases = {
        (0, 0): (True, "uint8 with zero point 0 starts at the value 0"),
        (-128, -128): (True, "int8 with zero point -128 starts at the value 0 as well: it is not about the number 0"),
        (-128, 0): (False, "int8 with zero point 0 goes down to -128 steps below 0"),
        (0, 128): (False, "uint8 does not mean positive: with zero point 128 its lowest level stands for -128 steps"),
    }
    for (lowest, zero_point), (wanted, why) in cases.items():
        found = call(answer, lowest, zero_point)
        if not isinstance(found, bool | Tensor):
            raise NotYet(f"return True or False, got {type(found).__name__}")
        if bool(found) != wanted:
            raise NotYet(f"lowest {lowest}, zero point {zero_point} should be {wanted}: {why}")
    return "the value of the lowest level is (lowest - zero_point) * scale: it must be 0"


@exercise("11.3", title="One step of an attack", minutes=15, difficulty=2)
def attack_step(answer: Callable) -> str:
    """``answer(x, gradient, epsilon, low, high)``: the fast gradient sign method."""
    x, gradient = torch.tensor([0.50, 0.50, 0.50, 0.98, 0.01]), torch.tensor([3.0, -0.2, 0.0, 1.0, -4.0])
    before = x.clone()
    found = call(answer, x, gradient, 0.05, 0.0, 1.0)
    if not torch.equal(x, before):
        raise NotYet("the inputs changed: return new ones")
    if not isinstance(found, Tensor) or found.shape != x.shape:
        raise NotYet("return a tensor of the shape of x")
    mistakes = [
        (torch.tensor([0.45, 0.55, 0.50, 0.93, 0.06]), "that lowers the loss: the attacker goes up the gradient"),
        (torch.tensor([0.55, 0.45, 0.50, 1.03, -0.04]), "an entry left 0..1: no picture has such a pixel"),
        ((x + 0.05 * gradient).clamp(0, 1), "take the sign: every entry may use its whole epsilon, however small"),
        (torch.tensor([0.05, 0.0, 0.0, 0.05, 0.0]), "add the step to x; it is not the answer by itself"),
        (torch.tensor([0.55, 0.45, 0.55, 1.00, 0.00]), "where the gradient is 0 nothing should move"),
    ]
    for mistake, reason in mistakes:
        if torch.allclose(found, mistake, atol=1e-6):
            raise NotYet(reason)
    wanted = torch.tensor([0.55, 0.45, 0.50, 1.00, 0.00])
    if not torch.allclose(found, wanted, atol=1e-6):
        raise NotYet(f"x = 0.5 with gradient 3.0 should become 0.55, and 0.98 should end at 1; got {found.tolist()}")
    again = call(answer, x - 2, gradient, 0.05, -2.0, -1.0)
    if not torch.allclose(again, wanted - 2, atol=1e-6):
        raise NotYet("with low = -2 and high = -1 the bounds are other ones: use those that are given")
    return "PGD is this step, smaller, many times, from a random start"


@exercise("11.4", title="AUROC", minutes=15, difficulty=2)
def auroc(answer: Callable) -> str:
    """``answer(known, other)``: the share of pairs in which the known one scores higher, ties half."""
    # 2 x 4 pairs: 3 beats 1, 2, 2 and ties 3 (3.5); 2 beats 1 and ties 2, 2 (2.0): 5.5 of 8
    known, other = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0, 2.0, 3.0])
    mistakes = {
        5.5: "that is the number of pairs; divide by how many there are",
        4 / 8: "ties count half, not nothing",
        7 / 8: "ties count half, not whole",
        2.5 / 8: "the known ones should score higher: the other way round it is the opposite",
    }
    expect_number(call(answer, known, other), 5.5 / 8, what="the AUROC", wrong=mistakes)
    expect_number(call(answer, torch.tensor([5.0, 6.0, 7.0]), torch.tensor([1.0])), 1.0, what="of a perfect score it")
    return "0.5 is a guess, 1.0 never errs, and no threshold was needed"


@exercise("11.5", title="The alarm", minutes=20, difficulty=3)
def first_alarm(answer: Callable) -> str:
    """``answer(outcomes, share, alpha)``: after how many requests a bet on "worse" reaches 1 / alpha."""
    # share 0.5: each loss multiplies by 1.5, each win by 0.5; 1.5^2 = 2.25 >= 2 after the third request
    found = call(answer, [-1, 0, -1, 1, 1], 0.5, 0.5)
    mistakes = {
        0: "the capital was at 2.25 after three requests: what comes afterwards does not matter",
        2: "count the requests from 1",
        4: "the alarm rang before: look after each request",
        5: "the bet is that the new model is worse: -1 multiplies by 1 + share",
        1: "the alarm rings at 1 / alpha, not at the first loss",
    }
    expect_number(found, 3, what="the request of the alarm", wrong=mistakes)
    sum_of_bets = {8: "capital is multiplied, not added: gains are bet again"}
    expect_number(call(answer, [-1] * 10, 0.5, 0.22), 4, what="the request of 1.5^4 = 5.06", wrong=sum_of_bets)
    late = {3: "a capital of exactly 1 / alpha is enough"}
    expect_number(
        call(answer, [-1, -1, -1], 1.0, 0.25), 2, what="the request of a capital of exactly 4 = 1 / alpha", wrong=late
    )
    expect_number(call(answer, [1, 1, 1, 1], 0.5, 0.05), 0, what="no alarm")
    return "a p-value that may be looked at after every request: 1 / the most that the capital ever was"
