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
    for axis in range(layer.dim()):
        if layer.shape[axis] > 1:
            first = layer.narrow(axis, 0, 1)
            if layer.stride(axis) == 0 or bool((layer == first).all()):
                layer = first
    return layer


def aligned(layer: Tensor, dim: int) -> Tensor:
    """A layer with axes of size 1 before its own, ``dim`` in all, as broadcasting puts them.

    Example:
        >>> aligned(torch.tensor([7, 8]), 3).shape
        torch.Size([1, 1, 2])
    """
    return layer[(None,) * (dim - layer.dim())]


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
        """The smallest label of each one's class."""
        labels = self.parent[labels]
        while not torch.equal(above := self.parent[labels], labels):
            labels = above
        return labels

    def union(self, first: Tensor, second: Tensor) -> None:
        """Labels at the same place, after broadcasting, become of one class; ``FIXED`` freezes its partner."""
        first, second = torch.broadcast_tensors(self.find(first), self.find(second))
        for one, other in ((first, second), (second, first)):
            if (one == FIXED).any():
                self.freeze(other[one == FIXED], "they are added to padding or other values that are no channels")
        both = (first != FIXED) & (second != FIXED)
        first, second = first[both], second[both]
        if torch.equal(first, second):
            return
        self.clashes.append(torch.cat([first, second]).unique())
        while (differ := first != second).any():
            low, high = torch.minimum(first, second)[differ], torch.maximum(first, second)[differ]
            # Where one label has several partners the smallest wins here, the others in the next round.
            self.parent.scatter_reduce_(0, high, low, "amin")
            first, second = self.find(low), self.find(high)

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
        axes = varies(layer) & {axis % layer.dim() for axis in axes}
        if not axes:
            return layer
        if axes == varies(layer):
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
        merged: list[Tensor] = []
        for layers, _ in operands:
            for layer in layers:
                layer = shrink(self.find(aligned(layer, dim)))
                meets = [other for other in merged if varies(other) & varies(layer)]
                merged = [other for other in merged if not varies(other) & varies(layer)]
                for other in meets:
                    layer = self._meet(layer, other)
                merged.append(layer)
        result = []
        for layer in filter(varies, merged):
            fixed = set()
            for layers, shape in operands:
                known = {axis for own in layers for axis in varies(aligned(own, dim))}
                extents = {axis + dim - len(shape) for axis, size in enumerate(shape) if size > 1}
                fixed |= extents - known
            layer = self.tie(self.find(layer), fixed, reason)
            result.append(layer)
        return result

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
        return shrink(self.find(torch.broadcast_tensors(first, second)[0]))
