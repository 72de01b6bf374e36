"""The score of a unit: the sum over the slices that go with it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from compresslab.pruning.groups import Group

__all__ = ["Scores", "score_units", "why_not"]

Scores = Mapping[str, Tensor]


def score_units(group: Group, tensors: Mapping[str, Tensor], scores: Scores) -> Tensor:
    """One score for each unit of a group, in float64."""
    total, known = torch.zeros(group.units, dtype=torch.float64), False
    for (name, axis), (unit, index) in group.members.items():
        tensor = tensors[name]
        if name not in scores:
            continue
        score = scores[name].detach().double()
        if score.shape == tensor.shape:
            score = score.movedim(axis, 0).flatten(1).sum(1) if score.dim() > 1 else score
        elif score.shape != tensor.shape[axis : axis + 1] and (name, axis) in group.producers:
            raise ValueError(
                f"the scores of {name} have shape {tuple(score.shape)}; give {tuple(tensor.shape)}, or one for each of its"
                f" {tensor.shape[axis]} outputs"
            )
        elif (name, axis) not in group.producers:
            continue  # one for each output of the layer says nothing of its inputs
        total.index_add_(0, unit, score.cpu()[index])
        known = True
    if not known:
        names = ", ".join(dict.fromkeys(name for name, _ in group.members))
        raise ValueError(
            f"no scores for the channels of {group.name}; give them for one of {names}, or ignore the layer"
        )
    return total


def why_not(unprunable: Mapping[str, str]) -> str:
    """The first reasons, for a message."""
    return "; ".join(f"{name}: {reason}" for name, reason in list(unprunable.items())[:5])
