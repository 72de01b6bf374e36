"""The words of this package: which layers of a model give way to smaller ones, and what is said about the others.

Every model function here takes layers out of a copy of a model and puts others in. What this file adds is what is easy
to forget: a layer that is used under two names stays one layer, tied weights are not torn apart in silence, and the new
layers have the old one's device, dtype, training flag and ``requires_grad``.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

__all__ = [
    "Factorized",
    "check_fraction",
    "check_model",
    "check_rank",
    "find_layers",
    "parameters_of",
    "replace_layers",
]


@dataclass(frozen=True, eq=False)
class Factorized:
    """A model some of whose layers were replaced by smaller ones."""

    model: nn.Module  # a new model
    ranks: dict[str, tuple[int, ...]]  # by layer that was replaced
    skipped: dict[str, str]  # layer: why it stayed as it was
    parameters: int  # of the new model, shared ones once
    parameters_before: int


def check_model(model: nn.Module) -> None:
    """Refuse weights that hold no finite values.

    Raises:
        ValueError: a parameter is on the meta device, or holds NaN or infinity.

    Example:
        >>> check_model(nn.Linear(2, 2))
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name} is on the meta device and holds no values; load the weights first")
        if parameter.is_floating_point() and not parameter.isfinite().all():
            nan, infinite = int(parameter.isnan().sum()), int(parameter.isinf().sum())
            raise ValueError(
                f"{name} must be finite, got {nan} NaN and {infinite} infinite of {parameter.numel()}; look for the "
                "training step that made them"
            )


def check_rank(rank: int, most: int, *, name: str = "rank") -> int:
    """The rank, if it is a whole number in 1..most.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_rank(3, 8)
        3
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= most:
        raise ValueError(f"{name}={rank!r} must be a whole number in 1..{most}; try {max(most // 4, 1)}")
    return rank


def check_fraction(value: float, *, name: str) -> float:
    """The value, if it is greater than 0 and at most 1.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_fraction(0.5, name="energy")
        0.5
    """
    if not 0 < value <= 1:
        raise ValueError(f"{name}={value!r} must be greater than 0 and at most 1; try 0.9")
    return value


def parameters_of(model: nn.Module) -> int:
    """How many numbers a model learns, shared ones once.

    Example:
        >>> parameters_of(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def find_layers(
    model: nn.Module, kinds: Collection[type[nn.Module]], *, skip: Collection[str] = ()
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers of some kinds that can be replaced, by their first name; and all others that have parameters, and why not.

    Args:
        model: any module.
        kinds: exact types; a subclass may use its weight in a way of its own.
        skip: names of layers, or of modules that hold layers, to leave out.

    Raises:
        ValueError: a weight is not finite, or a name in ``skip`` is unknown.

    Example:
        >>> find_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), [nn.Linear])
        ({'0': Linear(in_features=2, out_features=2, bias=True)}, {'1': 'LayerNorm: only Linear is replaced'})
    """
    check_model(model)
    unknown = set(skip) - {name for name, _ in model.named_modules(remove_duplicate=False)}
    if unknown:
        raise ValueError(f"skip={sorted(unknown)} must be names of layers; see model.named_modules()")
    left = {id(part) for name in skip for part in model.get_submodule(name).modules()}
    uses = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    layers, skipped = {}, {}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        if type(module) not in kinds:
            reason = f"{type(module).__name__}: only {', '.join(kind.__name__ for kind in kinds)} is replaced"
        elif id(module) in left:
            reason = "left out by the caller"
        elif any(uses[id(parameter)] > 1 for parameter in own):
            reason = "its weight is tied to another layer's"
        elif module._forward_hooks or module._forward_pre_hooks:
            reason = "it has hooks, which would be lost"
        else:
            layers[name] = module
            continue
        skipped[name or "(the model)"] = reason
    return layers, skipped


def replace_layers(
    model: nn.Module, new: Mapping[str, tuple[nn.Module, tuple[int, ...]]], skipped: Mapping[str, str]
) -> Factorized:
    """A new model with new layers in the place of old ones, under all names of these.

    Args:
        model: any module.
        new: by the name of a layer: what takes its place, and its ranks.
        skipped: of the result; the reasons if there is nothing to replace.

    Raises:
        ValueError: ``new`` is empty.

    Example:
        >>> result = replace_layers(nn.Linear(2, 2), {"": (nn.Linear(2, 2, bias=False), (2,))}, {})
        >>> result.parameters, result.parameters_before
        (4, 6)
    """
    if not new:
        raise ValueError(f"{type(model).__name__} has no layer to replace: {dict(skipped) or 'it has no parameters'}")
    result = copy.deepcopy(model)
    places: dict[int, nn.Module] = {}
    for name, (layer, _) in new.items():
        old = result.get_submodule(name)
        layer.to(device=old.weight.device, dtype=old.weight.dtype).train(old.training)
        places[id(old)] = layer.requires_grad_(old.weight.requires_grad)
    for parent in list(result.modules()):
        for child, module in parent._modules.items():  # not named_children: it leaves out second names
            parent._modules[child] = places.get(id(module), module)
    result = places.get(id(result), result)
    ranks = {name: of for name, (_, of) in new.items()}
    return Factorized(result, ranks, dict(skipped), parameters_of(result), parameters_of(model))
