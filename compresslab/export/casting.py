"""BF16 weights in a file that every runtime can run: stored in 16 bits, computed in 32.

FP16 models are exported as they are: inputs, weights and outputs of 16 bits. Few runtimes compute in BF16 (ONNX Runtime's
processor kernels do not), but a BF16 number is the upper half of an FP32 number, so a Cast gives it back without error:

    initializer, BF16  -->  Cast to FP32  -->  Conv, MatMul ...

The file takes half the bytes. A session does the casts once, when it reads the file, and is then as fast as with FP32.

    Kalamkar and others, "A study of BFLOAT16 for deep learning training", 2019, https://arxiv.org/abs/1905.12322
"""

from __future__ import annotations

import copy

import torch
from onnxscript import ir
from torch import nn

__all__ = ["as_float32", "store_in_bfloat16"]


def as_float32(model: nn.Module) -> nn.Module | None:
    """A copy in FP32 of a model that has BF16 parameters; None of any other.

    Example:
        >>> as_float32(nn.Linear(1, 1).bfloat16()).weight.dtype, as_float32(nn.Linear(1, 1))
        (torch.float32, None)
    """
    if all(tensor.dtype != torch.bfloat16 for tensor in model.parameters()):
        return None
    return copy.deepcopy(model).float()


def store_in_bfloat16(model: ir.Model) -> None:
    """Store the FP32 matrices and kernels of a graph in BF16, in place; vectors (biases, norms) stay.

    Example:
        >>> store_in_bfloat16(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
    """
    for name, value in list(model.graph.initializers.items()):
        if value.dtype == ir.DataType.FLOAT and len(value.shape) > 1:
            array = value.const_value.numpy().astype(ir.DataType.BFLOAT16.numpy())
            small = ir.Value(name=f"{name}_bfloat16", const_value=ir.tensor(array))
            small.dtype, small.shape = ir.DataType.BFLOAT16, value.shape
            cast = ir.node("Cast", [small], {"to": ir.DataType.FLOAT})
            cast.outputs[0].dtype, cast.outputs[0].shape = ir.DataType.FLOAT, value.shape
            value.replace_all_uses_with(cast.outputs[0])
            del model.graph.initializers[name]
            model.graph.initializers[small.name] = small
            model.graph.insert_before(model.graph[0], cast)
