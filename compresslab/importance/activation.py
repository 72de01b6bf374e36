"""How active a channel is, seen where the next layer sees it.

A channel that is always 0 can go. What counts is the value behind batch norm and activation: before them a channel may
be large and negative, and the ReLU makes it 0. The statistics are sums that run along with the batches; no activation is
kept.

    mean     mean over samples and positions of |a|
    apoz     share of values that are not 0: one less the Average Percentage of Zeros of the paper, since higher is keep

    Hu, Peng, Tai and Tang, "Network trimming: a data-driven neuron pruning approach towards efficient deep
    architectures", 2016, https://arxiv.org/abs/1607.03250, equation 1
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn

from compresslab.importance.channels import at_gates, find_channels
from compresslab.importance.scored import Batches, Scores, read, scoring, wide

__all__ = ["activation_scores"]


def activation_scores(
    model: nn.Module,
    batches: Batches,
    *,
    statistic: str = "mean",
    after_activation: bool = True,
    names: Collection[str] | None = None,
) -> Scores:
    """The activity of each channel.

    Args:
        model: any module.
        batches: of (inputs, ...).
        statistic: ``"mean"`` of absolute values, or ``"apoz"``, the share that is not zero.
        after_activation: behind batch norm and activation; False is what the layer itself puts out.
        names: of weights of Linear and convolution layers; None for all but output layers.

    Returns:
        By weight name, (O,).

    Raises:
        ValueError: another statistic, no batch, weights or data not finite, or a layer without channels.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        >>> model[0].weight.data = torch.tensor([[1.0], [-1.0]])
        >>> batches = [(torch.tensor([[1.0], [2.0], [-3.0]]), None)]  # relu: 1, 2, 0 and 0, 0, 3
        >>> activation_scores(model, batches)["0.weight"].tolist()
        [1.0, 1.0]
        >>> [round(share, 4) for share in activation_scores(model, batches, statistic="apoz")["0.weight"].tolist()]
        [0.6667, 0.3333]
    """
    if statistic not in ("mean", "apoz"):
        raise ValueError(f"statistic={statistic!r} must be 'mean' or 'apoz'")
    total: Scores = {}
    values: Counter[str] = Counter()

    def add(name: str, tensor: Tensor) -> None:
        rows = tensor.movedim(channels[name].axis, 0).flatten(1).to(wide(tensor))  # (C, samples * positions)
        active = rows.abs() if statistic == "mean" else (rows != 0).to(rows.dtype)
        total[name] = total.get(name, 0) + active.sum(1)
        values[name] += rows.shape[1]

    channels = None
    with torch.no_grad():
        for inputs, _ in read(batches):
            if channels is None:
                channels = find_channels(model, inputs, names)
                if not after_activation:
                    channels = {name: replace(c, steps=(0,) * len(c.steps)) for name, c in channels.items()}
            with scoring(model), at_gates(model, channels, add):
                model(inputs)
    return {name: total[name] / values[name] for name in channels}
