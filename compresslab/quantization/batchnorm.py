"""Batch norm folded into the layer before it: the same function with fewer layers, as every integer kernel wants it.

In eval mode a batch norm is a scale and a shift for each channel, and the layer before it is linear, so for channel o

    gamma (w_o x + b_o - mean) / sqrt(var + eps) + beta  =  (k_o w_o) x + k_o (b_o - mean) + beta,
    k_o = gamma / sqrt(var + eps)

Which layer comes before is read from a trace of the model (torch.fx), not from the order in which layers were defined.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from compresslab.quantization.affine import check_finite

__all__ = ["Folded", "fold_batchnorm", "folded_weight"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, eq=False)
class Folded:
    """A model without the batch norms that could be folded, and which they were."""

    model: nn.Module  # a new model of the same class; a folded batch norm has become nn.Identity
    folded: dict[str, str]  # batch norm: layer that it went into
    kept: dict[str, str]  # batch norm: why it is still there


def folded_weight(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one layer that computes ``norm(layer(x))`` in eval mode.

    Args:
        layer: Linear, Conv1d to Conv3d or ConvTranspose1d to ConvTranspose3d.
        norm: a batch norm with running statistics, over the channels that ``layer`` puts out.

    Example:
        >>> layer, norm = nn.Linear(1, 1), nn.BatchNorm1d(1, eps=0.0).eval()
        >>> _ = nn.init.constant_(layer.weight, 3.0), nn.init.constant_(layer.bias, 1.0)
        >>> _ = norm.running_mean.fill_(2.0), norm.running_var.fill_(4.0)
        >>> weight, bias = folded_weight(layer, norm)  # (3 x + 1 - 2) / 2
        >>> weight.item(), bias.item()
        (1.5, -0.5)
    """
    dtype = torch.promote_types(layer.weight.dtype, torch.float32)
    weight, mean, var = (part.detach().to(dtype) for part in (layer.weight, norm.running_mean, norm.running_var))
    factor = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().to(dtype)
    bias = -mean if layer.bias is None else layer.bias.detach().to(dtype) - mean
    bias = bias * factor
    if norm.bias is not None:
        bias = bias + norm.bias.detach().to(dtype)
    if isinstance(layer, TRANSPOSED):  # (I, O / groups, K...): output channel g * O / groups + o comes from group g
        grouped = weight.unflatten(0, (layer.groups, -1))  # (groups, I / groups, O / groups, K...)
        scales = factor.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight = (grouped * scales).flatten(0, 1)
    else:
        weight = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return weight.to(layer.weight.dtype), bias.to(layer.weight.dtype)


def fold_batchnorm(model: nn.Module) -> Folded:
    """A new model of the same function in eval mode, its batch norms folded where a linear layer feeds them alone.

    Args:
        model: in train or eval mode; the function that is kept is the one of eval mode. What a Linear layer hands to
            a batch norm is taken to be (N, features), without an axis between.

    Returns:
        The new model, with what was folded and what was kept, and why.

    Raises:
        ValueError: the data flow cannot be traced, a weight is not finite, or there is no batch norm.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> fold_batchnorm(model).folded
        {'1': '0'}
    """
    for name, parameter in model.named_parameters():
        check_finite(parameter, name)
    result = copy.deepcopy(model)
    norms = [name for name, module in result.named_modules() if isinstance(module, NORMS)]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no batch norm to fold; use it as it is")
    try:
        graph = fx.Tracer().trace(result.eval())
    except Exception as error:  # whatever the model's own code raises when it is given a symbol
        raise ValueError(
            f"the data flow of {type(model).__name__} cannot be traced ({str(error).splitlines()[0]}); "
            "fold pair by pair with folded_weight(layer, norm)"
        ) from error
    pairs, kept = _pairs(result, graph, norms)
    for name, layer_name in pairs.items():
        layer, norm = result.get_submodule(layer_name), result.get_submodule(name)
        weight, bias = folded_weight(layer, norm)
        check_finite(torch.cat([weight.flatten(), bias]), f"{name} folded into {layer_name}")
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
        result.set_submodule(name, nn.Identity())
    for name, module in model.named_modules():
        result.get_submodule(name).training = module.training
    return Folded(result, pairs, kept)


def _pairs(model: nn.Module, graph: fx.Graph, norms: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    modules = dict(model.named_modules())
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs, kept = {}, dict.fromkeys(norms, "it is never called")
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in kept:
            continue
        source, norm = node.args[0] if node.args else next(iter(node.kwargs.values())), modules[node.target]
        layer = modules.get(source.target) if source.op == "call_module" else None
        if type(layer) not in FOLDABLE:
            kept[node.target] = "what comes before is not a Linear, Conv or ConvTranspose layer"
        elif calls[node.target] > 1 or calls[source.target] > 1:
            kept[node.target] = f"it or {source.target} is called more than once"
        elif len(source.users) > 1:
            kept[node.target] = f"{source.target} feeds other layers too"
        elif source.target in read or any(owners[id(parameter)] > 1 for parameter in layer.parameters()):
            kept[node.target] = f"the weight of {source.target} is used elsewhere too"
        elif norm.running_mean is None:
            kept[node.target] = "it keeps no running statistics"
        elif norm.num_features != (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels):
            kept[node.target] = f"it does not normalize the channels of {source.target}"
        else:
            pairs[node.target] = source.target
            del kept[node.target]
    return pairs, kept
