"""SNIP: which connections matter before the network has learned anything.

Give each weight a gate c = 1. How much the loss changes with the gate is known without moving it:

    dL / dc_j = w_j dL / dw_j        s_j = |dL / dc_j| / sum_k |dL / dc_k|        keep the largest

That is gradient times weight, as in ``taylor.py``; what is SNIP's own is the moment: fresh weights whose variance fits
the layer (PyTorch's defaults and He's do), batch norm on the statistics of the batch, about ten samples of each class.
There the mean gradient is large. At the end of training it is almost 0: on a trained network use ``taylor.py``.

    Lee, Ajanthan and Torr, "SNIP: single-shot network pruning based on connection sensitivity", 2019,
    https://arxiv.org/abs/1810.02340, equations 4 to 6
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from compresslab.importance.scored import Batches, Loss, Scores, mean_gradients, scored_weights, scoring

__all__ = ["snip_scores"]


def snip_scores(model: nn.Module, batches: Batches, loss_fn: Loss, *, names: Collection[str] | None = None) -> Scores:
    """The connection sensitivity of each weight; all together add up to 1.

    Args:
        model: freshly initialized.
        batches: of (inputs, targets), about ten samples of each class. Of several, the mean comes before the absolute
            value.
        loss_fn: (outputs, targets) -> mean over the samples, without weight decay.
        names: as in ``scored_weights``.

    Raises:
        ValueError: no batch, weights, data or loss not finite, no weight to score, or no gradient reaches any of them.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -1.0]])
        >>> batches = [(torch.tensor([[1.0, -1.0]]), None)]
        >>> snip_scores(layer, batches, lambda y, t: y.mean())["weight"].tolist()  # 3 and 1 of 4
        [[0.75, 0.25]]
    """
    weights = scored_weights(model, names)
    with scoring(model, weights, batch_statistics=True):
        gradients = mean_gradients(model, batches, loss_fn, weights=weights)
    by_gate = {name: (gradient * weights[name].detach()).abs() for name, gradient in gradients.items()}
    total = torch.stack([s.sum() for s in by_gate.values()]).sum()
    if not total > 0:
        raise ValueError(f"all gradients of {list(weights)} are 0; start from random weights and data that differ")
    return {name: s / total for name, s in by_gate.items()}
