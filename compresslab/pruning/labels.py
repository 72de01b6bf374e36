"""Labels: a number for each channel, and which numbers stand for one and the same channel.

Every index of every axis of every parameter and buffer has a label. A layer of labels is an integer tensor beside an
activation that says to which channel each element belongs; where all along an axis belong to the same, its size there
is 1, as in broadcasting. Where two labels meet they become one class (union-find, Tarjan 1975, on whole tensors at
once): the slices of one class can only be removed together. A class that must not be removed is frozen, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["FIXED", "Classes", "Operand", "aligned", "shrink", "varies"]

FIXED = 0  # the label of elements that are no channel of any parameter: they stay

Operand = tuple[list[Tensor], Sequence[int]]  # layers of labels, and the shape of what they belong to


def varies(layer: Tensor) -> set[int]:
    """The axes along which a layer tells channels apart.

    Example:
        >>> varies(torch.tensor([[7, 8, 9]]))
        {1}
    """
    return {axis for axis, size in enumerate(layer.shape) if size > 1}


def shrink(layer: Tensor) -> Tensor:
    """The same layer with size 1 along each axis where nothing changes.

    Example:
        >>> shrink(torch.tensor([[7, 8], [7, 8]]))
        tensor([[7, 8]])
    """
    for axis, size in enumerate(layer.shape):
        if size > 1:
            first = layer.narrow(axis, 0, 1)
            if layer.stride(axis) == 0 or torch.equal(layer, first.expand_as(layer)):
                layer = first
    return layer


def aligned(layer: Tensor, dim: int) -> Tensor:
    """A layer with axes of size 1 before its own, ``dim`` in all, as broadcasting puts them.

    Example:
        >>> aligned(torch.tensor([7, 8]), 3).shape
        torch.Size([1, 1, 2])
    """
    return layer if layer.dim() >= dim else layer[(None,) * (dim - layer.dim())]


class Classes:
    """Labels, the classes they form, and the reasons why some are frozen.

    Args:
        count: labels there are, ``FIXED`` among them; each starts as a class of its own.

    Example:
        >>> classes = Classes(5)
        >>> classes.union(torch.tensor([1, 2]), torch.tensor([3, 4]))
        >>> classes.find(torch.tensor([1, 2, 3, 4])).tolist()
        [1, 2, 1, 2]
    """

    def __init__(self, count: int) -> None:
        self.parent = torch.arange(count)
        self.why = torch.zeros(count, dtype=torch.int64)  # place in ``reasons``; 0 is not frozen
        self.reasons = [""]
        self.clashes: list[Tensor] = []  # labels that met others and were not yet of their class

    def find(self, labels: Tensor) -> Tensor:
        """The smallest label of each one's class; the tensor given, if it holds nothing else."""
        if not self.clashes:
            return labels
        while not torch.equal(above := self.parent.take(labels), labels):
            labels = above
        return labels

    def settle(self, layer: Tensor) -> Tensor:
        """A layer that was shrunk, with the smallest labels, shrunk again."""
        found = self.find(layer)
        return layer if found is layer else shrink(found)

    def union(self, first: Tensor, second: Tensor) -> None:
        """Labels at the same place, after broadcasting, become of one class; ``FIXED`` freezes its partner."""
        first, second = self.find(first), self.find(second)
        if first.shape != second.shape:
            first, second = torch.broadcast_tensors(first, second)
        if torch.equal(first, second):
            return
        low, high = torch.minimum(first, second).flatten(), torch.maximum(first, second).flatten()
        if not low.all():  # FIXED is the smallest
            fixed = low == FIXED
            self.freeze(high[fixed], "they are added to padding or other values that are no channels")
            low, high = low[~fixed], high[~fixed]
        if torch.equal(low, high):
            return
        self.clashes.append(torch.cat([low, high]))
        while not torch.equal(low, high):
            # Where one label has several partners the smallest wins here, the others in the next round.
            self.parent.scatter_reduce_(0, high, low, "amin")
            first, second = self.find(low), self.find(high)
            low, high = torch.minimum(first, second), torch.maximum(first, second)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """The classes of these labels stay; the first reason is kept."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        labels = self.find(labels.flatten())
        self.why[labels[self.why[labels] == 0]] = self.reasons.index(reason)

    def frozen(self) -> Tensor:
        """For each label, the place in ``reasons`` of why its class stays, or 0."""
        roots = self.find(torch.arange(len(self.parent)))
        why = torch.where(self.why > 0, self.why, len(self.reasons))
        first = torch.full_like(why, len(self.reasons)).scatter_reduce(0, roots, why, "amin")[roots]
        first[FIXED] = 0
        return torch.where(first == len(self.reasons), 0, first)

    def tie(self, layer: Tensor, axes: Iterable[int], reason: str) -> Tensor:
        """The layer after all channels along some axes became one; if that is all of them, they are frozen.

        Whole heads go this way: (heads, head_dim) tied along head_dim leaves one channel for each head.
        """
        told = varies(layer)
        axes = told & {axis % layer.dim() for axis in axes}
        if not axes:
            return layer
        if axes == told:
            self.freeze(layer, reason)
            return layer
        for axis in axes:
            self.union(layer, layer.narrow(axis, 0, 1))
        return shrink(self.find(layer))

    def join(self, operands: Sequence[Operand], reason: str) -> list[Tensor]:
        """The layers of an element-wise operation: where two operands tell channels apart, they are the same channels.

        An operand that has several elements along an axis and no labels there (a mask, the input) cannot be made
        smaller: along that axis all channels of the others become one.
        """
        dim = max((len(shape) for _, shape in operands), default=0)
        merged: list[tuple[Tensor, set[int]]] = []
        fixed: set[int] = set()  # axes along which some operand has several elements, and no labels
        for layers, shape in operands:
            known = set()
            for layer in layers:
                layer = aligned(layer, dim)
                known |= varies(layer)
                layer = self.settle(layer)
                axes = varies(layer)
                meets = [other for other, along in merged if along & axes]
                merged = [(other, along) for other, along in merged if not along & axes]
                for other in meets:
                    layer = self._meet(layer, other)
                merged.append((layer, varies(layer)))
            fixed |= {axis + dim - len(shape) for axis, size in enumerate(shape) if size > 1} - known
        return [self.tie(self.settle(layer), fixed, reason) for layer, axes in merged if axes]

    def _meet(self, first: Tensor, second: Tensor) -> Tensor:
        """One layer for two that tell channels apart along a common axis."""
        if len(varies(first)) > len(varies(second)):
            first, second = second, first
        if varies(first) < varies(second) and min(varies(second)) not in varies(first):
            # One value for each place in a head, the same for all heads (a rotary position, a norm of queries): the
            # place stays, and heads can go.
            reason = "the same values serve several heads"
            self.freeze(first, reason)
            return self.tie(second, varies(first), reason)
        self.union(first, second)
        return self.settle(first if first.shape == second.shape else torch.broadcast_tensors(first, second)[0])
