"""Experts skipped while the model runs: a token whose second gate is far below its first goes through the first alone.

    skip slot j of token x if g_j(x) < threshold * max_i g_i(x)

The gates that stay are divided by their sum again where the layer does so. Nothing is removed from the file; what is
saved is work. Lu et al. take the median of g_2 / g_1 over some text as the threshold of each layer
(``RoutingStatistics.skip_threshold(0.5)``).

    Lu et al., "Not all experts are equal: efficient expert pruning and skipping for mixture-of-experts large language
    models", 2024, https://arxiv.org/abs/2402.14800, section 3.3
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compresslab.pruning.expert_layers import TOP_K, MoELayer, find_moe_layers, read_router

__all__ = ["Skipping", "SkippingLayer", "skip_experts"]


@dataclass(frozen=True, eq=False)
class Skipping:
    """A model that skips experts."""

    model: nn.Module  # each layer of experts is a ``SkippingLayer`` around it, so its weights' names gain ``.layer``
    thresholds: dict[str, float]  # by layer
    unprunable: dict[str, str]


class SkippingLayer(nn.Module):
    """A layer of experts that gives each token as many as its gates are worth, tokens with as many in one call.

    What the layer returns beside its output is that of its last call.

    Args:
        layer: of experts, top_k of at least 2.
        found: its names, relative to itself.
        threshold: of a gate over the token's largest.
    """

    def __init__(self, layer: nn.Module, found: MoELayer, threshold: float) -> None:
        super().__init__()
        self.layer, self.threshold = layer, threshold
        self._router, self._top_k = found.router, found.top_k

    def forward(self, x: Tensor) -> object:
        """As the layer's own."""
        tokens = x.reshape(1, -1, x.shape[-1])  # (1, T, D)
        router = self.layer.get_submodule(self._router)
        _, _, gates, _ = read_router(router(tokens[0]), self._top_k)
        at_work = (gates >= self.threshold * gates.amax(1, keepdim=True)).sum(1)  # (T,) in 1..k
        y, result = tokens.clone(), None
        for k in range(1, self._top_k + 1):
            rows = (at_work == k).nonzero().squeeze(1)
            if len(rows) or (k == self._top_k and result is None):
                with _at_work(self._top_k, k, self.layer, router):
                    result = self.layer(tokens[:, rows])
                part = result[0] if isinstance(result, tuple) else result
                y = y.index_copy(1, rows, part.reshape(1, -1, x.shape[-1]))
        y = y.view_as(x)
        return (y, *result[1:]) if isinstance(result, tuple) else y


def skip_experts(model: nn.Module, threshold: float | Mapping[str, float]) -> Skipping:
    """A new model that skips experts whose gate is small beside the token's largest.

    Args:
        model: any module with layers that ``find_moe_layers`` knows; is left as it is.
        threshold: 0..1, for all layers or by layer; 0 skips none, 1 all but the first.

    Raises:
        ValueError: as ``find_moe_layers``; a layer is not there; a threshold is out of range; no layer has two experts
            at work for a token; or the model skips already.
    """
    found = find_moe_layers(model)
    if any(isinstance(module, SkippingLayer) for module in model.modules()):
        raise ValueError("the model has a SkippingLayer already; call skip_experts on the original")
    wanted = dict(threshold) if isinstance(threshold, Mapping) else dict.fromkeys(found.layers, threshold)
    unprunable, chosen, result = dict(found.unprunable), {}, copy.deepcopy(model)
    for name, value in wanted.items():
        if name not in found.layers:
            raise ValueError(f"{name!r} is no layer of experts; those are {', '.join(found.layers)}")
        if not 0 <= value <= 1:
            raise ValueError(f"threshold={value} of {name} must be a share of the largest gate, 0..1")
        layer = found.layers[name]
        if layer.top_k == 1:
            unprunable[name] = "one expert works for each token, so none can be skipped"
            continue
        if not name:
            raise ValueError("the model itself is the layer of experts; put it into an nn.Sequential first")
        inner = MoELayer("", *(n.removeprefix(f"{name}.") for n in (layer.router, layer.experts)),
                         count=layer.count, top_k=layer.top_k, fused=layer.fused)  # fmt: skip
        owner, _, child = name.rpartition(".")
        wrapped = SkippingLayer(result.get_submodule(name), inner, float(value))
        setattr(result.get_submodule(owner), child, wrapped.train(result.get_submodule(name).training))
        chosen[name] = float(value)
    if not chosen:
        raise ValueError(f"no layer could skip experts: {unprunable}; drop experts instead")
    return Skipping(result, chosen, unprunable)


@contextlib.contextmanager
def _at_work(before: int, now: int, *holders: nn.Module) -> Iterator[None]:
    """Fewer experts for each token, for the time of one call."""
    places = [(holder, name) for holder in holders for name in TOP_K if getattr(holder, name, None) == before]
    try:
        for holder, name in places:
            setattr(holder, name, now)
        yield
    finally:
        for holder, name in places:
            setattr(holder, name, before)
