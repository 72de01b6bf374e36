"""Structured pruning: whole channels, neurons and heads are removed, and the model is smaller and faster for it.

Units of one group are ranked by their scores: sums over all slices that go with a unit, so a channel that is written
by weak weights and read by strong ones is worth something. By default the score is the mean over a unit's weights of

    sum_{w in slice} w^2 / mean over the group's units of the same        (L2 norm, Li et al., per member)

The lowest go: in each group the same fraction, or the lowest of the whole model.

    Li, Kadav, Durdanovic, Samet and Graf, "Pruning filters for efficient ConvNets", 2016,
    https://arxiv.org/abs/1608.08710; Fang et al., "DepGraph", 2023, https://arxiv.org/abs/2301.12900, section 3.3
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compresslab.pruning.copying import shadow
from compresslab.pruning.groups import Dependencies
from compresslab.pruning.plan import Plan
from compresslab.pruning.running import call
from compresslab.pruning.surgery import cut
from compresslab.pruning.tryout import find_conflicts
from compresslab.pruning.unit_scores import Scores, why_not

__all__ = ["Pruned", "count_macs", "prune_channels", "prune_to", "remove_units"]


@dataclass(frozen=True, eq=False)
class Pruned:
    """A smaller model, and what was kept of the original."""

    model: nn.Module
    kept: dict[str, dict[int, Tensor]]  # parameter or buffer: axis: indices that stay; what is not named is whole
    unprunable: dict[str, str]  # weight: why none, or how many, of its outputs can be removed
    removed: dict[str, int]  # group: units removed
    exact: bool  # the original with these slices zeroed computes the same; not after a repair or ``through_norms``


def prune_channels(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | Mapping[str, float] = 0.5,
    scores: Scores | Callable[[nn.Module], Scores] | None = None,
    ignore: Collection[str | type] = (),
    round_to: int = 1,
    scope: str = "group",
    minimum: int = 1,
    through_norms: bool = False,
) -> Pruned:
    """A smaller model without the channels, neurons and heads of lowest score.

    Args:
        model: any module; is left as it is.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; small ones do.
        ratio: of units removed, 0 <= ratio < 1, rounded down; or one for each of some layers, by the name of a module
            or weight, while the others stay.
        scores: by parameter (its shape) or by layer (one for each output channel), higher means keep; what goes
            together is summed over those given. Or a function that makes them from the model. None is the L2 norm.
        ignore: names of modules or weights, or types of modules, whose outputs stay.
        round_to: channels that are left are a multiple of it, where some are removed.
        scope: ``"group"`` removes the same fraction of each group, ``"global"`` the lowest scores of all.
        minimum: units that each group keeps, at least 1.
        through_norms: also cut what LayerNorm and the like take statistics over; the function then changes by more than
            the channels lost.

    Returns:
        The smaller model (same class, ordinary module) in the mode of the one given.

    Raises:
        ValueError: nothing can be pruned, an option is out of range, a name is unknown or cannot be pruned, scores do
            not fit, weights are not finite, or the model does not run on the inputs.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1.0], [9.0, 9.0], [2.0, 2.0], [8.0, 8.0]]))
        >>> pruned = prune_channels(model, torch.ones(1, 2), ratio=0.5, scores={"0.weight": model[0].weight.abs()})
        >>> pruned.kept["2.weight"][1].tolist(), pruned.model[2].weight.shape
        ([1, 3], torch.Size([3, 2]))
    """
    # One ratio for each group needs no trial before what is really removed is tried.
    tried = scope == "global" or isinstance(ratio, Mapping)
    plan = Plan(model, example_inputs, scores, ignore, round_to, scope, minimum, through_norms, tried=tried)
    ratios = ratio if isinstance(ratio, Mapping) else dict.fromkeys(plan.found.groups, ratio)
    for value in ratios.values():
        if not 0 <= value < 1:
            raise ValueError(f"ratio={value} must be at least 0 and below 1, the fraction that is removed; try 0.5")
    if isinstance(ratio, Mapping):
        ratios = plan.by_group(ratio)
    if scope == "global":
        if isinstance(ratio, Mapping):
            raise ValueError("scope='global' takes one ratio for all; with one for each layer use scope='group'")
        return _remove(plan, plan.lowest(int(ratio * sum(group.units for group in plan.found.groups.values()) + 1e-9)))
    return _remove(plan, {name: int(ratios.get(name, 0) * g.units + 1e-9) for name, g in plan.found.groups.items()})


def prune_to(
    model: nn.Module,
    example_inputs: Any,
    *,
    target: float,
    measure: str | Callable[[nn.Module], float] = "macs",
    scores: Scores | Callable[[nn.Module], Scores] | None = None,
    ignore: Collection[str | type] = (),
    round_to: int = 1,
    scope: str = "group",
    minimum: int = 1,
) -> Pruned:
    """A smaller model that costs at most a fraction of the given one, as near to it as one unit more or less allows.

    Args:
        model, example_inputs, scores, ignore, round_to, scope, minimum: as in ``prune_channels``.
        target: fraction of the cost that is left, 0 < target < 1.
        measure: ``"macs"`` (multiply-accumulates on the example inputs), ``"parameters"``, or a function of a model that
            falls when units are removed (measured seconds, bytes, energy). It is called for about log2(units) + 3
            models; where it falls in steps, as latency does, the result is on the lower side of the step at the target.

    Raises:
        ValueError: as ``prune_channels``; or the target cannot be reached.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 3))
        >>> prune_to(model, torch.ones(1, 2), target=0.5, measure="parameters").model  # 243 -> 123 is 0.506 of it
        Sequential(
          (0): Linear(in_features=2, out_features=19, bias=True)
          (1): ReLU()
          (2): Linear(in_features=19, out_features=3, bias=True)
        )
    """
    if not 0 < target < 1:
        raise ValueError(f"target={target} must be above 0 and below 1, the fraction of the cost that is left; try 0.5")
    if measure == "macs":
        cost: Callable[[nn.Module], float] = lambda candidate: count_macs(candidate, example_inputs)  # noqa: E731
    elif measure == "parameters":
        cost = lambda candidate: sum(parameter.numel() for parameter in candidate.parameters())  # noqa: E731
    elif callable(measure):
        cost = measure
    else:
        raise ValueError(f"measure={measure!r} must be 'macs', 'parameters' or a function of a model")
    plan = Plan(model, example_inputs, scores, ignore, round_to, scope, minimum, False)
    limit = target * cost(model)
    few, many = 0, len(plan.order)  # units removed: too expensive with few, not with many
    least = cost(plan.smaller(plan.lowest(many)))
    if least > limit:
        raise ValueError(
            f"target={target} cannot be reached: with all that may be removed the cost is {least / limit * target:.3f} of"
            " the model's; raise it, or lower minimum, or ignore less"
        )
    while many - few > 1:
        middle = (few + many) // 2
        if cost(plan.smaller(plan.lowest(middle))) > limit:
            few = middle
        else:
            many = middle
    return _remove(plan, plan.lowest(many))


@torch.no_grad()
def count_macs(model: nn.Module, example_inputs: Any) -> int:
    """Multiply-accumulates of matrix products and convolutions in one run, counted from the shapes.

    Example:
        >>> count_macs(nn.Linear(3, 5), torch.ones(2, 3))
        30
    """
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng(devices=[]), counter:
        call(shadow(model), example_inputs)
    return counter.get_total_flops() // 2


def remove_units(model: nn.Module, found: Dependencies, removed: Mapping[str, Tensor], example_inputs: Any) -> Pruned:
    """A smaller model without the units named; groups that the code cannot follow for these keep theirs.

    Args:
        model: is left as it is.
        found: its dependencies.
        removed: units, by group.
        example_inputs: the smaller model is run on them.
    """
    unprunable, removed = dict(found.unprunable), {name: units for name, units in removed.items() if len(units)}
    while blamed := find_conflicts(model, found, removed, example_inputs):
        reasons = {weight: why for name, why in blamed.items() for weight, _ in found.groups[name].producers}
        unprunable = reasons | unprunable
        removed = {name: units for name, units in removed.items() if name not in blamed}
    if not removed:
        ended = "nothing can be pruned" if unprunable != found.unprunable else "nothing is left to remove"
        raise ValueError(f"{ended}, because {why_not(unprunable) or 'no unit is asked for'}")
    kept = found.kept(removed)
    counts = {name: len(units) for name, units in removed.items()}
    return Pruned(cut(model, kept), kept, unprunable, counts, exact=not found.through_norms)


def _remove(plan: Plan, counts: Mapping[str, int]) -> Pruned:
    return remove_units(plan.model, plan.found, plan.units(counts), plan.inputs)
