"""Codebooks that learn: a layer's parameter is its table of centroids, and its weight is looked up in each forward pass.

A parametrization of torch: ``weight = table[indices]``, whose backward pass adds the gradients of all weights of a
cluster, dL/dc_k = sum_{a(i)=k} dL/dw_i, which is equation (3) of the paper. Indices and pruned places stay as they are.

    Han, Mao and Dally, "Deep compression", 2016, https://arxiv.org/abs/1510.00149, section 3.1
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresslab.factorization.codebook import Codebook

__all__ = ["LookUp", "finish_codebooks", "train_codebooks"]


class LookUp(nn.Module):
    """Centroids (k,) to the weight that they stand for."""

    def __init__(self, codebook: Codebook) -> None:
        super().__init__()
        # 0 is a pruned place, k + 1 the centroid k.
        places = codebook.indices.long() + 1
        places = places if codebook.mask is None else places.masked_fill(~codebook.mask, 0)
        self.register_buffer("places", places.to(torch.uint8 if len(codebook.centroids) < 256 else torch.int16))
        self.register_buffer("start", codebook.centroids.clone(), persistent=False)

    def forward(self, centroids: Tensor) -> Tensor:
        table = torch.cat([centroids.new_zeros(1), centroids])
        return table.index_select(0, self.places.flatten().int()).view(self.places.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The parameter that takes the weight's place."""
        return self.start.to(weight.dtype)


def train_codebooks(model: nn.Module, codebooks: Mapping[str, Codebook]) -> nn.Module:
    """A new model in which the tables are the parameters, to be trained like any other.

    Args:
        model: the one that the tables belong to (``SharedWeights.model``).
        codebooks: by parameter name. Weights of ``nn.RNNBase`` cannot be among them: such a layer keeps references of
            its own to its weights.

    Raises:
        ValueError: a name is unknown, its shape differs, it belongs to a recurrent layer, or there is no codebook; or the
            model has parametrizations already.

    Example:
        >>> from compresslab.factorization.codebook import kmeans
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> table = kmeans(torch.tensor([[1.0, 1.0]]), 1)
        >>> model = train_codebooks(layer, {"weight": table})
        >>> model(torch.tensor([[2.0, 5.0]])).backward()
        >>> model.parametrizations.weight.original.grad.tolist()  # 2 and 5, one weight of each
        [7.0]
    """
    if not codebooks:
        raise ValueError("codebooks holds no table; share_weights makes them")
    result = copy.deepcopy(model)
    uses: dict[int, list[tuple[nn.Module, str]]] = {}
    for name, module in result.named_modules():
        if parametrize.is_parametrized(module):  # its class is the given model's, and would change for both
            raise ValueError(f"{name} has a parametrization; finish_codebooks or remove_parametrizations comes first")
        for attribute, parameter in module.named_parameters(recurse=False):
            uses.setdefault(id(parameter), []).append((module, attribute))
    parameters = dict(result.named_parameters())
    for name, codebook in codebooks.items():
        if name not in parameters or parameters[name].shape != codebook.indices.shape:
            raise ValueError(
                f"{name} must be a parameter of shape {tuple(codebook.indices.shape)}; have {[*parameters]}"
            )
        places = uses[id(parameters[name])]
        if any(isinstance(module, nn.RNNBase) for module, _ in places):
            raise ValueError(f"{name} belongs to a recurrent layer, whose tables cannot be trained; leave it out")
        frozen, look_up, first = not parameters[name].requires_grad, LookUp(codebook), None
        for module, attribute in places:
            look_up.train(module.training)
            if first is not None:  # registering resizes the parameter itself, which the first place has
                setattr(module, attribute, nn.Parameter(codebook.weight()))
            parametrize.register_parametrization(module, attribute, look_up)
            made = module.parametrizations[attribute]
            made.train(module.training)
            first = made.original.requires_grad_(not frozen) if first is None else first
            made.original = first  # tied weights have one table
    return result


def finish_codebooks(model: nn.Module) -> nn.Module:
    """A new, plain model with the weights that the tables stand for.

    Args:
        model: from ``train_codebooks``; one without tables comes back as a copy.

    Example:
        >>> from compresslab.factorization.codebook import kmeans
        >>> table = kmeans(torch.tensor([[1.0, 3.0]]), 2)
        >>> finish_codebooks(train_codebooks(nn.Linear(2, 1, bias=False), {"weight": table})).weight.tolist()
        [[1.0, 3.0]]
    """
    result = copy.deepcopy(model)
    done: dict[nn.Parameter, nn.Parameter] = {}
    for module in list(result.modules()):
        parts = getattr(module, "parametrizations", {})
        if not parts or not all(len(part) == 1 and isinstance(part[0], LookUp) for part in parts.values()):
            continue
        # Not remove_parametrizations: a copy has the class of its original, which would lose its weight as well.
        weights = {attribute: (part.original, part().detach().clone()) for attribute, part in parts.items()}
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        for attribute, (table, weight) in weights.items():
            made = done.setdefault(table, nn.Parameter(weight, requires_grad=table.requires_grad))
            module.register_parameter(attribute, made)
    return result
