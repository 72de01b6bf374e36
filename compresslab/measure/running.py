"""Run a model as it will be used, and leave it as it was: the vocabulary of everything that measures.

A measurement needs the model in eval mode (no dropout, no statistics that move), without gradients, on a known number
of threads. All of it is put back afterwards, also when the model raises or the user interrupts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["batch_size_of", "call", "evaluating", "require_module", "synchronize", "tensors_in", "use_threads"]


def require_module(model: object) -> None:
    """Raise TypeError unless ``model`` is an nn.Module.

    Raises:
        TypeError: it is something else.

    Example:
        >>> require_module(nn.Linear(2, 2))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Hold a model in eval mode and record no gradients; then restore the flag of every module in it.

    Args:
        model: an nn.Module; anything else (a runtime's session, a function) has no mode and is left alone.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    flags = [(module, module.training) for module in model.modules()] if isinstance(model, nn.Module) else []
    try:
        if any(training for _, training in flags):
            model.eval()
        with torch.no_grad():
            yield
    finally:
        if any(module.training != training for module, training in flags):
            model.train(flags[0][1])  # through train(), which some modules override; then each its own flag
            for module, training in flags:
                module.training = training


def call(model: Callable, inputs: Any) -> Any:
    """What ``model`` answers to ``inputs``: a tuple fills its arguments, a mapping its keywords, else one argument.

    Example:
        >>> call(max, (3, 5)), call(abs, -2), call(dict, {"a": 1})
        (5, 2, {'a': 1})
    """
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order.

    Example:
        >>> [tensor.item() for tensor in tensors_in((torch.tensor(1), [None, {"mask": torch.tensor(2)}]))]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def batch_size_of(inputs: Any) -> int:
    """The length of the first axis of the first tensor in ``inputs``; 1 where there is none.

    Example:
        >>> batch_size_of({"ids": torch.zeros(8, 128), "mask": None})
        8
    """
    first = next(tensors_in(inputs), None)
    return len(first) if first is not None and first.dim() else 1


@contextlib.contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` CPU threads; then restore the number there was. Other runtimes have their own.

    Raises:
        ValueError: ``count`` is not an integer of at least 1.

    Example:
        >>> before = torch.get_num_threads()
        >>> with use_threads(1):
        ...     torch.get_num_threads()
        1
        >>> torch.get_num_threads() == before
        True
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"threads={count!r} must be an integer of at least 1; try 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize() -> None:
    """Wait until the accelerator, where there is one, has done all that it was asked to do.

    Example:
        >>> synchronize()
    """
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
