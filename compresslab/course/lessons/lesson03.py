"""Checks of lesson 03, "Quantization-aware training"."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


def tensor_of(value: object, like: Tensor, what: str) -> Tensor:
    """``value``, if it is a tensor of the shape of ``like``."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        raise NotYet(f"{what} should be a tensor of shape {tuple(like.shape)}")
    return value


@exercise("03.1", title="Straight through", minutes=15, difficulty=2)
def straight_through(answer: Callable) -> str:
    """``answer(x, scale, quant_min, quant_max)``: x on the grid (zero point 0), with the straight-through gradient."""
    x = torch.tensor([-9.0, -0.7, 0.2, 1.4, 9.0], requires_grad=True)
    result = tensor_of(call(answer, x, 0.5, -4, 3), x, "the result")
    wanted = torch.tensor([-2.0, -0.5, 0.0, 1.5, 1.5])
    if torch.equal(result.detach(), torch.tensor([-9.0, -0.5, 0.0, 1.5, 9.0])):
        raise NotYet("the forward pass does not clamp: the levels end at quant_min and quant_max")
    if torch.equal(result.detach(), torch.tensor([-4.0, -1.0, 0.0, 3.0, 3.0])):
        raise NotYet("these are levels: multiply by the scale, so that the network gets values")
    if not torch.allclose(result.detach(), wanted):
        raise NotYet(f"forward should give {wanted.tolist()}, got {result.detach().tolist()}")
    if not result.requires_grad:
        raise NotYet("the result has no gradient: only the difference may be detached, not all of it")
    (gradient,) = torch.autograd.grad(result.sum(), x)
    if gradient.count_nonzero() == 0:
        raise NotYet("the gradient is zero everywhere: round is flat, so go around it with detach")
    if torch.equal(gradient, torch.ones(5)):
        raise NotYet("the gradient is 1 outside of the grid too: there the output does not move, so it must be 0")
    if not torch.allclose(gradient, torch.tensor([0.0, 1, 1, 1, 0])):
        raise NotYet(f"the gradient should be 1 inside the grid and 0 outside, got {gradient.tolist()}")
    return "forward rounds, backward does as if it did not"


@exercise("03.2", title="What moves the step", minutes=15, difficulty=3)
def step_gradient(answer: Callable) -> str:
    """``answer(v, s, q_n, q_p)``: LSQ's derivative of the rounded value by the step s, for each element of v."""
    v = torch.tensor([-3.0, -0.6, 0.1, 0.7, 3.0])
    found = tensor_of(call(answer, v, 0.5, 2, 1), v, "the result")
    ratio = v / 0.5
    inside = torch.tensor([False, True, True, False, False])  # v / s = -1.2 and 0.2; 1.4 is above 1
    wanted = torch.tensor([-2.0, 0.2, -0.2, 1.0, 1.0])
    mistakes = {
        "inside it is round(v / s) - v / s: moving the step moves the value and, with it, the place on the grid": (
            ratio.round().clamp(-2, 1)
        ),
        "the sign is the wrong way round: round(v / s) - v / s inside": torch.where(inside, -wanted, wanted),
        "outside it is -Q_N or Q_P, not 0: the end of the grid moves with the step": wanted * inside,
        "the lower end is -Q_N: the sign is missing there": torch.where(ratio < -2, 2.0, wanted),
        "elements outside of the grid stay at its end: decide by v / s, not by the rounded value": (
            ratio.round() - ratio
        ),
    }
    for reason, other in mistakes.items():
        if torch.allclose(found, other, atol=1e-6):
            raise NotYet(reason)
    if not torch.allclose(found, wanted, atol=1e-6):
        raise NotYet(f"for v / s = {ratio.tolist()} it should be {wanted.tolist()}, got {found.tolist()}")
    return "the quantity that LSQ adds to the straight-through estimator"


@exercise("03.3", title="Where the step starts, and how fast it moves", minutes=10, difficulty=1)
def step_start(answer: Callable) -> str:
    """``answer(weight, bits)``: LSQ's first step 2 mean|w| / sqrt(Q_P), and its gradient scale 1 / sqrt(N Q_P)."""
    weight = torch.tensor([[1.0, -3.0], [2.0, -2.0]])
    value = call(answer, weight, 3)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise NotYet("return two numbers: the first step and the gradient scale")
    mistakes = {
        2 * 2 / math.sqrt(7): "Q_P of 3 bits is 2^(3-1) - 1 = 3: weights have a sign",
        2 * 2 / math.sqrt(4): "Q_P of 3 bits is 2^(3-1) - 1 = 3, not 4: that is Q_N",
        2 / math.sqrt(3): "the paper starts from twice the mean magnitude",
        4 / 3: "divide by the square root of Q_P",
        0.0: "take the mean of the magnitudes: the plain mean is near 0",
        -1.0 / math.sqrt(3): "take the mean of the magnitudes: the plain mean is near 0",
    }
    expect_number(value[0], 4 / math.sqrt(3), what="the first step", wrong=mistakes)
    mistakes = {
        1 / 12: "take the square root of N Q_P",
        math.sqrt(12): "it is 1 / sqrt(N Q_P): many weights pull on one step, so its gradient is made smaller",
        1 / 2: "Q_P is missing: 1 / sqrt(N Q_P)",
        1 / math.sqrt(3): "N, the number of weights that share the step, is missing",
    }
    expect_number(value[1], 1 / math.sqrt(12), what="the gradient scale of 4 weights", wrong=mistakes)
    expect_number(call(answer, torch.ones(10, 10), 2)[0], 2.0, what="the first step of 2 bits")
    return "a step learns as fast as a weight"


@exercise("03.4", title="Warm up, then decay", minutes=10, difficulty=1)
def warm_up(answer: Callable) -> str:
    """``answer(step, steps, warmup, peak)``: linear from 0 to peak at ``warmup``, then a half cosine down to 0."""
    expect_number(call(answer, 10, 110, 10, 0.2), 0.2, what="the rate at the end of the warm-up")
    mistakes = {0.2: "the warm-up is missing: at step 5 of 10 it should be half of the peak"}
    expect_number(call(answer, 5, 110, 10, 0.2), 0.1, what="the rate at step 5 of 10 of warm-up", wrong=mistakes)
    halfway = 0.2 * (1 + math.cos(math.pi * 60 / 110)) / 2
    mistakes = {
        halfway: "the cosine starts at the end of the warm-up, not at step 0",
        0.2 * math.cos(math.pi / 4): "use the half cosine (1 + cos(pi t)) / 2, from 1 to 0",
        0.2: "after the warm-up the rate must fall",
        0.2 * math.cos(math.pi / 2): "halfway (1 + cos(pi t)) / 2 is 0.5: the 1 + is missing",
    }
    expect_number(call(answer, 60, 110, 10, 0.2), 0.1, what="the rate halfway down", wrong=mistakes)
    end = float(call(answer, 110, 110, 10, 0.2))
    if abs(end) > 1e-9:
        raise NotYet(f"at the last step the rate should be 0, got {end:g}")
    return "small steps first, since the grid is a shock, and small ones last, as in any training"


class Rounding(nn.Module):
    """A layer whose weight is rounded in the forward pass, straight through in the backward pass."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        rounded = weight + ((weight * 8).round() / 8 - weight).detach()
        return nn.functional.linear(x, rounded, self.layer.bias)


@exercise("03.5", title="Find the bug: QAT that trains nothing", minutes=15, difficulty=2)
def trains_the_right_model(answer: Callable) -> str:
    """``answer(model, prepare, inputs, labels)``: the prepared model (a copy made by ``prepare``) after 20 steps."""
    torch_state = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 4, generator=torch_state) * 0.1)
        model.bias.zero_()
    inputs = torch.randn(64, 4, generator=torch_state)
    labels = inputs[:, :3].argmax(1)
    before, prepared = model.weight.detach().clone(), []

    def prepare(given: nn.Module) -> nn.Module:
        prepared.append(Rounding(given))
        return prepared[-1]

    def loss_of(one: nn.Module) -> float:
        return nn.functional.cross_entropy(one(inputs), labels).item()

    start = loss_of(Rounding(model))
    result = call(answer, model, prepare, inputs, labels)
    if not isinstance(result, nn.Module):
        raise NotYet("return the trained model")
    if result is model:
        raise NotYet("that is the float model: QAT trains, and returns, what prepare gave you")
    if not prepared or result is not prepared[-1]:
        raise NotYet("return the very model that prepare gave you")
    if torch.equal(result.layer.weight, before):
        raise NotYet("the prepared model did not change: the optimizer holds the parameters of another model")
    if not torch.equal(model.weight, before):
        raise NotYet("the float model changed too: train the prepared copy alone")
    end = loss_of(result)
    if end > start:
        raise NotYet(
            f"the loss rose from {start:.2f} to {end:.2f}: clear the gradients in each step, and step downhill"
        )
    if end > 0.9 * start:
        raise NotYet(
            f"the loss fell only from {start:.2f} to {end:.2f} in 20 steps; a learning rate of 0.1 is fine here"
        )
    return f"the loss fell from {start:.2f} to {end:.2f}"
