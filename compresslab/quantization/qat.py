"""Quantization-aware training: the model is trained with the rounding that it will have to live with.

``prepare_qat`` puts fake quantizers where an integer kernel will have its integers: on the weight of each layer (a
parametrization, so that ``layer.weight`` is the rounded weight and the float one beneath is what is trained) and on
the input of each layer. Any training loop does the rest. ``freeze`` stops what moves beside the weights, and
``convert`` puts integers where the floats were; the predictions stay the same.

Batch norms are folded first. What is trained is then what is deployed, and no running statistic is left to move. (Kept,
they have to be frozen, stay in floats, and gained nothing in a trial.) Training starts from the best that can be had
without it, scales of least squared error: fewer steps are needed than from the formula of the LSQ paper.

This file is longer than others: it goes through a whole model three times, to prepare, to freeze and to convert, and
must keep ties, shared layers and the model given.

    Jacob and others, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    2017, https://arxiv.org/abs/1712.05877, section 3
    Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018,
    https://arxiv.org/abs/1806.08342, section 4 (freezing, batch norm)
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compresslab.quantization.affine import Quantized, check_finite
from compresslab.quantization.batchnorm import NORMS, fold_batchnorm
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.fake_quantize import Dequantize, FakeQuantize, FakeQuantizeWeight
from compresslab.quantization.lsq import LSQ
from compresslab.quantization.ranges import MinMax, Range, SquaredError
from compresslab.quantization.weight_only import RECURRENT, TRANSPOSED, weights_of

__all__ = ["Converted", "Prepared", "convert", "freeze", "prepare_qat"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)  # their inputs are quantized too
QUANTIZERS = (FakeQuantize, FakeQuantizeWeight, LSQ)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model to be trained, with fake quantizers in it."""

    model: nn.Module  # a new model: an optimizer that holds the parameters of the old one trains nothing
    weight_bits: dict[str, int]  # by parameter, as it was named before
    activation_bits: dict[str, int]  # by layer, of its input
    skipped: dict[str, str]  # parameter, or layer whose input is not quantized: why


@dataclass(frozen=True, eq=False)
class Converted:
    """A model whose weights are integers."""

    model: nn.Module  # a new model, whose state holds levels and scales; its activations are rounded as in training
    weights: dict[str, Quantized]  # by parameter
    nbytes: int  # of all: packed levels, scales, zero points, and every other tensor; tied tensors once


def prepare_qat(
    model: nn.Module,
    batches: Iterable | None = None,
    *,
    weight_bits: int = 4,
    activation_bits: int | None = 4,
    method: str = "lsq",
    start: str = "mse",
    first_last_bits: int | None = 8,
    per_channel: bool = True,
    fold: bool = True,
) -> Prepared:
    """A new model that computes with rounded weights and rounded layer inputs, and can be trained.

    Weights have a scale for each output channel, inputs one scale and one zero point, 0 where calibration saw nothing
    negative (after ReLU, say). A model that was prepared before is prepared anew from the floats beneath, so the bits
    may fall stage by stage.

    Args:
        model: any module; its mode is kept.
        batches: of (inputs, labels), read once, for the first ranges; None only with ``activation_bits=None``.
        weight_bits: 2..16.
        activation_bits: 2..16; None leaves the inputs in floats.
        method: ``"lsq"`` learns the scales, ``"ste"`` takes them from the weights and from a moving average.
        start: the first scales, ``"mse"`` of least squared error, or ``"mean"`` for the LSQ paper's formula (with
            ``"ste"``, the range from the least to the largest value).
        first_last_bits: at least so many for the first and the last layer, in the order in which they run (without
            batches: are defined); None treats all alike.
        per_channel: a scale for each output channel of a weight, or one for the tensor.
        fold: fold batch norms; False keeps them, to be frozen later.

    Raises:
        ValueError: an option out of range, no batch, a value that is not finite, no weight to quantize, a converted
            model, or a data flow that cannot be traced to fold batch norms.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> prepare_qat(model, activation_bits=None).weight_bits
        {'0.weight': 8, '2.weight': 4, '4.weight': 8}
    """
    _check_options(method, start, batches, activation_bits, weight_bits=weight_bits, first_last_bits=first_last_bits)
    result = _without_quantizers(model)
    for name, parameter in result.named_parameters():
        if parameter.is_floating_point():
            check_finite(parameter, name)
    if fold and any(isinstance(module, NORMS) for module in result.modules()):
        result = fold_batchnorm(result).model
    weights = {name: (weight, layer) for name, weight, layer in weights_of(result) if not isinstance(layer, RECURRENT)}
    skipped = {}
    for name, _ in result.named_parameters():
        if name not in weights:
            owner = type(result.get_submodule(name.rpartition(".")[0])).__name__
            skipped[name] = f"{owner}: only matrices and kernels are quantized, and not those of recurrent layers"
    if not weights:
        raise ValueError(f"{type(model).__name__} has no weight to quantize: {skipped or 'it has no parameters'}")
    owners: dict[int, list[tuple[str, nn.Module, str]]] = {}  # weight: path, layer and attribute of all that use it
    for path, layer in result.named_modules():
        for attribute, parameter in layer.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((path, layer, attribute))
    users = {path: layer for weight, _ in weights.values() for path, layer, _ in owners[id(weight)]}
    ranges = {} if batches is None else _ranges(result, users, batches, SquaredError if start == "mse" else MinMax)
    order = list(ranges or users)
    ends = {order[0], order[-1]} if first_last_bits is not None else set()

    inputs: dict[str, int] = {}
    for path, layer in users.items() if activation_bits is not None else ():
        if not isinstance(layer, LAYERS):
            skipped[path] = f"{type(layer).__name__}: its input is not quantized"
        elif ranges.get(path) is None:
            skipped[path] = "calibration brought nothing to it; its input is not quantized"
        else:
            inputs[path] = max(activation_bits, first_last_bits) if path in ends else activation_bits
            quantizer = _input_quantizer(*ranges[path], inputs[path], method, start)
            dtype = torch.promote_types(layer.weight.dtype, torch.float32)
            layer.input_quantizer = quantizer.to(dtype).train(layer.training)
            layer.register_forward_pre_hook(_quantize_input, with_kwargs=True)
    bits_of: dict[str, int] = {}
    for name, (weight, layer) in weights.items():
        at_an_end = any(path in ends for path, _, _ in owners[id(weight)])
        bits_of[name] = max(weight_bits, first_last_bits) if at_an_end else weight_bits
        axis = (1 if isinstance(layer, TRANSPOSED) else 0) if per_channel else None
        quantizer = _weight_quantizer(weight, bits_of[name], axis, method, start)
        quantizer.train(layer.training).requires_grad_(weight.requires_grad)
        for _, user, attribute in owners[id(weight)]:
            parametrize.register_parametrization(user, attribute, quantizer)
    return Prepared(result, bits_of, inputs, skipped)


def freeze(model: nn.Module) -> nn.Module:
    """A copy in which only weights and biases are still trained: ranges, steps and kept batch norms stay as they are.

    It is for the last part of the training, when what the weights settle on should hold still. The optimizer has to be
    made anew for the copy.

    Args:
        model: from ``prepare_qat``, trained.

    Raises:
        ValueError: there is no fake quantizer in it.

    Example:
        >>> frozen = freeze(prepare_qat(nn.Linear(4, 2), activation_bits=None).model)
        >>> [name for name, parameter in frozen.named_parameters() if not parameter.requires_grad]
        ['parametrizations.weight.0.scale']
    """
    if not any(isinstance(module, QUANTIZERS) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no fake quantizer to freeze; call prepare_qat first")
    result = copy.deepcopy(model)
    for module in result.modules():
        if isinstance(module, FakeQuantize | LSQ):
            module.freeze()
        elif isinstance(module, NORMS) and _stay_in_eval not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_stay_in_eval)
    return result


def convert(model: nn.Module) -> Converted:
    """The same model with integer weights, and the same predictions in eval mode.

    The weights are trained no longer; each layer multiplies its levels by their scales when it runs. The fake
    quantizers of the inputs stay, frozen.

    Args:
        model: from ``prepare_qat``, trained.

    Raises:
        ValueError: there is no fake quantizer in it, or a weight is not finite.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer.weight.data = torch.tensor([[7.0, 2.4]])
        >>> prepared = prepare_qat(layer, activation_bits=None, method="ste", first_last_bits=None)
        >>> convert(prepared.model).weights["weight"].levels.tolist()
        [[7, 2]]
    """
    result = freeze(model)
    done: dict[int, tuple[str, nn.Parameter, Quantized]] = {}  # holds the weight, or its id would be given anew
    places = []
    for path, layer, name in _parametrized(result, QUANTIZERS):
        quantizer, weight = layer.parametrizations[name][0], layer.parametrizations[name].original
        if id(weight) not in done:
            full = f"{path}.{name}" if path else name
            check_finite(weight, full)
            done[id(weight)] = full, weight, quantizer.grid(weight).quantize(weight)
        _uncover(layer, name)
        delattr(layer, name)
        places.append((layer, name, done[id(weight)][2]))
    weights = {full: quantized for full, _, quantized in done.values()}
    nbytes = sum(part.nbytes for part in (*result.parameters(), *result.buffers(), *weights.values()))
    modules = {id(quantized): Dequantize(quantized) for quantized in weights.values()}
    for layer, name, quantized in places:
        layer.register_buffer(name, quantized.levels)
        # "unsafe" allows another dtype for the weight than for what is stored.
        parametrize.register_parametrization(layer, name, modules[id(quantized)].train(layer.training), unsafe=True)
    return Converted(result, weights, nbytes)


def _weight_quantizer(weight: Tensor, bits: int, axis: int | None, method: str, start: str) -> nn.Module:
    if method == "ste":
        return FakeQuantizeWeight(bits=bits, axis=axis)
    if start == "mean":
        return LSQ.for_weight(weight, bits=bits, axis=axis)
    scale = clipped_grid(weight.detach(), bits=bits, axis=axis).scale
    return LSQ(scale, zero_point=2 ** (bits - 1), bits=bits, axis=axis)


def _input_quantizer(observer: MinMax, mean: float, bits: int, method: str, start: str) -> nn.Module:
    observer.bits = bits
    always_0 = observer.minimum == observer.maximum == 0
    span = Range(0.0, 0.0) if always_0 else observer.range()
    if method == "ste":
        return FakeQuantize(span.minimum, span.maximum, bits=bits)
    if start == "mean":
        return LSQ.for_input(span.minimum, span.maximum, mean, bits=bits)
    grid = span.grid(bits=bits, symmetric=False)
    return LSQ(grid.scale, zero_point=int(grid.zero_point), bits=bits, batched=True)


def _check_options(method: str, start: str, batches: Any, activation_bits: int | None, **bits: int | None) -> None:
    if method not in ("lsq", "ste"):
        raise ValueError(f"method={method!r} must be 'lsq' or 'ste'")
    if start not in ("mse", "mean"):
        raise ValueError(f"start={start!r} must be 'mse' or 'mean'")
    for name, value in (*bits.items(), ("activation_bits", activation_bits)):
        optional = name != "weight_bits" and value is None
        if not optional and not (isinstance(value, int) and 2 <= value <= 16):
            raise ValueError(f"{name}={value!r} must be an integer in 2..16; try 8 or 4")
    if activation_bits is not None and batches is None:
        raise ValueError(
            f"activation_bits={activation_bits} needs batches for the first ranges; pass some, or bits None"
        )


def _parametrized(model: nn.Module, kinds: tuple[type, ...]) -> list[tuple[str, nn.Module, str]]:
    """Path, layer and attribute of every weight under a parametrization of these kinds."""
    return [
        (path, layer, name)
        for path, layer in model.named_modules()
        if parametrize.is_parametrized(layer)
        for name, modules in layer.parametrizations.items()
        if isinstance(modules[0], kinds)
    ]


def _uncover(layer: nn.Module, name: str) -> None:
    """Make ``layer.weight`` the parameter beneath again."""
    # torch gives a parametrized layer a class of its own, copies of the layer share it, and removing deletes a property
    # of that class: the copies would lose their weights. So this layer moves to a class that is its alone.
    shared = type(layer)
    members = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    layer.__class__ = type(shared.__name__, shared.__bases__, members)
    parametrize.remove_parametrizations(layer, name, leave_parametrized=False)


def _without_quantizers(model: nn.Module) -> nn.Module:
    """A copy with the floats beneath, as it was before ``prepare_qat`` but for its weights."""
    if found := _parametrized(model, (Dequantize,)):
        raise ValueError(f"the weight of {found[0][0]!r} is integers already; pass the model that was converted")
    result = copy.deepcopy(model)
    for _, layer, name in _parametrized(result, QUANTIZERS):
        _uncover(layer, name)
    for layer in result.modules():
        for key, hook in list(layer._forward_pre_hooks.items()):
            if hook is _quantize_input:
                del layer._forward_pre_hooks[key], layer._forward_pre_hooks_with_kwargs[key], layer.input_quantizer
    return result


def _ranges(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable, kind: type[MinMax]
) -> dict[str, tuple[MinMax, float] | None]:
    """By layer, in the order of their first calls: an observer and the mean of |x| of its input; None if not floats."""
    seen: dict[str, list] = {}

    def watch(path: str) -> Any:
        def hook(layer: nn.Module, arguments: tuple, keywords: dict) -> None:
            x = next(iter((*arguments, *keywords.values())))
            found = seen.setdefault(path, [kind(symmetric=False, name=path), 0.0, 0])  # observer, sum |x|, count
            if x.is_floating_point():
                found[0].update(x)
                found[1:] = found[1] + x.double().abs().sum().item(), found[2] + x.numel()

        return hook

    flags = {module: module.training for module in model.modules()}
    handles = [layer.register_forward_pre_hook(watch(path), with_kwargs=True) for path, layer in layers.items()]
    count = 0
    model.eval()
    with torch.no_grad():
        for inputs, *_ in batches:
            if inputs.is_floating_point():
                check_finite(inputs, f"inputs of batch {count}")
            model(inputs)
            count += 1
    if not count:
        raise ValueError("batches holds no batch; pass at least one of (inputs, labels)")
    for handle in handles:
        handle.remove()
    for module, flag in flags.items():
        module.training = flag
    return {path: (observer, total / count) if count else None for path, (observer, total, count) in seen.items()}


def _quantize_input(layer: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
    # It takes the layer as an argument and is no closure: in a copy of the model it finds the copy's quantizer.
    if arguments:
        return (layer.input_quantizer(arguments[0]), *arguments[1:]), keywords
    return arguments, {**keywords, "input": layer.input_quantizer(keywords["input"])}


def _stay_in_eval(norm: nn.Module, arguments: tuple) -> None:
    norm.training = False  # model.train() sets it again before the next step
