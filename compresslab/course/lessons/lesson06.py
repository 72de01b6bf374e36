"""Checks of lesson 06, "Structured pruning"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


@exercise("06.1", title="What is left?", minutes=10, difficulty=1)
def weights_left(answer: Callable) -> str:
    """``answer(widths, ratio)``: weights of a chain of Linear layers without a share of each hidden layer's neurons."""
    # 10, 20, 40, 16: 200 + 800 + 640 = 1640; without half of the hidden ones 10, 10, 20, 16: 100 + 200 + 320 = 620
    mistakes = {
        820.0: "half of the neurons is not half of the weights: a matrix between two hidden layers keeps a quarter",
        1640.0: "nothing was removed: multiply the hidden widths by 1 - ratio",
        410.0: "the inputs and the outputs of the chain stay",
        1040.0: "every matrix that touches a hidden layer gets smaller, the first and the last too",
    }
    expect_number(call(answer, [10, 20, 40, 16], 0.5), 620, what="the weights left", wrong=mistakes)
    expect_number(call(answer, [8, 3], 0.5), 24, what="the weights of a single layer, which has no hidden neurons")
    expect_number(call(answer, [4, 8, 8, 4], 0.75), 8 + 4 + 8, what="the weights left of 4, 8, 8, 4 at 75 %")
    return "the inner matrices fall with the square, the outer ones do not"


@exercise("06.2", title="Take neurons out", minutes=15, difficulty=2)
def drop_neurons(answer: Callable) -> str:
    """``answer(first, second, keep)``: two smaller Linear layers with the neurons ``keep`` between them."""
    generator = torch.Generator().manual_seed(0)
    first, second = nn.Linear(3, 5), nn.Linear(5, 2)
    for value in (*first.parameters(), *second.parameters()):
        value.data = torch.randn(value.shape, generator=generator)
    before = [value.clone() for value in (*first.parameters(), *second.parameters())]
    found = call(answer, first, second, [0, 3])
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(isinstance(part, nn.Linear) for part in found):
        raise NotYet("return the two new layers, both nn.Linear")
    if any(not torch.equal(a, b) for a, b in zip(before, (*first.parameters(), *second.parameters()), strict=True)):
        raise NotYet("the old layers changed: make new ones")
    one, two = found
    if one.weight.shape == first.weight.shape and two.weight.shape == second.weight.shape:
        raise NotYet("the layers are as large as before: zeros are no removal")
    if tuple(one.weight.shape) != (2, 3) or tuple(two.weight.shape) != (2, 2):
        shapes = [tuple(part.weight.shape) for part in found]
        raise NotYet(f"the weights should be (2, 3) and (2, 2), got {shapes}: rows of the first, columns of the second")
    if any(getattr(part, "bias", None) is None for part in found):
        raise NotYet("the biases belong to the layers too")
    x = torch.randn(16, 3, generator=generator)
    with torch.no_grad():
        hidden = first(x).relu()
        hidden[:, [1, 2, 4]] = 0
        wanted = second(hidden)
        if torch.allclose(two(one(x).relu()), wanted - second.bias, atol=1e-5):
            raise NotYet("the second layer's bias is missing: it does not belong to the neurons")
        if not torch.allclose(one(x), first(x)[:, [0, 3]], atol=1e-5):
            raise NotYet("the first layer does not give neurons 0 and 3: rows of the weight and of the bias")
        if not torch.allclose(two(one(x).relu()), wanted, atol=1e-5):
            raise NotYet("both run, but compute something else than the old layers with the other neurons at zero")
    return "smaller, and the same function as with the neurons at zero"


@exercise("06.3", title="Who goes together", minutes=15, difficulty=2)
def classes(answer: Callable) -> str:
    """``answer(count, meetings)``: for each channel the smallest number of its class."""
    found = call(answer, 6, [(0, 3), (4, 5)])
    if not isinstance(found, list) or len(found) != 6:
        raise NotYet("return a list with one number for each of the 6 channels")
    if found == [0, 1, 2, 3, 4, 5]:
        raise NotYet("no class was joined: channels that meet get one number")
    if found == [3, 1, 2, 3, 5, 5]:
        raise NotYet("name a class by its smallest number, not its largest")
    if found != [0, 1, 2, 0, 4, 4]:
        raise NotYet(f"with 0 and 3, 4 and 5 it should be [0, 1, 2, 0, 4, 4], got {found}")
    found = call(answer, 5, [(3, 4), (1, 2), (2, 3)])
    if found in ([0, 1, 1, 2, 3], [0, 1, 1, 1, 3], [0, 1, 1, 2, 2], [0, 1, 1, 1, 4]):
        raise NotYet("classes join as a whole: 3 and 4 were one already, so 4 goes with 1, 2 and 3")
    if found != [0, 1, 1, 1, 1]:
        raise NotYet(f"with (3, 4), (1, 2), (2, 3) it should be [0, 1, 1, 1, 1], got {found}")
    if call(answer, 3, [(2, 1), (1, 0)]) != [0, 0, 0]:
        raise NotYet("the order within a pair does not matter: (2, 1) and (1, 0) make one class, 0")
    return "union-find, small enough to read"


@exercise("06.4", title="The rows of a head", minutes=10, difficulty=2)
def head_rows(answer: Callable) -> str:
    """``answer(head, heads, width)``: the rows of a fused query, key, value weight that belong to a head."""
    found = call(answer, 1, 2, 4)
    if isinstance(found, Tensor):
        found = found.tolist()
    if not isinstance(found, list | tuple | range):
        raise NotYet("return a list of row numbers")
    mistakes = {
        (2, 3): "a head has rows in the queries, in the keys and in the values: three parts",
        (6, 7, 8, 9, 10, 11): "the parts lie below each other: first all queries, then all keys, then all values",
        (0, 1, 4, 5, 8, 9): "those are the rows of head 0: heads are counted from 0",
        (2, 6, 10): "a head has width / heads rows in each part",
    }
    if tuple(found) in mistakes:
        raise NotYet(mistakes[tuple(found)])
    if sorted(found) == [2, 3, 6, 7, 10, 11] != list(found):
        raise NotYet("the right rows, but not ascending")
    if list(found) != [2, 3, 6, 7, 10, 11]:
        raise NotYet(f"head 1 of 2, width 4, has the rows [2, 3, 6, 7, 10, 11], got {list(found)}")
    if list(call(answer, 0, 3, 9)) != [0, 1, 2, 9, 10, 11, 18, 19, 20]:
        raise NotYet("head 0 of 3, width 9, has three rows in each part, from 0, 9 and 18 on")
    return "and in the output matrix the same numbers, as columns, once"


@exercise("06.5", title="Repair by least squares", minutes=20, difficulty=3)
def refit(answer: Callable) -> str:
    """``answer(inputs, outputs)``: the weight (O, I) for which inputs @ weight.T is nearest to outputs in squares."""
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(64, 3, generator=generator).double()
        @ torch.tensor([[1, 0.5, 0], [0, 1, 0.5], [0, 0, 1.0]]).double()
    )
    outputs = inputs @ torch.randn(3, 2, generator=generator).double() + 0.3 * torch.randn(64, 2, generator=generator)
    best = torch.linalg.lstsq(inputs, outputs).solution.T
    found = call(answer, inputs, outputs)
    if not isinstance(found, Tensor):
        raise NotYet("return the weight, a tensor of shape (2, 3)")
    if found.shape == best.T.shape:
        raise NotYet("that is (inputs, outputs); a Linear's weight is (outputs, inputs): transpose it")
    if found.shape != best.shape:
        raise NotYet(f"the weight should have shape {tuple(best.shape)}, got {tuple(found.shape)}")
    found = found.to(best.dtype)
    if torch.allclose(found, outputs.T @ inputs, rtol=1e-3) or torch.allclose(
        found, outputs.T @ inputs / 64, rtol=1e-3
    ):
        raise NotYet("Y^T X alone is right only where inputs are uncorrelated: solve with X^T X")
    error, least = ((inputs @ w.T - outputs).square().sum().item() for w in (found, best))
    if error > least * 1.001:
        raise NotYet(f"the squared error is {error:.3f}, and {least:.3f} is possible: is it the least-squares weight?")
    return "no labels, no gradient, and the best weight there is"
