"""AWQ: weights that meet large activations are scaled up before they are rounded, so that they lose less.

Of the channels a small share is much louder than the rest. A group's step hardly changes when one of its columns is
multiplied by s > 1, so that column's error, after division by s, is s times smaller. All layers that read an input
share its scales; m_j = mean |x_j| says which channels matter and a search how much:

    s = m^alpha,   alpha* = argmin || Q(W diag(s)) diag(s)^-1 X - W X ||^2                       (equations 4 and 5)

alpha = 0 is round-to-nearest, so the search never loses against it on its own data. The division by s goes into the
layer before (``joints.py``). Then each group's range is clipped where that lowers the error of the group's part of the
output. Errors are computed from H = mean of x x^T: ||D X||^2 = tr(D H D^T), which is all that the data are needed for.

    Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han, "AWQ: activation-aware weight quantization", 2023,
    https://arxiv.org/abs/2306.00978, section 3.2; the clipping is in the authors' code
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import Grid, check_finite, quantize
from compresslab.quantization.joints import find_joints, move_scales, visit_inputs
from compresslab.quantization.layer_samples import inputs_of
from compresslab.quantization.weight_only import WeightOnly, quantize_weights

__all__ = ["AWQ", "Searched", "awq_model", "search_clip", "search_scales"]

STEPS = 20  # alpha = 0, 0.05, ... 0.95, and clipped ranges of 1, 0.95, ... 0.55


@dataclass(frozen=True, eq=False)
class Searched:
    """The scales of one input, and what they are worth."""

    scales: Tensor  # (I,): the columns of the weights are to be multiplied, the input divided
    alpha: float  # 0 is round-to-nearest, all scales 1
    error: float  # mean squared error of the outputs, summed over them
    nearest_error: float  # the same for round-to-nearest, never less


@dataclass(frozen=True, eq=False)
class AWQ(WeightOnly):
    """A model quantized by AWQ, with what was scaled and what was not."""

    searched: dict[tuple[str, ...], Searched]  # by the layers that share the input
    unscaled: dict[str, str]  # Linear layer: why its input was not scaled


def search_scales(
    weights: Sequence[Tensor], magnitude: Tensor, hessian: Tensor, *,
    bits: int = 4, group_size: int = 128, symmetric: bool = False,
) -> Searched:  # fmt: skip
    """The scales of an input, of 20 powers of its mean magnitude the one with the least error behind all its readers.

    Args:
        weights: (O, I) each, of all layers that read the input.
        magnitude: (I,) mean of |x_j|.
        hessian: (I, I) mean of x x^T.
        bits, group_size, symmetric: as in ``quantize``.

    Raises:
        ValueError: shapes do not fit, a tensor is not finite, or an option is out of range.

    Example:
        >>> weight = torch.tensor([[1.0, 0.45]])  # with one bit and symmetric levels both become 0.725
        >>> found = search_scales([weight], torch.tensor([1.0, 9.0]), torch.diag(torch.tensor([1.0, 81.0])),
        ...                       bits=1, group_size=2, symmetric=True)
        >>> found.error < found.nearest_error / 20
        True
    """
    width = len(magnitude)
    if any(weight.shape[1:] != (width,) for weight in weights) or hessian.shape != (width, width):
        shapes = [tuple(weight.shape) for weight in weights]
        raise ValueError(f"weights (O, I) must fit I={width} and a hessian (I, I), got {shapes} {tuple(hessian.shape)}")
    for name, tensor in {"magnitude": magnitude, "hessian": hessian}.items():
        check_finite(tensor, name)
    w = torch.cat([weight.detach().to(torch.promote_types(weight.dtype, torch.float32)) for weight in weights])
    alive = magnitude > 0
    # A channel that was silent says nothing of its size: 0^alpha would divide it by almost 0 when it wakes up.
    m = torch.where(alive, magnitude, magnitude[alive].mean() if alive.any() else 1).to(w.dtype)
    best, nearest = None, 0.0
    for alpha in (step / STEPS for step in range(STEPS)):
        s = (m**alpha).clamp(min=1e-4)
        s = s / (s.max() * s.min()).sqrt()
        rounded = quantize(w * s, bits=bits, symmetric=symmetric, group_size=group_size).dequantize() / s
        d = (rounded - w).to(hessian.dtype)
        error = ((d @ hessian) * d).sum().item()
        nearest = error if best is None else nearest
        if best is None or error < best.error:
            best = Searched(s, alpha, error, nearest)
    return best


def search_clip(
    weight: Tensor, hessian: Tensor, *, bits: int = 4, group_size: int = 128, symmetric: bool = False
) -> Grid:
    """The grid whose ranges, of 10 from the full one to 0.55 of it, give the least error of each group's partial output.

    Parts of a row add up, and their errors may too: a row whose whole output got worse keeps its full ranges.

    Args:
        weight: (O, I), finite.
        hessian: (I, I) mean of x x^T.
        bits, group_size, symmetric: as in ``quantize``.

    Raises:
        ValueError: as in ``quantize``, or ``hessian`` does not fit or is not finite.

    Example:
        >>> weight = torch.tensor([[0.9, -1.1, 1.0, 1.6]])  # two bits: -s, 0 and s
        >>> grid = search_clip(weight, torch.eye(4), bits=2, group_size=4, symmetric=True)
        >>> round(grid.scale.item(), 2)  # the mean is 1.15, and of 1.6, 1.52, ... the nearest
        1.12
    """
    if hessian.shape != (weight.shape[-1],) * 2:
        raise ValueError(f"hessian must be (I, I), got {tuple(hessian.shape)} for a weight {tuple(weight.shape)}")
    check_finite(hessian, "hessian")
    options = {"bits": bits, "symmetric": symmetric, "group_size": group_size}
    groups = quantize(weight, **options).scale.shape[1]
    w = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    blocks = hessian.unflatten(0, (groups, -1)).unflatten(2, (groups, -1)).diagonal(dim1=0, dim2=2)  # (g, g, groups)

    def clipped(limits: Tensor) -> Grid:  # (O, groups)
        limits = limits.repeat_interleave(group_size, 1)
        return quantize(w.clamp(-limits, limits), **options).grid

    def wrong(limits: Tensor) -> Tensor:  # (O, I)
        return (clipped(limits).quantize(w).dequantize() - w).to(hessian.dtype)

    full = best = w.unflatten(1, (groups, -1)).abs().amax(-1)  # (O, groups)
    least = torch.full_like(full, torch.inf)
    for step in range(STEPS // 2):
        limits = full * (1 - step / STEPS)
        d = wrong(limits).unflatten(1, (groups, -1))  # (O, groups, g)
        error = torch.einsum("ogi,ijg,ogj->og", d, blocks, d)
        best, least = torch.where(error < least, limits, best), torch.minimum(error, least)
    whole, whole_full = (((d @ hessian) * d).sum(1, keepdim=True) for d in (wrong(best), wrong(full)))
    return clipped(torch.where(whole < whole_full, best, full))


def awq_model(
    model: nn.Module,
    batches: Iterable,
    *,
    bits: int = 4,
    group_size: int = 128,
    symmetric: bool = False,
    clip: bool = True,
) -> AWQ:
    """A new model whose Linear weights are scaled, clipped and rounded by AWQ, and all other weights to the nearest.

    Args:
        model: any module, run in eval mode.
        batches: of (inputs, labels), the labels are not used; they are gone through once, and the first of them shows
            which layers share an input and which come before (``find_joints``).
        bits, group_size, symmetric: as in ``quantize_weights``.
        clip: search the ranges too.

    Raises:
        ValueError: as ``quantize_weights``; there is no Linear layer, no batch, or inputs are not finite.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
        >>> result = awq_model(model, [(torch.rand(64, 8), None)])
        >>> list(result.searched), list(result.unscaled)
        ([('1',)], ['3'])
    """
    options = {"bits": bits, "symmetric": symmetric, "group_size": group_size}
    base = quantize_weights(model, **options)  # tells the sizes of the groups, and checks what it is given
    batches = inputs_of(batches)
    joints = find_joints(model, batches[0])
    source = copy.deepcopy(model).eval()
    linears = {name: module for name, module in source.named_modules() if type(module) is nn.Linear}
    moments = _moments(source, list(linears), batches)
    searched = {}
    for joint in reversed(joints.found):  # what is divided into the rows of a layer comes before its own columns
        count, total, squares = (sum(parts) for parts in zip(*(moments[name] for name in joint.layers), strict=True))
        size = {"group_size": base.weights[f"{joint.layers[0]}.weight"].grid.group_size}
        weights = [linears[name].weight for name in joint.layers]
        found = search_scales(weights, total / count, squares / count, **options | size)
        move_scales(source, joint, found.scales)
        for name in joint.layers:
            moments[name][2] /= found.scales * found.scales.reshape(-1, 1)
        searched[joint.layers] = found
    result = quantize_weights(source, **options)
    owners = Counter(id(parameter) for _, parameter in source.named_parameters(remove_duplicate=False))
    for name, linear in linears.items():
        full = f"{name}.weight".removeprefix(".")
        if clip and name in moments and owners[id(linear.weight)] == 1:
            count, _, squares = moments[name]  # an expert that is never chosen has none
            size = {"group_size": result.weights[full].grid.group_size}
            grid = search_clip(linear.weight, squares / max(count, 1), **options | size)
            result.weights[full] = grid.quantize(linear.weight)
            result.model.get_parameter(full).data.copy_(result.weights[full].dequantize())
    for name, module in model.named_modules():
        result.model.get_submodule(name).training = module.training
    return AWQ(**vars(result), searched=searched, unscaled=joints.unjoined)


def _moments(model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor]) -> dict[str, list]:
    """By layer: the number of its inputs x, and the sums of |x| and of x x^T."""
    moments: dict[str, list] = {}

    def add(name: str, rows: Tensor) -> None:
        x = rows.to(torch.promote_types(rows.dtype, torch.float32))
        part = [len(x), x.abs().sum(0).double(), (x.T @ x).double()]
        moments[name] = [old + new for old, new in zip(moments.get(name, (0, 0, 0)), part, strict=True)]

    visit_inputs(model, layers, batches, add)
    return moments
