"""Learned step size quantization (LSQ): the scale of the grid is a parameter, trained with the weights.

    v_hat = s * round(clip(v / s, -Q_N, Q_P))

The straight-through estimator gives v a gradient; the same idea gives one to the step s, and it feels how far v is from
where it was rounded to (fake quantization with a scale that is merely observed has no such gradient):

    d v_hat / d s = round(v / s) - v / s  inside,   -Q_N below,   Q_P above                                (eq. 3)
    d v_hat / d v = 1 inside, 0 outside                                                                    (eq. 5)

A step collects the gradients of all the values that share it, so its gradient is multiplied by g = 1 / sqrt(N Q_P),
with N the weights that share the step, or the features of one sample of an activation. (The batch does not count: a
loss that is a mean over samples has divided by it already.) Steps start at 2 mean|v| / sqrt(Q_P). Adam divides a
gradient by its own size, so g is lost on it; it serves SGD, as in the paper.

    Esser, McKinstry, Bablani, Appuswamy and Modha, "Learned step size quantization", 2019,
    https://arxiv.org/abs/1902.08153, section 2
    Bhalgat and others, "LSQ+", 2020, https://arxiv.org/abs/2004.09576 (activations with a zero point)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compresslab.quantization.affine import Grid, check_finite

__all__ = ["LSQ", "initial_step", "lsq"]


class _LSQ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, scale: Tensor, low: int, high: int, factor: float) -> Tensor:
        steps = v.to(scale.dtype) * (1 / scale)  # v / s
        ctx.save_for_backward(steps)
        ctx.low, ctx.high, ctx.factor, ctx.shape, ctx.dtype = low, high, factor, scale.shape, v.dtype
        return (steps.clamp(low, high).round_() * scale).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        (steps,) = ctx.saved_tensors
        clipped = steps.clamp(ctx.low, ctx.high)
        inside = clipped == steps
        slope = clipped.round() - steps * inside  # eq. 3
        step_gradient = (gradient.to(slope.dtype) * slope).sum_to_size(ctx.shape) * ctx.factor
        return gradient * inside, step_gradient, None, None, None


def lsq(
    v: Tensor, scale: Tensor, *, quant_min: int, quant_max: int, axis: int | None = None, gradient_factor: float = 1.0
) -> Tensor:
    """``v`` rounded to a grid, in floats, with the paper's gradients for ``v`` and for the step.

    Args:
        v: floating point, any shape. NaN stays NaN.
        scale: the step s, > 0; (), or one for each index of ``axis``.
        quant_min: -Q_N, <= 0.
        quant_max: Q_P, >= 0.
        axis: the axis kept; None is one step for the tensor.
        gradient_factor: g.

    Returns:
        Shape and dtype of ``v``.

    Raises:
        ValueError: 0 is not in ``quant_min``..``quant_max``, or nothing else is.

    Example:
        >>> v, s = torch.tensor([0.8, 9.0], requires_grad=True), torch.tensor(0.5, requires_grad=True)
        >>> lsq(v, s, quant_min=-4, quant_max=3).sum().backward()  # 1.6 steps -> 2; 18 steps -> 3
        >>> v.grad.tolist(), round(s.grad.item(), 5)  # (2 - 1.6) + 3
        ([1.0, 0.0], 3.4)
    """
    if not quant_min <= 0 <= quant_max or quant_min == quant_max:
        raise ValueError(f"0 must be one of several levels, got {quant_min}..{quant_max}; try -8 and 7, or 0 and 15")
    if axis is not None:
        scale = scale.reshape([-1 if index == axis % v.dim() else 1 for index in range(v.dim())])
    return _LSQ.apply(v, scale, quant_min, quant_max, gradient_factor)


def initial_step(mean: Tensor, quant_max: int) -> Tensor:
    """The step to start from, 2 mean|v| / sqrt(Q_P), section 2.1; 1 where the mean is 0.

    Example:
        >>> initial_step(torch.tensor([1.0, 0.0]), 4)
        tensor([1., 1.])
    """
    return torch.where(mean == 0, 1.0, 2 * mean / quant_max**0.5)


class LSQ(nn.Module):
    """Fake quantization with a learned step for a weight or an activation.

    Args:
        scale: the step to start from, > 0; () or (channels,).
        zero_point: Q_N; the levels run from -Q_N to 2^bits - 1 - Q_N. 2^(bits-1) for weights, 0 for activations that
            are never negative.
        bits: 2..16.
        axis: the axis of the channels; None is one step for the tensor.
        batched: the first axis is the batch, and not counted in N.

    Example:
        >>> quantizer = LSQ(torch.tensor(0.5), zero_point=0, bits=2)
        >>> quantizer(torch.tensor([-1.0, 0.8, 9.0])).tolist()
        [0.0, 1.0, 1.5]
    """

    def __init__(
        self, scale: Tensor, *, zero_point: int, bits: int = 4, axis: int | None = None, batched: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(bits, int) or not 2 <= bits <= 16:
            raise ValueError(f"bits={bits!r} must be an integer in 2..16; try 4")
        check_finite(scale, "scale")
        if not (scale > 0).all():
            raise ValueError(f"scale must be greater than 0, got {scale.min().item():g}; see initial_step")
        self.bits, self.axis, self.batched = bits, axis, batched
        self.quant_min, self.quant_max = -zero_point, 2**bits - 1 - zero_point
        self.scale = nn.Parameter(scale.detach().clone())

    @classmethod
    def for_weight(cls, weight: Tensor, *, bits: int = 4, axis: int | None = None) -> LSQ:
        """With the paper's levels for weights, -2^(bits-1) to 2^(bits-1) - 1, and its first step.

        Example:
            >>> LSQ.for_weight(torch.tensor([1.0, -3.0]), bits=2).step().item()  # 2 * 2 / sqrt(1)
            4.0
        """
        rest = [index for index in range(weight.dim()) if axis is None or index != axis % weight.dim()]
        mean = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).abs().mean(rest)
        return cls(initial_step(mean, 2 ** (bits - 1) - 1), zero_point=2 ** (bits - 1), bits=bits, axis=axis)

    @classmethod
    def for_input(cls, minimum: float, maximum: float, mean: float, *, bits: int = 4) -> LSQ:
        """With levels for an activation of that range, which holds 0, and that mean of |x|.

        Example:
            >>> LSQ.for_input(-1.0, 2.0, 0.5, bits=2).quant_min  # three steps, one of them below 0
            -1
        """
        highest = 2**bits - 1
        zero_point = round(-minimum / (maximum - minimum) * highest) if maximum > minimum else 0
        step = initial_step(torch.tensor(mean), max(zero_point, highest - zero_point))
        return cls(step, zero_point=zero_point, bits=bits, batched=True)

    def step(self) -> Tensor:
        """The step, kept above 0: where training would push it through, it turns back."""
        return self.scale.abs().clamp(min=torch.finfo(self.scale.dtype).tiny)

    def grid(self, x: Tensor | None = None) -> Grid:
        """The grid as it stands; ``x`` does not matter."""
        step = self.step().detach()
        zero_point = torch.full_like(step, -self.quant_min, dtype=torch.int32)
        return Grid(step, zero_point, self.bits, symmetric=False, axis=self.axis)

    def freeze(self) -> None:
        """Let the step stay as it is."""
        self.scale.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid."""
        n = x.shape[1:].numel() if self.batched else x.shape.numel() // self.scale.numel()
        factor = (max(n, 1) * max(self.quant_max, -self.quant_min)) ** -0.5
        options = {"quant_min": self.quant_min, "quant_max": self.quant_max, "axis": self.axis}
        return lsq(x, self.step(), **options, gradient_factor=factor)
