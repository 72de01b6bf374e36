"""GPTQ: weights are rounded so that the output of their layer stays right, not the weights.

Inputs of a layer go together, and so do errors in the weights they are multiplied with: an error can be made good by
the next weights of the row. Column after column is rounded, each time to the level that is best given all errors so far
(``column_rounding.py``), which makes trace((W - Q) H (W - Q)^T) small, H = mean x x^T over the tokens (``hessian.py``).

As in the paper: H + damping * mean(diag H); columns in the order of falling diag H; blocks of columns; layers in the
order in which they run, with inputs from the model quantized so far. Scales are fixed before, on the weight as it was,
so that in any order of the columns a group lies together and no index of groups is stored. Three things more: scales
clipped to the least error weighted by diag H (``clipping.py``), two sweeps of coordinate descent on the grid, and a row
keeps rounding to nearest where that turned out better.

    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: accurate post-training quantization for generative pre-trained
    transformers", 2022, https://arxiv.org/abs/2210.17323, algorithm 1
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import Grid, Quantized, check_finite, quantize
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.column_rounding import round_columns
from compresslab.quantization.hessian import count_calls, layer_hessian
from compresslab.quantization.layer_samples import SAMPLED, inputs_of
from compresslab.quantization.weight_only import WeightOnly, from_rows, quantize_weights, rows_of

__all__ = ["GPTQQuantized", "GPTQWeight", "gptq", "gptq_model"]


@dataclass(frozen=True, eq=False)
class GPTQWeight(Quantized):
    """A weight on its grid, and what choosing the rounding brought."""

    error: float  # trace((W - Q) H (W - Q)^T): squared error of the layer's output, mean over tokens
    nearest_error: float  # the same of rounding to nearest from the smallest to the largest weight
    damping: float  # that was needed, relative to the mean of the Hessian's diagonal
    nearest_rows: int  # rows that stayed rounded to nearest, because that was better


@dataclass(frozen=True, eq=False)
class GPTQQuantized(WeightOnly):
    """A model whose weights lie on integer grids, rounded layer by layer."""

    layers: dict[str, GPTQWeight]  # by parameter, in the order in which the layers run
    tokens: dict[str, int]  # that each layer's Hessian is the mean of; fewer than columns are too few
    nearest: dict[str, str]  # parameter: why it was rounded to nearest


@torch.no_grad()
def gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int = 4,
    group_size: int | None = 128,
    symmetric: bool = False,
    act_order: bool = True,
    damping: float = 0.01,
    method: str = "mse",
    sweeps: int = 2,
    block_size: int = 32,
) -> GPTQWeight:
    """The weight on an integer grid, rounded so that the layer's output changes little.

    ``method="minmax", sweeps=0`` is the paper's algorithm. Where rounding to nearest is better, a row keeps to it.

    Args:
        weight: (out, in), finite.
        hessian: (in, in), the mean over tokens of x x^T; any positive factor gives the same result. With groups
            (groups, in, in), one for each run of out / groups rows.
        bits: 1..16; 1 with ``symmetric=False`` only.
        group_size: weights of a row that share a scale; None is the whole row.
        symmetric: as in ``quantize``.
        act_order: columns in the order of falling diag H, else from the first to the last.
        damping: added to the diagonal, relative to its mean, 0..1; 10 times as much where that is too little.
        method: of the scales, ``"mse"`` (clipped to the least squared error, weighted by diag H) or ``"minmax"``, which
            gives each layer more error, and yet a convolutional network at 2 bits may do better with it.
        sweeps: of coordinate descent afterwards.
        block_size: columns in a block; it changes the time, and the result by no more than how sums are rounded.

    Raises:
        ValueError: a tensor is not finite, shapes do not fit, ``hessian`` is not a mean of x x^T, an option is out of
            range, or ``group_size`` does not divide the columns.

    Example:
        >>> weight, hessian = torch.tensor([[0.4, 0.4, 7.0]]), torch.ones(3, 3)  # all inputs are the same
        >>> gptq(weight, hessian, bits=4, symmetric=True, group_size=None, method="minmax", act_order=False).levels
        tensor([[0, 1, 7]], dtype=torch.int8)
    """
    groups = _check(weight, hessian, method)
    options = {"bits": bits, "symmetric": symmetric, "group_size": group_size}
    options["axis"] = 0 if group_size is None else None
    nearest = quantize(weight, **options)
    wide = torch.promote_types(nearest.scale.dtype, hessian.dtype)
    w, h = weight.to(wide), hessian.to(wide).reshape(groups, *hessian.shape[-2:])  # (O, I), (groups, I, I)
    grid = nearest.grid
    if method == "mse":
        power = h.diagonal(dim1=1, dim2=2).abs()  # (groups, I)
        power = power / power.mean(1, keepdim=True).clamp(min=torch.finfo(wide).tiny) + 0.01  # dead ones count a little
        importance = power.repeat_interleave(len(w) // groups, 0)  # (O, I)
        grid = clipped_grid(weight, **options, importance=importance, steps=20)
    found = round_columns(weight, h, grid, act_order=act_order, damping=damping, sweeps=sweeps, block_size=block_size)

    def squares(quantized: Quantized) -> Tensor:  # (O,)
        d = (w - quantized.dequantize().to(wide)).unflatten(0, (groups, -1))
        return ((d @ h) * d).sum(-1).flatten()

    def choose(mine: Tensor, other: Tensor) -> Tensor:  # by row
        return torch.where(better.reshape(-1, *[1] * (mine.dim() - 1)), mine, other)

    rounded = Quantized(found.levels.to(nearest.levels.dtype), grid, weight.dtype)
    error, nearest_error = squares(rounded), squares(nearest)
    better = error <= nearest_error
    return GPTQWeight(
        choose(rounded.levels, nearest.levels),
        Grid(choose(grid.scale, nearest.scale), choose(grid.zero_point, nearest.zero_point), **options),
        weight.dtype,
        error=choose(error, nearest_error).sum().item(), nearest_error=nearest_error.sum().item(),
        damping=found.damping, nearest_rows=int((~better).sum()),
    )  # fmt: skip


def gptq_model(
    model: nn.Module,
    batches: Iterable,
    *,
    bits: int | Mapping[str, int] = 4,
    group_size: int | None = 128,
    symmetric: bool = False,
    act_order: bool = True,
    damping: float = 0.01,
    method: str = "mse",
    sweeps: int = 2,
    skip: Collection[str] = (),
) -> GPTQQuantized:
    """A new model with weights on integer grids, each layer rounded for the inputs it gets from those quantized so far.

    Linear and Conv layers are; embeddings, weights used elsewhere too and other matrices are rounded to nearest, unless
    skipped.

    Args:
        model: any module, run in eval mode.
        batches: of (inputs, labels), the labels are not used. They are kept, and run through the model up to each layer
            once. A layer should get several times as many tokens as it has columns.
        bits: 1..16, one number or one for each parameter name; with names, the others are skipped.
        group_size: weights of a row that share a scale; None is the whole row. A row that it does not divide gets the
            divisor that is nearest by ratio, as in ``quantize_weights``.
        symmetric, act_order, damping, method, sweeps: as in ``gptq``.
        skip: names of parameters or modules to leave as they are.

    Raises:
        ValueError: as ``gptq`` and ``quantize_weights``; there is no batch, or inputs are not finite.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = gptq_model(model, [(torch.arange(9), None)])
        >>> list(result.layers), result.nearest
        (['1.weight', '3.weight'], {'0.weight': 'Embedding: only Linear and Conv layers have a Hessian here'})
    """
    base = quantize_weights(model, bits=bits, symmetric=symmetric, group_size=group_size, skip=skip)
    options = {"symmetric": symmetric, "act_order": act_order, "damping": damping, "method": method, "sweeps": sweeps}
    batches, result, nearest, names = inputs_of(batches), base.model.eval(), {}, []
    owners = [id(parameter) for _, parameter in result.named_parameters(remove_duplicate=False)]
    for full, weight in base.weights.items():
        name = full.rpartition(".")[0]
        layer = result.get_submodule(name)
        if type(layer) not in SAMPLED:
            nearest[full] = f"{type(layer).__name__}: only Linear and Conv layers have a Hessian here"
        elif owners.count(id(layer.weight)) > 1:
            nearest[full] = "it is used elsewhere too"
        elif weight.bits == 1 and symmetric:
            nearest[full] = "there is no level between -1 and 1"
        else:
            nearest[full] = "no batch runs through it"
            names.append(name)
    layers, tokens = {}, {}
    for name, calls in count_calls(result, names, batches).items():
        full, layer = f"{name}.weight".removeprefix("."), result.get_submodule(name)
        hessian = layer_hessian(result, name, batches, calls)
        if not hessian.tokens:
            continue
        check_finite(hessian.mean, f"the Hessian of {full}")
        grid, weight = base.weights[full].grid, model.get_parameter(full).detach()
        rows = rows_of(weight, layer)
        layers[full] = gptq(rows, hessian.mean, bits=grid.bits, group_size=grid.group_size, **options)
        tokens[full] = hessian.tokens
        layer.weight.data.copy_(from_rows(layers[full].dequantize(), weight, layer))
        del nearest[full]
    for name, module in model.named_modules():
        result.get_submodule(name).training = module.training
    return GPTQQuantized(
        result, base.weights | layers, base.skipped, base.nbytes, layers=layers, tokens=tokens, nearest=nearest
    )


def _check(weight: Tensor, hessian: Tensor, method: str) -> int:
    """How many groups of rows there are."""
    check_finite(weight, "weight")
    check_finite(hessian, "hessian")
    groups = len(hessian) if hessian.dim() == 3 else 1
    fit = weight.dim() == 2 and hessian.dim() in (2, 3) and hessian.shape[-2:] == weight.shape[1:] * 2
    if not fit or not weight.numel() or not groups or len(weight) % groups:
        shapes = f"{tuple(weight.shape)} and {tuple(hessian.shape)}"
        raise ValueError(f"weight (out, in) and hessian (in, in) or (groups, in, in) must fit, got {shapes}")
    if method not in ("minmax", "mse"):
        raise ValueError(f"method={method!r} must be 'minmax' or 'mse'")
    return groups
