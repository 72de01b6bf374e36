"""Bias correction: rounding the weights moves the mean of a layer's outputs; the bias moves it back.

A rounding error E in the weights adds E x to the output, and its mean over the data, E[E x], is not 0: a depthwise
channel has nine weights, and nine errors do not cancel. The mean of each output channel is measured in the float and in
the quantized model, and the difference is taken off the bias, layer by layer in the order in which they run, so that
each layer is measured behind corrected ones.

    Nagel, van Baalen, Blankevoort and Welling, "Data-free quantization through weight equalization and bias
    correction", 2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix D (empirical correction)
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compresslab.quantization.affine import check_finite

__all__ = ["Corrected", "channel_means", "correct_bias"]

LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Corrected:
    """A quantized model whose layers have the mean outputs of the float model."""

    model: nn.Module  # a new model
    shifts: dict[str, Tensor]  # by layer, (channels,): what was taken off the bias
    skipped: dict[str, str]  # layer: why it was left


def channel_means(model: nn.Module, layers: Iterable[str], batches: Iterable) -> dict[str, Tensor]:
    """The mean output of each channel of some layers over all samples, positions and calls, in the order they run.

    Args:
        model: in eval mode.
        layers: names of Linear, convolution or transposed convolution layers.
        batches: of (inputs, labels); the labels are not used.

    Returns:
        By layer, (channels,) float64. A layer that is never called is not there.

    Raises:
        ValueError: there is no batch, or inputs are not finite.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.Linear(1, 1))
        >>> _ = nn.init.constant_(model[1].weight, 2.0), nn.init.zeros_(model[1].bias)
        >>> channel_means(model, ["1"], [(torch.tensor([[1.0], [3.0]]), None)])["1"].tolist()
        [4.0]
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> RemovableHandle:
        def hook(layer: nn.Module, inputs: object, output: Tensor) -> None:
            rows = output.movedim(output.dim() - layer.weight.dim() + 1, -1).flatten(0, -2).double()
            sums[name] = sums.get(name, 0) + rows.sum(0)
            counts[name] = counts.get(name, 0) + len(rows)

        return model.get_submodule(name).register_forward_hook(hook)

    seen = 0
    with contextlib.ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(watch(name))
        for inputs, *_ in batches:
            if inputs.is_floating_point():
                check_finite(inputs, f"inputs of batch {seen}")
            with torch.no_grad():
                model(inputs)
            seen += 1
    if not seen:
        raise ValueError("batches holds no batch; pass at least one of (inputs, labels)")
    return {name: total / counts[name] for name, total in sums.items()}


def correct_bias(model: nn.Module, quantized: nn.Module, batches: Iterable) -> Corrected:
    """A copy of ``quantized`` with corrected biases; a layer without a bias gets one.

    Args:
        model: the float model.
        quantized: the same model with quantized weights; both are measured in eval mode.
        batches: of (inputs, labels); read once, kept, and run once for each layer.

    Raises:
        ValueError: the models have other layers, there is no batch, inputs are not finite, or no layer is called.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> _ = nn.init.constant_(model[0].weight, 2.0)
        >>> rounded = copy.deepcopy(model)
        >>> rounded[0].weight.data += 0.5
        >>> correct_bias(model, rounded, [(torch.tensor([[1.0], [3.0]]), None)]).model[0].bias.item()  # -0.5 * 2
        -1.0
    """
    names = [name for name, module in quantized.named_modules() if isinstance(module, LAYERS)]
    others = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    if names != others:
        raise ValueError(f"model and quantized must have the same layers, got {others} and {names}")
    batches = list(batches)
    wanted = channel_means(copy.deepcopy(model).eval(), names, batches)
    if not wanted:
        raise ValueError(
            f"no Linear or convolution layer of {type(model).__name__} is called; there is no bias to correct"
        )
    result = copy.deepcopy(quantized).eval()
    shifts = {}
    for name in wanted:  # in the order of the first call
        layer = result.get_submodule(name)
        shift = channel_means(result, [name], batches)[name] - wanted[name]
        shifts[name] = shift.to(layer.weight.dtype)
        bias = -shift if layer.bias is None else layer.bias.detach().double() - shift
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    for name, module in quantized.named_modules():
        result.get_submodule(name).training = module.training
    skipped = dict.fromkeys((name for name in names if name not in wanted), "it is never called")
    return Corrected(result, shifts, skipped)
