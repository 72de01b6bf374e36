"""Wanda: a weight matters as far as what it multiplies is large.

    S_ij = |W_ij| * ||X_j||_2        X_j: what input j of the layer was, over all tokens

A large weight on an input that is always 0 does nothing. Compare scores within a row: all weights of an output see the
same inputs, while another layer's inputs have another scale. For a convolution, X_j runs over the patches: one norm for
each element of the kernel.

    Sun, Liu, Bair and Kolter, "A simple and effective pruning approach for large language models", 2024,
    https://arxiv.org/abs/2306.11695, equation 1
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

from torch import Tensor, nn

from compresslab.importance.patches import patches
from compresslab.importance.scored import Batches, Scores, read, scored_weights, scoring, wide

__all__ = ["input_norms", "wanda", "wanda_scores"]


def wanda(weight: Tensor, norms: Tensor) -> Tensor:
    """|W| times the norm of each input.

    Args:
        weight: (O, ...).
        norms: of a shape that broadcasts to it, >= 0.

    Example:
        >>> import torch
        >>> wanda(torch.tensor([[1.0, -2.0]]), torch.tensor([4.0, 1.0])).tolist()
        [[4.0, 2.0]]
    """
    return weight.abs().to(norms.dtype) * norms


def input_norms(model: nn.Module, batches: Batches, *, names: Collection[str] | None = None) -> Scores:
    """The L2 norm over all tokens of each input of a layer, in a shape that broadcasts to its weight.

    Args:
        model: any module.
        batches: of (inputs, ...).
        names: of weights of Linear and convolution layers; None for every matrix and kernel.

    Returns:
        By weight name: (1, I), or (1 or O, C, K...) for a convolution with one or more groups.

    Raises:
        ValueError: a weight whose inputs cannot be seen, no batch, or weights or data not finite.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> input_norms(layer, [(torch.tensor([[3.0, 0.0], [4.0, 1.0]]), None)])["weight"].tolist()
        [[5.0, 1.0]]
    """
    weights, squares = scored_weights(model, names), {}
    layers = {id(m.weight): m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)}

    def count(name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            x = (args[0] if args else kwargs["input"]).detach()
            rows = patches(layer, x.to(wide(x)).square())  # (B, positions..., elements of a patch...)
            squares[name] = squares.get(name, 0) + rows.sum(tuple(range(rows.dim() - layer.weight.dim() + 1)))

        return hook

    with scoring(model), contextlib.ExitStack() as hooks:
        for name, weight in weights.items():
            if id(weight) in layers:
                hooks.enter_context(layers[id(weight)].register_forward_pre_hook(count(name), with_kwargs=True))
        for inputs, _ in read(batches):
            model(inputs)
    unseen = [name for name in weights if name not in squares]
    if unseen:
        way = f"pass names={list(squares)}" if squares else "choose a criterion that needs no inputs"
        raise ValueError(f"{unseen} must be weights of Linear or convolution layers that are called as layers; {way}")
    norms = {}
    for name, square in squares.items():
        layer = layers[id(weights[name])]
        groups = getattr(layer, "groups", 1)
        by_group = square.reshape(groups, *layer.weight.shape[1:])
        norms[name] = by_group.sqrt().repeat_interleave(1 if groups == 1 else len(layer.weight) // groups, 0)
    return norms


def wanda_scores(model: nn.Module, batches: Batches, *, names: Collection[str] | None = None) -> Scores:
    """|W_ij| ||X_j|| by weight, to be compared within a row.

    Args:
        model: any module.
        batches: of (inputs, ...).
        names: of weights of Linear and convolution layers; None for every matrix and kernel.

    Raises:
        ValueError: a weight whose inputs cannot be seen, no batch, or weights or data not finite.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 1)
        >>> layer.weight.data = torch.tensor([[1.0, -2.0]])
        >>> wanda_scores(layer, [(torch.tensor([[3.0, 0.0], [4.0, 1.0]]), None)])["weight"].tolist()
        [[5.0, 2.0]]
    """
    norms = input_norms(model, batches, names=names)
    return {name: wanda(model.get_parameter(name).detach(), norm) for name, norm in norms.items()}
