"""Proof that a pruned model is what pruning says: the original in which the same channels do nothing.

A channel that is removed takes all its slices with it: the weights that made it, its bias and batch norm, the weights
that read it. Set to zero in the original, they make a model of the old shape that must compute the same, to rounding.
A model that merely runs proves nothing: with the residual connection of one block forgotten, all shapes still fit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compresslab.pruning.channels import Pruned
from compresslab.pruning.running import call, named_tensors, tensors_in

__all__ = ["FunctionChanged", "Sameness", "assert_same_function", "masked_like"]


class FunctionChanged(AssertionError):
    """The pruned model does not compute what the masked original does, or nothing can be told."""


@dataclass(frozen=True)
class Sameness:
    """How near a pruned model's output is to that of the masked original."""

    error: float  # |pruned - masked| / |masked|
    moved: float  # |masked - original| / |original|: how much there was to get wrong


@torch.no_grad()
def masked_like(model: nn.Module, pruned: Pruned) -> nn.Module:
    """A copy of the original in which every slice that pruning removed is zero.

    Args:
        model: that ``pruned`` was made from.
        pruned: names what was kept.

    Example:
        >>> from compresslab.pruning.channels import prune_channels
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> masked = masked_like(model, prune_channels(model, torch.ones(1, 2)))
        >>> int((masked[0].weight.abs().sum(1) == 0).sum()), int((masked[2].weight.abs().sum(0) == 0).sum())
        (2, 2)
    """
    masked = copy.deepcopy(model)
    tensors = named_tensors(masked)
    for name, axes in pruned.kept.items():
        for axis, indices in axes.items():
            gone = torch.ones(tensors[name].shape[axis], dtype=torch.bool)
            gone[indices] = False
            tensors[name].index_fill_(axis, gone.nonzero().flatten().to(tensors[name].device), 0)
    return masked


@torch.no_grad()
def assert_same_function(
    model: nn.Module,
    pruned: Pruned,
    example_inputs: Any,
    *,
    tolerance: float = 1e-12,
    dtype: torch.dtype = torch.float64,
) -> Sameness:
    """The relative error between the pruned model and the masked original, in eval mode.

    Args:
        model: that ``pruned`` was made from; is left as it is.
        pruned: the result of ``prune_channels`` and its like.
        example_inputs: as in ``prune_channels``; random values show more than zeros.
        tolerance: the largest relative error; a model that computes in float32 inside needs about 1e-5.
        dtype: that both compute in; float32, with a tolerance of about 1e-5, for kernels that take nothing else.

    Raises:
        FunctionChanged: the error is larger, or removing the channels changes nothing in the output (a head of zeros,
            say), so that the test could not fail.
        ValueError: statistics of norms were let to change, so the functions differ.

    Example:
        >>> from compresslab.pruning.channels import prune_channels
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
        >>> assert_same_function(model, prune_channels(model, torch.ones(1, 2)), torch.ones(1, 2)).error < 1e-12
        True
    """
    if not pruned.exact:
        raise ValueError(
            "exact=False: statistics of norms were let to change (through_norms=True), or weights were fitted, so no masked"
            " model computes the same; prove it before the repair"
        )
    inputs = tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, example_inputs)
    original, masked, small = (
        _output(copied.to(dtype).eval(), inputs)
        for copied in (copy.deepcopy(model), masked_like(model, pruned), copy.deepcopy(pruned.model))
    )
    if [part.shape for part in masked] != [part.shape for part in small]:
        shapes = [[tuple(part.shape) for part in parts] for parts in (small, masked)]
        raise FunctionChanged(f"the pruned model's outputs have shapes {shapes[0]}, the original's {shapes[1]}")
    result = Sameness(_distance(small, masked), _distance(masked, original))
    if not result.error <= tolerance:
        raise FunctionChanged(
            f"the pruned model is {result.error:.1e} from the original with the same channels zeroed, relative to its"
            f" output; more than {tolerance:.0e} is not rounding"
        )
    if pruned.kept and not result.moved > 100 * tolerance:
        raise FunctionChanged(
            f"zeroing the channels moves the output by {result.moved:.1e} only, so nothing is proved; use weights and"
            " inputs that matter (no layers of zeros, batch norm with statistics, random inputs)"
        )
    return result


def _output(model: nn.Module, inputs: Any) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]):
        return [part.double() for part in tensors_in(call(model, inputs)) if part.is_floating_point()]


def _distance(ours: list[Tensor], theirs: list[Tensor]) -> float:
    difference = sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True))
    return (difference / max(sum(float(b.square().sum()) for b in theirs), torch.finfo(torch.float64).tiny)) ** 0.5
