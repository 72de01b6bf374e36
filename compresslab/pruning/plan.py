"""Which units go first: scores of what goes together, and one order for the whole model."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compresslab.pruning.dependency import find_dependencies, untried_dependencies
from compresslab.pruning.groups import Group
from compresslab.pruning.running import named_tensors
from compresslab.pruning.surgery import cut
from compresslab.pruning.unit_norms import UnitNorms
from compresslab.pruning.unit_scores import Scores, score_units, why_not

__all__ = ["Plan"]


class Plan:
    """What may be removed from a model, in which order."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, scores: Any, ignore: Collection[str | type], round_to: int,
        scope: str, minimum: int, through_norms: bool, *, tried: bool = True,
    ) -> None:  # fmt: skip
        for name, value in (("round_to", round_to), ("minimum", minimum)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number of at least 1; try 8")
        if scope not in ("group", "global"):
            raise ValueError(f"scope={scope!r} must be 'group' or 'global'")
        self.model, self.inputs, self.round_to, self.minimum = model, example_inputs, round_to, minimum
        self.tensors = named_tensors(model)
        for name, tensor in self.tensors.items():
            if tensor.is_meta:
                raise ValueError(f"{name} is on the meta device and has no values to rank; load the weights first")
            # A sum is finite only if all values are, but may overflow.
            if tensor.is_floating_point() and not tensor.detach().sum().isfinite() and not tensor.isfinite().all():
                raise ValueError(f"{name} holds a value that is not finite; mend the weights before pruning")
        find = find_dependencies if tried else untried_dependencies
        found = find(model, example_inputs, through_norms=through_norms)
        groups, unprunable = dict(found.groups), dict(found.unprunable)
        for item in ignore:
            names = [n for n, m in model.named_modules() if isinstance(item, type) and isinstance(m, item)]
            for name in [item] if isinstance(item, str) else names:
                for group in self.groups_of(name, found.groups.values()) or self._known(name):
                    groups.pop(group.name, None)
                    unprunable[group.name] = f"ignore names {item if isinstance(item, str) else item.__name__}"
        self.found = replace(found, groups=groups, unprunable=unprunable)
        if not groups:
            raise ValueError(f"nothing can be pruned, because {why_not(unprunable) or 'no layer feeds another'}")
        self.scope, self._scores, self._norms = scope, {}, UnitNorms(self.tensors)
        self.given = self._named(scores(model) if callable(scores) else scores)

    def scores(self, name: str) -> Tensor:
        if name not in self._scores:
            group = self.found.groups[name]
            given = self.given
            self._scores[name] = self._norms(group) if given is None else score_units(group, self.tensors, given)
        return self._scores[name]

    @functools.cached_property
    def order(self) -> list[str]:
        """Whose next unit goes, one entry for each that may."""
        keyed = []
        for name, group in self.found.groups.items():
            lowest = self.scores(name).sort().values.tolist()[: max(group.units - self.minimum, 0)]
            keys = lowest if self.scope == "global" else [place / group.units for place in range(1, len(lowest) + 1)]
            keyed += [(key, name) for key in keys]
        return [name for _, name in sorted(keyed, key=lambda pair: pair[0])]

    def lowest(self, count: int) -> dict[str, int]:
        """How many of each group are among the first to go."""
        counts = dict.fromkeys(self.found.groups, 0)
        for name in self.order[:count]:
            counts[name] += 1
        return counts

    def units(self, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """The units of lowest score, so many that no group is too small and widths are multiples."""
        removed = {}
        for name, count in counts.items():
            group = self.found.groups[name]
            count = max(min(count, group.units - self.minimum), 0)
            while count and any(left % self.round_to for left in self._widths(group, count)):
                count -= 1
            removed[name] = self.scores(name).argsort(stable=True)[:count] if count else torch.arange(0)
        return removed

    def _widths(self, group: Group, count: int) -> list[int]:
        """Channels of each layer when so many units are gone."""
        return [
            self.tensors[name].shape[axis] - count * len(group.members[name, axis][0]) // group.units
            for name, axis in group.producers
        ]

    def smaller(self, counts: Mapping[str, int]) -> nn.Module:
        return cut(self.model, self.found.kept(self.units(counts)))

    def groups_of(self, name: str, groups: Collection[Group]) -> list[Group]:
        """The groups that a layer with this name, or one inside it, puts out."""
        return [g for g in groups if any(n == name or n.startswith(f"{name}.") for n, _ in g.producers)]

    def by_group(self, ratios: Mapping[str, float]) -> dict[str, float]:
        result: dict[str, float] = {}
        for name, value in ratios.items():
            groups = self.groups_of(name, self.found.groups.values())
            if not groups:
                self._known(name)
                why = [r for n, r in self.found.unprunable.items() if n == name or n.startswith(f"{name}.")]
                raise ValueError(
                    f"{name} cannot be pruned: {why[0] if why else 'it puts out no channels'}; leave it out"
                )
            for group in groups:
                if result.setdefault(group.name, value) != value:
                    raise ValueError(
                        f"{name} goes together with a layer of another ratio ({result[group.name]}, {value})"
                    )
        return result

    def _known(self, name: str) -> list[Group]:
        known = [*self.tensors, *(n for n, _ in self.model.named_modules())]
        if name not in known:
            near = difflib.get_close_matches(name, known, 3, 0.3)
            raise ValueError(
                f"{name!r} is no layer or weight of the model; did you mean {' or '.join(near) or known[0]}?"
            )
        return []

    def _named(self, scores: Scores | None) -> Scores | None:
        """Scores by parameter, those of a layer under its weight."""
        if scores is None:
            return None
        result = {}
        for name, score in scores.items():
            self._known(name)
            if not torch.isfinite(score).all():
                raise ValueError(f"the scores of {name} are not all finite; mend them before pruning")
            result[name if name in self.tensors else f"{name}.weight"] = score
        return result
