"""Pruning layer after layer in the order in which they run, each for the inputs it gets from those pruned so far."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from compresslab.pruning.layer_inputs import LAYERS, InputStatistics, in_order, inputs_of
from compresslab.pruning.masks import check_finite
from compresslab.pruning.n_m import why_not_n_m
from compresslab.pruning.weights import Sparse, choose_weights

__all__ = ["SparseLayers", "prune_in_order"]


@dataclass(frozen=True, eq=False)
class SparseLayers(Sparse):
    """A model whose layers were pruned one after the other, for what they get."""

    tokens: dict[str, int]  # by parameter, in the order in which the layers run: what its statistics are made of


def prune_in_order(
    model: nn.Module,
    batches: Iterable,
    prune: Callable[[Tensor, InputStatistics], tuple[Tensor, Tensor]],
    *,
    names: Iterable[str] | None = None,
    gram: bool = True,
    m: int | None = None,
) -> SparseLayers:
    """A new model whose Linear and Conv layers were pruned one after the other by a function of weight and inputs.

    Args:
        model: any module, run in eval mode; it is left as it was.
        batches: of (inputs, labels), the labels are not used. They are kept, and run through the model once for each
            layer.
        prune: called with a weight and statistics of its layer's inputs, gives the new weight and the mask.
        names: of parameters, or all matrices and kernels.
        gram: whether ``prune`` needs the Gram matrix.
        m: layers whose inputs m does not divide are skipped.

    Raises:
        ValueError: a parameter or inputs are not finite, there is no batch, a name is unknown, or no layer is left.

    Example:
        >>> import torch
        >>> def first_input_only(weight, seen):
        ...     mask = torch.zeros_like(weight, dtype=torch.bool)
        ...     mask[:, 0] = True
        ...     return weight * mask, mask
        >>> prune_in_order(nn.Linear(4, 2), [(torch.ones(3, 4), None)], first_input_only).sparsity
        0.75
    """
    result = copy.deepcopy(model)
    weights, skipped = choose_weights(result, names)
    inputs, layers = inputs_of(batches), {}
    for full, weight in weights.items():
        name = full.rpartition(".")[0]
        layer = result.get_submodule(name)
        if type(layer) not in LAYERS or weight is not layer.weight:
            skipped[full] = (
                f"{type(layer).__name__}: only weights of Linear and Conv layers have inputs to look at here"
            )
        elif sum(part is weight for module in result.modules() for part in module.parameters(recurse=False)) > 1:
            skipped[full] = "it is used elsewhere too"
        elif m is not None and (reason := why_not_n_m(result, full, m)):
            skipped[full] = reason
        else:
            skipped[full] = "no batch runs through it"
            layers[name] = full
    masks, tokens = {}, {}
    for name, seen in in_order(result, inputs, list(layers), gram=gram):
        full = layers[name]
        weight = result.get_parameter(full)
        new, masks[full] = prune(weight.detach(), seen)
        check_finite(new.to(weight.dtype), full)
        weight.data.copy_(new)
        tokens[full] = seen.tokens
        del skipped[full]
    if not masks:
        raise ValueError(f"{type(model).__name__} has no layer to prune here: {skipped}")
    return SparseLayers(result, masks, skipped, tokens)
