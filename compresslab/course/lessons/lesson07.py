"""Checks of lesson 07, "Importance"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compresslab.course.exercises import NotYet, call, exercise

__all__: list[str] = []


def close(found: object, wanted: Tensor, what: str, mistakes: dict[str, Tensor]) -> None:
    """Raise unless a tensor has the right shape and values; known mistakes are told their reason."""
    if not isinstance(found, Tensor) or found.shape != wanted.shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NotYet(f"{what} should be a tensor of shape {tuple(wanted.shape)}, got {got}")
    for reason, other in mistakes.items():
        if torch.allclose(found.to(other.dtype), other, atol=1e-6):
            raise NotYet(reason)
    if not torch.allclose(found.to(wanted.dtype), wanted, atol=1e-5):
        raise NotYet(f"{what} should be {wanted.tolist()}, got {found.tolist()}")


@exercise("07.1", title="Taylor for a channel", minutes=10, difficulty=1)
def taylor(answer: Callable) -> str:
    """``answer(gradients, weights)``: for each output channel the sum of gradient times weight, squared."""
    gradients = torch.tensor([[[1.0, -2.0]], [[3.0, 1.0]]])
    weights = torch.tensor([[[2.0, 2.0]], [[1.0, -1.0]]])
    mistakes = {
        "square after the sum: what goes together may cancel": torch.tensor([20.0, 10.0]),
        "the sum of the absolute values is another score: what goes together may cancel": torch.tensor([6.0, 4.0]),
        "the square at the end is missing": torch.tensor([-2.0, 2.0]),
        "the gradient alone does not know how large the weight is": torch.tensor([1.0, 16.0]),
        "take the sum over the channel, not the mean": torch.tensor([1.0, 1.0]),
    }
    close(call(answer, gradients, weights), torch.tensor([4.0, 4.0]), "the scores of two channels", mistakes)
    wide = torch.arange(24.0).reshape(2, 3, 2, 2)
    wanted = torch.tensor([66.0**2, 210.0**2])
    close(call(answer, wide, torch.ones(2, 3, 2, 2)), wanted, "the scores of a convolution's channels", {})
    return "the square of the derivative by the channel's gate"


@exercise("07.2", title="Fisher of a linear layer, without a loop", minutes=15, difficulty=2)
def fisher(answer: Callable) -> str:
    """``answer(deltas, inputs)``: the mean over the samples of the squared gradients delta_i a_i^T."""
    deltas, inputs = torch.tensor([[1.0, 2.0], [-1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0], [1.0, 3.0, 1.0]])
    wanted = torch.tensor([[1.0, 4.5, 2.5], [2.5, 4.5, 8.5]])
    batch = (deltas.T @ inputs / 2).square()
    mistakes = {
        "that is the square of the batch's gradient: square each sample's, then take the mean": batch,
        "that is the square of the summed gradient: square each sample's, then take the mean": 4 * batch,
        "that is the sum over the samples: divide by their number": 2 * wanted,
        "that is the mean gradient: the squares are missing": deltas.T @ inputs / 2,
        "square what comes back as well: (delta a)^2 = delta^2 a^2": deltas.T @ inputs.square() / 2,
        "square what goes in as well: (delta a)^2 = delta^2 a^2": deltas.square().T @ inputs / 2,
    }
    close(call(answer, deltas, inputs), wanted, "the Fisher diagonal of 2 x 3 weights", mistakes)
    return "per sample, and yet one matrix product"


@exercise("07.3", title="Hutchinson", minutes=20, difficulty=3)
def hutchinson(answer: Callable) -> str:
    """``answer(product, size, probes, generator)``: an estimate of the diagonal from products with random signs."""
    matrix = torch.tensor([[2.0, 0.5, 0.0], [0.5, -1.0, 0.25], [0.0, 0.25, 3.0]])
    asked = []

    def product(v: Tensor) -> Tensor:
        asked.append(v.clone())
        return matrix.to(v.dtype) @ v

    found = call(answer, product, 3, 400, torch.Generator().manual_seed(0))
    if not asked:
        raise NotYet("the matrix can only be reached through product(v)")
    if not isinstance(found, Tensor) or found.shape != (3,):
        raise NotYet("the diagonal should be a tensor of shape (3,)")
    if any(not torch.equal(v.abs(), torch.ones_like(v)) for v in asked):
        raise NotYet("use random signs, +1 and -1: with other numbers the squares of v are not 1")
    if len({tuple(v.tolist()) for v in asked}) == 1:
        raise NotYet("always the same v gives sums of rows, not the diagonal: draw new signs for each probe")
    if len(asked) != 400:
        raise NotYet(f"400 probes are 400 products, yours asked for {len(asked)}")
    exact = matrix.diagonal()
    if torch.allclose(found / 400, exact, atol=0.15):
        raise NotYet("that is the sum over the probes: take the mean")
    if torch.allclose(found, exact.abs(), atol=0.15):
        raise NotYet("a curvature may be negative: no absolute value")
    if torch.allclose(found, torch.stack([matrix @ v for v in asked]).mean(0), atol=1e-4):
        raise NotYet("multiply H v by v once more: the mean of H v alone is 0")
    if not torch.allclose(found, exact, atol=0.15):
        raise NotYet(f"with 400 probes it should be near {exact.tolist()}, got {found.tolist()}")
    return "unbiased, and better with every probe"


@exercise("07.4", title="A mix that no outlier rules", minutes=15, difficulty=2)
def mix(answer: Callable) -> str:
    """``answer(first, second)``: the mean of the ranks over all tensors together, divided by their number."""
    first = {"a": torch.tensor([[1.0, 5.0]]), "b": torch.tensor([2.0, 1e9])}  # ranks 1 3, 2 4
    second = {"a": torch.tensor([[0.3, 0.1]]), "b": torch.tensor([0.2, 0.4])}  # ranks 3 1, 2 4
    found = call(answer, first, second)
    if not isinstance(found, dict) or set(found) != {"a", "b"}:
        raise NotYet("return a dict with the names that you were given")
    together = torch.cat([torch.as_tensor(found[name]).flatten().double() for name in ("a", "b")])
    mistakes = {
        "these are ranks within each tensor: rank all of them together, so that layers can be compared": (
            torch.tensor([0.75, 0.75, 0.5, 1.0])
        ),
        "these are ranks from 0: the lowest has rank 1": torch.tensor([0.25, 0.25, 0.25, 0.75]),
        "divide by the number of scores, so that ranks lie in 0..1": torch.tensor([2.0, 2.0, 2.0, 4.0]),
        "that is the sum of both ranks: take the mean": torch.tensor([1.0, 1.0, 1.0, 2.0]),
        "the highest score must have the highest rank": torch.tensor([0.75, 0.75, 0.75, 0.25]),
        "minimum and maximum let the one enormous value rule: use ranks": torch.tensor([1 / 3, 0.0, 1 / 6, 1.0]),
    }
    close(together, torch.tensor([0.5, 0.5, 0.5, 1.0]).double(), "the mix of four scores", mistakes)
    if found["a"].shape != (1, 2):
        raise NotYet(f"each tensor should keep its shape, {(1, 2)}, got {tuple(found['a'].shape)}")
    return "an outlier is only the first in line"


@exercise("07.5", title="The oracle", minutes=15, difficulty=2)
def take_out(answer: Callable) -> str:
    """``answer(model, weight_name, loss)``: the increase of loss(model) without each output channel, one at a time."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, -1.0]]))
        model[1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0]]))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def loss(candidate: nn.Module) -> Tensor:
        return (candidate(torch.tensor([[1.0, 1.0]])) - 10).square().sum()

    found = call(answer, model, "0.weight", loss)
    if any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()):
        raise NotYet("the model is not what it was: put each channel back before you take out the next")
    found = torch.as_tensor(found, dtype=torch.float32) if isinstance(found, list | tuple) else found
    # whole: 1 * 2 + 2 * 2 + 3 * -1 = 3, loss 49; without channel 0: 1, 81; without 1: -1, 121; without 2: 6, 16
    mistakes = {
        "that is the loss itself: subtract that of the whole model": torch.tensor([81.0, 121.0, 16.0]),
        "the sign is the wrong way round: the increase, loss without it less loss with it": (
            torch.tensor([-32.0, -72.0, 33.0])
        ),
        "the channels stay out: each is to be taken out alone": torch.tensor([32.0, 120.0, 51.0]),
        "a channel without which the loss is lower has a negative increase": torch.tensor([32.0, 72.0, 33.0]),
    }
    close(found, torch.tensor([32.0, 72.0, -33.0]), "the increase for three channels", mistakes)
    return "expensive, and right"
