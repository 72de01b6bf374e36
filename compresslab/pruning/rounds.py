"""Pruning and repair in turns: a little is removed, what is left is fitted to the model before, and ranked anew.

One large cut leaves more to repair than a linear fit can do. In k rounds the cost falls by the same factor each time,
target^(1/k), and each fit starts from a model that is nearly right.

    He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", 2017,
    https://arxiv.org/abs/1707.06168, section 3.2 (layer by layer there)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from compresslab.pruning.channels import Pruned, prune_to
from compresslab.pruning.layer_inputs import inputs_of
from compresslab.pruning.reconstruction import reconstruct

__all__ = ["prune_in_rounds"]


def prune_in_rounds(
    model: nn.Module,
    batches: Iterable,
    *,
    target: float,
    rounds: int = 5,
    measure: str | Callable[[nn.Module], float] = "macs",
    scores: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
    ignore: Collection[str | type] = (),
    scope: str = "global",
    ridge: float = 1e-3,
) -> Pruned:
    """A smaller model that costs a fraction of the given one, repaired after each of several cuts; no labels, no training.

    Args:
        model: takes one tensor; is left as it is.
        batches: of (inputs, labels), the labels are not used. Some hundred images do.
        target: fraction of the cost that is left, 0 < target < 1.
        rounds: of pruning and repair, at least 1.
        measure, ignore, scope: as in ``prune_to``.
        scores: a function of a model, called in each round; None is the L2 norm.
        ridge: as in ``reconstruct``.

    Returns:
        The smaller model, and the indices kept of ``model``. Its weights are not the original's (``exact`` is False).

    Raises:
        ValueError: as ``prune_to`` and ``reconstruct``, or ``rounds`` is out of range.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1; try 5")
    if not 0 < target < 1:
        raise ValueError(f"target={target} must be above 0 and below 1, the fraction of the cost that is left; try 0.5")
    inputs = inputs_of(batches)
    current, kept, removed = model, {}, {}
    for _ in range(rounds):
        options = {"measure": measure, "scores": scores, "ignore": ignore, "scope": scope}
        step = prune_to(current, inputs[0][:1], target=target ** (1 / rounds), **options)
        current = reconstruct(current, step, [(x, None) for x in inputs], ridge=ridge).model
        for name, axes in step.kept.items():
            for axis, indices in axes.items():
                own = kept.setdefault(name, {})
                own[axis] = own[axis][indices] if axis in own else indices
        removed = {n: removed.get(n, 0) + step.removed.get(n, 0) for n in {**removed, **step.removed}}
    return replace(step, model=current, kept=kept, removed=removed, exact=False)
