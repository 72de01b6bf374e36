"""Sharing layers: the same weights at several depths, as a recurrent network uses them at several times.

A file and a GPU hold them once; the arithmetic is done as often as before. Layers of one group become one module under
several names, so an optimizer sees one parameter whose gradient is the sum over its uses. They start from the first of
the group or from the mean, and have to be trained: layers that were trained apart do different things.

    Lan and others, "ALBERT: a lite BERT", 2020, https://arxiv.org/abs/1909.11942, section 3.1 (cross-layer sharing)
    Dehghani and others, "Universal transformers", 2019, https://arxiv.org/abs/1807.03819 (depth as time)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.factorization.replacing import check_model, parameters_of

__all__ = ["SharedLayers", "share_layers", "unique_state"]


@dataclass(frozen=True, eq=False)
class SharedLayers:
    """A model in which some modules are one."""

    model: nn.Module  # a new model
    groups: list[tuple[str, ...]]  # names of the modules that are one
    parameters: int  # shared ones once
    parameters_before: int
    nbytes: int  # of all tensors of the state, shared ones once
    nbytes_before: int


def share_layers(model: nn.Module, groups: Sequence[Sequence[str]], *, start: str = "first") -> SharedLayers:
    """A new model in which the modules of each group are one module.

    Args:
        model: any module.
        groups: names of modules that are alike: same types, names and shapes inside. None may be inside another.
        start: the weights to begin with, ``"first"`` of the group or ``"mean"``.

    Raises:
        ValueError: a name is unknown or named twice, a group has less than two, modules differ, ``start`` is unknown,
            or a weight is not finite.

    Example:
        >>> result = share_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), [["0", "2"]])
        >>> result.model[0] is result.model[2], result.parameters, result.parameters_before
        (True, 6, 12)
    """
    if start not in ("first", "mean"):
        raise ValueError(f"start={start!r} must be 'first' or 'mean'")
    check_model(model)
    result = copy.deepcopy(model)
    modules = dict(result.named_modules(remove_duplicate=False))
    names = [name for group in groups for name in group]
    if unknown := [name for name in names if name not in modules or not name]:
        raise ValueError(f"groups name {unknown}, which must be modules inside the model; see model.named_modules()")
    if twice := [(a, b) for a in names for b in names if b.startswith(f"{a}.")] or len({*names}) < len(names):
        raise ValueError(f"groups={groups} must name each module once, none inside another: {twice}")
    if not groups or min(len(group) for group in groups) < 2:
        raise ValueError(f"groups={groups} must hold groups of at least two names each")
    for first, *others in groups:
        kept = modules[first]
        for name in others:
            if difference := _difference(kept, modules[name]):
                raise ValueError(
                    f"{first} and {name} differ in {difference} and cannot be one; share modules that are alike"
                )
        if start == "mean":
            states = [modules[name].state_dict() for name in (first, *others)]
            with torch.no_grad():
                for key, tensor in kept.state_dict().items():
                    if tensor.is_floating_point():
                        tensor.copy_(torch.stack([state[key].double() for state in states]).mean(0))
        for name in others:
            parent, _, child = name.rpartition(".")
            setattr(result.get_submodule(parent), child, kept)
    nbytes, before = (sum(tensor.nbytes for tensor in unique_state(m).values()) for m in (result, model))
    shared = [tuple(group) for group in groups]
    return SharedLayers(result, shared, parameters_of(result), parameters_of(model), nbytes, before)


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model with each tensor once, under its first name: what a file has to hold.

    Load it with ``strict=False``, or into a model that shares in the same way after filling in the other names.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> list(unique_state(nn.Sequential(layer, layer)))
        ['0.weight']
    """
    seen, state = set(), {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return state


def _difference(a: nn.Module, b: nn.Module) -> str:
    parts = [[(name, type(module).__name__) for name, module in part.named_modules()] for part in (a, b)]
    if parts[0] != parts[1]:
        return "their modules"
    if a.extra_repr() != b.extra_repr() or repr(a) != repr(b):
        return "their options"
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in part.state_dict().items()} for part in (a, b)]
    return "" if shapes[0] == shapes[1] else "the shapes of their weights"
