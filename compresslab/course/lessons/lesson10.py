"""Checks of lesson 10, "Mixture of experts"."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compresslab.course.exercises import NotYet, call, exercise, expect_number

__all__: list[str] = []


def tensor_of(value: object, shape: tuple[int, ...], what: str) -> Tensor:
    """``value`` as float64, if it is a tensor of this shape."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise NotYet(f"{what} should be a tensor of shape {shape}, got {got}")
    return value.detach().double()


def close(value: Tensor, wanted: list) -> bool:
    return torch.allclose(value, torch.tensor(wanted, dtype=torch.float64), atol=1e-5)


@exercise("10.1", title="Relative usage", minutes=10, difficulty=1)
def relative(answer: Callable) -> str:
    """``answer(chosen, experts)``: (E,) how often each expert is chosen, over an even load."""
    chosen = torch.tensor([[0, 1], [0, 2], [0, 1], [2, 0], [1, 0], [0, 2]])
    found = call(answer, chosen, 4)
    if isinstance(found, Tensor) and tuple(found.shape) == (3,):
        raise NotYet("expert 3 is never chosen and should be there all the same, with 0: give the number of experts")
    found = tensor_of(found, (4,), "the usage")
    if close(found, [6.0, 3.0, 3.0, 0.0]):
        raise NotYet("these are counts; divide by the count of an even load, which is 3 here")
    if close(found, [0.5, 0.25, 0.25, 0.0]):
        raise NotYet("these are shares; whether 0.25 is much depends on E, so multiply by it")
    if close(found, [4.0, 2.0, 2.0, 0.0]):
        raise NotYet("an even load is T k / E: each token is assigned k times, not once")
    if not close(found, [2.0, 1.0, 1.0, 0.0]):
        raise NotYet(f"for {chosen.tolist()} and 4 experts it should be [2, 1, 1, 0], got {found.tolist()}")
    large = tensor_of(call(answer, torch.arange(64).view(32, 2), 64), (64,), "the usage of 64 experts")
    if not close(large, [1.0] * 64):
        raise NotYet("with 64 experts and an even load every one of them should have 1")
    return "1 is average, whether there are 4 experts or 64"


@exercise("10.2", title="The load-balance loss", minutes=10, difficulty=1)
def balance(answer: Callable) -> str:
    """``answer(probs, chosen)``: E times the sum of f_e P_e, with a gradient for probs."""
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.3, 0.1]], requires_grad=True)
    chosen = torch.tensor([[0, 1], [0, 2]])
    found = call(answer, probs, chosen)
    mistakes = {
        1.35 / 4: "the factor E is missing: an even load should give 1",
        2.70: "f is the share of the T k assignments, so that its sum is 1",
        4 * (0.45**2 + 0.2**2 + 0.25**2 + 0.1**2): "f is a count of what was chosen, not the mean probability again",
        4 * (0.25 + 2 * 0.0625): "P is the mean of the probabilities, not the count again",
    }
    number = found.detach() if isinstance(found, Tensor) else found
    expect_number(number, 1.35, what="the loss", tolerance=1e-5, wrong=mistakes)
    if number is found or not found.requires_grad:
        raise NotYet("the loss should be a tensor through which a gradient reaches probs: no .item(), no .detach()")
    even = torch.full((4, 8), 1 / 8, requires_grad=True)
    found = call(answer, even, torch.tensor([[0], [0], [0], [1]])).detach()
    expect_number(found, 1.0, what="with even probabilities the loss", tolerance=1e-5)
    return "1 is even; the gradient takes probability from those that are chosen often"


@exercise("10.3", title="Contribution", minutes=15, difficulty=2)
def contribution(answer: Callable) -> str:
    """``answer(chosen, gates, outputs, experts)``: mean of gate times norm over the tokens of each expert."""
    chosen = torch.tensor([[0, 1], [2, 0], [0, 2]])
    gates = torch.tensor([[0.75, 0.25], [0.6, 0.4], [0.5, 0.5]])
    norms = torch.tensor([[2.0, 4.0], [5.0, 10.0], [1.0, 2.0]])
    outputs = norms[..., None] * torch.tensor([0.6, -0.8])  # of length 1
    found = tensor_of(call(answer, chosen, gates, outputs, 4), (4,), "the contribution")
    if found.isnan().any():
        raise NotYet("expert 3 has no token: its mean is 0 / 0; make it 0")
    wanted = [(1.5 + 4.0 + 0.5) / 3, 1.0, (3.0 + 1.0) / 2, 0.0]
    if close(found, [6.0, 1.0, 4.0, 0.0]):
        raise NotYet("that is the sum over the expert's tokens; the mean is asked for")
    if close(found, [2.0, 1 / 3, 4 / 3, 0.0]):
        raise NotYet("the mean is over the tokens of each expert, not over all tokens")
    if close(found, [13 / 3, 4.0, 3.5, 0.0]):
        raise NotYet("the gate is missing: an output counts as much as its gate lets through")
    if close(found, [1.65 / 3, 0.25, 0.55, 0.0]):
        raise NotYet("that is the mean gate; multiply with the norm of the output first")
    if not close(found, wanted):
        raise NotYet(f"it should be {wanted}, got {found.tolist()}; the norm is that of each output vector")
    return "what an expert adds where it is asked: REAP's score"


@exercise("10.4", title="Out, with its row", minutes=10, difficulty=2)
def take_out(answer: Callable) -> str:
    """``answer(router, experts, gone)``: the smaller router weight and list; what was given stays as it was."""
    router, experts = torch.arange(10.0).view(5, 2), ["a", "b", "c", "d", "e"]
    result = call(answer, router, experts, {1, 2})
    if experts != ["a", "b", "c", "d", "e"] or not torch.equal(router, torch.arange(10.0).view(5, 2)):
        raise NotYet("what was given should stay as it was: make a new list, delete nothing from the old one")
    if not isinstance(result, tuple) or len(result) != 2:
        raise NotYet("return two things: the new router weight and the new list of experts")
    weight, left = result
    if list(left) == ["a", "c", "d"] or list(left) == ["a", "c", "e"]:
        raise NotYet("after the first deletion the others have moved up: delete from the end, or choose what stays")
    if list(left) == ["b", "c"]:
        raise NotYet("these are the experts that should go; keep the others")
    if list(left) != ["a", "d", "e"]:
        raise NotYet(f"of a, b, c, d, e without 1 and 2 should stay a, d, e, got {list(left)}")
    if isinstance(weight, Tensor) and tuple(weight.shape) == (5, 2):
        raise NotYet("the router still has 5 rows: it points at experts that are gone")
    weight = tensor_of(weight, (3, 2), "the router")
    if not close(weight, [[0.0, 1.0], [6.0, 7.0], [8.0, 9.0]]):
        raise NotYet(f"row and expert should belong together: rows 0, 3 and 4 of the old router, got {weight.tolist()}")
    return "weights and row gone together, nothing points at what is not there"


@exercise("10.5", title="Skip the weak", minutes=15, difficulty=2)
def skip(answer: Callable) -> str:
    """``answer(gates, threshold)``: gates below threshold times the token's largest are 0, the others sum to 1."""
    gates = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]])
    kept = gates.clone()
    found = tensor_of(call(answer, gates, 0.5), (3, 3), "the gates")
    if not torch.equal(gates, kept):
        raise NotYet("the gates that were given should stay as they were: work on a copy")
    wanted = [[0.625, 0.375, 0.0], [0.0, 1.0, 0.0], [0.4, 0.3, 0.3]]
    if close(found, [[0.5, 0.3, 0.0], [0.0, 0.8, 0.0], [0.4, 0.3, 0.3]]):
        raise NotYet("the gates that stay should sum to 1 again: divide by their sum")
    if found.isnan().any():
        raise NotYet("0.5 times the token's largest is the limit; yours skips all experts of a token")
    if close(found, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.4, 0.3, 0.3]]) or (found[2] == 0).any():
        raise NotYet("the limit is relative to the token's own largest gate, not the same for all tokens")
    if close(found[:1], [[0.625, 0.375, 0.0]]) and not close(found[1:2], wanted[1:2]):
        raise NotYet("the largest gate need not stand first: take the maximum of each row")
    if not close(found, wanted):
        raise NotYet(f"it should be {wanted}, got {found.tolist()}")
    if not close(tensor_of(call(answer, gates, 0.0), (3, 3), "the gates"), gates.tolist()):
        raise NotYet("at threshold 0 nothing should be skipped")
    return "each token keeps what matters to it"
