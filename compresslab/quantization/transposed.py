"""Layers that multiply by a matrix but are no ``nn.Linear``, such as the Conv1D of GPT-2, become Linear layers.

The Conv1D of transformers stores its weight as (in, out) and computes x W + b. Whatever looks for Linear layers passes
it by, and a GPT-2 stays as it was. Which modules do so is found by trying, not by name: one with a matrix and a bias
whose output on random input is x W + b.

    Radford and others, "Language models are unsupervised multitask learners", 2019 (GPT-2)
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Untransposed", "multiplies_by_its_weight", "use_linear_layers"]


@dataclass(frozen=True, eq=False)
class Untransposed:
    """A model of the same function that multiplies with Linear layers."""

    model: nn.Module  # a new model; the weight of a replaced layer is (out, in) now
    replaced: tuple[str, ...]  # layers that are nn.Linear now


def multiplies_by_its_weight(module: nn.Module) -> bool:
    """Whether a module is x W + b with its own weight (in, out) and bias (out,), and nothing else.

    Example:
        >>> multiplies_by_its_weight(nn.Linear(3, 3))  # that is x W^T + b
        False
    """
    parts = dict(module.named_parameters())
    weight, bias = parts.get("weight"), parts.get("bias")
    if set(parts) != {"weight", "bias"} or weight.dim() != 2 or weight.is_meta or not weight.is_floating_point():
        return False
    if bias.shape != weight.shape[1:] or any(True for _ in module.buffers()):
        return False
    x = torch.randn(2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with torch.no_grad():
            y = module(x)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):  # it wants other input
        return False
    return isinstance(y, Tensor) and y.shape == (2, len(bias)) and torch.allclose(y, x @ weight + bias, atol=1e-5)


def use_linear_layers(model: nn.Module) -> Untransposed:
    """A new model in which each layer that computes x W + b is an ``nn.Linear`` with the weight transposed.

    Args:
        model: any module. A layer with hooks, or whose weight or bias another module shares, stays as it is.

    Raises:
        ValueError: there is no such layer.

    Example:
        >>> class Product(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight, self.bias = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.zeros(3))
        ...     def forward(self, x):
        ...         return x @ self.weight + self.bias
        >>> use_linear_layers(nn.Sequential(Product())).model
        Sequential(
          (0): Linear(in_features=2, out_features=3, bias=True)
        )
    """
    result = copy.deepcopy(model)
    owners = Counter(id(parameter) for module in result.modules() for parameter in module.parameters(recurse=False))
    made: dict[int, nn.Linear] = {}
    replaced = []
    for name, module in list(result.named_modules(remove_duplicate=False)):
        tied = any(owners[id(parameter)] > 1 for parameter in module.parameters(recurse=False))
        hooked = module._forward_hooks or module._forward_pre_hooks
        if not name or tied or hooked or (id(module) not in made and not multiplies_by_its_weight(module)):
            continue
        if id(module) not in made:
            made[id(module)] = _linear(module)
        result.set_submodule(name, made[id(module)])
        replaced.append(name)
    if not replaced:
        raise ValueError(f"{type(model).__name__} has no layer that computes x W + b; use it as it is")
    return Untransposed(result, tuple(replaced))


def _linear(module: nn.Module) -> nn.Linear:
    weight = module.weight
    linear = nn.Linear(*weight.shape, device="meta").train(module.training)
    linear.weight = nn.Parameter(weight.detach().T.contiguous(), requires_grad=weight.requires_grad)
    linear.bias = module.bias
    return linear
