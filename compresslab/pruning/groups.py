"""Units that go together, in groups of which a part can go: how they are read off the classes of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compresslab.pruning.labels import Classes
from compresslab.pruning.trace import Step, Trace

__all__ = ["Axis", "Dependencies", "Group", "Table"]

Axis = tuple[str, int]  # of a parameter or buffer


@dataclass(frozen=True, eq=False)
class Group:
    """Units of which some can be removed, each with all its slices: channels, neurons, heads."""

    name: str  # of the first weight that puts them out
    units: int
    producers: tuple[Axis, ...]  # axes of weights that put the group's channels out
    members: dict[Axis, tuple[Tensor, Tensor]]  # by axis: unit and index of each slice, (k,) both
    heads: bool  # units are heads of attention, those of queries together with the keys and values that they share


@dataclass(frozen=True, eq=False)
class Dependencies:
    """What can be removed from a model, and why the rest cannot."""

    groups: dict[str, Group]  # by name
    unprunable: dict[str, str]  # weight: why none, or how many, of its outputs can be removed
    labels: dict[str, list[Tensor | None]]  # class of each index of each axis, None for an axis of size 1
    through_norms: bool
    steps: list[Step] = field(repr=False)  # what the operations of the model gave, with their labels

    def kept(self, removed: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
        """What stays of each parameter and buffer when units are removed.

        Args:
            removed: units, by group.

        Returns:
            Indices that stay, ascending, by name and axis; only what loses something. Both names of a tied weight.
        """
        stays: dict[str, dict[int, Tensor]] = {}
        for name, units in removed.items():
            gone = torch.zeros(self.groups[name].units, dtype=torch.bool)
            gone[units] = True
            for (tensor, axis), (unit, index) in self.groups[name].members.items():
                labels = self.labels[tensor]
                mask = stays.setdefault(tensor, {}).setdefault(axis, torch.ones(len(labels[axis]), dtype=torch.bool))
                mask[index[gone[unit]]] = False
        stays = {n: {a: m.nonzero().flatten() for a, m in axes.items() if not m.all()} for n, axes in stays.items()}
        first = {id(labels): name for name, labels in reversed(self.labels.items())}
        return {n: stays[first[id(v)]] for n, v in self.labels.items() if stays.get(first[id(v)])}


class Table:
    """Classes and groups, looked up by label."""

    def __init__(self, labels: dict[str, list[Tensor | None]], classes: Classes, trace: Trace) -> None:
        self.axes: list[Axis] = []
        places, indices, seen = [torch.tensor([-1])], [torch.tensor([0])], set()
        for name, vectors in labels.items():
            if id(vectors) in seen:
                continue
            seen.add(id(vectors))
            for axis, vector in enumerate(vectors):
                if vector is not None:
                    places.append(torch.full_like(vector, len(self.axes)))
                    indices.append(torch.arange(len(vector)))
                    self.axes.append((name, axis))
        self.axis, self.index = torch.cat(places), torch.cat(indices)  # of each label
        self.root = classes.find(torch.arange(len(self.axis)))
        self.why, self.texts = classes.frozen(), list(classes.reasons)
        done: dict[int, list[Tensor | None]] = {}
        self.labels = {
            n: done.setdefault(id(v), [None if x is None else self.root[x] for x in v]) for n, v in labels.items()
        }
        self.outputs = torch.zeros(len(self.axis), dtype=torch.bool)  # labels of an axis that some layer puts out
        if trace.produced:
            self.outputs = torch.isin(self.axis, self.axis[torch.cat(trace.produced)].unique())
        self.heads = self.root[torch.cat(trace.heads)] if trace.heads else torch.tensor([-1])
        joined = Classes(len(self.axis))
        joined.parent = self.root.clone()
        for place in self.axis[self.outputs].unique().tolist():
            own = (self.axis == place).nonzero().flatten()
            joined.union(own, own[:1])
        self.group = joined.find(torch.arange(len(self.axis)))  # of each label
        self.names = {int(g): self.axes[int(self.axis[g])][0] for g in self.group[self.outputs].unique()}

    def groups(self) -> dict[str, Group]:
        has_output = torch.zeros_like(self.outputs)
        has_output[self.root[self.outputs]] = True
        free = has_output[self.root] & (self.why == 0)
        order = free.nonzero().flatten()
        order = order[self.group[order].argsort(stable=True)]
        groups = {}
        for chunk in _runs(order, self.group[order]):
            roots, unit = self.root[chunk].unique(return_inverse=True)
            if len(roots) < 2:
                self.why[chunk], self.texts = len(self.texts), [*self.texts, "all of its channels go together"]
                continue
            members = {}
            for part, units in zip(_runs(chunk, self.axis[chunk]), _runs(unit, self.axis[chunk]), strict=True):
                members[self.axes[int(self.axis[part[0]])]] = units, self.index[part]
            producers = tuple(self.axes[place] for place in self.axis[chunk[self.outputs[chunk]]].unique().tolist())
            name = producers[0][0]
            groups[name] = Group(name, len(roots), producers, members, bool(torch.isin(roots, self.heads).all()))
        self.found = {
            name: int(self.group[(self.axis == self.axes.index(g.producers[0])).nonzero()[0]])
            for name, g in groups.items()
        }
        return groups

    def reasons(self) -> dict[str, str]:
        result = {}
        for place in self.axis[self.outputs].unique().tolist():
            why = self.why[self.axis == place]
            stay = int((why > 0).sum())
            if stay:
                text = self.texts[int(why[why > 0].mode().values)]
                result[self.axes[place][0]] = text if stay == len(why) else f"{stay} of {len(why)} channels: {text}"
        return result

    def stay(self, blamed: Mapping[str, str]) -> None:
        for name, reason in blamed.items():
            self.why[(self.group == self.found[name]) & (self.why == 0)] = len(self.texts)
            self.texts.append(reason)


def _runs(values: Tensor, keys: Tensor) -> list[Tensor]:
    """Cut where the key changes."""
    if not len(keys):
        return []
    sizes = keys.unique_consecutive(return_counts=True)[1]
    return list(values.split(sizes.tolist()))
