"""Gradient times weight: what removing a weight or a channel changes in the loss, to first order.

    L(w = 0) - L(w)  ~  -g w
    I_w = mean over batches of (g w)^2                         a weight (2019, equation 8)
    I_c = mean over batches of (sum_{k in c} g_k w_k)^2        a channel (2019, equation 7, with gates)
    Theta_c = mean over samples of |mean over positions of g_z z|     a feature map z (2017, equation 8)

In a channel the parts are added with their signs, and the square or the absolute value comes last: parts that cancel are
no loss. A gate behind the batch norm collects all that belongs to the channel, g_gamma gamma + g_beta beta of the batch
norm included.

Over batches it is the other way round, the square comes first: at the end of training the mean gradient is close to 0
for every weight, and what tells them apart is how much it differs from batch to batch. So the scores depend on the batch
size; with one sample in each batch, I_w is twice the saliency of ``fisher.py``.

    Molchanov, Tyree, Karras, Aila and Kautz, "Pruning convolutional neural networks for resource efficient inference",
    2017, https://arxiv.org/abs/1611.06440; Molchanov, Mallya, Tyree, Frosio and Kautz, "Importance estimation for neural
    network pruning", 2019, https://arxiv.org/abs/1906.10771
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from compresslab.importance.gates import gate_gradients
from compresslab.importance.scored import Batches, Loss, Scores, mean_gradients, read, scored_weights, scoring

__all__ = ["taylor_channel_scores", "taylor_map_scores", "taylor_scores"]


def taylor_scores(model: nn.Module, batches: Batches, loss_fn: Loss, *, names: Collection[str] | None = None) -> Scores:
    """The square of gradient times weight, on average over the batches, by weight.

    Args:
        model: trained. (Before training there is ``snip.py``.)
        batches: of (inputs, targets); each counts once.
        loss_fn: (outputs, targets) -> mean over the samples.
        names: as in ``scored_weights``.

    Raises:
        ValueError: no batch, weights, data or loss not finite, or no weight to score.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -1.0]])
        >>> batches = [(torch.tensor([[1.0, -2.0]]), None), (torch.tensor([[3.0, 0.0]]), None)]
        >>> taylor_scores(layer, batches, lambda y, t: y.mean())["weight"].tolist()  # (3^2 + 9^2) / 2, (2^2 + 0) / 2
        [[45.0, 2.0]]
    """
    weights = scored_weights(model, names)
    total = dict.fromkeys(weights, 0.0)
    with scoring(model, weights):
        for count, batch in enumerate(read(batches), 1):
            for name, gradient in mean_gradients(model, [batch], loss_fn, weights=weights).items():
                square = (gradient * weights[name].detach()).square()
                total[name] = total[name] + (square - total[name]) / count
    return total


def taylor_channel_scores(
    model: nn.Module, batches: Batches, loss_fn: Loss, *, names: Collection[str] | None = None
) -> Scores:
    """The square of each gate's derivative of the loss of a batch, on average over the batches, by channel (2019).

    The loss of a batch is the mean over its samples, so the score depends on the batch size, as in the paper.

    Args:
        model: any module.
        batches: of (inputs, targets), samples along the first axis.
        loss_fn: (outputs, targets) -> a number; it is called for each sample by itself.
        names: of weights of Linear and convolution layers; None for all but output layers.

    Returns:
        By weight name, (O,).

    Raises:
        ValueError: no batch, weights, data or loss not finite, or a layer without channels to gate.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for layer, weight in zip(model, (2.0, 3.0)):
        ...     _ = nn.init.constant_(layer.weight, weight)
        >>> batches = [(torch.tensor([[1.0], [-3.0]]), torch.zeros(2))]  # y = 6 x: derivatives 6 and -18, mean -6
        >>> taylor_channel_scores(model, batches, lambda y, t: y.sum())["0.weight"].tolist()
        [36.0]
    """
    total: Scores = {}
    for count, (_, found) in enumerate(gate_gradients(model, batches, loss_fn, names=names), 1):
        for name, derivative in found.items():
            square = derivative.mean(0).square()
            total[name] = total.get(name, 0) + (square - total.get(name, 0)) / count
    return total


def taylor_map_scores(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    normalize: bool = True,
    names: Collection[str] | None = None,
) -> Scores:
    """The absolute value of each sample's derivative by a gate, on average over the samples, by channel (2017).

    Args:
        model: any module.
        batches: of (inputs, targets), samples along the first axis.
        loss_fn: (outputs, targets) -> a number; it is called for each sample by itself.
        normalize: divide each layer's scores by their L2 norm (equation 10), so that layers can be ranked together.
        names: of weights of Linear and convolution layers; None for all but output layers.

    Returns:
        By weight name, (O,).

    Raises:
        ValueError: no batch, weights, data or loss not finite, or a layer without channels to gate.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
        >>> for layer, weight in zip(model, (2.0, 3.0)):
        ...     _ = nn.init.constant_(layer.weight, weight)
        >>> batches = [(torch.tensor([[1.0], [-3.0]]), torch.zeros(2))]  # derivatives 6 and -18
        >>> taylor_map_scores(model, batches, lambda y, t: y.sum(), normalize=False)["0.weight"].tolist()
        [12.0]
    """
    total, samples = {}, 0
    for channels, found in gate_gradients(model, batches, loss_fn, names=names):
        for name, derivative in found.items():
            total[name] = total.get(name, 0) + derivative.abs().sum(0) / channels[name].positions
        samples += len(next(iter(found.values())))
    scores = {name: tensor / samples for name, tensor in total.items()}
    if normalize:
        scores = {name: s / s.norm().clamp_min(torch.finfo(s.dtype).tiny) for name, s in scores.items()}
    return scores
