"""The scale of a batch norm as the importance of the channel before it.

Batch norm makes every channel of variance 1 and multiplies it with gamma: what the channel is worth to the rest of the
network is written there, whatever its weights are. It is most telling after training with a penalty on |gamma|.

A gamma says something about its channel only. In one ranking with the weights themselves, gammas (about 1) would stand
above every weight (about 0.05).

    Liu, Li, Shen, Huang, Yan and Zhang, "Learning efficient convolutional networks through network slimming", 2017,
    https://arxiv.org/abs/1708.06519, section 3
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from compresslab.importance.channels import find_channels
from compresslab.importance.scored import Batches, Scores, read, wide

__all__ = ["batchnorm_scale_scores"]


def batchnorm_scale_scores(model: nn.Module, batches: Batches, *, names: Collection[str] | None = None) -> Scores:
    """|gamma| of the batch norm that follows, by channel of each layer that has one.

    Args:
        model: any module.
        batches: of (inputs, ...); the first one shows which batch norm follows which layer.
        names: of weights, each of a layer with a batch norm; None for all that have one.

    Returns:
        By name of the layer's weight, (O,).

    Raises:
        ValueError: no layer, or not each that is named, has a batch norm with a scale behind it.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> model[1].weight.data = torch.tensor([-0.5, 2.0])
        >>> batchnorm_scale_scores(model, [(torch.ones(4, 1), None)])["0.weight"].tolist()
        [0.5, 2.0]
    """
    inputs, _ = next(iter(read(batches)))
    channels = find_channels(model, inputs, names)
    norms = {name: model.get_submodule(c.norm) for name, c in channels.items() if c.norm is not None}
    bare = [name for name in channels if name not in norms]
    if not norms or (names is not None and bare):
        raise ValueError(f"{bare} must be followed by a batch norm with a scale; name layers that are, or fold nothing")
    with torch.no_grad():
        return {name: norm.weight.abs().to(wide(norm.weight)) for name, norm in norms.items()}
