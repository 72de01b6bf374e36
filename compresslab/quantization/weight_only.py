"""Weight-only quantization: the weights are stored as integers and computed with as floats.

It makes the file smaller and a memory-bound layer faster where a kernel unpacks on the fly; the arithmetic stays in
floating point, so no data is needed. To ``affine.py`` this adds the model: which parameters are weights, along which
axis a channel lies, and a list of all that was left as it was.

Each weight becomes a matrix with one row for each output channel: (O, I) for Linear, (O, I * K * K) for a convolution,
(V, D) for an embedding. A channel's scale belongs to a row, groups lie along it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compresslab.quantization.affine import Quantized, check_finite, quantize
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.packing import pack

__all__ = ["WeightOnly", "from_rows", "packed_state", "quantize_weights", "rows_of", "weights_of"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True, eq=False)
class WeightOnly:
    """A model whose weights lie on integer grids, and those integers."""

    model: nn.Module  # a new model, with the dequantized weights in the dtype they had
    weights: dict[str, Quantized]  # by parameter: (rows, elements of a row)
    skipped: dict[str, str]  # parameter or buffer: why it stayed as it was
    nbytes: int  # of all: packed levels, scales, zero points, and what was skipped; tied tensors once

    @property
    def bits_per_weight(self) -> float:
        """Bits for each quantized weight, scales and zero points included."""
        elements = sum(weight.levels.numel() for weight in self.weights.values())
        return 8 * sum(weight.nbytes for weight in self.weights.values()) / elements


def weights_of(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, nn.Module]]:
    """Every weight matrix or kernel that quantization knows, once: its name, the parameter and the module it is in.

    Linear, convolutions, transposed convolutions, embeddings, and the matrices of attention and recurrent layers.

    Example:
        >>> [name for name, _, _ in weights_of(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))]
        ['0.weight']
    """
    for name, parameter in model.named_parameters():  # a tied one is named once
        module = model.get_submodule(name.rpartition(".")[0])
        known = isinstance(module, (*MATRICES, *TRANSPOSED, *RECURRENT))
        if known and parameter.dim() >= 2 and parameter.is_floating_point() and "bias" not in name.rpartition(".")[2]:
            yield name, parameter, module


def rows_of(weight: Tensor, module: nn.Module) -> Tensor:
    """A weight as a matrix with one row for each output channel.

    Example:
        >>> import torch
        >>> rows_of(torch.zeros(2, 5, 3, 3), nn.ConvTranspose2d(2, 5, 3)).shape
        torch.Size([5, 18])
    """
    return (weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight).flatten(1)


def from_rows(rows: Tensor, weight: Tensor, module: nn.Module) -> Tensor:
    """The inverse of ``rows_of``: ``rows`` in the shape of ``weight``.

    Example:
        >>> import torch
        >>> from_rows(torch.zeros(5, 18), torch.zeros(2, 5, 3, 3), nn.ConvTranspose2d(2, 5, 3)).shape
        torch.Size([2, 5, 3, 3])
    """
    if isinstance(module, TRANSPOSED):
        return rows.reshape(weight.transpose(0, 1).shape).transpose(0, 1)
    return rows.reshape(weight.shape)


def quantize_weights(
    model: nn.Module,
    *,
    bits: int | Mapping[str, int] = 8,
    symmetric: bool = True,
    per_channel: bool = True,
    group_size: int | None = None,
    method: str = "minmax",
    skip: Collection[str] = (),
) -> WeightOnly:
    """A new model whose weights are rounded to integer grids, with the integers and a list of what was skipped.

    Args:
        model: any module.
        bits: 1..16, one number or one for each parameter name; with names, the others are skipped.
        symmetric: as in ``quantize``.
        per_channel: a scale for each output channel (row), or one for the tensor.
        group_size: elements of a row that share a scale, instead. A row that it does not divide gets the divisor that
            is nearest by ratio, at most the row; the result's grids say which.
        method: of the range, ``"minmax"``, or ``"mse"``: clipped to the least squared error (``clipping.py``).
        skip: names of parameters or modules to leave as they are.

    Raises:
        ValueError: a weight is not finite, a name is unknown, an option is out of range, or no weight is left.

    Example:
        >>> result = quantize_weights(nn.Linear(4, 2), bits=4)  # 8 levels of 4 bits, 2 scales, 2 biases
        >>> result.nbytes, result.skipped
        (20, {'bias': 'Linear: only matrices and kernels are quantized'})
    """
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size={group_size} must be at least 1; try 32")
    if method not in ("minmax", "mse"):
        raise ValueError(f"method={method!r} must be 'minmax' or 'mse'")
    result = copy.deepcopy(model)
    found = {id(parameter): (name, module) for name, parameter, module in weights_of(result)}
    every = {name: id(parameter) for name, parameter in result.named_parameters(remove_duplicate=False)}
    inside = {part: {every[name] for name in every if f"{name}.".startswith(f"{part}.")} for part in skip}
    widths = {every.get(name): width for name, width in bits.items()} if isinstance(bits, Mapping) else None
    unknown = [part for part in inside if not inside[part]]
    unknown += [name for name in (bits if widths else ()) if every.get(name) not in found]
    if unknown:
        raise ValueError(f"{unknown} must be weights of the model; choose from {[name for name, _ in found.values()]}")
    left = set().union(*inside.values())
    weights, skipped = {}, {}
    for name, parameter in result.named_parameters():
        if parameter.is_floating_point():
            check_finite(parameter, name)
        width = bits if widths is None else widths.get(id(parameter))
        if id(parameter) not in found:
            owner = type(result.get_submodule(name.rpartition(".")[0])).__name__
            skipped[name] = f"{owner}: only matrices and kernels are quantized"
        elif width is None or id(parameter) in left:
            skipped[name] = "left out by the caller"
        else:
            module = found[id(parameter)][1]
            rows = rows_of(parameter.detach(), module)
            size = None if group_size is None else _divisor(rows.shape[1], group_size)
            axis = 0 if per_channel and size is None else None
            options = {"bits": width, "symmetric": symmetric, "axis": axis, "group_size": size}
            weights[name] = (
                quantize(rows, **options) if method == "minmax" else clipped_grid(rows, **options).quantize(rows)
            )
            parameter.data.copy_(from_rows(weights[name].dequantize(), parameter, module))
    if not weights:
        raise ValueError(f"{type(model).__name__} has no weight to quantize: {skipped or 'it has no parameters'}")
    skipped |= {name: "a buffer" for name, _ in result.named_buffers()}
    others = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    nbytes = sum(others[name].nbytes for name in skipped) + sum(weight.nbytes for weight in weights.values())
    return WeightOnly(result, weights, skipped, nbytes)


def packed_state(model: nn.Module, weights: Mapping[str, Quantized]) -> dict[str, Tensor]:
    """What a file of the model has to hold: packed levels, scales and zero points, and all else as it is.

    Args:
        model: the one that the levels belong to, with the dequantized weights or with their levels in its state.
        weights: levels of at most 8 bits by parameter, as in ``WeightOnly.weights`` and ``Converted.weights``.

    Returns:
        ``name.packed``, ``name.scale`` and, where the grid is asymmetric, ``name.zero_point`` in place of each weight
        and of what is tied to it.

    Raises:
        ValueError: a weight has more than 8 bits.

    Example:
        >>> result = quantize_weights(nn.Linear(4, 2), bits=4)
        >>> {name: tensor.nbytes for name, tensor in packed_state(result.model, result.weights).items()}
        {'bias': 8, 'weight.packed': 4, 'weight.scale': 8}
    """
    state, parameters = model.state_dict(), dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        path, dot, attribute = name.rpartition(".")
        beneath = f"{path}{dot}parametrizations.{attribute}."  # where a converted model keeps its levels
        tied = {other for other, parameter in parameters.items() if parameter is parameters.get(name)}
        state = {key: part for key, part in state.items() if key not in tied and not key.startswith(beneath)}
        parts = {"packed": pack(weight.levels, bits=weight.bits, signed=weight.grid.symmetric), "scale": weight.scale}
        if not weight.grid.symmetric:
            parts["zero_point"] = pack(weight.zero_point, bits=weight.bits, signed=False)
        state |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    return state


def _divisor(length: int, wanted: int) -> int:
    divisors = [size for size in range(1, length + 1) if length % size == 0]
    return min(divisors, key=lambda size: abs(math.log(size / wanted)), default=1)
