"""The score of a unit where none is given: squares of its weights, each slice against the mean slice of its kind.

    sum over slices of   sum_{w in slice} w^2 / mean over the group's units of the same

A weight belongs to two groups, by its rows and by its columns, so it is read once for both.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compresslab.pruning.groups import Group

__all__ = ["UnitNorms"]


class UnitNorms:
    """One score for each unit of a group, in float64.

    Args:
        tensors: parameters and buffers by name.

    Example:
        >>> from compresslab.pruning.dependency import find_dependencies
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 1))
        >>> model[0].weight.data, model[1].weight.data = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0, 2.0]])
        >>> group = find_dependencies(model, torch.ones(1, 1)).groups["0.weight"]
        >>> UnitNorms(dict(model.named_parameters()))(group).tolist()  # 1 / 5 + 4 / 4, 9 / 5 + 4 / 4
        [1.2, 2.8]
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._sums: dict[tuple[str, int], Tensor] = {}

    def __call__(self, group: Group) -> Tensor:
        total = torch.zeros(group.units, dtype=torch.float64)
        for (name, axis), (unit, index) in group.members.items():
            if self._tensors[name].dim() < 2:
                continue
            if (name, axis) not in self._sums:
                self._add(name, axis)
            part = torch.zeros_like(total).index_add(0, unit, self._sums[name, axis][index])
            total += part / part.mean().clamp(min=torch.finfo(part.dtype).tiny)
        return total

    def _add(self, name: str, axis: int) -> None:
        tensor = self._tensors[name].detach()
        squares = tensor.float().square() if tensor.dtype.itemsize < 4 else tensor.square()
        for kept in {0, 1, axis}:
            others = [other for other in range(tensor.dim()) if other != kept]
            self._sums[name, kept] = squares.sum(others).double().cpu()
