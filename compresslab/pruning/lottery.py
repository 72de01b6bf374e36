"""Lottery tickets: a small part of a network that learns as well as the whole, if it starts from the same weights.

Train, remove the smallest weights, put what is left back to what it was at the start, and again: what survives is a
mask on the initial weights, the ticket. In larger networks the start is too early: the weights are put back to an early
step k instead (rewinding), 0.1 to 7 % of the way. The claim is in the controls: the same number of weights at random
places (``random_masks``), and the same places with other initial weights (``shuffle_weights``), learn worse.

What has to be kept at step k to go back there: the state dict (weights and buffers), and so that the training from
there is the same, the state of the optimizer, the step that the learning rate stands at, and the order of the data.
Here the model given is the one at step k, and the training function goes from there to the end.

    Frankle and Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks", 2019,
    https://arxiv.org/abs/1803.03635
    Frankle, Dziugaite, Roy and Carbin, "Linear mode connectivity and the lottery ticket hypothesis", 2020,
    https://arxiv.org/abs/1912.05671 (rewinding)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.pruning.iterative import IterativelyPruned, Train, check_rounds, round_sparsity, run_training
from compresslab.pruning.masks import apply_masks
from compresslab.pruning.unstructured import magnitude_masks
from compresslab.pruning.weights import choose_weights

__all__ = ["Ticket", "find_ticket", "random_masks", "shuffle_weights"]


@dataclass(frozen=True, eq=False)
class Ticket(IterativelyPruned):
    """Initial weights and a mask; ``model`` is where its training starts, not where it ends."""

    dense: nn.Module  # trained in the first round, before anything was removed: what the ticket is compared with


def find_ticket(
    model: nn.Module,
    train: Train,
    *,
    sparsity: float = 0.8,
    rounds: int = 3,
    scope: str = "global",
    names: Iterable[str] | None = None,
) -> Ticket:
    """The weights of ``model`` that are left when training and pruning took turns, all as they were given.

    Args:
        model: untrained, or after the first k steps: the weights and buffers that each round goes back to.
        train: called with a sparse model and its masks (none in the first round), gives the trained model. It trains
            from step k to the end, each time in the same way, and puts the masks back after each step.
        sparsity: the fraction removed in the end, 0..1.
        rounds: trainings, at least 1; each removes the same share of what is left.
        scope, names: as in ``prune_magnitude``.

    Raises:
        ValueError: as ``prune_iteratively``. TypeError: ``train`` does not return a module.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
        >>> def train(model, masks):  # the first weight learns more
        ...     _ = model.weight.data.mul_(torch.tensor([[5.0, 1.0]]))
        ...     return model
        >>> find_ticket(layer, train, sparsity=0.5, rounds=1).model.weight.tolist()
        [[1.0, 0.0]]
    """
    check_rounds(rounds)
    start, skipped = copy.deepcopy(model), choose_weights(model, names)[1]
    masks, history, dense = {}, [], None
    for number in range(1, rounds + 1):
        trained = run_training(train, apply_masks(start, masks), dict(masks))
        dense = trained if dense is None else dense
        weights, _ = choose_weights(trained, names)
        history.append(round_sparsity(sparsity, number, rounds))
        masks = magnitude_masks(weights, history[-1], scope=scope, within=masks or None)
    return Ticket(apply_masks(start, masks), masks, skipped, tuple(history), dense=dense)


def random_masks(masks: Mapping[str, Tensor], *, generator: torch.Generator) -> dict[str, Tensor]:
    """Masks that keep as many weights of each tensor, at random places: the control for where they are.

    Args:
        masks: by parameter, bool.
        generator: draws the places, on the CPU.

    Example:
        >>> found = random_masks({"w": torch.tensor([True, False, False])}, generator=torch.Generator().manual_seed(0))
        >>> int(found["w"].sum())
        1
    """
    return {name: _shuffled(mask, generator) for name, mask in masks.items()}


def shuffle_weights(model: nn.Module, masks: Mapping[str, Tensor], *, generator: torch.Generator) -> nn.Module:
    """A new model with the same masks on other initial weights: those of each tensor in random order.

    Drawn anew, and yet from what the tensor was initialized with, however that was done.

    Args:
        model: dense and untrained; it is left as it was.
        masks: of the ticket, by parameter.
        generator: draws the order, on the CPU.

    Raises:
        ValueError: a name is unknown, or a mask does not fit.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, 1.0]]))
        >>> shuffle_weights(layer, {"weight": torch.tensor([[True, False]])}, generator=torch.Generator()).weight.tolist()
        [[1.0, 0.0]]
    """
    result = apply_masks(model, {name: torch.ones_like(mask) for name, mask in masks.items()})  # also checks the masks
    for name in masks:
        weight = result.get_parameter(name)
        weight.data.copy_(_shuffled(weight.data, generator))
    return apply_masks(result, masks)


def _shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    return x.flatten()[torch.randperm(x.numel(), generator=generator).to(x.device)].reshape(x.shape)
