"""Pruning in steps, with training in between: what is left learns to do without what is gone before more is taken.

*Iterative*: prune, fine-tune, prune more, a few times; each round removes the same share of what is left, so that after
round r of n the sparsity is 1 - (1 - s)^(r/n). *Gradual*: prune a little every few steps of one training run, on a
schedule (``schedule.py``). Which is better is a question of the budget: compare at the same number of training steps.

Masks are set to a sparsity of the whole, never applied to what an earlier one left: six times 30 % is then 30 %, where
others end at 88 %. What is gone is zero, has the lowest score, and stays gone while the sparsity rises.

    Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural networks", 2015,
    https://arxiv.org/abs/1506.02626, section 3
    Zhu and Gupta, "To prune, or not to prune", 2017, https://arxiv.org/abs/1710.01878, section 3
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from compresslab.pruning.masks import check_sparsity, enforce
from compresslab.pruning.unstructured import magnitude_masks
from compresslab.pruning.weights import Sparse, choose_weights

__all__ = ["GradualPruner", "IterativelyPruned", "prune_iteratively", "round_sparsity"]

Train = Callable[[nn.Module, dict[str, Tensor]], nn.Module]


@dataclass(frozen=True, eq=False)
class IterativelyPruned(Sparse):
    """A model pruned and trained in rounds."""

    history: tuple[float, ...]  # the sparsity of each round, 0..1


class GradualPruner:
    """Prunes a model while it is trained: call it with the model after each optimizer step.

    It changes that model in place: weights that are gone are set to zero after each step, and where the schedule has
    moved, the masks are found anew from the magnitudes.

    Args:
        schedule: the sparsity after so many steps, such as ``lambda step: cubic_sparsity(step, end=400)``.
        scope: ``"global"`` or ``"layer"``, as in ``prune_magnitude``.
        names: of parameters, or all matrices and kernels.
        step: steps that were done before, when a training run is taken up again.

    Example:
        >>> pruner, layer = GradualPruner(lambda step: step / 4), nn.Linear(2, 2)
        >>> for _ in range(3):
        ...     pruner(layer)  # a training loop calls it behind optimizer.step()
        >>> pruner.step, pruner.sparsity, int((layer.weight == 0).sum())
        (3, 0.75, 3)
    """

    def __init__(
        self,
        schedule: Callable[[int], float],
        *,
        scope: str = "global",
        names: Iterable[str] | None = None,
        step: int = 0,
    ) -> None:
        self.step, self.sparsity = step, 0.0
        self.masks: dict[str, Tensor] = {}
        self._schedule, self._scope, self._names = schedule, scope, None if names is None else list(names)

    def __call__(self, model: nn.Module) -> None:
        """Count one step, and set to zero what is to be zero after it."""
        self.step += 1
        enforce(self.masks)(model)
        target = self._schedule(self.step)
        if target != self.sparsity:
            weights, _ = choose_weights(model, self._names)
            self.masks = magnitude_masks(weights, target, scope=self._scope)
            self.sparsity = target
            enforce(self.masks)(model)


def prune_iteratively(
    model: nn.Module,
    fine_tune: Train,
    *,
    sparsity: float = 0.9,
    rounds: int = 5,
    scope: str = "global",
    names: Iterable[str] | None = None,
) -> IterativelyPruned:
    """A new model pruned by magnitude in rounds, each followed by fine-tuning.

    Args:
        model: any module; it is left as it was.
        fine_tune: called with a sparse model and its masks, gives the trained model. It has to put the masks back after
            each step: ``fit(model, train, after_step=enforce(masks)).model``.
        sparsity: the fraction removed in the end, 0..1.
        rounds: at least 1; 1 is one-shot pruning, fine-tuned.
        scope, names: as in ``prune_magnitude``.

    Raises:
        ValueError: as ``prune_magnitude``, or ``rounds`` is less than 1.
        TypeError: ``fine_tune`` does not return a module.

    Example:
        >>> result = prune_iteratively(nn.Linear(4, 4), lambda model, masks: model, sparsity=0.75, rounds=2)
        >>> result.history, result.sparsity  # half, then half of the rest
        ((0.5, 0.75), 0.75)
    """
    result = copy.deepcopy(model)
    history = []
    for number in range(1, check_rounds(rounds) + 1):
        weights, skipped = choose_weights(result, names)
        history.append(round_sparsity(sparsity, number, rounds))
        masks = magnitude_masks(weights, history[-1], scope=scope)
        enforce(masks)(result)
        result = run_training(fine_tune, result, masks)
        enforce(masks)(result)
    for name, module in model.named_modules():
        result.get_submodule(name).training = module.training
    return IterativelyPruned(result, masks, skipped, tuple(history))


def round_sparsity(sparsity: float, number: int, rounds: int) -> float:
    """The sparsity of a round, so that each removes the same share of what is left.

    Args:
        sparsity: after the last round, 0..1.
        number: of the round, 1..rounds.
        rounds: in all.

    Raises:
        ValueError: ``sparsity`` is out of range.

    Example:
        >>> [round_sparsity(0.75, number, 2) for number in (1, 2)]
        [0.5, 0.75]
    """
    check_sparsity(sparsity)
    return sparsity if number == rounds else 1 - (1 - sparsity) ** (number / rounds)


def check_rounds(rounds: int) -> int:
    """``rounds``, if it is an integer of at least 1."""
    if not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r} must be an integer of at least 1; try 5")
    return rounds


def run_training(train: Train, model: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """What the caller's function returns, if it is a module."""
    result = train(model, masks)
    if not isinstance(result, nn.Module):
        raise TypeError(f"training must return the trained nn.Module, got {type(result).__name__}; try fit(...).model")
    return result
