"""Pruning attention heads: a head goes with its rows of query, key and value and its columns of the output matrix.

What a head puts out reaches the model only through its columns of the output projection: with those zero, the head does
nothing, and the model without it computes the same. Where several query heads share keys and values (grouped-query
attention) the unit is a key-value head with all its query heads. Heads are found by running the model
(``dependency.py``), whether its attention is fused, written by hand, or torch's own layer.

    Michel, Levy and Neubig, "Are sixteen heads really better than one?", 2019, https://arxiv.org/abs/1905.10650
    Voita et al., "Analyzing multi-head self-attention", 2019, https://arxiv.org/abs/1905.09418
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compresslab.pruning.channels import Pruned, remove_units
from compresslab.pruning.dependency import find_dependencies
from compresslab.pruning.groups import Dependencies

__all__ = ["attention_heads", "prune_heads"]


def attention_heads(model: nn.Module, example_inputs: Any) -> dict[str, int]:
    """How many heads each attention layer has that can be removed, by the layer's name, in the order of its weights.

    Args:
        model: any module with attention; is left as it is.
        example_inputs: as in ``prune_channels``.

    Returns:
        Heads, or key-value heads where query heads share them. A layer that is not there cannot lose heads;
        ``find_dependencies`` says why.

    Example:
        >>> layer = nn.MultiheadAttention(8, 4, batch_first=True)
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.attention = layer
        ...     def forward(self, x):
        ...         return self.attention(x, x, x, need_weights=False)[0]
        >>> attention_heads(Block(), torch.ones(1, 3, 8))
        {'attention': 4}
    """
    found = find_dependencies(model, example_inputs)
    return {layer: found.groups[group].units for layer, group in _layers(found).items()}


def prune_heads(model: nn.Module, example_inputs: Any, heads: Mapping[str, Sequence[int]]) -> Pruned:
    """A smaller model without these heads.

    A pruned ``nn.MultiheadAttention`` becomes a subclass of it whose heads need not fill its width.

    Args:
        model: is left as it is.
        example_inputs: as in ``prune_channels``.
        heads: numbers of the heads that go, from 0, by the names that ``attention_heads`` gives; each layer keeps one.

    Raises:
        ValueError: a layer or head is not there, or a layer would keep none.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        ...     def forward(self, x):
        ...         return self.attention(x, x, x, need_weights=False)[0]
        >>> pruned = prune_heads(Block(), torch.ones(1, 3, 8), {"attention": [0, 2]})
        >>> pruned.model.attention.num_heads, pruned.kept["attention.out_proj.weight"][1].tolist()
        (2, [2, 3, 6, 7])
    """
    found = find_dependencies(model, example_inputs)
    layers, removed = _layers(found), {}
    for layer, numbers in heads.items():
        if layer not in layers:
            raise ValueError(f"{layer!r} is no layer whose heads can go; those are {', '.join(layers) or 'none here'}")
        units, chosen = found.groups[layers[layer]].units, sorted(set(numbers))
        if any(not 0 <= number < units for number in chosen):
            raise ValueError(f"heads {chosen} of {layer} must be among 0..{units - 1}")
        if len(chosen) == units:
            raise ValueError(f"heads {chosen} of {layer} are all it has; keep one, or remove the layer")
        removed[layers[layer]] = torch.tensor(chosen, dtype=torch.int64)
    return remove_units(model, found, removed, example_inputs)


def _layers(found: Dependencies) -> dict[str, str]:
    """Group by layer: the module that holds all matrices which a head has a part in."""
    layers = {}
    for name, group in found.groups.items():
        if group.heads:
            matrices = [n.split(".")[:-1] for n, _ in group.members if len(found.labels[n]) == 2]
            common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*matrices, strict=False))
            layers[".".join(part for part, *_ in common)] = name
    return layers
