"""Unstructured pruning: single weights become zero, the smallest first, wherever they are.

Magnitude needs no data and no gradient. *Global* compares all weights of the model: a layer that can spare more gives
more, and one small layer may lose everything. *Per layer* takes the same share of each. Shapes stay, so a dense kernel
does the same work as before: what is saved is storage (``storage.py``).

    Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural networks", 2015,
    https://arxiv.org/abs/1506.02626
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from compresslab.pruning.masks import enforce, global_masks, layer_masks
from compresslab.pruning.weights import Sparse, choose_weights

__all__ = ["magnitude_masks", "prune_magnitude"]


def prune_magnitude(
    model: nn.Module,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "global",
    names: Iterable[str] | None = None,
) -> Sparse:
    """A new model without its smallest weights, the masks, and why each other parameter stayed dense.

    What is zero already goes first and counts: to ask for 0.9 twice gives 0.9.

    Args:
        model: any module; it is left as it was.
        sparsity: the fraction removed, 0..1; with ``scope="layer"`` also one for each parameter name, which are then
            the names.
        scope: ``"global"``, the smallest of all, or ``"layer"``, the same share of each.
        names: of parameters, or all matrices and kernels (``prunable``).

    Raises:
        ValueError: a parameter is not finite, a name is unknown, nothing is left to prune, or an option is out of range.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[4.0, -1.0], [2.0, -3.0]]))
        >>> prune_magnitude(layer, 0.5).model.weight.tolist()
        [[4.0, 0.0], [0.0, -3.0]]
    """
    result = copy.deepcopy(model)
    if isinstance(sparsity, Mapping):
        names = list(sparsity) if names is None else names
    weights, skipped = choose_weights(result, names)
    masks = magnitude_masks(weights, sparsity, scope=scope)
    enforce(masks)(result)
    return Sparse(result, masks, skipped)


def magnitude_masks(
    weights: Mapping[str, Tensor],
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "global",
    within: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Masks that remove the smallest weights, of all tensors together or of each.

    Args:
        weights: by name, any shapes.
        sparsity: the fraction removed, 0..1; with ``scope="layer"`` also one for each name.
        scope: ``"global"`` or ``"layer"``.
        within: masks of before; what they removed goes first and counts.

    Raises:
        ValueError: ``scope`` is neither, or as ``global_masks``.

    Example:
        >>> import torch
        >>> magnitude_masks({"a": torch.tensor([4.0, -1.0]), "b": torch.tensor([2.0, -3.0])}, 0.5, scope="layer")
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope={scope!r} must be 'global' or 'layer'")
    if scope == "global" and isinstance(sparsity, Mapping):
        raise ValueError(f"scope='global' takes one sparsity, got {len(sparsity)} by name; try scope='layer'")
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    return (global_masks if scope == "global" else layer_masks)(scores, sparsity, within=within)
