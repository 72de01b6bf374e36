"""Layers of experts, found by their structure: a router, its experts, and how many of them work for a token.

A router gives token x the logits h(x) = W_r x over E experts, p = softmax(h). The k experts of largest p are chosen, and
the layer puts out y = sum_e g_e(x) f_e(x) over those, with gates g = p, or p divided by its sum over the chosen.

    Shazeer et al., "Outrageously large neural networks: the sparsely-gated mixture-of-experts layer", 2017,
    https://arxiv.org/abs/1701.06538, equations 1 and 3
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from compresslab.pruning.masks import check_finite

__all__ = ["COUNTS", "TOP_K", "MoELayer", "MoELayers", "experts_at_work", "find_moe_layers", "read_router"]

TOP_K = ("top_k", "num_experts_per_tok", "k")  # what programs call the number of experts at work for a token
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "experts")  # and the number there are
GROUPS = ("num_group", "n_group", "num_expert_group")  # of routers that choose groups of experts first


@dataclass(frozen=True)
class MoELayer:
    """One layer of experts, by names of modules."""

    name: str
    router: str  # the module that holds the weight (E, D)
    experts: str  # an nn.ModuleList, or the module that holds 3-D parameters (E, ...)
    count: int  # E
    top_k: int
    fused: bool  # all experts in one parameter


@dataclass(frozen=True)
class MoELayers:
    """What was recognized in a model."""

    layers: dict[str, MoELayer]
    unprunable: dict[str, str]  # modules that look like experts: why they are not taken for it


def find_moe_layers(model: nn.Module) -> MoELayers:
    """The layers of experts: a module that owns experts, a router with as many outputs, and the number at work.

    Experts are an ``nn.ModuleList`` of one class, or a module all of whose own parameters have the same first axis, two
    of them 3-D (transformers from version 5 on). A router is the only other module inside with a 2-D ``weight`` of as
    many rows. The number at work is an attribute of the layer or its router whose name is in ``TOP_K``.

    Args:
        model: is not run.

    Returns:
        The layers in the order of the model, and what comes close to one with a reason.

    Raises:
        ValueError: there is none, or a parameter is not finite.

    Example:
        >>> layer = nn.Module()
        >>> layer.router = nn.Linear(4, 3)
        >>> layer.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        >>> layer.top_k = 2
        >>> find_moe_layers(nn.Sequential(layer)).layers["0"]
        MoELayer(name='0', router='0.router', experts='0.experts', count=3, top_k=2, fused=False)
    """
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            check_finite(parameter, name)
    layers: dict[str, MoELayer] = {}
    unprunable: dict[str, str] = {}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for child, bank in module.named_children():
            count, fused = _experts_in(bank)
            routers = [n for n, m in module.named_modules() if _routes(n, m, child, count)] if count else []
            top_k = _top_k(_holders(module, "", *routers))
            if not count or not (routers or top_k):
                continue
            place, full = f"{name}.{child}".lstrip("."), [f"{name}.{router}".lstrip(".") for router in routers]
            reason = _reason(module, bank, routers, count, top_k)
            tensors = {id(p): full[0] for p in module.get_submodule(routers[0]).parameters()} if not reason else {}
            tensors |= {id(p): place for p in bank.parameters()}
            shared = next((owners[key] for key in tensors if key in owners), None)
            if shared and not reason:
                reason = f"shares parameters with {shared}: what is cut here would be cut there"
            if reason:
                unprunable[place] = reason
            else:
                layers[name] = MoELayer(name, full[0], place, count, top_k, fused)
                owners |= tensors
    if not layers:
        seen = "; ".join(f"{name}: {reason}" for name, reason in unprunable.items()) or "no list of experts beside one"
        raise ValueError(f"the model must have a router with experts, it has none ({seen}); see find_moe_layers")
    return MoELayers(layers, unprunable)


def experts_at_work(model: nn.Module, layer: MoELayer) -> int:
    """k of a layer as its attributes say now.

    Example:
        >>> layer = nn.Module()
        >>> layer.router, layer.top_k = nn.Linear(4, 1), 1
        >>> experts_at_work(layer, MoELayer("", "router", "experts", count=1, top_k=1, fused=False))
        1
    """
    return _top_k(_holders(model, layer.name, layer.router))


def read_router(output: object, top_k: int) -> tuple[Tensor, Tensor, Tensor, bool]:
    """What a router decided, of what it returned: logits (T, E), chosen (T, k), gates (T, k), and whether it said so.

    A router that returns logits alone is taken to be followed by softmax and top-k, with gates not yet divided by their
    sum. One that returns logits, gates and chosen (transformers) is believed.

    Raises:
        ValueError: it returned something else.

    Example:
        >>> import torch
        >>> read_router(torch.tensor([[0.0, 0.0, 9.0]]).log_softmax(-1), 1)[1:]
        (tensor([[2]]), tensor([[0.9998]]), False)
    """
    if isinstance(output, Tensor):
        logits = output.flatten(0, -2)
        gates, chosen = logits.softmax(-1).topk(top_k)
        return logits, chosen, gates, False
    tensors = [x for x in output if isinstance(x, Tensor)] if isinstance(output, tuple | list) else []
    chosen = [x for x in tensors if not x.is_floating_point()]
    rest = [x for x in tensors if x.is_floating_point()]
    if len(chosen) != 1 or len(rest) != 2 or rest[1].shape != chosen[0].shape:
        shapes = [tuple(x.shape) for x in tensors]
        raise ValueError(f"a router must return logits, or logits, gates and chosen; this one returned {shapes}")
    return rest[0].flatten(0, -2), chosen[0].flatten(0, -2), rest[1].flatten(0, -2), True


def _experts_in(bank: nn.Module) -> tuple[int, bool]:
    """How many experts a module could hold, and whether in one parameter; 0 is none."""
    if isinstance(bank, nn.ModuleList):
        return len(bank), False
    own = list(bank._parameters.values())
    alike = own and all(p is not None and p.dim() and len(p) == len(own[0]) for p in own)
    return (len(own[0]), True) if alike and sum(p.dim() == 3 for p in own) >= 2 else (0, False)


def _routes(name: str, module: nn.Module, bank: str, count: int) -> bool:
    """Is it a Linear-like module outside of the experts and of other lists, with so many outputs?"""
    weight = module._parameters.get("weight")
    inside = name == bank or name.startswith(f"{bank}.") or any(part.isdigit() for part in name.split("."))
    like = not inside and not isinstance(module, nn.Embedding) and weight is not None
    return like and weight.dim() == 2 and len(weight) == count


def _holders(module: nn.Module, *names: str) -> list[nn.Module]:
    return [module.get_submodule(name) for name in names]


def _top_k(holders: list[nn.Module]) -> object:
    return next((getattr(m, key) for m in holders for key in TOP_K if hasattr(m, key)), None)


def _reason(module: nn.Module, bank: nn.Module, routers: list[str], count: int, top_k: object) -> str:
    if not routers:
        return f"no Linear beside it has {count} outputs, so there is no router"
    if len(routers) > 1:
        return f"{', '.join(routers)} all have {count} outputs; which is the router?"
    if not isinstance(top_k, int) or not 1 <= top_k <= count:
        return f"neither the layer nor its router has {' or '.join(TOP_K)} in 1..{count}, it has {top_k!r}"
    if isinstance(bank, nn.ModuleList) and len({type(expert) for expert in bank}) > 1:
        return "its modules are of several classes"
    if any(
        isinstance(n := getattr(m, key, 1), int) and n > 1 for m in _holders(module, "", *routers) for key in GROUPS
    ):
        return "its router chooses groups of experts first; groups would no longer be equally large"
    return ""
