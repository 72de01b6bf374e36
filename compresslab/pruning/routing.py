"""Where a mixture of experts sends its tokens: sums over what passes, in one pass, layer by layer.

Shares mean nothing without the number of experts E: everything here is to be compared with 1 / E, an even load.

    load balance = E sum_e f_e P_e, f_e = share of assignments, P_e = mean p_e      (Switch Transformer, equations 4-6)
    contribution of expert e = mean over its tokens of g_e(x) |f_e(x)|              (REAP)

A usage count belongs to its text: experts that rest on one domain may carry another.

    Fedus, Zoph and Shazeer, "Switch Transformers", 2021, https://arxiv.org/abs/2101.03961; Lasby et al., "REAP the
    experts: why pruning prevails for one-shot MoE compression", 2025, https://arxiv.org/abs/2510.13999
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compresslab.pruning.expert_layers import MoELayer, experts_at_work, find_moe_layers, read_router
from compresslab.pruning.layer_inputs import evaluating, inputs_of

__all__ = ["RoutingStatistics", "load_balance", "router_entropy", "routing_statistics"]

BINS = 1000  # of the histogram of a gate over the token's largest


def load_balance(probs: Tensor, chosen: Tensor) -> Tensor:
    """E sum_e f_e P_e: 1 when tokens and probability are spread evenly, E when one expert takes everything.

    Args:
        probs: (T, E) softmax of the router.
        chosen: (T, k) int64, the experts of each token. Only ``probs`` has a gradient.

    Returns:
        0-d tensor; times a small factor (the paper's alpha, 0.01) it is added to the loss.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> probs = torch.tensor([[0.75, 0.25], [0.75, 0.25]])
        >>> load_balance(probs, torch.tensor([[0], [0]])).item()  # 2 * (1 * 0.75 + 0 * 0.25)
        1.5
    """
    if probs.dim() != 2 or chosen.dim() != 2 or len(probs) != len(chosen) or not chosen.numel():
        raise ValueError(f"probs {tuple(probs.shape)} must be (T, E) and chosen {tuple(chosen.shape)} (T, k), T > 0")
    experts = probs.shape[1]
    share = torch.bincount(chosen.flatten(), minlength=experts).to(probs.dtype) / chosen.numel()
    return experts * (share * probs.mean(0)).sum()


def router_entropy(probs: Tensor) -> Tensor:
    """How undecided a router is about each token, in nats: 0 is certain, log E knows nothing.

    Args:
        probs: (..., E), rows sum to 1.

    Example:
        >>> router_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.0000, 0.6931])
    """
    return torch.special.entr(probs).sum(-1)


class RoutingStatistics:
    """Sums over all tokens that a layer has routed so far, in float64.

    Args:
        experts: E.

    Attributes:
        tokens: how many.
        counts: (E,) tokens that each expert got.
    """

    def __init__(self, experts: int) -> None:
        self.tokens = 0
        self.counts, self._gates, self._outputs, self._probs = torch.zeros(4, experts, dtype=torch.float64)
        self._products = torch.zeros(experts, experts, dtype=torch.float64)
        self._ratios = torch.zeros(BINS, dtype=torch.float64)
        self._entropy = 0.0

    def update(self, logits: Tensor, chosen: Tensor, gates: Tensor, norms: Tensor) -> None:
        """Count in more tokens.

        Args:
            logits: (T, E) of the router.
            chosen: (T, k) int64.
            gates: (T, k) factor of each chosen expert.
            norms: (T, k) Euclidean norm of what each chosen expert puts out.

        Example:
            >>> seen = RoutingStatistics(2)
            >>> seen.update(torch.zeros(1, 2), torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([[3.0]]))
            >>> seen.usage.tolist(), seen.contribution.tolist(), round(seen.load_balance, 6)
            ([1.0, 0.0], [3.0, 0.0], 1.0)
        """
        logits, gates, norms = (x.detach().cpu().double() for x in (logits, gates, norms))
        chosen, probs = chosen.cpu(), logits.softmax(-1)
        self.tokens += len(logits)
        for sums, values in ((self.counts, gates * 0 + 1), (self._gates, gates), (self._outputs, gates * norms)):
            sums.index_add_(0, chosen.flatten(), values.flatten())
        self._probs += probs.sum(0)
        self._products += logits.T @ logits
        self._entropy += router_entropy(probs).sum().item()
        ratios = (gates / gates.amax(1, keepdim=True)).sort(1).values[:, :-1]
        self._ratios += torch.histc(ratios, BINS, 0, 1)

    @property
    def usage(self) -> Tensor:
        """(E,) share of the assignments that each expert gets; 1 / E is even."""
        return self.counts / self.counts.sum()

    @property
    def relative_usage(self) -> Tensor:
        """(E,) usage over that of an even load: 1 is average, whatever E."""
        return self.usage * len(self.counts)

    @property
    def mean_gate(self) -> Tensor:
        """(E,) mean gate of each expert over its tokens; 0 where it has none."""
        return self._gates / self.counts.clamp(min=1)

    @property
    def contribution(self) -> Tensor:
        """(E,) mean norm of gate times output over the expert's tokens; 0 where it has none."""
        return self._outputs / self.counts.clamp(min=1)

    @property
    def load_balance(self) -> float:
        """As the function of that name, over all tokens."""
        return (self.relative_usage * self._probs / self.tokens).sum().item()

    @property
    def entropy(self) -> float:
        """Mean entropy of the router, in nats."""
        return self._entropy / self.tokens

    @property
    def experts_per_token(self) -> float:
        """k, or less where experts are skipped."""
        return self.counts.sum().item() / self.tokens

    @property
    def similarity(self) -> Tensor:
        """(E, E) cosines between the router logits of two experts over all tokens; 0 with one that is always 0."""
        norms = self._products.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        return self._products / norms.outer(norms)

    def skip_threshold(self, share: float) -> float:
        """The gate, relative to the token's largest, below which this share of the other assignments lies.

        Args:
            share: 0..1, to one in a thousand; 0.5 is Lu et al.'s beta, the median.

        Raises:
            ValueError: share is out of its range, or each token has one expert.
        """
        if not 0 <= share <= 1 or not self._ratios.sum():
            raise ValueError(
                f"share={share} must be in 0..1, of tokens with two experts or more; here are {self.tokens}"
            )
        below = torch.cat([torch.zeros(1, dtype=torch.float64), self._ratios.cumsum(0)])
        return (below <= share * self._ratios.sum() + 1e-9).sum().sub(1).item() / BINS


def routing_statistics(model: nn.Module, batches: Iterable) -> dict[str, RoutingStatistics]:
    """Usage, gates, contributions and the like of every layer of experts, over some data.

    Each chosen expert is run once more to get its own output. Where the router returns logits alone, the layer's output
    is computed again from these, which proves that the layer was understood.

    Args:
        model: any module with layers that ``find_moe_layers`` knows; runs in eval mode and is left as it was.
        batches: of (inputs, labels), the labels are not used. Usage depends on the text: take it from all domains.

    Returns:
        By layer.

    Raises:
        ValueError: as ``find_moe_layers``; there is no batch; inputs are not finite; no token reached a layer; or its
            output is another than the sum above (a shared expert in a layer with a list of experts, say).

    Example:
        >>> class Layer(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.top_k, self.router = 1, nn.Linear(2, 2, bias=False)
        ...         self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
        ...     def forward(self, x):
        ...         chosen = self.router(x).argmax(-1)
        ...         return torch.stack([self.experts[e](row) for row, e in zip(x, chosen)])
        >>> model = nn.Sequential(Layer())
        >>> _ = model[0].router.weight.data.copy_(torch.eye(2))
        >>> tokens = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0]])  # three to 0, one to 1
        >>> routing_statistics(model, [(tokens, None)])["0"].relative_usage.tolist()
        [1.5, 0.5]
    """
    layers = find_moe_layers(model).layers
    found: dict[str, RoutingStatistics] = {}
    routed: dict[str, tuple[Tensor, object]] = {}

    def watch_router(layer: MoELayer) -> RemovableHandle:
        def hook(router: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            routed[layer.name] = x.flatten(0, -2), output

        return model.get_submodule(layer.router).register_forward_hook(hook, with_kwargs=True)

    def watch_layer(layer: MoELayer) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            x, returned = routed.pop(layer.name)
            logits, chosen, gates, believed = read_router(returned, experts_at_work(model, layer))
            outputs = _each_output(model.get_submodule(layer.experts), layer, x, chosen)  # (T, k, D)
            if not believed:
                gates = _gates(layer.name, gates, outputs, output[0] if isinstance(output, tuple) else output)
            seen = found.setdefault(layer.name, RoutingStatistics(layer.count))
            seen.update(logits, chosen, gates, outputs.norm(dim=-1))

        return model.get_submodule(layer.name).register_forward_hook(hook)

    with contextlib.ExitStack() as hooks, evaluating(model):
        for layer in layers.values():
            hooks.enter_context(watch_router(layer))
            hooks.enter_context(watch_layer(layer))
        for inputs in inputs_of(batches):
            model(inputs)
    silent = [name for name in layers if name not in found or not found[name].tokens]
    if silent:
        raise ValueError(f"no token reached {', '.join(silent)}; pass batches that run through every layer of experts")
    return {name: found[name] for name in layers}


def _each_output(bank: nn.Module, layer: MoELayer, x: Tensor, chosen: Tensor) -> Tensor:
    """What each chosen expert puts out by itself, (T, k, D)."""
    outputs = x.new_zeros(*chosen.shape, x.shape[-1])
    for expert in range(layer.count):
        token, slot = torch.where(chosen == expert)
        if not len(token):
            continue
        if layer.fused:
            index = torch.full((len(token), 1), expert, device=x.device)
            result = bank(x[token], index, torch.ones(len(token), 1, dtype=x.dtype, device=x.device))
        else:
            result = bank[expert](x[token])
        outputs[token, slot] = result.to(x.dtype)
    return outputs


def _gates(name: str, gates: Tensor, outputs: Tensor, wanted: Tensor) -> Tensor:
    """The gates with which the layer's output comes out: as they are, or divided by their sum."""
    for candidate in (F.normalize(gates, p=1, dim=-1), gates):
        y = (candidate.unsqueeze(-1) * outputs).sum(1)
        if torch.allclose(y, wanted.reshape(y.shape).to(y.dtype), rtol=1e-2, atol=1e-2 * y.abs().max().item()):
            return candidate
    raise ValueError(
        f"{name}: its output must be the sum of gate times expert; it is not (another expert beside them?)"
    )
