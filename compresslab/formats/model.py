"""The weights of a whole model in another format: a simulation, computed in the model's own dtype.

To ``rounding.py`` this adds which tensors are weights: those of linear layers, convolutions and embeddings. Norms and
biases are few and matter much, so they keep their format unless named.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import nn

from compresslab.formats.floats import FloatFormat
from compresslab.formats.rounding import round_to_format

__all__ = ["WEIGHT_LAYERS", "RoundedModel", "round_model"]

WEIGHT_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
)


@dataclass(frozen=True, eq=False)
class RoundedModel:
    """What ``round_model`` made."""

    model: nn.Module
    rounded: tuple[str, ...]  # names of the parameters in the new format
    kept: dict[str, str]  # name of every other parameter, and why


def round_model(
    model: nn.Module, fmt: str | tuple[int, int] | FloatFormat, *, keep: Collection[str] = ()
) -> RoundedModel:
    """A copy of the model whose weights were rounded to a format and stored in their own dtype again.

    Args:
        model: any module; it stays as it was.
        fmt: as in ``round_to_format``. Weights beyond the largest number take it (they saturate).
        keep: names of layers whose weights are left alone.

    Raises:
        ValueError: a weight is not finite, a name in ``keep`` is no layer with a weight, or nothing is left to round.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> result = round_model(model, "fp4_e2m1", keep=["2"])
        >>> result.rounded, result.kept["2.weight"]
        (('0.weight',), 'asked to be kept')
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, WEIGHT_LAYERS)}
    if unknown := set(keep) - set(layers):
        raise ValueError(f"keep={sorted(unknown)} are not layers with a weight; choose from {', '.join(layers)}")
    chosen = [name for name in layers if name not in keep]
    if not chosen:
        raise ValueError("there is no linear layer, convolution or embedding to round; the model would stay as it is")
    for name in chosen:
        weight = layers[name].weight
        bad = 0 if weight.is_meta else int((~weight.isfinite()).sum())
        if bad:
            raise ValueError(f"layer {name!r}: {bad} of {weight.numel()} weights are not finite; reload or repair them")
    new = copy.deepcopy(model)
    done: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for name in chosen:
            weight = new.get_submodule(name).weight
            if id(weight) not in done and not weight.is_meta:  # a tied weight is rounded once
                flat = weight.flatten(1)  # (O, C*K*K): a block runs over inputs and window, not over 3 elements of it
                weight.copy_(round_to_format(flat, fmt, saturate=True).view_as(weight))
            done[id(weight)] = weight
    parameters = list(new.named_parameters(remove_duplicate=False))
    rounded = tuple(name for name, parameter in parameters if id(parameter) in done)
    kept = {
        name: "asked to be kept" if name.removesuffix(".weight") in keep else "not a weight of a layer that is rounded"
        for name, parameter in parameters
        if id(parameter) not in done
    }
    return RoundedModel(new, rounded, kept)
