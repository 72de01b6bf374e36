"""Several scores made one, by ranks.

Scores of different methods have different units, and one enormous value is common. Scaled to 0..1 by minimum and
maximum, that value squeezes all others of its method together, and the method has no say any more. Ranks have no units
and no outliers. They are taken over all layers at once: ranks within a layer would forget which layers matter.

    combined = sum_m a_m rank_m / n,   the a_m divided by their sum
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from compresslab.importance.ranks import average_ranks
from compresslab.importance.scored import Scores

__all__ = ["combine_scores"]


def combine_scores(scores: Mapping[str, Mapping[str, Tensor]], *, weights: Mapping[str, float] | None = None) -> Scores:
    """The weighted mean of the ranks that each method gives, in 0..1, by name.

    Args:
        scores: by method, scores of the same tensors.
        weights: by method, >= 0; exactly the methods there are. None for the same weight each.

    Raises:
        ValueError: no method, methods without weight or weights without method, a weight that is negative or not
            finite, all of them 0, or methods that score other tensors.

    Example:
        >>> methods = {"a": {"w": torch.tensor([1.0, 2.0, 9e9])}, "b": {"w": torch.tensor([0.2, 0.1, 0.3])}}
        >>> [round(s, 4) for s in combine_scores(methods)["w"].tolist()]  # ranks 1, 2, 3 and 2, 1, 3, of 3
        [0.5, 0.5, 1.0]
    """
    if not scores:
        raise ValueError("scores holds no method; pass at least one")
    weights = dict.fromkeys(scores, 1.0) if weights is None else weights
    if weights.keys() != scores.keys():
        odd = sorted(weights.keys() ^ scores.keys())
        raise ValueError(f"weights must name exactly the methods {sorted(scores)}; {odd} are in one of the two only")
    total = sum(weights.values())
    if not (total > 0 and math.isfinite(total) and all(a >= 0 for a in weights.values())):
        raise ValueError(f"weights={dict(weights)} must be at least 0, finite, and not all 0")
    first = next(iter(scores))
    shapes = {name: tensor.shape for name, tensor in scores[first].items()}
    combined = 0
    for method, tensors in scores.items():
        if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
            raise ValueError(
                f"{method!r} must score the same tensors as {first!r}: {list(shapes)}, got {list(tensors)}"
            )
        flat = torch.cat([tensors[name].flatten().double() for name in shapes])  # one dtype, one ranking for all layers
        combined = combined + weights[method] / total * average_ranks(flat) / len(flat)
    parts = combined.split([shape.numel() for shape in shapes.values()])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
