"""Checks of lesson 05, "Pruning"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


def mask_of(value: object, shape: torch.Size) -> Tensor:
    """``value``, if it is a mask of this shape."""
    if not isinstance(value, Tensor) or value.shape != shape:
        raise NotYet(f"the mask should be a tensor of shape {tuple(shape)}")
    if value.dtype != torch.bool:
        raise NotYet(f"a mask holds True and False, not {value.dtype}: compare, or call .bool()")
    return value


@exercise("05.1", title="Exactly that many", minutes=10, difficulty=1)
def keep(answer: Callable) -> str:
    """``answer(scores, sparsity)``: a bool mask of the shape of scores, round(sparsity * N) of the lowest are False."""
    scores = torch.tensor([[3.0, 1.0, 2.0], [6.0, 5.0, 4.0]])
    mask = mask_of(call(answer, scores, 0.5), scores.shape)
    wanted = torch.tensor([[False, False, False], [True, True, True]])
    if torch.equal(mask, ~wanted):
        raise NotYet("True means stays: the highest scores must be True")
    if not torch.equal(mask, wanted):
        raise NotYet(f"of {scores.tolist()} half should go, the lowest: {wanted.tolist()}, got {mask.tolist()}")
    ties = torch.ones(4, 5)
    removed = int((~mask_of(call(answer, ties, 0.3), ties.shape)).sum())
    if removed in (0, 20):
        raise NotYet(f"of 20 equal scores 6 should go, not {removed}: a threshold takes all or nothing, so sort")
    if removed != 6:
        raise NotYet(f"of 20 equal scores round(0.3 * 20) = 6 should go, got {removed}")
    for sparsity, count in ((0.0, 0), (1.0, 20), (0.49, 10)):
        removed = int((~mask_of(call(answer, ties, sparsity), ties.shape)).sum())
        if removed != count:
            raise NotYet(f"at sparsity {sparsity} it should remove {count} of 20, got {removed}")
    return "the number that was asked for, with ties and without"


@exercise("05.2", title="Zhu and Gupta's schedule", minutes=10, difficulty=1)
def cubic(answer: Callable) -> str:
    """``answer(step, start, end, initial, final)``: 0 before start, cubic from initial to final at end, then constant."""
    if abs(float(call(answer, 3, 10, 30, 0.2, 0.8))) > 1e-9:
        raise NotYet("before start nothing is removed: 0")
    expect_number(call(answer, 10, 10, 30, 0.2, 0.8), 0.2, what="the sparsity at start")
    mistakes = {
        0.2 + 0.6 * 0.125: "the cube is on the way that is left, not on the way gone: much is taken first",
        0.2 + 0.6 * 0.5: "that is the linear schedule: the power of 3 is missing",
        0.2 + 0.6 * (1 - (1 - 20 / 30) ** 3): "the way begins at start: (step - start) / (end - start)",
        0.8 * 0.875: "it starts at initial, not at 0",
    }
    wanted = 0.8 - 0.6 * 0.125
    expect_number(call(answer, 20, 10, 30, 0.2, 0.8), wanted, what="the sparsity half-way", wrong=mistakes)
    expect_number(call(answer, 30, 10, 30, 0.2, 0.8), 0.8, what="the sparsity at end")
    expect_number(call(answer, 99, 10, 30, 0.2, 0.8), 0.8, what="the sparsity after end")
    return "seven eighths of the way in half of the time"


def half_trained(x: Tensor, masks: dict[str, Tensor]) -> tuple[nn.Linear, torch.optim.Optimizer]:
    """A layer that was trained for a step before it was pruned: the optimizer's momentum knows all weights."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.5, -1.0, 0.25]]))
        model.bias.zero_()
    (model(x) - 1).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        model.weight.mul_(masks["weight"])
    return model, optimizer


@exercise("05.3", title="A training step that keeps zeros zero", minutes=15, difficulty=2)
def training_step(answer: Callable) -> str:
    """``answer(model, optimizer, loss, masks)``: one whole step, removed weights zero after it; gives the loss."""
    masks = {"weight": torch.tensor([[True, False, True, False]])}
    x, seen = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 0.0, 1.0, -1.0]]), []
    model, optimizer = half_trained(x, masks)
    before = model.weight.detach().clone()
    for _ in range(3):
        loss = (model(x) - 1).square().mean()
        expect_number(call(answer, model, optimizer, loss, masks), loss.item(), what="the loss that is returned")
        seen.append((model.weight.detach().clone(), model.bias.detach().clone()))
    if not all(bool((weight[~masks["weight"]] == 0).all()) for weight, _ in seen):
        raise NotYet("a removed weight is not zero after the step: put the masks back behind optimizer.step()")
    if torch.equal(seen[0][0], before):
        raise NotYet("the weights that stay did not move: backward and optimizer.step() are part of the step")
    reference, optimizer = half_trained(x, masks)
    for weight, bias in seen:
        optimizer.zero_grad()
        (reference(x) - 1).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            reference.weight.mul_(masks["weight"])
        if not torch.allclose(weight, reference.weight, atol=1e-6):
            raise NotYet("the weights that stay moved by a wrong amount: clear the gradients of the step before")
        if not torch.allclose(bias, reference.bias, atol=1e-6):
            raise NotYet("what has no mask, such as the bias, should train as always")
    return "neither the gradient, nor momentum, nor weight decay brought a weight back"


@exercise("05.4", title="Two of four", minutes=15, difficulty=2)
def two_of_four(answer: Callable) -> str:
    """``answer(weight)``: the mask that keeps the two largest magnitudes of every four consecutive columns."""
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0, 5.0, 6.0, 7.0, -8.0], [0.1, 0.2, -0.9, 0.3, 1.0, -3.0, 0.5, 2.0]])
    mask = mask_of(call(answer, weight), weight.shape)
    wanted = torch.tensor([[1, 1, 0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1, 0, 1]]).bool()
    if torch.equal(mask, ~wanted):
        raise NotYet("these are the two that go: True means stays")
    if torch.equal(mask, torch.tensor([[1, 0, 1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 1, 0, 0, 1]]).bool()):
        raise NotYet("a large negative weight is as large as a positive one: take the magnitude")
    counts = mask.unflatten(1, (-1, 4)).sum(-1)
    if not torch.equal(counts, torch.full_like(counts, 2)):
        raise NotYet(f"every four columns should keep two, yours keep {counts.tolist()}")
    if not torch.equal(mask, wanted):
        raise NotYet(f"it should be {wanted.int().tolist()}, got {mask.int().tolist()}")
    return "two of every four, the pattern that sparse tensor cores read"


@exercise("05.5", title="When does a format pay?", minutes=10, difficulty=2)
def break_even(answer: Callable) -> str:
    """``answer(value_bytes, index_bytes)``: the sparsity from which value and index are less than the dense tensor."""
    mistakes = {
        2 / 3: "that is the share that stays: sparsity is what is gone",
        1 / 2: "compare N values with (1 - s) N times value and index",
        3.0: "a sparsity is a fraction, 0..1",
    }
    expect_number(call(answer, 4, 2), 1 / 3, what="FP32 with 2-byte indices", wrong=mistakes)
    expect_number(call(answer, 4, 4), 1 / 2, what="FP32 with 4-byte indices")
    expect_number(call(answer, 1, 4), 4 / 5, what="8-bit weights with 4-byte indices")
    return "the smaller the values, the more zeros an index must save"
