"""Running a model that is not ours: with any kind of inputs, under every name of its tensors, without touching it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["call", "named_tensors", "tensors_in"]


def call(model: nn.Module, example_inputs: Any) -> Any:
    """The model's output for a tensor, a tuple of arguments or a dict of keyword arguments.

    Example:
        >>> call(nn.Identity(), {"input": 7})
        7
    """
    if isinstance(example_inputs, Mapping):
        return model(**example_inputs)
    return model(*example_inputs) if isinstance(example_inputs, (tuple, list)) else model(example_inputs)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, each under every name it has.

    Example:
        >>> list(named_tensors(nn.BatchNorm1d(2)))
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in an output: of tuples, dicts and dataclasses, within one another."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_in(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_in(item)]
    if not dataclasses.is_dataclass(value):  # a cache of keys and values, say, is no output
        return []
    return [tensor for item in vars(value).values() for tensor in tensors_in(item)]
