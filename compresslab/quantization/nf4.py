"""NF4: sixteen levels where normal weights are, and scales that are themselves quantized.

Trained weights look normal, so evenly spaced levels waste some on the thin tails. NF4's levels hold equal shares of a
normal curve, stretched to -1..1, with an exact 0. Each block of 64 weights is divided by its largest magnitude c_2 and
goes to the nearest level. A float for each block costs half a bit per weight; *double quantization* takes the mean off
the c_2 and keeps the rest as 8-bit integers, with one float c_1 for 256 blocks:

    4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits per weight

The paper's 8 bits are floats, here they are integers: the c_2 of a tensor are much alike.

    Dettmers, Pagnoni, Holtzman and Zettlemoyer, "QLoRA: efficient finetuning of quantized LLMs", 2023,
    https://arxiv.org/abs/2305.14314, section 3 and appendix E
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from compresslab.quantization.affine import Quantized, check_finite, quantize
from compresslab.quantization.weight_only import WeightOnly, from_rows, quantize_weights, rows_of

__all__ = ["LEVELS", "NF4", "nf4_model", "quantize_nf4"]

LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
BLOCKS = 256  # that share a c_1


@dataclass(frozen=True, eq=False)
class NF4:
    """A tensor as numbers of levels, with the scales of its blocks."""

    levels: Tensor  # shape of x, uint8, 0..15: places in LEVELS
    scales: Tensor | Quantized  # (blocks,) c_2; or c_2 - mean as (BLOCKS' rows, blocks), padded with zeros
    mean: Tensor | None  # () of c_2, None without double quantization
    block_size: int
    dtype: torch.dtype  # of x, and of what dequantize returns

    def dequantize(self) -> Tensor:
        """The values that the levels stand for, in the shape and dtype of the tensor that was quantized."""
        scales = self.scales if self.mean is None else self.scales.dequantize().flatten() + self.mean
        values = torch.tensor(LEVELS, dtype=scales.dtype, device=scales.device)[self.levels.long()]
        spread = scales.repeat_interleave(self.block_size)[: values.numel()]
        return (values * spread.reshape(values.shape)).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes to store: levels packed in pairs, and the scales, a byte each with double quantization."""
        if self.mean is None:
            return -(-self.levels.numel() // 2) + self.scales.nbytes
        blocks = -(-self.levels.numel() // self.block_size)
        return -(-self.levels.numel() // 2) + blocks + self.scales.scale.nbytes + self.mean.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element, scales included; infinite for an empty tensor."""
        return 8 * self.nbytes / self.levels.numel() if self.levels.numel() else float("inf")


def quantize_nf4(x: Tensor, *, block_size: int = 64, double: bool = True) -> NF4:
    """``x`` rounded to NF4, in blocks of its elements in memory order; the last one may be shorter.

    Args:
        x: finite, floating point, any shape.
        block_size: elements that share a scale.
        double: quantize the scales too.

    Raises:
        ValueError: ``x`` is not finite, or ``block_size`` is below 1. TypeError: ``x`` is not floating point.

    Example:
        >>> result = quantize_nf4(torch.tensor([2.0, 0.3, 0.01, -1.9]), double=False)
        >>> result.levels.tolist(), [round(value, 4) for value in result.dequantize().tolist()]
        ([15, 9, 7, 0], [2.0, 0.3219, 0.0, -2.0])
    """
    check_finite(x)
    if not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size={block_size!r} must be an integer of at least 1; try 64")
    flat = x.detach().to(torch.promote_types(x.dtype, torch.float32)).flatten()
    blocks = pad(flat, (0, -len(flat) % block_size)).reshape(-1, block_size)
    scales, mean = blocks.abs().amax(1), None
    # Rounded with the float scale, before that is quantized: a block's largest weight is always a level of +-1.
    values = torch.tensor(LEVELS, dtype=flat.dtype, device=flat.device)
    borders = (values[1:] + values[:-1]) / 2
    units = blocks / scales.clamp(min=torch.finfo(flat.dtype).tiny).unsqueeze(1)
    levels = torch.bucketize(units, borders).to(torch.uint8).flatten()[: len(flat)].reshape(x.shape)
    if double and len(scales):
        mean = scales.mean()
        rows = pad(scales - mean, (0, -len(scales) % BLOCKS)).reshape(-1, BLOCKS)
        scales = quantize(rows, bits=8, axis=0)
    return NF4(levels, scales, mean, block_size, x.dtype)


def nf4_model(model: nn.Module, *, block_size: int = 64, double: bool = True, skip: Collection[str] = ()) -> WeightOnly:
    """A new model whose weights are rounded to NF4, with the levels and a list of what was skipped.

    Args:
        model: any module.
        block_size, double: as in ``quantize_nf4``.
        skip: names of parameters or modules to leave as they are.

    Raises:
        ValueError: a weight is not finite, a name is unknown, an option is out of range, or no weight is left.

    Example:
        >>> result = nf4_model(nn.Linear(64, 4), double=False)  # 128 bytes of levels, 4 scales, 4 biases
        >>> result.nbytes, result.bits_per_weight
        (160, 4.5)
    """
    base = quantize_weights(model, bits=4, skip=skip)
    weights, nbytes = {}, base.nbytes - sum(weight.nbytes for weight in base.weights.values())
    for name in base.weights:
        parameter, module = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
        weights[name] = quantize_nf4(rows_of(parameter.detach(), module), block_size=block_size, double=double)
        base.model.get_parameter(name).data.copy_(from_rows(weights[name].dequantize(), parameter, module))
    return WeightOnly(base.model, weights, base.skipped, nbytes + sum(weight.nbytes for weight in weights.values()))
