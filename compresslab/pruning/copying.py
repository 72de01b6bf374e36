"""Copies of a model: what ``copy.deepcopy`` makes, sooner; and one to be run, on the same weights."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["copied", "shadow"]

ATOMS = (int, float, bool, str, type(None))  # need no copy
EMPTY = (OrderedDict, dict, set)


def shadow(model: nn.Module, memo: Mapping[int, Tensor] | None = None, *, training: bool = False) -> nn.Module:
    """A copy to be run, whose parameters are other tensors on the same memory; its buffers and flags are its own.

    Args:
        model: is left as it is.
        memo: tensors to take in place of those with this id.
        training: the mode of the copy.
    """
    aliases = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in model.parameters()}
    buffers = {id(b): b.detach().clone() for b in model.buffers() if type(b) is Tensor}
    return copied(model, aliases | buffers | dict(memo or {})).train(training)


def copied(model: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """``copy.deepcopy`` in a fraction of its time: most of what it goes through are numbers and dictionaries of no hooks.

    Args:
        model: is left as it is; modules with ways of their own to be copied go that way.
        memo: what to take in place of objects with this id.
    """
    known: dict[int, Any] = dict(memo)
    plain = [module for module in model.modules() if _is_plain(type(module))]
    known |= {id(module): type(module).__new__(type(module)) for module in plain}
    for module in plain:
        state = {}
        for name, value in vars(module).items():
            kind = type(value)
            if kind in EMPTY and not value:
                known.setdefault(id(value), kind())
            state[name] = value if kind in ATOMS else copy.deepcopy(value, known)
        known[id(module)].__setstate__(state)
    return copy.deepcopy(model, known)


@functools.cache
def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether its copies are made of its ``__dict__``."""
    names = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__new__")
    return all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in names)
