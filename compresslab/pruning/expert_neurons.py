"""Neurons inside experts taken out, more of them where an expert is little used.

An expert is a small MLP, f(x) = W_down a(W_up x), or with a gate, W_down (a(W_gate x) * W_up x). Neuron j of it is row j
of W_up (and W_gate) and column j of W_down: with the column zero it does nothing, so both can go. How many neurons each
expert of a layer keeps follows its share u_e of the tokens: seats go one by one to the largest u_e / (n_e + 1), as in
D'Hondt's rule for parliaments, so the total is exact and twice the tokens get twice the neurons.
"""

from __future__ import annotations

import contextlib
import copy
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.pruning.expert_layers import find_moe_layers
from compresslab.pruning.layer_inputs import evaluating
from compresslab.pruning.masks import check_finite

__all__ = ["ExpertParts", "SlimExperts", "expert_parts", "kept_neurons", "prune_expert_neurons"]


@dataclass(frozen=True)
class ExpertParts:
    """The matrices of one expert, by name."""

    up: tuple[str, ...]  # (H, D) each: up, or gate and up
    down: str  # (D, H)
    hidden: int  # H


@dataclass(frozen=True, eq=False)
class SlimExperts:
    """A model whose experts have fewer neurons."""

    model: nn.Module
    kept: dict[str, list[Tensor]]  # by layer, for each expert: the numbers of the neurons that stay, int64
    unprunable: dict[str, str]  # layers that stayed as they are, and why


def kept_neurons(usage: Tensor, hidden: int, *, ratio: float, power: float = 1.0) -> Tensor:
    """How many neurons each expert keeps: more where it is used more, at least one, round((1 - ratio) E H) in all.

    Args:
        usage: (E,) share of the tokens, or any score of 0 and above.
        hidden: neurons that each expert has now (H).
        ratio: the fraction removed over all experts, 0..1.
        power: of the usage: 0 gives all alike, 1 in proportion.

    Returns:
        (E,) int64, each in 1..H.

    Raises:
        ValueError: usage is negative or not finite, or an option is out of its range.

    Example:
        >>> kept_neurons(torch.tensor([0.5, 0.25, 0.25]), 8, ratio=0.5).tolist()  # 12 in proportion 2 : 1 : 1
        [6, 3, 3]
        >>> kept_neurons(torch.tensor([0.9, 0.1, 0.0]), 8, ratio=0.5).tolist()  # at most 8 and at least 1
        [8, 3, 1]
    """
    check_finite(usage, "usage")
    if usage.dim() != 1 or not len(usage) or (usage < 0).any():
        raise ValueError(f"usage={usage.tolist()} must be one number of 0 or more for each expert")
    if not 0 <= ratio <= 1 or hidden < 1 or power < 0:
        raise ValueError(f"ratio={ratio} must be in 0..1, hidden={hidden} at least 1, power={power} at least 0")
    shares = (usage.double() ** power).tolist()
    counts = [1] * len(shares)
    seats = [(-share / 2, expert) for expert, share in enumerate(shares)]
    heapq.heapify(seats)
    for _ in range(max(round((1 - ratio) * len(shares) * hidden) - len(shares), 0)):
        _, expert = heapq.heappop(seats)
        counts[expert] += 1
        if counts[expert] < hidden:
            heapq.heappush(seats, (-shares[expert] / (counts[expert] + 1), expert))
    return torch.tensor([min(count, hidden) for count in counts])


def expert_parts(expert: nn.Module, width: int) -> ExpertParts:
    """Which matrices of an expert make its neurons and which adds them up, found by running it on random tokens.

    Args:
        expert: one MLP of ``nn.Linear``; is left as it is.
        width: of a token (D).

    Raises:
        ValueError: a weight is not finite or on the meta device; it is not Linear layers from D to H and one last from H to D, or its neurons mix in between: without
            half of them it computes something else than with their columns at zero.

    Example:
        >>> expert_parts(nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 2)), 2)
        ExpertParts(up=('0',), down='2', hidden=6)
    """
    order: list[str] = []
    for name, parameter in expert.named_parameters():
        check_finite(parameter, name)
    expert = copy.deepcopy(expert).double()  # in bfloat16 the order of a sum alone changes the result by a percent
    first = next(expert.parameters(), torch.zeros((), dtype=torch.float64))
    probe = torch.randn(5, width, generator=torch.Generator().manual_seed(0)).to(first)
    linears = {name: module for name, module in expert.named_modules() if isinstance(module, nn.Linear)}
    with contextlib.ExitStack() as hooks, evaluating(expert):
        for name, module in linears.items():
            hooks.enter_context(module.register_forward_hook(lambda *_, name=name: order.append(name)))
        expert(probe)
    *up, down = order or [""]
    hidden = linears[down].in_features if up else 0
    if not up or len(set(order)) < len(order) or any(
        (linears[n].in_features, linears[n].out_features) != (width, hidden) for n in up
    ):  # fmt: skip
        raise ValueError(f"an expert must be Linear layers from {width} to H and one from H to {width}, ran {order}")
    parts, keep = ExpertParts(tuple(up), down, hidden), torch.arange(0, hidden, 2)
    zeroed, cut = copy.deepcopy(expert), copy.deepcopy(expert)
    zeroed.get_submodule(down).weight.data[:, 1::2] = 0
    _cut(cut, parts, keep)
    with evaluating(zeroed), evaluating(cut):
        try:
            same = torch.allclose(zeroed(probe), cut(probe), rtol=1e-9, atol=1e-9)
        except RuntimeError:  # something in between wants H numbers
            same = False
    if not same:
        raise ValueError(
            f"the {hidden} neurons must not mix before {down!r}; here half of them cannot go by themselves"
        )
    return parts


def prune_expert_neurons(model: nn.Module, kept: Mapping[str, Tensor | Sequence[int]]) -> SlimExperts:
    """A new model whose experts keep so many neurons, those whose rows and column are the largest.

    The score of neuron j is the product of the norms of its rows of W_up (and W_gate) and its column of W_down.

    Args:
        model: any module with layers that ``find_moe_layers`` knows; is left as it is.
        kept: for each layer, how many neurons each expert keeps (``kept_neurons``).

    Returns:
        The model; experts that lie in one 3-D parameter have to stay equally large and are listed as unprunable.

    Raises:
        ValueError: as ``find_moe_layers``; a layer is not there; counts do not fit; or no layer could be pruned.
    """
    found = find_moe_layers(model)
    wrong = [name for name in kept if name not in found.layers]
    if wrong or not kept:
        raise ValueError(f"kept names {wrong or 'no layer'}; the layers of experts are {', '.join(found.layers)}")
    result, unprunable, stay = copy.deepcopy(model), dict(found.unprunable), {}
    for name, counts in kept.items():
        layer = found.layers[name]
        bank, width = result.get_submodule(layer.experts), result.get_submodule(layer.router).weight.shape[1]
        if layer.fused:
            unprunable[name] = "its experts share one 3-D parameter, which has no room for different sizes"
            continue
        try:
            parts = [expert_parts(expert, width) for expert in bank]
        except ValueError as error:
            unprunable[name] = str(error)
            continue
        numbers, sizes = [int(count) for count in counts], [part.hidden for part in parts]
        if len(numbers) != len(sizes) or not all(1 <= n <= size for n, size in zip(numbers, sizes, strict=True)):
            raise ValueError(f"kept={numbers} of {name} must be one number for each expert, in 1..{sizes}")
        stay[name] = [
            _neuron_scores(expert, part).argsort(descending=True, stable=True)[:count].sort().values.cpu()
            for expert, part, count in zip(bank, parts, numbers, strict=True)
        ]
        for expert, part, keep in zip(bank, parts, stay[name], strict=True):
            _cut(expert, part, keep)
    if not stay:
        raise ValueError(f"no layer of experts could be pruned: {unprunable}; drop whole experts instead")
    return SlimExperts(result, stay, unprunable)


def _neuron_scores(expert: nn.Module, parts: ExpertParts) -> Tensor:
    down = expert.get_submodule(parts.down).weight.detach()
    score = down.to(torch.promote_types(down.dtype, torch.float32)).norm(dim=0)
    for name in parts.up:
        score = score * expert.get_submodule(name).weight.detach().to(score.dtype).norm(dim=1)
    return score


def _cut(expert: nn.Module, parts: ExpertParts, keep: Tensor) -> None:
    down = expert.get_submodule(parts.down)
    places = keep.to(down.weight.device)
    down.weight = nn.Parameter(down.weight.detach()[:, places].clone(), down.weight.requires_grad)
    down.in_features = len(keep)
    for up in map(expert.get_submodule, parts.up):
        up.out_features = len(keep)
        for name, value in up.named_parameters():
            setattr(up, name, nn.Parameter(value.detach()[places].clone(), value.requires_grad))
