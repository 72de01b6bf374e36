"""A gate of 1 on every output channel of a layer: closing it removes the channel, its derivative says how much it counts.

    y = sum_c gate_c z_c        d L / d gate_c = sum of z dL/dz over the channel's positions

The gate stands behind the batch norm and the activation that belong to the channel (``channels.py``). So its derivative
holds all of them at once: it is also the sum over the channel's weights and bias of each times its gradient, and with a
batch norm g_gamma gamma + g_beta beta.

    Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance estimation for neural network pruning", 2019,
    https://arxiv.org/abs/1906.10771, section 3.2
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from compresslab.importance.channels import Channels, at_gates, find_channels
from compresslab.importance.per_sample import sample_losses
from compresslab.importance.scored import Batches, Loss, read, scored_weights, scoring, wide

__all__ = ["gate_gradients", "gated"]


@contextlib.contextmanager
def gated(model: nn.Module, channels: Mapping[str, Channels], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """While it lasts, multiply the channels of some layers by their gates.

    Args:
        model: the one that the channels were found in, or a copy.
        channels: from ``find_channels``.
        gates: by weight name, (C,) for all samples or (B, C) for each sample its own.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
        >>> x = torch.ones(1, 1)
        >>> with gated(model, find_channels(model, x), {"0.weight": torch.zeros(2)}):
        ...     bool(model(x) == model[1].bias)  # both channels are gone
        True
    """

    def close(name: str, tensor: Tensor) -> Tensor:
        gate = gates[name].to(tensor.dtype).reshape(-1, channels[name].count)  # (1 or B, C)
        shape = [1] * tensor.dim()
        shape[0], shape[channels[name].axis] = gate.shape
        return tensor * gate.reshape(shape)

    with at_gates(model, {name: channels[name] for name in gates}, close):
        yield


def gate_gradients(
    model: nn.Module, batches: Batches, loss_fn: Loss, *, names: Collection[str] | None = None
) -> Iterator[tuple[dict[str, Channels], dict[str, Tensor]]]:
    """For each batch: the channels, and the derivatives of each sample's own loss by its gates, (B, C) by weight name.

    Args:
        model: any module.
        batches: of (inputs, targets), samples along the first axis.
        loss_fn: (outputs, targets) -> a number; it is called for each sample by itself.
        names: of weights; None for all layers but output layers.

    Raises:
        ValueError: no batch, data or loss not finite, or a name without channels.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for layer, weight in zip(model, (2.0, 3.0)):
        ...     _ = nn.init.constant_(layer.weight, weight)
        >>> batches = [(torch.tensor([[1.0], [5.0]]), torch.zeros(2))]
        >>> [found["0.weight"].tolist() for _, found in gate_gradients(model, batches, lambda y, t: y.sum())]
        [[[6.0], [30.0]]]
    """
    scored_weights(model, names)
    channels = None
    for inputs, targets in read(batches):
        channels = find_channels(model, inputs, names) if channels is None else channels
        with scoring(model, {}):
            shared = next(model.parameters())
            gates = {
                name: torch.ones(len(inputs), c.count, dtype=wide(shared), device=shared.device, requires_grad=True)
                for name, c in channels.items()
            }
            with gated(model, channels, gates):
                outputs = model(inputs)
            loss = sample_losses(outputs, targets, loss_fn).sum()
            found = torch.autograd.grad(loss, list(gates.values()), allow_unused=True, materialize_grads=True)
        yield channels, dict(zip(gates, found, strict=True))
