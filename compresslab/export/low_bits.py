"""Weights of few bits in ONNX: integers in blocks that a runtime reads as they are, and integer products.

Since opset 21 DequantizeLinear takes 4-bit integers, two in a byte, with a scale s and a zero point z for each block of
B weights along an axis. A Linear layer is then

    y = x W + b,    W = DequantizeLinear(q, s, z, axis=0, block_size=B)     q: (I, O) int4, s: (I / B, O)

and ONNX Runtime, where B is 16, 32, 64, 128 or 256, fuses both into MatMulNBits, whose kernel unpacks a block in
registers: 4 bits are read from memory for each weight instead of 32. As Gemm the same weights would be written out.

    https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.MatMulNBits
"""

from __future__ import annotations

import numpy
import torch
from onnxscript import ir
from torch import Tensor, nn

__all__ = ["BlockLinear", "IntegerLinear", "narrow_levels"]

BLOCKS = (256, 128, 64, 32, 16)  # that the 4-bit kernel takes
NARROW = {"int4": ir.DataType.INT4, "uint4": ir.DataType.UINT4}


class BlockLinear(nn.Module):
    """A packed layer (its ``quantized`` holds levels and grid) as DequantizeLinear in blocks and MatMul. For export."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.quantized
        grid, (outputs, inputs) = weight.grid, weight.levels.shape
        self.bits = 4 if grid.bits <= 4 else 8
        share = grid.group_size or inputs  # weights of a row that share a scale
        self.block = next((size for size in BLOCKS if share % size == 0), share)
        scale = grid.scale.float().expand(outputs) if grid.scale.dim() == 0 else grid.scale.float()
        zero_point = grid.zero_point.expand(outputs) if grid.scale.dim() == 0 else grid.zero_point
        self.bias = layer.bias
        self.end = ("" if grid.symmetric else "u") + f"int{self.bits}"
        self._keep("levels", weight.levels.T, grid.symmetric)
        self.register_buffer("scale", self._in_blocks(scale, inputs))
        self._keep("zero_point", self._in_blocks(zero_point, inputs), grid.symmetric)

    def _keep(self, name: str, values: Tensor, signed: bool) -> None:
        dtype = torch.int8 if signed else torch.uint8
        self.register_buffer(f"{name}_{self.end}", values.to(dtype).contiguous())

    def _in_blocks(self, values: Tensor, inputs: int) -> Tensor:
        values = values.reshape(len(values), -1)  # (O, groups)
        return values.repeat_interleave(inputs // self.block // values.shape[1], 1).T.contiguous()  # (blocks, O)

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        """The layer's function."""
        levels, zero_point = (getattr(self, f"{name}_{self.end}") for name in ("levels", "zero_point"))
        weight = torch.onnx.ops.symbolic(
            "DequantizeLinear", (levels, self.scale, zero_point), {"axis": 0, "block_size": self.block},
            dtype=torch.float32, shape=levels.shape, version=21,
        )  # fmt: skip
        if self.bias is None:
            return (x.float() @ weight).to(x.dtype)
        y = x.float().unsqueeze(0) @ weight + self.bias.float()  # of two axes, product and sum would become Gemm
        return y.squeeze(0).to(x.dtype)


class IntegerLinear(nn.Module):
    """A layer that quantizes its input as it comes (lesson 02), with MatMulInteger. For export.

    Levels of the input are moved from -127..127 to 1..255: x86 multiplies unsigned by signed bytes.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.per_token = layer.per_token
        self.register_buffer("levels", layer.levels.T.contiguous())  # (I, O) int8
        self.register_buffer("scale", layer.scale.float())
        self.register_buffer("bias", layer.bias)
        self.register_buffer("middle", torch.tensor(128, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        """The layer's function."""
        peak = x.float().abs()
        peak = peak.amax(-1, keepdim=True) if self.per_token else peak.flatten().amax(0)
        scale = torch.where(peak == 0, 1.0, peak / 127)
        levels = ((x.float() * (1 / scale)).round().clamp(-127, 127) + 128).to(torch.uint8)
        sums = torch.onnx.ops.symbolic(
            "MatMulInteger", (levels, self.levels, self.middle),
            dtype=torch.int32, shape=(*x.shape[:-1], self.levels.shape[1]), version=10,
        )  # fmt: skip
        y = sums.float() * self.scale * scale  # (scale * self.scale) is fused, as if all rows had the first one's scale
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def narrow_levels(model: ir.Model) -> None:
    """Store 4-bit levels as 4-bit integers, two in a byte, in place: torch has no such tensors to export.

    Example:
        >>> narrow_levels(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
    """
    for name, value in model.graph.initializers.items():
        dtype = NARROW.get(name.rpartition("_")[2])
        if dtype is not None:
            array = numpy.asarray(value.const_value.numpy())
            value.const_value = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
            value.dtype = dtype
