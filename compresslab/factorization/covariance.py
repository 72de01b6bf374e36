"""What linear layers get, as far as a low-rank approximation has to know it: the mean of x x^T.

The error of a changed weight on N inputs is sum_n ||(W - W') x_n||^2 = N tr((W - W') C (W - W')^T) with
C = 1/N sum_n x_n x_n^T, so C is all that is needed of the data, however much there is.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["input_covariances"]


@torch.no_grad()
def input_covariances(model: nn.Module, batches: Iterable, *, layers: Collection[str]) -> dict[str, Tensor]:
    """Mean of x x^T over all inputs x of some linear layers, (I, I) in float64; a layer that never runs is not there.

    Args:
        model: runs in eval mode, on a copy.
        batches: of (inputs, ...).
        layers: names of Linear layers.

    Raises:
        ValueError: there is no batch, or inputs are not finite.

    Example:
        >>> batches = [(torch.tensor([[1.0, 0.0]]), None), (torch.tensor([[1.0, 2.0]]), None)]
        >>> input_covariances(nn.Sequential(nn.Linear(2, 1)), batches, layers=["0"])["0"].tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x = (args[0] if args else kwargs["input"]).flatten(0, -2).double()  # (N, I)
        sums[name] = sums.get(name, 0) + x.T @ x
        counts[name] = counts.get(name, 0) + len(x)

    probe, seen = copy.deepcopy(model).eval(), 0
    for name in layers:
        probe.get_submodule(name).register_forward_pre_hook(partial(watch, name), with_kwargs=True)
    for seen, (inputs, *_) in enumerate(batches, 1):
        if inputs.is_floating_point() and not inputs.isfinite().all():
            raise ValueError(f"inputs of batch {seen - 1} must be finite; look for NaN in the data")
        probe(inputs)
    if not seen:
        raise ValueError("batches holds no batch; pass at least one of (inputs, labels)")
    return {name: total / counts[name] for name, total in sums.items() if counts[name]}
