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
from compresslab.pruning.surgery import Kept, cut
from compresslab.pruning.trace import NeedsValues, Trace

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
    owner, (gone, alone) = torch.zeros(found.count, dtype=torch.int64), torch.zeros(2, found.count, dtype=torch.bool)
    names = [name for name, units in removed.items() if len(units)]
    for place, name in enumerate(names):
        own = found.groups[name].classes
        gone[own[removed[name]]] = True
        alone[own] = len(removed[name]) == len(own) - 1
        owner[own] = place + 1
    blamed: dict[str, str] = {}

    def blame(touched: Iterable[Tensor], reason: str) -> None:
        for place in {place for layer in touched for place in owner[layer].unique().tolist()} - {0}:
            blamed.setdefault(names[place - 1], reason)

    trace, error = _run(model, found, kept, labels, Classes(found.count), example_inputs)
    if error is not None:
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
        raise error
    for touched in trace.classes.clashes:
        blame([touched], MIXED)
    for before, after in zip(found.steps, trace.steps, strict=False):
        if before.name != after.name:
            break  # another way through the code: from here on nothing can be compared
        if not (before.ragged or after.ragged):
            for shape, layers, size, own in zip(before.shapes, before.layers, after.shapes, after.layers, strict=True):
                if not _follows(shape, layers, size, own, gone, alone):
                    blame(layers, MIXED)
    return blamed


def _run(
    model: nn.Module, found: Dependencies, kept: Kept, labels: Mapping[str, Any], classes: Classes, example_inputs: Any
) -> tuple[Trace, Exception | None]:
    """The smaller model's trace, and the error that ended it: without values first, and with them if they are needed."""
    for hollow in (True, False):
        small = cut(model, kept, values=not hollow).eval()
        pairs = [(tensor, labels[name]) for name, tensor in named_tensors(small).items()]
        trace = Trace(pairs, classes, through_norms=found.through_norms, hollow=hollow)
        try:
            with torch.random.fork_rng(devices=[]):
                trace.run(small, example_inputs)
        except NeedsValues:
            classes = Classes(len(classes.parent))
        except Exception as error:
            return trace, error
        else:
            break
    return trace, None


def _follows(
    shape: torch.Size, layers: list[Tensor], size: torch.Size, own: list[Tensor], gone: Tensor, alone: Tensor
) -> bool:
    """Whether a value in the smaller model is the one in the larger without the channels that are gone."""
    expected = list(shape)
    for layer in layers:
        stays = ~gone[layer]
        axes = varies(layer)
        for axis in axes:
            keep = stays.flatten() if len(axes) == 1 else stays.any([a for a in range(layer.dim()) if a != axis])
            left = keep.nonzero().flatten()
            expected[axis] = len(left)
            layer = layer.index_select(axis, left)
        layer = shrink(layer)
        if varies(layer) and not any(_same(o, layer, alone) for o in own):
            return False
    return expected == list(size)


def _same(own: Tensor, layer: Tensor, alone: Tensor) -> bool:
    """Equal; but the only channel that is left of a layer has nothing to be told apart from: it carries no label."""
    if own.shape != layer.shape or torch.equal(own, layer):
        return own.shape == layer.shape
    return bool(((own == layer) | (own == FIXED) & alone[layer]).all())
