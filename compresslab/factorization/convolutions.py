"""The convolutions of a model as products of smaller ones: which method, which ranks, and who is left as it is.

What a method's rank costs in parameters is a formula; with O, C channels of a group and a kernel of H x W:

    channel    r (C H W + O)             spatial    r (C H + O W)             tucker    C r_in + r_in r_out H W + r_out O

``share`` asks for a part of each layer's parameters and takes the largest ranks that fit, so that methods can be
compared at equal size; for Tucker-2 both ranks are then the same part of their channels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn

from compresslab.factorization.conv_svd import by_group, channel_svd, spatial_svd
from compresslab.factorization.ranks import energy_rank, largest_rank
from compresslab.factorization.replacing import Factorized, check_fraction, find_layers, replace_layers
from compresslab.factorization.tucker import tucker_conv

__all__ = ["factor_parameters", "factorize_convs"]

METHODS = {"channel": channel_svd, "spatial": spatial_svd, "tucker": tucker_conv}
Ranks = int | tuple[int, int]


def factor_parameters(layer: nn.Module, ranks: Ranks, *, method: str) -> int:
    """Numbers in the factors of a convolution, without its bias.

    Args:
        layer: Conv1d, Conv2d or Conv3d.
        ranks: one, or (r_out, r_in) for ``"tucker"``; for each group.
        method: ``"channel"``, ``"spatial"`` or ``"tucker"``.

    Raises:
        ValueError: the method is unknown.

    Example:
        >>> layer = nn.Conv2d(16, 32, 3)  # 4,608 numbers
        >>> [factor_parameters(layer, 8, method=method) for method in ("channel", "spatial")]
        [1408, 1152]
        >>> factor_parameters(layer, (8, 4), method="tucker")  # 16 * 4 + 4 * 8 * 9 + 8 * 32
        608
    """
    _check_method(method)
    out, into, *size = layer.weight.shape
    out //= layer.groups
    if method == "tucker":
        return layer.groups * (into * ranks[1] + ranks[0] * ranks[1] * math.prod(size) + ranks[0] * out)
    left = into * size[0] if method == "spatial" else into * math.prod(size)
    return layer.groups * ranks * (left + (out * size[1] if method == "spatial" else out))


def factorize_convs(
    model: nn.Module,
    *,
    method: str = "tucker",
    ranks: Mapping[str, Ranks] | None = None,
    energy: float | None = None,
    share: float | None = None,
    skip: Collection[str] = (),
) -> Factorized:
    """A new model whose convolutions are products of smaller ones, where that saves parameters.

    Args:
        model: any module.
        method: ``"channel"``, ``"spatial"`` (Conv2d only) or ``"tucker"``.
        ranks: by layer name, for each group: one, or (r_out, r_in) for Tucker-2. Give this, energy or share.
        energy: part of the energy to keep: of the kernel, or along each of the two axes of Tucker-2.
        share: part of each layer's parameters that the factors may have.
        skip: names of layers or modules to leave as they are.

    Raises:
        ValueError: not one of ranks, energy and share is given, a value is out of range, a name is unknown, a weight is
            not finite, or nothing was replaced.

    Example:
        >>> result = factorize_convs(nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 1, 1)), share=0.5)
        >>> result.ranks, result.skipped
        ({'0': (19, 9)}, {'1': 'no rank saves parameters'})
    """
    _check_method(method)
    if sum(option is not None for option in (ranks, energy, share)) != 1:
        raise ValueError(f"give one of ranks={ranks}, energy={energy} and share={share}; try share=0.5")
    for name, value in (("energy", energy), ("share", share)):
        if value is not None:
            check_fraction(value, name=name)
    kinds = [nn.Conv2d] if method == "spatial" else [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    layers, skipped = find_layers(model, kinds, skip=skip)
    if ranks is not None and (unknown := ranks.keys() - layers):
        raise ValueError(f"ranks={sorted(unknown)} must name layers that can be replaced: {[*layers]}")
    new = {}
    for name, layer in layers.items():
        if ranks is not None and name not in ranks:
            skipped[name] = "left out by the caller"
            continue
        chosen = ranks[name] if ranks is not None else _ranks(layer, method, energy, share)
        if not chosen:
            skipped[name] = "no rank saves parameters"
            continue
        made = METHODS[method](layer, chosen)
        count = factor_parameters(layer, chosen, method=method)
        if count >= layer.weight.numel():
            skipped[name] = f"ranks {chosen} save nothing: {count} numbers in place of {layer.weight.numel()}"
        else:
            new[name] = (made, chosen if isinstance(chosen, tuple) else (chosen,))
    return replace_layers(model, new, skipped)


def _ranks(layer: nn.Module, method: str, energy: float | None, share: float | None) -> Ranks | None:
    kernel = by_group(layer)  # (G, O, C, K...)
    if not kernel.numel():
        return None
    _, out, into, *size = kernel.shape
    if method == "tucker":
        if share is None:
            return tuple(energy_rank(_values(kernel.movedim(axis, 1).flatten(2)), energy) for axis in (1, 2))
        scaled = lambda step: (max(out * step // 256, 1), max(into * step // 256, 1))  # noqa: E731
        limit = _limit(layer, share)
        most = largest_rank(lambda step: factor_parameters(layer, scaled(step), method=method), limit, most=256)
        return scaled(most) if most else None
    if method == "spatial":
        matrices = kernel.permute(0, 2, 3, 1, 4).reshape(len(kernel), into * size[0], out * size[1])
    else:
        matrices = kernel.flatten(2)
    most = min(matrices.shape[1:])
    if share is None:
        return energy_rank(_values(matrices), energy)
    limit = _limit(layer, share)
    return largest_rank(lambda rank: factor_parameters(layer, rank, method=method), limit, most=most) or None


def _limit(layer: nn.Module, share: float) -> int:
    """Fewer numbers than this are allowed: at most the share, and fewer than all."""
    return math.floor(share * layer.weight.numel()) + (share < 1)


def _values(matrices: torch.Tensor) -> torch.Tensor:
    """Singular values of all groups together: root of the sum of squares, place by place."""
    return torch.linalg.svdvals(matrices).square().sum(0).sqrt()


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}")
