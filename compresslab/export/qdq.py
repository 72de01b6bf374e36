"""QDQ: an integer network written as a float network with pairs of QuantizeLinear and DequantizeLinear around it.

ONNX has few integer operators. Instead the grids are written down where they stand,

    x --> QuantizeLinear(S1, Z1) --> DequantizeLinear(S1, Z1) --> Conv --> Q(S3, Z3) --> DQ(S3, Z3) -->
                       int8 weight --> DequantizeLinear(S2) ------^
              int32 bias, in steps S1 S2 --> DequantizeLinear ----^

and a runtime that has an integer kernel for what stands between DQ and Q takes it: Conv between them becomes
QLinearConv, Gemm QGemm, Add QLinearAdd. One without runs the same file in floats and gets the same numbers. What must
hold for the kernel to be taken: weights int8 and symmetric; a ReLU before Q adds nothing to what the
grid clips (uint8 with zero point 0); and every tensor that the kernel reads or writes is on a grid.

``with_integers`` replaces, in a copy, the layers of a simulation (lesson 02) by these operators. They are known by what
they hold, not by their class, so a copy of a lesson's file works too:

    a grid for an activation     scale, zero_point, bits, levels(x)
    a layer of integers          levels, scale, bias, bias_scale, axis, layer, run(x, weight, bias)

    Jacob and others, 2017, https://arxiv.org/abs/1712.05877, section 2
    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from compresslab.export.low_bits import BlockLinear, IntegerLinear

__all__ = ["QDQ", "QDQLayer", "with_integers"]


class QDQ(nn.Module):
    """A grid for an activation as QuantizeLinear and DequantizeLinear. For export: eagerly it gives zeros."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.levels, unsigned = torch.uint8 if quantizer.bits <= 8 else torch.uint16, not quantizer.symmetric
        if not unsigned:
            raise ValueError("symmetric=True grids of activations run as floats; quantize with symmetric=False")
        self.top = 2**quantizer.bits - 1
        self.register_buffer("scale", quantizer.scale.float())
        self.register_buffer("zero_point", quantizer.zero_point.to(self.levels))
        self.low = float((0 - int(quantizer.zero_point)) * quantizer.scale)
        self.high = float((self.top - int(quantizer.zero_point)) * quantizer.scale)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid."""
        y = x.float()
        if self.top not in (2**8 - 1, 2**16 - 1):  # fewer levels than QuantizeLinear clips to
            y = y.clamp(self.low, self.high)
        q = torch.onnx.ops.symbolic(
            "QuantizeLinear", (y, self.scale, self.zero_point), dtype=self.levels, shape=x.shape, version=21
        )
        return _dequantized(q, self.scale, self.zero_point).to(x.dtype)


class QDQLayer(nn.Module):
    """A layer whose int8 weight and int32 bias go through DequantizeLinear. For export: eagerly it gives zeros."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.run, self.axis, self.kind, self.dtype = layer.run, layer.axis, layer.layer, layer.dtype
        self.register_buffer("levels", layer.levels)
        self.register_buffer("scale", layer.scale.float())
        self.register_buffer("zero_point", torch.zeros_like(layer.scale, dtype=layer.levels.dtype))
        self.register_buffer("bias", layer.bias)
        self.register_buffer("bias_scale", None if layer.bias is None else layer.bias_scale.float())
        if layer.bias is not None:
            self.register_buffer("bias_zero_point", torch.zeros_like(layer.bias_scale, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """The layer's function."""
        if isinstance(self.kind, nn.Embedding):  # a row at a time: the table stays integers
            scale = self.scale[x].unsqueeze(-1) if self.scale.dim() else self.scale
            return (self.levels[x].float() * scale).to(self.dtype)
        bias = None
        if self.bias is not None:
            bias = _dequantized(self.bias, self.bias_scale, self.bias_zero_point).to(self.dtype)
        weight = _dequantized(self.levels, self.scale, self.zero_point, axis=self.axis).to(self.dtype)
        if isinstance(self.kind, nn.Linear) and x.dim() != 2:  # Gemm, not MatMul and Add: its kernel adds the bias too
            return self.run(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], -1)
        return self.run(x, weight, bias)


def with_integers(model: nn.Module) -> nn.Module:
    """A copy to export, whose quantized layers are written as integers; the model itself if it has none.

    Raises:
        ValueError: a layer cannot be written.

    Example:
        >>> with_integers(nn.Linear(2, 2))
        Linear(in_features=2, out_features=2, bias=True)
    """
    found = {name: _written(name, part) for name, part in model.named_modules(remove_duplicate=False)}
    found = {name: part for name, part in found.items() if part is not None}
    if not found:
        return model
    if "" in found:
        return found[""].eval()
    result = copy.deepcopy(model)
    for name, part in found.items():
        result.set_submodule(name, part.train(model.get_submodule(name).training))
    return result


def _written(name: str, part: nn.Module) -> nn.Module | None:
    held = {*part._buffers, *part._modules, *vars(part), *dir(type(part))}
    try:
        if {"scale", "zero_point", "bits", "levels", "grid"} <= held and "packed" not in held:
            return QDQ(part)
        if {"levels", "scale", "bias_scale", "axis", "run", "layer"} <= held:
            return QDQLayer(part)
        if {"packed", "quantized"} <= held:
            return BlockLinear(part)
        if {"levels", "scale", "per_token"} <= held:
            return IntegerLinear(part)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if type(part).__name__ == "KernelLinear":
        raise ValueError(f"{name} is laid out for torch's kernels on this processor; export the packed model")
    return None


def _dequantized(levels: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (levels, scale, zero_point), {"axis": axis} if scale.dim() else None,
        dtype=torch.float32, shape=levels.shape, version=21,
    )  # fmt: skip
