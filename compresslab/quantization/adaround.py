"""AdaRound: each weight is rounded up or down, whichever makes the layer's output right, not the weight.

Rounding to nearest gives the least error in every weight and not in their sum: two errors may add up or cancel. Layer
by layer, in the order in which they run, the rounding is searched (``soft_rounding.py``) that makes

    |f(W x) - f(W~ x^)|^2

small, summed over channels and averaged over samples. x is what the layer gets in the float model and x^ what it gets
in the quantized one, so that it makes up for the layers before it; f is the ReLU behind it if there is one. An output
channel keeps rounding to nearest where that turned out better.

    Nagel, Amjad, van Baalen, Louizos and Blankevoort, "Up or down? Adaptive rounding for post-training quantization",
    2020, https://arxiv.org/abs/2004.10568, equation 25
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import Grid, Quantized, check_finite
from compresslab.quantization.layer_samples import SAMPLED, feeds_relu, inputs_of, sample_inputs, sample_outputs
from compresslab.quantization.soft_rounding import search_rounding
from compresslab.quantization.weight_only import WeightOnly, from_rows, quantize_weights, rows_of

__all__ = ["AdaRounded", "Rounded", "adaround", "adaround_model"]

BATCH = 256  # samples a step


@dataclass(frozen=True, eq=False)
class Rounded:
    """A weight on its grid, and what choosing the rounding brought."""

    weight: Quantized  # (O, I)
    error: float  # squared error of the output over the square of the target, both summed
    nearest_error: float  # the same of rounding to nearest
    flipped: float  # fraction of the weights not rounded to nearest
    undecided: float  # fraction of h that were neither 0 nor 1 when the search ended


@dataclass(frozen=True, eq=False)
class AdaRounded(WeightOnly):
    """A model whose weights lie on integer grids, rounded layer by layer."""

    layers: dict[str, Rounded]  # by parameter, in the order in which the layers run
    nearest: dict[str, str]  # parameter: why it was rounded to nearest


def adaround(
    weight: Tensor,
    inputs: Tensor,
    grid: Grid,
    *,
    targets: Tensor | None = None,
    bias: Tensor | None = None,
    relu: bool = False,
    steps: int = 1000,
    penalty: float = 100.0,
    generator: torch.Generator | None = None,
) -> Rounded:
    """The weight on the grid, each element rounded up or down so that the layer's output is as close as can be found.

    Args:
        weight: (O, I), finite.
        inputs: (N, I) samples of what the layer gets in the quantized model; with groups (N, groups, I).
        grid: of the weight; it stays.
        targets: (N, O), what the layer should put out before the ReLU; None is ``weight`` times ``inputs`` plus bias.
        bias: (O,) of the layer.
        relu: whether a ReLU comes next.
        steps: of the search.
        penalty: lambda, above 0, for errors relative to rounding to nearest.
        generator: draws the samples of each step; one seeded with 0 if None.

    Raises:
        ValueError: a tensor is not finite, shapes do not fit, an option is out of range, or the grid has one bit and
            is symmetric.

    Example:
        >>> grid = Grid(torch.tensor(1.0), torch.tensor(0), bits=4)
        >>> weight, inputs = torch.tensor([[0.45, 0.4]]), torch.ones(4, 2)
        >>> adaround(weight, inputs, grid).weight.levels.tolist()  # 0.85 is nearer to 1 than to 0
        [[1, 0]]
    """
    nearest = grid.quantize(weight)
    check_finite(inputs, "inputs")
    x = inputs.unsqueeze(1) if inputs.dim() == 2 else inputs  # (N, groups, I)
    if weight.dim() != 2 or x.dim() != 3 or not len(x) or x.shape[2] != weight.shape[1] or len(weight) % x.shape[1]:
        shapes = f"{tuple(weight.shape)} and {tuple(inputs.shape)}"
        raise ValueError(f"weight (O, I) and inputs (N, I) or (N, groups, I) must fit, N at least 1, got {shapes}")
    x, w = x.to(grid.scale.dtype), weight.detach().to(grid.scale.dtype)
    shift = w.new_zeros(len(w)) if bias is None else bias.detach().to(w.dtype)

    def outputs(x: Tensor, w: Tensor) -> Tensor:  # (n, groups, I), (O, I) -> (n, O)
        y = torch.einsum("ngi,goi->ngo", x, w.unflatten(0, (x.shape[1], -1))).flatten(1) + shift
        return y.relu() if relu else y

    if targets is None:
        wanted = outputs(x, w)
    else:
        check_finite(targets, "targets")
        if targets.shape != (len(x), len(w)):
            raise ValueError(f"targets {tuple(targets.shape)} must be (N, O), here {(len(x), len(w))}")
        wanted = targets.to(w.dtype).relu() if relu else targets.to(w.dtype)

    def squares(x: Tensor, w: Tensor, wanted: Tensor) -> Tensor:  # (O,)
        return (outputs(x, w) - wanted).square().mean(0)

    power = wanted.square().mean(0).sum().clamp(min=torch.finfo(w.dtype).tiny)
    nearest_error = squares(x, nearest.dequantize().to(w.dtype), wanted)
    if not nearest_error.any():
        return Rounded(nearest, 0.0, 0.0, 0.0, 0.0)

    generator = torch.Generator().manual_seed(0) if generator is None else generator

    def relative(w: Tensor) -> Tensor:
        chosen = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator).to(x.device)
        return squares(x[chosen], w, wanted[chosen]).sum() / nearest_error.sum()

    found = search_rounding(weight, grid, relative, steps=steps, penalty=penalty)
    error = squares(x, found.weight.dequantize().to(w.dtype), wanted)
    levels = torch.where((error < nearest_error).unsqueeze(1), found.weight.levels, nearest.levels)
    return Rounded(
        Quantized(levels, grid, weight.dtype),
        error=(torch.minimum(error, nearest_error).sum() / power).item(),
        nearest_error=(nearest_error.sum() / power).item(),
        flipped=(levels != nearest.levels).double().mean().item(),
        undecided=found.undecided,
    )


def adaround_model(
    model: nn.Module,
    batches: Iterable,
    *,
    bits: int | Mapping[str, int] = 4,
    symmetric: bool = True,
    samples: int = 4096,
    steps: int = 1000,
    generator: torch.Generator | None = None,
) -> AdaRounded:
    """A new model with weights per channel on grids of least squared error, rounded layer by layer as they run.

    Fold batch norm first (``fold_batchnorm``): the ReLU behind it then belongs to the layer, and the error of each
    channel counts as much as it does in the model. A layer's inputs come from the model quantized so far.

    Args:
        model: any module, run in eval mode.
        batches: of (inputs, labels), the labels are not used; a few hundred images. They are kept, and run through the
            model up to each layer once.
        bits: 2..16, one number or one for each parameter name; with names, the others are skipped.
        symmetric: as in ``quantize``.
        samples: positions of the layer's output, drawn from all batches, that the search sees.
        steps: of the search in each layer.
        generator: draws the samples; one seeded with 0 if None.

    Raises:
        ValueError: as ``quantize_weights``; there is no batch, or inputs are not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.LayerNorm(2))
        >>> result = adaround_model(model, [(torch.rand(64, 8), None)], steps=50)
        >>> list(result.layers), list(result.skipped)
        (['0.weight', '2.weight'], ['0.bias', '2.bias', '3.weight', '3.bias'])
    """
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples={samples!r} must be an integer of at least 1; try 4096")
    base = quantize_weights(model, bits=bits, symmetric=symmetric, method="mse")
    batches = inputs_of(batches)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    source, result = copy.deepcopy(model).eval(), base.model.eval()
    owners = [id(parameter) for _, parameter in source.named_parameters(remove_duplicate=False)]
    nearest, wanted = {}, []
    for name, weight in base.weights.items():
        layer = source.get_submodule(name.rpartition(".")[0])
        if type(layer) not in SAMPLED:
            nearest[name] = f"{type(layer).__name__}: only Linear and Conv layers are searched"
        elif owners.count(id(layer.weight)) > 1:
            nearest[name] = "it is used elsewhere too"
        elif weight.bits == 1 and symmetric:
            nearest[name] = "there is no level between -1 and 1"
        else:
            wanted.append(name.rpartition(".")[0])
    outputs = sample_outputs(source, wanted, batches, samples=samples, generator=generator)
    rectified, layers = feeds_relu(source), {}
    for name in outputs:
        layer, full = result.get_submodule(name), f"{name}.weight".removeprefix(".")
        inputs = sample_inputs(result, name, batches, outputs[name])
        if inputs is None:
            continue
        weight = source.get_parameter(full).detach()
        layers[full] = adaround(
            rows_of(weight, layer), inputs, base.weights[full].grid,
            targets=torch.cat(outputs[name].outputs), bias=layer.bias, relu=name in rectified,
            steps=steps, generator=generator,
        )  # fmt: skip
        layer.weight.data.copy_(from_rows(layers[full].weight.dequantize(), weight, layer))
    rest = [full for full in base.weights if full not in layers and full not in nearest]
    nearest |= dict.fromkeys(rest, "it is not called exactly once, with inputs of the same shape, in each batch")
    for name, module in model.named_modules():
        result.get_submodule(name).training = module.training
    weights = {full: layers[full].weight if full in layers else weight for full, weight in base.weights.items()}
    return AdaRounded(result, weights, base.skipped, base.nbytes, layers, nearest)
