"""Trying a removal out: the smaller model runs with the labels that are left, and must do with them what it did before.

A model that runs is no proof: with half the heads, code that counts heads by a number written down takes half the tokens
for twice the heads, and all shapes fit again. So each operation's result is compared with the one in the original: its
sizes, and to which channel each element belongs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compresslab.pruning.groups import Dependencies
from compresslab.pruning.labels import FIXED, Classes, shrink, varies
from compresslab.pruning.running import named_tensors
from compresslab.pruning.surgery import cut
from compresslab.pruning.trace import Trace

__all__ = ["find_conflicts"]

MIXED = "the model's code mixes them up when some are removed"


def find_conflicts(
    model: nn.Module, found: Dependencies, removed: Mapping[str, Tensor], example_inputs: Any
) -> dict[str, str]:
    """The groups that cannot be removed as found, with the reason, learned by running the smaller model.

    Its labels are those that are left. If the code does to them what it did before, the classes stay apart: then every
    value in the smaller model is one of the larger, computed from the same values.

    Args:
        model, example_inputs: as in ``find_dependencies``.
        found: the dependencies.
        removed: units, by group.
    """
    kept = found.kept(removed)
    if not kept:
        return {}
    labels = {
        name: [None if v is None else v[kept[name][axis]] if axis in kept.get(name, {}) else v
               for axis, v in enumerate(vectors)]
        for name, vectors in found.labels.items()
    }  # fmt: skip
    count = 1 + max(int(v.max()) for vectors in found.labels.values() for v in vectors if v is not None)
    owner, (gone, alone) = [""] * count, torch.zeros(2, count, dtype=torch.bool)
    for name in removed:
        group = found.groups[name]
        for (tensor, axis), (unit, index) in group.members.items():
            labels_here = found.labels[tensor][axis][index]
            gone[labels_here[torch.isin(unit, removed[name])]] = True
            alone[labels_here] = len(removed[name]) == group.units - 1
            for label in labels_here.unique().tolist() if len(removed[name]) else ():
                owner[label] = name
    classes, small = Classes(count), cut(model, kept)
    trace = Trace([(t, labels[n]) for n, t in named_tensors(small).items()], classes, through_norms=found.through_norms)
    blamed: dict[str, str] = {}

    def blame(touched: Iterable[Tensor], reason: str) -> None:
        for label in {label for layer in touched for label in layer.unique().tolist()}:
            if owner[label]:
                blamed.setdefault(owner[label], reason)

    try:
        with torch.random.fork_rng(devices=[]):
            trace.run(small.eval(), example_inputs)
    except Exception as error:
        # Blame what the operation that failed was given, or, where nothing was told apart any more, the groups that are
        # down to one unit, or else the last operation that saw channels of a group that lost some.
        reason = f"the model's code does not follow: {type(error).__name__}: {error}".splitlines()[0]
        lonely = {name: reason for name, gone in removed.items() if len(gone) == found.groups[name].units - 1}
        for touched in (trace.touched, lonely, *reversed(trace.seen)):
            if touched is lonely:
                blamed |= lonely
            else:
                blame(touched, reason)
            if blamed:
                return blamed
        raise
    for touched in classes.clashes:
        blame([touched], MIXED)
    for before, after in zip(found.steps, trace.steps, strict=False):
        if before.name != after.name:
            break  # another way through the code: from here on nothing can be compared
        if not (before.ragged or after.ragged):
            for shape, layers, size, own in zip(before.shapes, before.layers, after.shapes, after.layers, strict=True):
                if not _follows(shape, layers, size, own, gone, alone):
                    blame(layers, MIXED)
    return blamed


def _follows(
    shape: torch.Size, layers: list[Tensor], size: torch.Size, own: list[Tensor], gone: Tensor, alone: Tensor
) -> bool:
    """Whether a value in the smaller model is the one in the larger without the channels that are gone."""
    expected = list(shape)
    for layer in layers:
        stays = ~gone[layer]
        for axis in varies(layer):
            keep = stays.any([a for a in range(layer.dim()) if a != axis]) if layer.dim() > 1 else stays
            expected[axis] = int(keep.sum())
            layer = layer.index_select(axis, keep.nonzero().flatten())
        layer = shrink(layer)
        # the only channel that is left of a layer has nothing to be told apart from: it carries no label
        same = (o.shape == layer.shape and ((o == layer) | (o == FIXED) & alone[layer]).all() for o in own)
        if varies(layer) and not any(same):
            return False
    return expected == list(size)
