"""Which parameters of a model are weights to prune, what is said of the others, and how many of them are zero.

A name is not enough to tell: the scale of a norm is called ``weight`` too, and so is an embedding, whose rows are words
that one batch may not hold. The type of the module decides, and a matrix that two modules share belongs to both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from compresslab.pruning.masks import check_finite

__all__ = ["Sparse", "Sparsity", "choose_weights", "prunable", "sparsity_of"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRUNABLE = (nn.Linear, *CONVOLUTIONS, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True, eq=False)
class Sparse:
    """A model with zeros where weights were removed."""

    model: nn.Module  # a new model of the same class
    masks: dict[str, Tensor]  # by parameter: bool, True stays
    skipped: dict[str, str]  # parameter: why it stayed dense

    @property
    def sparsity(self) -> float:
        """The fraction removed of the weights that have a mask, 0..1."""
        return 1 - sum(int(mask.sum()) for mask in self.masks.values()) / sum(m.numel() for m in self.masks.values())


@dataclass(frozen=True)
class Sparsity:
    """How many elements are zero, by parameter. As text it is a table."""

    zeros: dict[str, int]
    elements: dict[str, int]

    @property
    def overall(self) -> float:
        """The fraction of all these elements that is zero, 0..1."""
        return sum(self.zeros.values()) / max(sum(self.elements.values()), 1)

    def __str__(self) -> str:
        rows = [*self.zeros.items(), ("all", sum(self.zeros.values()))]
        sizes = self.elements | {"all": sum(self.elements.values())}
        lines = [
            f"| {name} | {zeros:,} | {sizes[name]:,} | {zeros / max(sizes[name], 1):.1%} |" for name, zeros in rows
        ]
        return "\n".join(["| parameter | zeros | elements | sparsity |", "|---|---|---|---|", *lines])


def prunable(model: nn.Module) -> list[str]:
    """Names of the weights that pruning takes by itself: matrices and kernels, tied ones once.

    Linear, convolutions, attention and recurrent layers. No norms, biases and embeddings, and no matrix that an
    embedding uses too: ask for those by name.

    Example:
        >>> prunable(nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 2), nn.LayerNorm(2)))
        ['1.weight']
    """
    other = {id(part) for m in model.modules() if not isinstance(m, PRUNABLE) for part in m.parameters(recurse=False)}
    names = []
    for name, parameter in model.named_parameters():  # a tied one is named once
        fits = parameter.dim() >= 2 and parameter.is_floating_point() and "bias" not in name.rpartition(".")[2]
        if fits and id(parameter) not in other:
            names.append(name)
    return names


def choose_weights(
    model: nn.Module, names: Iterable[str] | None = None
) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """The weights to prune by name, and why each other parameter stays dense.

    Args:
        model: all its floating-point parameters must be finite.
        names: of parameters, or all that are ``prunable``. A tied one has the first of its names in the result.

    Raises:
        ValueError: a parameter is not finite, a name is unknown, or no weight is left.

    Example:
        >>> weights, skipped = choose_weights(nn.Linear(2, 2))
        >>> list(weights), skipped
        (['weight'], {'bias': 'Linear: only matrices and kernels are pruned'})
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    own = prunable(model)
    unknown = [name for name in names or () if name not in every or not every[name].is_floating_point()]
    if unknown:
        raise ValueError(f"{unknown} must be weights of the model; choose from {own}")
    wanted = {id(every[name]) for name in (own if names is None else names)}
    weights, skipped = {}, {}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            check_finite(parameter, name)
        owner = type(model.get_submodule(name.rpartition(".")[0])).__name__
        if id(parameter) in wanted:
            weights[name] = parameter
        elif name in own:
            skipped[name] = "left out by the caller"
        elif parameter.dim() < 2:
            skipped[name] = f"{owner}: only matrices and kernels are pruned"
        else:
            skipped[name] = f"{owner}: only Linear, convolutional, attention and recurrent layers are pruned unasked"
    if not sum(weight.numel() for weight in weights.values()):
        raise ValueError(f"{type(model).__name__} has no weight to prune: {skipped or 'it has no parameters'}")
    return weights, skipped


def sparsity_of(model: nn.Module, names: Iterable[str] | None = None) -> Sparsity:
    """How many weights are zero, by parameter and in all.

    Args:
        model: any module.
        names: of parameters, or all that are ``prunable``.

    Raises:
        ValueError: a name is unknown.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = layer.weight.data[0, 1].zero_()
        >>> sparsity_of(layer).zeros, sparsity_of(layer).overall
        ({'weight': 1}, 0.5)
    """
    names, parameters = (
        prunable(model) if names is None else list(names),
        dict(model.named_parameters(remove_duplicate=False)),
    )
    if unknown := [name for name in names if name not in parameters]:
        raise ValueError(f"{unknown} must be parameters of the model; choose from {list(parameters)}")
    weights = {name: parameters[name] for name in names}
    zeros = {name: weight.numel() - int(weight.count_nonzero()) for name, weight in weights.items()}
    return Sparsity(zeros, {name: weight.numel() for name, weight in weights.items()})
