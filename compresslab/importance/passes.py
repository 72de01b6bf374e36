"""What a method computes, counted: the samples that go forward through a model, and backward.

Times depend on the machine; these numbers do not. A backward pass costs about two forward passes, one that is
differentiated again about two more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Passes", "count_passes"]


@dataclass
class Passes:
    """What was computed, in samples: a method that needs no data has 0 of both."""

    forward: int = 0
    backward: int = 0  # each way back through the outputs; the second derivative's counts again


@contextlib.contextmanager
def count_passes(model: nn.Module) -> Iterator[Passes]:
    """While it lasts, count the samples that go forward and backward through a model, or a copy made in this process.

    Args:
        model: any module whose first argument and output are tensors.

    Example:
        >>> import torch
        >>> model = nn.Linear(2, 1)
        >>> with count_passes(model) as passes:
        ...     model(torch.ones(5, 2)).sum().backward()
        >>> passes
        Passes(forward=5, backward=5)
    """
    passes = Passes()

    def forward(module: nn.Module, args: tuple, output: Tensor) -> None:
        samples = len(args[0])
        passes.forward += samples
        if output.requires_grad:
            output.register_hook(lambda _: backward(samples))

    def backward(samples: int) -> None:
        passes.backward += samples

    with model.register_forward_hook(forward):
        yield passes
