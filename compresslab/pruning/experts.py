"""Whole experts taken out, with what points at them: their rows of the router, and the counts in the configuration.

A softmax over the experts that are left is the softmax over all of them with the others' logits at minus infinity, so
a model without expert e computes what the original computes with h_e = -inf. Scores of experts, higher means keep:
usage, mean gate, contribution (``routing.py``), or the oracle here: take one out, measure the loss.

    Lu et al., "Not all experts are equal: efficient expert pruning and skipping for mixture-of-experts large language
    models", 2024, https://arxiv.org/abs/2402.14800; Lasby et al., "REAP the experts", 2025,
    https://arxiv.org/abs/2510.13999
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.pruning.expert_layers import COUNTS, TOP_K, MoELayer, find_moe_layers
from compresslab.pruning.masks import check_finite

__all__ = ["FewerExperts", "drop_experts", "expert_oracle", "lowest_experts"]


@dataclass(frozen=True, eq=False)
class FewerExperts:
    """A model with fewer experts."""

    model: nn.Module
    kept: dict[str, Tensor]  # by layer: the numbers of the experts that stay, int64, as they were in the original
    removed: dict[str, list[int]]  # by layer; with a fresh original, ``drop_experts`` makes the same shapes again
    unprunable: dict[str, str]  # what looks like a layer of experts and is none, and why
    notes: list[str]  # what else had to change


def drop_experts(model: nn.Module, experts: Mapping[str, Sequence[int]]) -> FewerExperts:
    """A new model without these experts: weights, router rows and counts are gone, nothing points at them.

    Where fewer than k are left, the layer's k goes down to them. Counts in the model's ``config`` (dict or object)
    follow if all layers keep equally many; else there is a note.

    Args:
        model: any module with layers that ``find_moe_layers`` knows; is left as it is.
        experts: numbers of those that go, from 0, by the name of the layer.

    Raises:
        ValueError: as ``find_moe_layers``; a layer or expert is not there; a layer would keep none; nothing would go.

    Example:
        >>> layer = nn.Module()
        >>> layer.router = nn.Linear(4, 3)
        >>> layer.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        >>> layer.top_k = 2
        >>> smaller = drop_experts(nn.Sequential(layer), {"0": [1]})
        >>> smaller.model[0].router.weight.shape, len(smaller.model[0].experts), smaller.kept["0"].tolist()
        (torch.Size([2, 4]), 2, [0, 2])
    """
    found = find_moe_layers(model)
    removed = {name: sorted(set(numbers)) for name, numbers in experts.items() if len(numbers)}
    for name, numbers in removed.items():
        if name not in found.layers:
            raise ValueError(f"{name!r} is no layer of experts; those are {', '.join(found.layers)}")
        count = found.layers[name].count
        if not 0 <= numbers[0] <= numbers[-1] < count:
            raise ValueError(f"experts {numbers} of {name} must be among 0..{count - 1}")
        if len(numbers) == count:
            raise ValueError(f"experts {numbers} of {name} are all it has; keep one, or remove the layer")
    if not removed:
        raise ValueError(f"experts={dict(experts)} must name at least one expert to drop")
    result, notes = copy.deepcopy(model), []
    kept = {name: _without(layer.count, removed.get(name, [])) for name, layer in found.layers.items()}
    for name in removed:
        layer = found.layers[name]
        _keep_rows(result, layer, kept[name])
        if len(kept[name]) < layer.top_k:
            notes.append(f"{name}: top_k {layer.top_k} is now {len(kept[name])}, all experts that are left")
    notes += _follow(result, found.layers, kept)
    return FewerExperts(result, kept, removed, found.unprunable, notes)


def lowest_experts(
    scores: Mapping[str, Tensor], *, ratio: float, scope: str = "layer", least: int = 1
) -> dict[str, list[int]]:
    """The experts of lowest score, exactly as many as asked for; of equal ones the first.

    Args:
        scores: (E,) by layer, higher means keep: contributions, usage, or what the oracle says.
        ratio: the fraction removed, 0..1.
        scope: ``"layer"`` takes round(ratio E) of each layer, ``"global"`` the lowest of all.
        least: experts that each layer keeps.

    Returns:
        For ``drop_experts``. With a high ratio fewer may go, as each layer keeps ``least``.

    Raises:
        ValueError: an option is out of range, or scores are not finite.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 0.5])}
        >>> lowest_experts(scores, ratio=0.5), lowest_experts(scores, ratio=0.5, scope="global", least=0)
        ({'a': [0], 'b': [1]}, {'a': [0], 'b': [1]})
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio={ratio} must be the fraction removed, 0..1")
    if scope not in ("layer", "global"):
        raise ValueError(f"scope={scope!r} must be 'layer' or 'global'")
    for name, values in scores.items():
        check_finite(values, f"scores of {name}")
    parts = [[name] for name in scores] if scope == "layer" else [list(scores)]
    chosen: dict[str, list[int]] = {name: [] for name in scores}
    for names in parts:
        places = [(float(score), name, n) for name in names for n, score in enumerate(scores[name])]
        wanted = round(ratio * len(places))
        for _, name, number in sorted(places, key=lambda place: place[0]):
            if wanted and len(scores[name]) - len(chosen[name]) > least:
                chosen[name].append(number)
                wanted -= 1
    return {name: sorted(numbers) for name, numbers in chosen.items()}


def expert_oracle(model: nn.Module, loss: Callable[[nn.Module], float]) -> dict[str, Tensor]:
    """By how much the loss rises without each expert, one at a time: what all other scores guess at.

    Args:
        model: is left as it is; the loss is measured once, and once more for each expert.
        loss: of a model in eval mode, on held-out data.

    Returns:
        (E,) float64 by layer. A layer with one expert is not there.

    Raises:
        ValueError: as ``find_moe_layers``.
    """
    layers = find_moe_layers(model).layers.values()
    base = float(loss(copy.deepcopy(model).eval()))

    def rise(layer: MoELayer, expert: int) -> float:
        return float(loss(drop_experts(model, {layer.name: [expert]}).model.eval())) - base

    return {
        layer.name: torch.tensor([rise(layer, expert) for expert in range(layer.count)], dtype=torch.float64)
        for layer in layers
        if layer.count > 1
    }


def _keep_rows(model: nn.Module, layer: MoELayer, keep: Tensor) -> None:
    """Cut a layer of ``model``, in place, to the experts ``keep``: router, experts, counts and top_k."""
    router, bank = model.get_submodule(layer.router), model.get_submodule(layer.experts)
    for module in (router, bank) if layer.fused else (router,):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.dim() and len(tensor) == layer.count:
                cut = tensor.detach()[keep.to(tensor.device)].clone()
                value = nn.Parameter(cut, tensor.requires_grad) if name in module._parameters else cut
                setattr(module, name, value)
    if not layer.fused:
        gone = set(range(layer.count)) - set(keep.tolist())
        for number in sorted(gone, reverse=True):
            del bank[number]
    if isinstance(router, nn.Linear):
        router.out_features = len(keep)
    for module in (model.get_submodule(layer.name), router, bank):
        _set(module, COUNTS, layer.count, len(keep))
        if layer.top_k > len(keep):
            _set(module, TOP_K, layer.top_k, len(keep))


def _without(count: int, gone: Sequence[int]) -> Tensor:
    return torch.tensor([number for number in range(count) if number not in gone], dtype=torch.int64)


def _set(holder: object, names: Sequence[str], old: int, new: int) -> None:
    """Every whole number ``old`` under one of the names becomes ``new``."""
    for name in names:
        if isinstance(holder, dict):
            if holder.get(name) == old:
                holder[name] = new
        elif type(getattr(holder, name, None)) is int and getattr(holder, name) == old:
            setattr(holder, name, new)


def _follow(model: nn.Module, layers: Mapping[str, MoELayer], kept: Mapping[str, Tensor]) -> Iterator[str]:
    """The counts of the whole model and its configuration, if one number says it all."""
    before = {(layer.count, layer.top_k) for layer in layers.values()}
    after = {(len(kept[name]), min(layer.top_k, len(kept[name]))) for name, layer in layers.items()}
    if len(before) > 1 or len(after) > 1:
        yield "layers keep different numbers of experts, which no config says; load weights into drop_experts(original)"
        return
    (old,), (new,) = before, after
    for holder in (getattr(model, "config", None), model):
        for names, was, now in zip((COUNTS, TOP_K), old, new, strict=True):
            _set(holder, names, was, now)
