"""Cross-layer equalization: channels that one scale has to serve are given the same range, at no cost.

Between two layers that are joined by a positively homogeneous function f (ReLU, max or average pooling; f(s x) = s f(x)
for s > 0) a channel can be divided by s_i in the first and multiplied by s_i in the second. The function of the model
stays, the ranges r1_i and r2_i of the channel's weights change, and they are equal, to sqrt(r1_i r2_i), for

    s_i = sqrt(r1_i / r2_i)                                                                    (equation 11)

It helps where weights have one scale for the whole tensor, in depthwise nets most of all, and little with a scale for
each channel. Fold batch norms first.

    Nagel, van Baalen, Blankevoort and Welling, "Data-free quantization through weight equalization and bias
    correction", 2019, https://arxiv.org/abs/1906.04721, section 4.1
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compresslab.quantization.affine import check_finite

__all__ = ["Equalized", "equalize", "equalizing_scales"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
HOMOGENEOUS = (
    nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip
FUNCTIONS = (torch.relu, nn.functional.relu)
SWEEPS = 20


@dataclass(frozen=True, eq=False)
class Equalized:
    """A model of the same function with equal ranges on both sides of each pair."""

    model: nn.Module  # a new model
    scales: dict[tuple[str, str], Tensor]  # by pair (first, second), (channels,): what the first was divided by
    unpaired: tuple[str, ...]  # layers that are in no pair


def equalizing_scales(first: Tensor, second: Tensor) -> Tensor:
    """The s of equation 11, 1 where a channel has no weights on one side.

    Args:
        first: (channels, ...) weights that put the channels out.
        second: (channels, ...) weights that take them in.

    Example:
        >>> equalizing_scales(torch.tensor([[8.0, -2.0], [0.0, 0.0]]), torch.tensor([[2.0], [1.0]])).tolist()
        [2.0, 1.0]
    """
    r1, r2 = (part.flatten(1).abs().amax(1) for part in (first, second))
    scales = (r1 / r2).sqrt()
    return torch.where(scales.isfinite() & (scales > 0), scales, 1)


def equalize(model: nn.Module) -> Equalized:
    """A new model of the same function whose consecutive layers have equal ranges in each channel that joins them.

    Args:
        model: its batch norms folded; a batch norm ends a chain.

    Raises:
        ValueError: the data flow cannot be traced, a weight is not finite, or no two layers are joined.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> list(equalize(model).scales)
        [('0', '2')]
    """
    for name, parameter in model.named_parameters():
        check_finite(parameter, name)
    result = copy.deepcopy(model)
    try:
        graph = fx.Tracer().trace(result)
    except Exception as error:  # whatever the model's own code raises when it is given a symbol
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the data flow of {type(model).__name__} cannot be traced ({reason}); use equalizing_scales"
        ) from error
    pairs = _pairs(result, graph)
    if not pairs:
        raise ValueError(f"{type(model).__name__} has no two layers joined by ReLU or pooling; fold batch norms first")
    total = {pair: torch.ones(()) for pair in pairs}
    for _ in range(SWEEPS):
        largest = 1.0
        for pair in pairs:
            first, second = (result.get_submodule(name) for name in pair)
            w1, w2 = (
                layer.weight.detach().to(torch.promote_types(layer.weight.dtype, torch.float32))
                for layer in (first, second)
            )
            groups = getattr(second, "groups", 1)
            w2 = w2.unflatten(0, (groups, -1)).transpose(1, 2)  # (groups, I / groups, O / groups, K...)
            scales = equalizing_scales(w1, w2.flatten(0, 1))
            by_channel = scales.reshape(-1, *[1] * (w1.dim() - 1))
            first.weight.data.copy_(w1 / by_channel)
            if first.bias is not None:
                first.bias.data.copy_(first.bias.detach() / scales)
            w2 = w2 * scales.reshape(groups, -1, *[1] * (w2.dim() - 2))
            second.weight.data.copy_(w2.transpose(1, 2).flatten(0, 1))
            total[pair] = total[pair] * scales
            largest = max(largest, scales.max().item(), 1 / scales.min().item())
        if largest < 1.0001:
            break
    joined = {name for pair in pairs for name in pair}
    layers = (name for name, module in result.named_modules() if isinstance(module, LAYERS) and name not in joined)
    return Equalized(result, total, tuple(layers))


def _pairs(model: nn.Module, graph: fx.Graph) -> list[tuple[str, str]]:
    """Layers that feed one other layer and nothing else, each called once and with weights of its own."""
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}

    def free(node: fx.Node) -> bool:
        layer = modules[node.target] if node.op == "call_module" else None
        alone = type(layer) in LAYERS and calls[node.target] == 1 and node.target not in read
        return alone and all(owners[id(parameter)] == 1 for parameter in layer.parameters())

    pairs = []
    for node in filter(free, graph.nodes):
        following = node
        while len(following.users) == 1:
            following = next(iter(following.users))
            passes = following.target in FUNCTIONS or (following.op == "call_method" and following.target == "relu")
            if following.op == "call_module":
                passes = type(modules[following.target]) in HOMOGENEOUS
            if not passes:
                break
        if following is not node and free(following):
            pairs.append((node.target, following.target))
    return pairs
