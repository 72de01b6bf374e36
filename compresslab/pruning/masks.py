"""The vocabulary of lesson 05: scores say what matters, masks say what stays, and a model is sparse once it has zeros.

Scores and masks are dicts by parameter name. Higher scores stay; a mask is bool, True stays. What is asked is what is
removed, to the element: round(sparsity * N) of N, and among equal scores the first in order go first. A threshold
cannot promise that: on ties it removes all or nothing, and a quantile of the weights has to sort a copy of them.

The threshold is found by counting instead. Floats, read as integers, keep their order (the negative ones are turned
around), so the 16 highest bits of all scores are counted, then the next 16 of those that share the highest, and so on:
two passes over float32, chunk by chunk, whatever the size.

Masks are put back after each step of an optimizer (``enforce``), not laid over the weights by a parametrization: the
zeros are in the weights themselves, so a state dict, a copy or an export is that of a plain model, any optimizer works,
and at the end there is nothing to remove. Momentum and weight decay move removed weights, for no forward pass sees it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["apply_masks", "check_finite", "check_sparsity", "enforce", "global_masks", "layer_masks"]

CHUNK = 2**20  # scores that are looked at at once
DIGIT = 16  # bits that are counted at once


def check_finite(x: Tensor, name: str = "x") -> None:
    """Raise unless every element of ``x`` is a finite floating-point number.

    Raises:
        ValueError: some are not, or ``x`` is on the meta device and holds nothing. TypeError: it is not floating point.

    Example:
        >>> check_finite(torch.tensor([1.0, 2.0]))
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}; call .float() first")
    if x.is_meta:
        raise ValueError(f"{name} is on the meta device and holds no values; load the weights first")
    if x.numel() and not all(end.isfinite() for end in x.detach().aminmax()):  # quicker than to count
        nan, infinite = int(x.isnan().sum()), int(x.isinf().sum())
        raise ValueError(f"{name} must be finite, got {nan} NaN and {infinite} infinite of {x.numel()}; mend it first")


def check_sparsity(sparsity: float) -> None:
    """Raise unless ``sparsity`` is a fraction, 0..1.

    Raises:
        ValueError: it is not.

    Example:
        >>> check_sparsity(0.9)
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity={sparsity} must be the fraction removed, in 0..1; try 0.9 for 90 %")


def global_masks(
    scores: Mapping[str, Tensor], sparsity: float, *, within: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Masks that remove the lowest scores of all tensors together: round(sparsity * N) of N elements, exactly.

    Args:
        scores: by parameter, floating point without NaN, any shapes; higher stays.
        sparsity: the fraction removed, 0..1.
        within: masks of before. What they removed goes first and counts, so that to ask for 0.9 twice gives 0.9.

    Raises:
        ValueError: a score is NaN or on the meta device, a shape differs, or ``sparsity`` is out of range.
        TypeError: scores are not floating point.

    Example:
        >>> global_masks({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 2.0])}, 0.25)  # of two 1s, the first
        {'a': tensor([ True, False]), 'b': tensor([True, True])}
    """
    check_sparsity(sparsity)
    for name, score in scores.items():
        if not score.is_floating_point() or score.is_meta:
            check_finite(score, f"scores of {name}")
        if within is not None and (name not in within or within[name].shape != score.shape):
            raise ValueError(
                f"within must have a mask of shape {tuple(score.shape)} for {name}; take all from one call"
            )
    wide = torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32
    bits = torch.finfo(wide).bits

    def keys(name: str) -> Iterator[Tensor]:
        """Integers in the order of the scores, chunk by chunk."""
        kept = None if within is None else within[name].reshape(-1).split(CHUNK)
        for place, part in enumerate(scores[name].detach().reshape(-1).split(CHUNK)):
            part = part.to(wide) + 0.0  # so that -0.0 is 0.0
            if part.numel() and part.amax().isnan():
                raise ValueError(f"scores of {name} must not be NaN, got {int(part.isnan().sum())}; mend them first")
            if kept is not None:
                part = part.masked_fill_(~kept[place], -torch.inf)
            key = part.view(torch.int64 if bits == 64 else torch.int32)
            yield key ^ ((key >> (bits - 1)) & (2 ** (bits - 1) - 1))

    remove = round(sparsity * sum(score.numel() for score in scores.values()))
    threshold, ties = _select(scores, keys, remove, bits)
    masks = {}
    for name, score in scores.items():
        parts = []
        for key in keys(name):
            part = key > threshold
            equal = key == threshold
            if ties == 0:
                part |= equal
            elif equal.any():
                place = equal.cumsum(0)
                part |= equal & (place > ties)
                ties = max(ties - int(place[-1]), 0)
            parts.append(part)
        masks[name] = torch.cat(parts).reshape(score.shape)
    return masks


def _select(
    scores: Mapping[str, Tensor], keys: Callable[[str], Iterator[Tensor]], remove: int, bits: int
) -> tuple[int, int]:
    """The key of the first that stays, in order, and how many of its equals go."""
    prefix = 0
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(2**DIGIT, dtype=torch.int64)
        for name in scores:
            for key in keys(name):
                digits = key >> shift
                if shift < bits - DIGIT:
                    digits = digits[digits >> DIGIT == prefix] & (2**DIGIT - 1)
                else:
                    digits += 2 ** (DIGIT - 1)  # the sign
                counts += torch.bincount(digits, minlength=2**DIGIT).cpu()
        below = counts.cumsum(0)
        if remove >= below[-1]:  # all of them
            return 2 ** (bits - 1) - 1, remove
        digit = int(torch.searchsorted(below, remove, right=True))
        remove -= int(below[digit] - counts[digit])
        prefix = (prefix << DIGIT | digit) if shift < bits - DIGIT else digit - 2 ** (DIGIT - 1)
    return prefix, remove


def layer_masks(
    scores: Mapping[str, Tensor], sparsity: float | Mapping[str, float], *, within: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Masks that remove the lowest scores of each tensor by itself, exactly round(sparsity * N) of its N elements.

    Args:
        scores: as in ``global_masks``.
        sparsity: the fraction removed, 0..1, one number or one for each name.
        within: as in ``global_masks``.

    Raises:
        ValueError: as ``global_masks``, or a name has no sparsity.

    Example:
        >>> layer_masks({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([1.0, 2.0])}, 0.5)
        {'a': tensor([ True, False]), 'b': tensor([False,  True])}
    """
    if isinstance(sparsity, Mapping) and set(sparsity) != set(scores):
        raise ValueError(f"sparsity must have the names of the scores, {list(scores)}, got {list(sparsity)}")
    masks = {}
    for name, score in scores.items():
        share = sparsity[name] if isinstance(sparsity, Mapping) else sparsity
        masks |= global_masks({name: score}, share, within=within)
    return masks


def enforce(masks: Mapping[str, Tensor]) -> Callable[[nn.Module], None]:
    """A function that sets what the masks remove to zero, in place: call it with the model after each optimizer step.

    Args:
        masks: by parameter name, bool, True stays.

    Raises:
        ValueError: (when called) a name is unknown, or a mask is not bool or has another shape.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> enforce({"weight": torch.tensor([[True, False]])})(layer)
        >>> layer.weight[0, 1].item()
        0.0
    """

    @torch.no_grad()
    def put_back(model: nn.Module) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, mask in masks.items():
            if name not in parameters or mask.dtype != torch.bool or mask.shape != parameters[name].shape:
                wanted = tuple(parameters[name].shape) if name in parameters else f"one of {list(parameters)}"
                raise ValueError(
                    f"mask {name} must be bool and fit the model, {wanted}; got {mask.dtype} {tuple(mask.shape)}"
                )
            parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)

    return put_back


def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A new model with zeros where the masks remove; they are in the weights, for good.

    Args:
        model: any module; it is left as it was.
        masks: by parameter name, bool, True stays.

    Raises:
        ValueError: a name is unknown, or a mask is not bool or has another shape.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> sparse = apply_masks(layer, {"weight": torch.tensor([[True, False]])})
        >>> sparse.weight[0, 1].item(), torch.equal(sparse.weight[0, 0], layer.weight[0, 0])
        (0.0, True)
    """
    result = copy.deepcopy(model)
    enforce(masks)(result)
    return result
