"""The size of a weight as its importance: no data, no gradients, and hard to beat for what it costs.

    L1  |w|        L2  w^2 (its root, the norm, has the same order)

Weight by weight both give one ranking. They differ for groups: the sum over a channel is its L1 norm or the square of
its L2 norm, and the second minds one large weight more than many small ones.

    Han, Pool, Tran and Dally, "Learning both weights and connections for efficient neural networks", 2015,
    https://arxiv.org/abs/1506.02626 (weights); Li, Kadav, Durdanovic, Samet and Graf, "Pruning filters for efficient
    ConvNets", 2016, https://arxiv.org/abs/1608.08710, section 3.1 (the L1 norm of a filter)
"""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from compresslab.importance.scored import Scores, scored_weights, wide

__all__ = ["magnitude_scores"]


def magnitude_scores(model: nn.Module, *, power: int = 1, names: Collection[str] | None = None) -> Scores:
    """|w| to a power, by weight; ``per_channel`` of it gives L1 norms, or squared L2 norms.

    Args:
        model: any module.
        power: 1 (L1) or 2 (L2).
        names: as in ``scored_weights``.

    Raises:
        ValueError: another power, or weights that cannot be scored.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> _ = nn.init.constant_(layer.weight, -3.0)
        >>> magnitude_scores(layer, power=2)["weight"].tolist()
        [[9.0, 9.0]]
    """
    if power not in (1, 2):
        raise ValueError(f"power={power!r} must be 1 (L1) or 2 (L2)")
    return {name: w.detach().to(wide(w)).abs() ** power for name, w in scored_weights(model, names).items()}
