"""SynFlow: pruning before training and without data, that never cuts a network in two.

Make all weights positive, send ones through, add up what comes out: R is the sum over all paths of the product of their
weights. The score of a weight is the share of R that flows through it,

    s = w dR / dw  with |w| for w;      its sum is R in every layer (without biases): what goes in comes out

So wide layers have low scores each, and one-shot pruning empties them first. Pruned in many small rounds, with new
scores in each, a layer's last weights come to carry everything and are kept: no layer collapses.

    Tanaka, Kunin, Yamins and Ganguli, "Pruning neural networks without any data by iteratively conserving synaptic
    flow", 2020, https://arxiv.org/abs/2006.05467, equation 1 and algorithm 1
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.importance.scored import Batches, Scores, read, scored_weights, scoring

__all__ = ["SynFlow", "synflow_masks", "synflow_scores"]


@dataclass(frozen=True, eq=False)
class SynFlow:
    """What is left after iterative pruning."""

    masks: dict[str, Tensor]  # by weight; True stays
    remaining: dict[str, int]  # weights left, by weight
    collapsed: tuple[str, ...]  # layers of which nothing is left


def synflow_scores(model: nn.Module, batches: Batches, *, names: Collection[str] | None = None) -> Scores:
    """The synaptic flow through each weight, in float64; alone good for one round.

    Args:
        model: any module; a copy with absolute parameters and buffers is scored, in eval mode.
        batches: of (inputs, ...); only the shape of the first one is read.
        names: as in ``scored_weights``.

    Raises:
        ValueError: no batch, weights not finite, a flow that is not finite, or no weight to score.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> model[0].weight.data, model[1].weight.data = torch.tensor([[2.0], [-1.0]]), torch.tensor([[3.0, 5.0]])
        >>> {name: s.tolist() for name, s in synflow_scores(model, [(torch.zeros(4, 1), None)]).items()}
        {'0.weight': [[6.0], [5.0]], '1.weight': [[6.0, 5.0]]}
    """
    return _flow(*_positive(model, batches, names))


def synflow_masks(
    model: nn.Module,
    batches: Batches,
    *,
    sparsity: float,
    rounds: int = 100,
    names: Collection[str] | None = None,
) -> SynFlow:
    """The weights that stay when a network is pruned in many rounds, to a density of (1 - sparsity)^(k / rounds) each.

    Args:
        model: any module.
        batches: of (inputs, ...); only the shape of the first one is read.
        sparsity: share of the weights that is removed in the end, 0..1, over all layers together.
        rounds: 1 is one-shot pruning, which can empty a layer.
        names: as in ``scored_weights``.

    Raises:
        ValueError: a sparsity outside 0..1, fewer than 1 round, or as in ``synflow_scores``.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> model[0].weight.data, model[1].weight.data = torch.tensor([[2.0], [-1.0]]), torch.tensor([[3.0, 5.0]])
        >>> result = synflow_masks(model, [(torch.zeros(4, 1), None)], sparsity=0.5)
        >>> {name: mask.tolist() for name, mask in result.masks.items()}, result.collapsed
        ({'0.weight': [[True], [False]], '1.weight': [[True, False]]}, ())
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity!r} must be in 0..1, the share that is removed; try 0.9")
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r} must be a whole number of at least 1; the paper has 100")
    positive, weights, ones = _positive(model, batches, names)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    total = sum(mask.numel() for mask in masks.values())
    for k in range(1, rounds + 1):
        scores = _flow(positive, weights, ones)
        flat = torch.cat([s.masked_fill(~masks[name], -1).flatten() for name, s in scores.items()])  # removed: last
        keep = round(total * (1 - sparsity) ** (k / rounds))
        stays = torch.zeros_like(flat, dtype=torch.bool)
        stays[flat.argsort(descending=True, stable=True)[:keep]] = True
        parts = stays.split([mask.numel() for mask in masks.values()])
        masks = {name: part.reshape(weights[name].shape) for name, part in zip(masks, parts, strict=True)}
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
    remaining = {name: int(mask.sum()) for name, mask in masks.items()}
    return SynFlow(masks, remaining, tuple(name for name, count in remaining.items() if not count))


def _positive(model: nn.Module, batches: Batches, names: Collection[str] | None) -> tuple[nn.Module, dict, Tensor]:
    """A copy with absolute values in float64, its weights, and an input of ones."""
    scored_weights(model, names)
    inputs, _ = next(iter(read(batches)))
    positive = copy.deepcopy(model).double()  # products over many layers leave the range of float32
    with torch.no_grad():
        for tensor in (*positive.parameters(), *positive.buffers()):
            tensor.abs_()
    ones = torch.ones_like(inputs[:1])
    return positive, scored_weights(positive, names), ones.double() if ones.is_floating_point() else ones


def _flow(positive: nn.Module, weights: dict[str, nn.Parameter], ones: Tensor) -> Scores:
    with scoring(positive, weights):
        flow = positive(ones).sum()
        gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True, materialize_grads=True)
    if not flow.isfinite():
        raise ValueError(f"the flow must be finite, got {flow.item()}; scale the weights down")
    return {name: (g * weights[name]).detach() for name, g in zip(weights, gradients, strict=True)}
