"""HQQ: the zero point of each group moved to where a robust error of its weights is least, without any data.

A squared error listens to the few outliers of a group; sum |e|^p with p < 1 lets them go and looks after the rest. It
is split in two (half-quadratic): with e for the errors that may stay large, of

    argmin over z, e of   sum |e|^p + beta / 2 |W - Q_z^-1(Q_z(W)) - e|^2

each half has a closed form, and they are solved in turn,

    e = sign(d) max(|d| - |d|^(p - 1) / beta, 0),   d = W - Q_z^-1(Q_z(W))
    z = mean over the group of  Q_z(W) - (W - e) / s

Unlike the zero point of ``affine.py`` this z is a real number, so it is stored as a float and 0.0 need not be a level.
Here errors are counted in steps, W / s, so that beta means the same for weights of any size.

    Badri and Shaji, "Half-quadratic quantization of large machine learning models", 2023,
    https://mobiusml.github.io/hqq_blog/
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import quantize
from compresslab.quantization.weight_only import WeightOnly, from_rows, quantize_weights, rows_of

__all__ = ["HQQ", "hqq_model", "quantize_hqq"]

BETA, GROWTH = 10.0, 1.01  # beta, and its factor in each step


@dataclass(frozen=True, eq=False)
class HQQ:
    """A tensor as integers, with a real zero point for each group."""

    levels: Tensor  # shape of x, uint8 up to 8 bits, then int32
    scale: Tensor  # (..., groups)
    zero_point: Tensor  # (..., groups), floating point
    bits: int
    dtype: torch.dtype  # of x, and of what dequantize returns

    def dequantize(self) -> Tensor:
        """The values that the levels stand for, in the shape and dtype of the tensor that was quantized."""
        groups = self.levels.reshape(*self.scale.shape, -1).to(self.scale.dtype)
        values = (groups - self.zero_point.unsqueeze(-1)) * self.scale.unsqueeze(-1)
        return values.reshape(self.levels.shape).to(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes to store: packed levels, scales and zero points as they are."""
        return -(-self.levels.numel() * self.bits // 8) + self.scale.nbytes + self.zero_point.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bits stored for each element, scales and zero points included; infinite for an empty tensor."""
        return 8 * self.nbytes / self.levels.numel() if self.levels.numel() else float("inf")


def quantize_hqq(x: Tensor, *, bits: int = 4, group_size: int = 64, p: float = 0.7, steps: int = 20) -> HQQ:
    """``x`` on asymmetric grids from min to max, their zero points moved to the least sum of |error|^p in each group.

    Args:
        x: finite, floating point, any shape.
        bits: 1..16.
        group_size: consecutive elements of the last axis that share a scale and a zero point.
        p: above 0, at most 1; smaller cares less for outliers.
        steps: of the search; the best zero point of all is kept, that of ``quantize`` among them.

    Raises:
        ValueError: ``x`` is not finite, or an option is out of range. TypeError: ``x`` is not floating point.

    Example:
        >>> x = torch.tensor([0.0, 1.3, 1.3, 2.3, 2.3, 3.0])  # two bits, scale 1: errors of 0.3
        >>> result = quantize_hqq(x, bits=2, group_size=6)
        >>> result.levels.tolist(), -0.3 <= result.zero_point.item() < 0
        ([0, 1, 1, 2, 2, 3], True)
    """
    if not 0 < p <= 1:
        raise ValueError(f"p={p} must be above 0 and at most 1; try 0.7")
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps={steps!r} must be an integer of at least 0; try 20")
    start = quantize(x, bits=bits, symmetric=False, group_size=group_size)
    scale = start.scale
    units = x.detach().to(scale.dtype).reshape(*scale.shape, group_size) / scale.unsqueeze(-1)  # W / s
    zero = start.zero_point.to(scale.dtype)
    best, best_levels, least, beta = zero, start.levels.reshape(units.shape), None, BETA
    for step in range(steps + 1):
        levels = (units + zero.unsqueeze(-1)).round().clamp(0, start.grid.quant_max)
        d = units - (levels - zero.unsqueeze(-1))
        loss = d.abs().pow(p).sum(-1)
        better = loss < least if step else torch.ones_like(loss, dtype=torch.bool)
        least = torch.where(better, loss, least) if step else loss
        best = torch.where(better, zero, best)
        best_levels = torch.where(better.unsqueeze(-1), levels.to(best_levels.dtype), best_levels)
        e = d.sign() * (d.abs() - d.abs().pow(p - 1) / beta).clamp(min=0)  # 0^(p - 1) is infinite, and e is 0
        zero = (levels - (units - e)).mean(-1)
        beta *= GROWTH
    return HQQ(best_levels.reshape(x.shape), scale, best, bits, x.dtype)


def hqq_model(
    model: nn.Module, *, bits: int = 4, group_size: int = 64, p: float = 0.7, skip: Collection[str] = ()
) -> WeightOnly:
    """A new model whose weights are rounded by HQQ, with the levels and a list of what was skipped.

    Args:
        model: any module.
        bits, p: as in ``quantize_hqq``.
        group_size: as in ``quantize_weights``: the nearest divisor of a row.
        skip: names of parameters or modules to leave as they are.

    Raises:
        ValueError: a weight is not finite, a name is unknown, an option is out of range, or no weight is left.

    Example:
        >>> result = hqq_model(nn.Linear(64, 4))  # 128 bytes of levels, 4 scales, 4 zero points, 4 biases
        >>> result.nbytes, result.bits_per_weight
        (176, 5.0)
    """
    base = quantize_weights(model, bits=bits, symmetric=False, group_size=group_size, skip=skip)
    weights, nbytes = {}, base.nbytes - sum(weight.nbytes for weight in base.weights.values())
    for name, old in base.weights.items():
        parameter, module = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
        weights[name] = quantize_hqq(
            rows_of(parameter.detach(), module), bits=bits, group_size=old.grid.group_size, p=p
        )
        base.model.get_parameter(name).data.copy_(from_rows(weights[name].dequantize(), parameter, module))
    return WeightOnly(base.model, weights, base.skipped, nbytes + sum(weight.nbytes for weight in weights.values()))
