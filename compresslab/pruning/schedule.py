"""How sparse a model is to be at each step of its training: all at once, evenly, or quickly first and slowly last.

    cubic:  s_t = s_f + (s_i - s_f) (1 - (t - t_0) / T)^3        t in t_0, t_0 + D, t_0 + 2 D, ..., t_0 + T

s_i and s_f are the sparsity at the first and at the last step, D is how often it changes. While there is much to spare,
much is taken; a quarter of the way to 90 % it is 52 % (with the cube of the way gone instead, a widespread mistake, it
is 1.4 %, and nearly everything goes in the last steps, when nothing is left to recover with).

    Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017,
    https://arxiv.org/abs/1710.01878, equation 1
"""

from __future__ import annotations

from compresslab.pruning.masks import check_sparsity

__all__ = ["constant_sparsity", "cubic_sparsity", "linear_sparsity"]


def constant_sparsity(step: int, *, final: float = 0.9, start: int = 0) -> float:
    """All at once: nothing before ``start``, then ``final``.

    Args:
        step: counted from 0.
        final: the sparsity, 0..1.
        start: the first step that is sparse.

    Raises:
        ValueError: the sparsity is out of range.

    Example:
        >>> [constant_sparsity(step, final=0.8, start=2) for step in range(4)]
        [0.0, 0.0, 0.8, 0.8]
    """
    check_sparsity(final)
    return final if step >= start else 0.0


def linear_sparsity(
    step: int, *, end: int, final: float = 0.9, initial: float = 0.0, start: int = 0, every: int = 1
) -> float:
    """In even steps from ``initial`` at ``start`` to ``final`` at ``end``; nothing before, ``final`` after.

    Args:
        step: counted from 0.
        end: from here on it is ``final``, exactly.
        final, initial: the sparsity at both ends, 0..1.
        start: before this step it is 0.
        every: steps between two changes; the last change is at ``end``, whether this divides the way or not.

    Raises:
        ValueError: a sparsity is out of range, ``end`` is before ``start``, or ``every`` is less than 1.

    Example:
        >>> [linear_sparsity(step, end=4, final=0.8, every=2) for step in range(6)]
        [0.0, 0.0, 0.4, 0.4, 0.8, 0.8]
    """
    left = _left(step, start, end, every, initial, final)
    return 0.0 if left is None else final + (initial - final) * left


def cubic_sparsity(
    step: int, *, end: int, final: float = 0.9, initial: float = 0.0, start: int = 0, every: int = 1
) -> float:
    """Quickly first and slowly last, from ``initial`` at ``start`` to ``final`` at ``end``; nothing before.

    Args:
        step, end, final, initial, start, every: as in ``linear_sparsity``.

    Raises:
        ValueError: as ``linear_sparsity``.

    Example:
        >>> [cubic_sparsity(step, end=2, final=1.0) for step in range(4)]  # 1 - 1 / 8 half way
        [0.0, 0.875, 1.0, 1.0]
    """
    left = _left(step, start, end, every, initial, final)
    return 0.0 if left is None else final + (initial - final) * left**3


def _left(step: int, start: int, end: int, every: int, initial: float, final: float) -> float | None:
    """The fraction of the way that is left at the last change, 1..0; None before ``start``."""
    check_sparsity(initial)
    check_sparsity(final)
    if end < start:
        raise ValueError(f"end={end} must not be before start={start}; the way takes end - start steps")
    if every < 1:
        raise ValueError(f"every={every} must be at least 1 step; try 1")
    if step < start:
        return None
    if step >= end:
        return 0.0
    return 1 - (step - start) // every * every / (end - start)
