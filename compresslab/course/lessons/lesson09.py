"""Checks of lesson 09, "Low rank and shared weights"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


def tensor_of(value: object, shape: tuple[int, ...], *, what: str) -> Tensor:
    """``value``, if it is a tensor of this shape without NaN."""
    if not isinstance(value, Tensor):
        raise NotYet(f"{what} should be a tensor, this is a {type(value).__name__}")
    if value.shape != shape:
        raise NotYet(f"{what} should have the shape {shape}, got {tuple(value.shape)}")
    if not value.isfinite().all():
        raise NotYet(f"{what} holds NaN or infinity")
    return value.detach().double()


@exercise("09.1", title="Where a rank breaks even", minutes=10, difficulty=1)
def break_even(answer: Callable) -> str:
    """``answer(out_features, in_features)``: the largest rank whose two factors have fewer numbers than the matrix."""
    mistakes = {
        77: "round down: rank 77 has 77 * 480 = 36,960 numbers, the matrix 36,864",
        96: "that is the largest rank there is; its factors have 96 * 480 numbers, the matrix 384 * 96",
        48: "half of the smaller side is right for a square; here r (O + I) < O I",
        76.8: "a rank is a whole number",
    }
    expect_number(call(answer, 384, 96), 76, what="the rank for 384 x 96", wrong=mistakes)
    equal = {2: "6 x 3 at rank 2 has 18 numbers in place of 18: fewer, not as many"}
    expect_number(call(answer, 6, 3), 1, what="the rank for 6 x 3", wrong=equal)
    expect_number(call(answer, 1, 5) + 1, 1, what="1 more than the rank for 1 x 5, which no rank makes smaller,")
    return "the largest rank that saves"


@exercise("09.2", title="A rank by energy", minutes=10, difficulty=1)
def energy(answer: Callable) -> str:
    """``answer(singular_values, energy)``: the smallest rank that keeps this part of the sum of squares."""
    values = torch.tensor([3.0, 2.0, 1.0, 1.0])  # squares 9, 4, 1, 1 of 15
    mistakes = {
        3: "energy is the sum of the squares: 9 + 4 of 15 is 0.87",
        1: "that rank keeps 9 of 15: count one more than those that are still below",
    }
    expect_number(call(answer, values, 0.8), 2, what="the rank that keeps 0.8", wrong=mistakes)
    expect_number(call(answer, values, 0.5), 1, what="the rank that keeps 0.5 (the first alone keeps 0.6)")
    expect_number(call(answer, values, 0.99), 4, what="the rank that keeps 0.99")
    scaled = {1: "the part of the sum, not the sum itself: divide by all of it"}
    expect_number(call(answer, 10 * values, 0.8), 2, what="the rank for values ten times as large", wrong=scaled)
    return "as much as is asked for, and no more"


@exercise("09.3", title="Keep the outputs", minutes=20, difficulty=3)
def keep_outputs(answer: Callable) -> str:
    """``answer(weight, x, rank)``: the (O, I) matrix of that rank with the least error of outputs for inputs x (N, I)."""
    generator = torch.Generator().manual_seed(0)
    for samples, rank in ((50, 2), (3, 2)):
        weight = torch.randn(5, 8, generator=generator)
        x = torch.randn(samples, 8, generator=generator) * torch.logspace(0, -2, 8)
        what = f"your matrix for {samples} inputs"
        found = tensor_of(call(answer, weight, x, rank), (5, 8), what=what)
        w, inputs = weight.double(), x.double()
        if int(torch.linalg.matrix_rank(found, rtol=1e-4)) > rank:
            raise NotYet(f"its rank should be {rank}, it is {int(torch.linalg.matrix_rank(found, rtol=1e-4))}")
        u, s, vh = torch.linalg.svd(w, full_matrices=False)
        if torch.allclose(found, u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-4):
            raise NotYet("this is the nearest matrix; the inputs were not looked at")
        best = torch.linalg.svdvals(w @ inputs.T)[rank:].norm()
        error = ((w - found) @ inputs.T).norm()
        if error > best * 1.01 + 1e-3 * (w @ inputs.T).norm():
            raise NotYet(f"with {samples} inputs the outputs are off by {error:.3f}, {best:.3f} is possible: cut W S")
    return "the best outputs that this rank can give, also with fewer inputs than features"


@exercise("09.4", title="One step of k-means", minutes=15, difficulty=2)
def kmeans_step(answer: Callable) -> str:
    """``answer(weights, centroids)``: the centroids after one step; one that nobody is nearest to stays where it is."""
    weights, centroids = torch.tensor([[0.0, 1.0], [4.0, 9.0]]), torch.tensor([0.0, 5.0])
    value = call(answer, weights, centroids)
    if isinstance(value, Tensor) and value.shape == weights.shape:
        raise NotYet("these are the numbers of the weights; asked are the new centroids")
    found = tensor_of(value, (2,), what="the centroids")
    if torch.allclose(found, torch.tensor([1.0, 13.0]).double()):
        raise NotYet("a centroid goes to the mean of its weights, this is their sum")
    if torch.allclose(found, centroids.double()):
        raise NotYet("the centroids did not move")
    if not torch.allclose(found, torch.tensor([0.5, 6.5]).double()):
        raise NotYet(f"from 0 and 5, the weights 0, 1 | 4, 9 give [0.5, 6.5], got {found.tolist()}")
    value = call(answer, weights, torch.tensor([0.5, 100.0]))
    if isinstance(value, Tensor) and value.isnan().any():
        raise NotYet("nobody is nearest to 100, and the mean of nobody is NaN: such a centroid stays where it is")
    found = tensor_of(value, (2,), what="the centroids, also when nobody is nearest to one,")
    if not torch.allclose(found, torch.tensor([3.5, 100.0]).double()):
        raise NotYet(f"nobody is nearest to 100, which stays: [3.5, 100.0], got {found.tolist()}")
    return "one step, and nobody gets lost"


@exercise("09.5", title="The gradient of a table", minutes=15, difficulty=2)
def table_gradient(answer: Callable) -> str:
    """``answer(gradient, numbers, clusters)``: the gradient of each value of a table, (clusters,)."""
    gradient = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    numbers = torch.tensor([[0, 1, 0], [3, 1, 0]])
    found = tensor_of(call(answer, gradient, numbers, 4), (4,), what="the gradient").tolist()
    if [round(value, 3) for value in found] == [12.333, 9.0, 0.0, 8.0]:
        raise NotYet("a value stands in several places, and their gradients add up: no mean")
    if found in ([32.0, 16.0, 0.0, 8.0], [1.0, 2.0, 0.0, 8.0]):
        raise NotYet("only one weight of each value was counted: grad[numbers] += ... does not add repeated numbers up")
    if found != [37.0, 18.0, 0.0, 8.0]:
        raise NotYet(f"it should be [1 + 4 + 32, 2 + 16, 0, 8], got {found}")
    return "the sum over all places where a value stands"
