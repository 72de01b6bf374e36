"""Which slices of which parameters can only be removed together: found by running the model, and tried out.

1. Every index of every axis of every parameter and buffer gets a label, and the model runs once with labels beside its
   values (``trace.py``). Labels that meet become one class: a convolution's output channel, its batch norm's entries,
   and the next layers' input channels. Classes that reach the output, or an operation that is not understood, stay.
2. Units that share a layer's output form a group: half of a group's units is a sensible thing to remove.
3. Half of all units are removed for a try, and the smaller model runs with the labels that are left. Now no two classes
   may meet. Where they do, or where the code stops (it has a size written down), the group stays, with the reason.

The third step is what shape rules of other tools lack: the code itself says whether it can follow.

    Fang, Ma, Song, Mi and Wang, "DepGraph: towards any structural pruning", 2023, https://arxiv.org/abs/2301.12900,
    section 3 (groups; there by rules for layer types, on the graph of autograd)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compresslab.pruning.copying import shadow
from compresslab.pruning.groups import Dependencies, Table
from compresslab.pruning.labels import FIXED, Classes, shrink, varies
from compresslab.pruning.running import named_tensors
from compresslab.pruning.trace import NeedsValues, Step, Trace
from compresslab.pruning.tryout import find_conflicts

__all__ = ["find_dependencies"]


def find_dependencies(model: nn.Module, example_inputs: Any, *, through_norms: bool = False) -> Dependencies:
    """The groups of slices that can only be removed together, and what cannot be removed.

    The model runs in eval mode; where that leaves parameters unused, in training mode as well (auxiliary heads).

    Args:
        model: is left as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; small ones do.
        through_norms: also cut axes that LayerNorm and the like take statistics over (the residual stream of a
            transformer). What is left computes something else then, because its statistics are others.

    Raises:
        ValueError: the model cannot be run on these inputs, or copied.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> found = find_dependencies(model, torch.ones(1, 2))
        >>> {name: (group.units, list(group.members)) for name, group in found.groups.items()}
        {'0.weight': (4, [('0.weight', 0), ('0.bias', 0), ('2.weight', 1)])}
        >>> found.unprunable
        {'2.weight': 'it is an output of the model'}
    """
    table, steps = _traced(model, example_inputs, through_norms)
    while True:
        found = table.dependencies(through_norms, steps)
        blamed = find_conflicts(model, found, _half(found), example_inputs)
        if not blamed:
            return found
        table.stay(blamed)


def untried_dependencies(model: nn.Module, example_inputs: Any, *, through_norms: bool = False) -> Dependencies:
    """As ``find_dependencies`` without the third step: for who tries out what is removed in the end."""
    table, steps = _traced(model, example_inputs, through_norms)
    return table.dependencies(through_norms, steps)


def _traced(model: nn.Module, example_inputs: Any, through_norms: bool) -> tuple[Table, list[Step]]:
    """The classes of labels after a run, and what its operations gave."""
    labels, count = _number(model)
    try:
        try:
            trace = _run(model, example_inputs, labels, count, through_norms, hollow=True)
        except Exception:  # it looks at values, or its own error shall come from an ordinary run
            trace = _run(model, example_inputs, labels, count, through_norms, hollow=False)
    except Exception as error:
        raise ValueError(
            f"the model cannot be run on example_inputs ({type(error).__name__}: {error}); pass what its forward takes:"
            " a tensor, a tuple of arguments or a dict of keyword arguments"
        ) from error
    classes = trace.classes
    for grid in trace.grids:
        # An axis that was split and is told apart along both parts: the same index of each part goes together.
        grid = shrink(classes.find(grid))
        if len(varies(grid)) > 1:
            classes.tie(grid, [min(varies(grid))], "their axis is split in two")
    settled: dict[int, Tensor] = {}
    for layer in (layer for step in trace.steps for part in step.layers for layer in part):
        if id(layer) not in settled:
            settled[id(layer)] = classes.settle(layer)
    steps = [replace(s, layers=[[settled[id(layer)] for layer in part] for part in s.layers]) for s in trace.steps]
    return Table(labels, classes, trace), steps


def _number(model: nn.Module) -> tuple[dict[str, list[Tensor | None]], int]:
    """Labels for each index of each axis, by name, the same for both names of a tied tensor; and how many there are."""
    labels: dict[str, list[Tensor | None]] = {}
    first: dict[int, str] = {}
    count = FIXED + 1
    for name, tensor in named_tensors(model).items():
        if id(tensor) in first:
            labels[name] = labels[first[id(tensor)]]
            continue
        first[id(tensor)], labels[name] = name, []
        for size in tensor.shape:
            labels[name].append(torch.arange(count, count + size) if size > 1 else None)
            count += size if size > 1 else 0
    return labels, count


def _pair(model: nn.Module, labels: Mapping[str, list[Tensor | None]]) -> list[tuple[Tensor, list[Tensor | None]]]:
    return [(tensor, labels[name]) for name, tensor in named_tensors(model).items()]


def _run(
    model: nn.Module, example_inputs: Any, labels: dict, count: int, through_norms: bool, *, hollow: bool
) -> Trace:
    """The trace in eval mode, with what a run in training mode adds where parameters were not used."""
    classes = Classes(count)
    with torch.random.fork_rng(devices=[]):
        copied = shadow(model)
        trace = Trace(_pair(copied, labels), classes, through_norms=through_norms, hollow=hollow)
        trace.run(copied, example_inputs)
        unused = [name for name, parameter in copied.named_parameters() if not trace.used(parameter)]
        if unused:
            copied = shadow(model, training=True)
            second = Trace(_pair(copied, labels), classes, through_norms=through_norms, hollow=hollow)
            try:
                second.run(copied, example_inputs)
            except NeedsValues:
                raise
            except Exception:  # a batch of one is too few for batch norm, or labels are wanted
                pass
            else:
                trace.produced += second.produced
                trace.heads += second.heads
                unused = [name for name in unused if not second.used(copied.get_parameter(name))]
    trace.unused = dict.fromkeys(unused, "it is not used on these inputs")
    return trace


def _half(found: Dependencies) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randperm(g.units, generator=generator)[: g.units // 2] for n, g in found.groups.items()}
