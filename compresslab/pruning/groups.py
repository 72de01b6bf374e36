"""Units that go together, in groups of which a part can go: how they are read off the classes of labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compresslab.pruning.labels import FIXED, Classes
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
    classes: Tensor = field(repr=False)  # of each unit, as in ``Dependencies.labels``


@dataclass(frozen=True, eq=False)
class Dependencies:
    """What can be removed from a model, and why the rest cannot."""

    groups: dict[str, Group]  # by name
    unprunable: dict[str, str]  # weight: why none, or how many, of its outputs can be removed
    labels: dict[str, list[Tensor | None]]  # class of each index of each axis, None for an axis of size 1
    count: int  # classes are below it
    through_norms: bool
    steps: list[Step] = field(repr=False)  # what the operations of the model gave, with their labels

    def kept(self, removed: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
        """What stays of each parameter and buffer when units are removed.

        Args:
            removed: units, by group.

        Returns:
            Indices that stay, ascending, by name and axis; only what loses something. Both names of a tied weight.
        """
        stays = torch.ones(self.count, dtype=torch.bool)
        for name, units in removed.items():
            stays[self.groups[name].classes[units]] = False
        kept: dict[str, dict[int, Tensor]] = {}
        for tensor, axis in (member for name in removed for member in self.groups[name].members):
            labels = self.labels[tensor][axis]
            indices = stays[labels].nonzero().flatten()
            if len(indices) < len(labels):
                kept.setdefault(tensor, {})[axis] = indices
        first = {id(labels): name for name, labels in reversed(self.labels.items())}
        owners = {n: kept.get(first[id(v)], {}) for n, v in self.labels.items()}
        return {name: axes for name, axes in owners.items() if axes}


class Table:
    """Classes and groups, looked up by label; the labels of an axis are consecutive."""

    def __init__(self, labels: dict[str, list[Tensor | None]], classes: Classes, trace: Trace) -> None:
        self.unused = trace.unused
        self.axes: list[Axis] = []
        self.spans: list[slice] = []  # labels of each axis
        seen = set()
        for name, vectors in labels.items():
            for axis, vector in enumerate(vectors if id(vectors) not in seen else ()):
                if vector is not None:
                    start = self.spans[-1].stop if self.spans else FIXED + 1
                    self.spans.append(slice(start, start + len(vector)))
                    self.axes.append((name, axis))
            seen.add(id(vectors))
        starts = torch.tensor([FIXED, *(span.start for span in self.spans)])
        every = torch.arange(len(classes.parent))
        span = torch.zeros_like(every).index_fill_(0, starts, 1).cumsum(0) - 1  # of each label; that of FIXED is 0
        first = starts[span]
        self.axis, self.index = span - 1, every - first  # of each label
        self.root = classes.parent = classes.find(every)  # one step to each root from here on
        self.why, self.texts = classes.frozen(), list(classes.reasons)
        done: dict[int, list[Tensor | None]] = {}
        self.labels = {
            n: done.setdefault(id(v), [None if x is None else self.root[x] for x in v]) for n, v in labels.items()
        }
        self.places: list[int] = []  # axes that some layer puts out
        self.outputs = torch.zeros(len(self.axis), dtype=torch.bool)  # and their labels
        if trace.produced:
            self.places = self.axis[torch.cat(trace.produced)].unique().tolist()
        self.heads = self.root[torch.cat(trace.heads)] if trace.heads else torch.tensor([-1])
        for place in self.places:
            self.outputs[self.spans[place]] = True
        joined = Classes(len(self.axis))
        joined.union(every, self.root)
        joined.union(every[self.outputs], first[self.outputs])
        self.group = joined.find(every)  # of each label

    def dependencies(self, through_norms: bool, steps: list[Step]) -> Dependencies:
        groups = self.groups()
        return Dependencies(groups, self.reasons() | self.unused, self.labels, len(self.root), through_norms, steps)

    def groups(self) -> dict[str, Group]:
        has_output = torch.zeros_like(self.outputs)
        has_output[self.root[self.outputs]] = True
        free = has_output[self.root] & (self.why == 0)
        order = free.nonzero().flatten()
        order = order[self.group[order].argsort(stable=True)]
        groups, self.found = {}, {}
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
            heads = bool(torch.isin(roots, self.heads).all())
            groups[name] = Group(name, len(roots), producers, members, heads, roots)
            self.found[name] = int(self.group[chunk[0]])
        return groups

    def reasons(self) -> dict[str, str]:
        result = {}
        for place in self.places:
            why = self.why[self.spans[place]]
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
