"""Batch norms count again: after weights or channels have changed, the means and variances they hold are another model's.

Li, Wu, Su and Wang, "EagleEye: fast sub-net evaluation for efficient neural network pruning", 2020,
https://arxiv.org/abs/2007.02491, section 3.3
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from compresslab.pruning.layer_inputs import evaluating, inputs_of

__all__ = ["reestimate_batchnorm"]


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, batches: Iterable) -> nn.Module:
    """A copy whose batch norms have the mean and variance of these batches, each counting alike.

    Args:
        model: is left as it is.
        batches: of (inputs, labels), the labels are not used; several, large enough for a variance.

    Raises:
        ValueError: there is no batch, or inputs are not finite.

    Example:
        >>> norm = reestimate_batchnorm(nn.BatchNorm1d(1), [(torch.tensor([[1.0], [3.0]]), None)])
        >>> norm.running_mean.item(), norm.running_var.item()  # (1 + 1) / (2 - 1)
        (2.0, 2.0)
    """
    result, inputs = copy.deepcopy(model), inputs_of(batches)
    norms = [m for m in result.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with evaluating(result):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        for batch in inputs if norms else ():
            result(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return result
