"""Similar experts merged into one: the most used lead, each other joins the lead that the router treats most alike.

    group(e) = argmax over leads l of cos(h_e, h_l)     over all tokens, h the router's logits
    W = sum over the group of u_e W_e / sum of u_e      u the usage, after the neurons of e are matched to those of l

The order of an expert's neurons is arbitrary, so a mean of two experts neuron by neuron is a mean of unrelated things:
each is first put into the order of the lead. The merged expert gets the lead's row of the router.

    Li et al., "Merge, then compress: demystify efficient SMoE with hints from its routing policy" (MC-SMoE), 2024,
    https://arxiv.org/abs/2310.01334. There the router keeps all rows and several point at one expert; here they are cut.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.pruning.expert_layers import find_moe_layers
from compresslab.pruning.expert_neurons import ExpertParts, expert_parts
from compresslab.pruning.experts import drop_experts
from compresslab.pruning.masks import check_finite

__all__ = ["MergedExperts", "match_neurons", "merge_experts", "merge_groups"]


@dataclass(frozen=True, eq=False)
class MergedExperts:
    """A model with fewer experts, each the mean of a group."""

    model: nn.Module
    groups: dict[str, list[list[int]]]  # by layer, in the new order: numbers in the original, the lead first
    unprunable: dict[str, str]
    notes: list[str]


def merge_groups(usage: Tensor, similarity: Tensor, count: int) -> list[list[int]]:
    """``count`` groups of experts: the most used lead, each other joins the most similar lead.

    Args:
        usage: (E,) higher leads.
        similarity: (E, E), higher is more alike.
        count: groups, 1..E.

    Returns:
        Groups in the order of their leads' numbers, the lead first in each.

    Raises:
        ValueError: shapes or the count do not fit, or values are not finite.

    Example:
        >>> alike = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
        >>> merge_groups(torch.tensor([0.2, 0.5, 0.3]), alike, 2)
        [[1, 0], [2]]
    """
    check_finite(usage, "usage")
    check_finite(similarity, "similarity")
    if similarity.shape != (len(usage), len(usage)):
        raise ValueError(f"similarity {tuple(similarity.shape)} must be ({len(usage)}, {len(usage)}), as many as usage")
    if not 1 <= count <= len(usage):
        raise ValueError(f"count={count} must be in 1..{len(usage)}, the number of experts")
    leads = sorted(usage.argsort(descending=True, stable=True)[:count].tolist())
    groups = {lead: [lead] for lead in leads}
    for expert in range(len(usage)):
        if expert not in groups:
            groups[leads[int(similarity[expert, leads].argmax())]].append(expert)
    return [groups[lead] for lead in leads]


def match_neurons(reference: Tensor, other: Tensor) -> Tensor:
    """The order in which the rows of ``other`` fit those of ``reference``: the closest pair first, each row once.

    Args:
        reference, other: (H, F) features of neurons.

    Returns:
        (H,) int64: ``other[result]`` is to be compared with ``reference``, row by row.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        >>> match_neurons(x, x[[2, 0, 1]]).tolist()
        [1, 2, 0]
    """
    distances = torch.cdist(reference, other, compute_mode="donot_use_mm_for_euclid_dist")
    order = torch.zeros(len(reference), dtype=torch.int64, device=other.device)
    for _ in range(len(reference)):
        row, column = divmod(int(distances.argmin()), len(other))
        order[row] = column
        distances[row], distances[:, column] = torch.inf, torch.inf
    return order


def merge_experts(
    model: nn.Module,
    usage: Mapping[str, Tensor],
    similarity: Mapping[str, Tensor],
    *,
    ratio: float = 0.5,
    align: bool = True,
) -> MergedExperts:
    """A new model with round(ratio E) experts fewer in each layer, the others merged into those that stay.

    Args:
        model: any module with layers that ``find_moe_layers`` knows; is left as it is.
        usage: (E,) by layer, the weights of the mean; as in ``routing_statistics``.
        similarity: (E, E) by layer.
        ratio: the fraction of experts that is gone afterwards, 0..1; one always stays.
        align: match neurons first. Experts in one 3-D parameter are averaged as they are, and ``notes`` say so; those
            whose neurons ``expert_parts`` does not find, or that differ in number, are left alone (``unprunable``).

    Raises:
        ValueError: as ``find_moe_layers`` and ``merge_groups``; ratio is out of range or merges nothing.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio} must be the fraction of experts that goes, 0..1")
    found = find_moe_layers(model)
    merged, unprunable, notes = copy.deepcopy(model), dict(found.unprunable), []
    groups: dict[str, list[list[int]]] = {}
    for name, layer in found.layers.items():
        if name not in usage or name not in similarity:
            raise ValueError(f"usage and similarity must have {name!r}; they have {list(usage)} and {list(similarity)}")
        bank, width = merged.get_submodule(layer.experts), merged.get_submodule(layer.router).weight.shape[1]
        states = [_state(bank, layer.fused, expert) for expert in range(layer.count)]
        if any(states[0][key].shape != state[key].shape for state in states for key in states[0]):
            unprunable[name] = "its experts differ in size, so they have no mean; merge first, then prune neurons"
            continue
        parts = None
        if align and layer.fused:
            notes.append(f"{name}: experts in one parameter are averaged without matching their neurons")
        elif align:
            try:
                parts = expert_parts(bank[0], width)
            except ValueError as error:
                unprunable[name] = f"{error}; align=False averages them all the same"
                continue
        groups[name] = merge_groups(usage[name], similarity[name], max(layer.count - round(ratio * layer.count), 1))
        for group in groups[name]:
            _average([states[expert] for expert in group], usage[name][group], parts)
    removed = {name: [e for group in parts for e in group[1:]] for name, parts in groups.items()}
    if not any(removed.values()):
        raise ValueError(f"ratio={ratio} merges no expert of {', '.join(found.layers)}: {unprunable}; try a larger one")
    fewer = drop_experts(merged, removed)
    return MergedExperts(fewer.model, groups, unprunable, notes + fewer.notes)


def _state(bank: nn.Module, fused: bool, expert: int) -> dict[str, Tensor]:
    """Views of the parameters of one expert."""
    if fused:
        return {name: value.data[expert] for name, value in bank.named_parameters(recurse=False)}
    return {name: value.data for name, value in bank[expert].named_parameters()}


def _average(states: Sequence[dict[str, Tensor]], usage: Tensor, parts: ExpertParts | None) -> None:
    """The first state becomes the weighted mean of all; equal weights if none of them is used."""
    weights = usage.double() if usage.sum() > 0 else torch.ones(len(usage), dtype=torch.float64)
    weights = (weights / weights.sum()).tolist()
    lead = states[0]
    orders = [match_neurons(_features(lead, parts), _features(s, parts)) if parts else None for s in states]
    for name, value in lead.items():
        total = torch.zeros_like(value, dtype=torch.float64)
        for state, order, weight in zip(states, orders, weights, strict=True):
            x = state[name]
            if order is not None and name.rpartition(".")[0] in parts.up:
                x = x[order]
            elif order is not None and name == f"{parts.down}.weight":
                x = x[:, order]
            total += weight * x
        value.copy_(total)


def _features(state: dict[str, Tensor], parts: ExpertParts) -> Tensor:
    """(H, F): all that makes one neuron."""
    ups = [value.reshape(parts.hidden, -1) for name, value in state.items() if name.rpartition(".")[0] in parts.up]
    return torch.cat([*ups, state[f"{parts.down}.weight"].T], dim=1).float()
