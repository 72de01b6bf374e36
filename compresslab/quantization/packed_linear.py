"""Linear layers that are really small: packed levels in memory and in the file, floats for the moment of a product.

``weight_only.py`` and ``gptq.py`` return a model whose weights lie on a grid, in the floats they came in. Here the levels
of 1 to 8 bits are what is stored, with a scale s and a zero point z for each row or group, and

    y_o = sum_i s_og (q_oi - z_og) x_i + b_o        g: the group of i

is computed by writing out one layer's weight, using it and dropping it: equal to the bit to the dequantized layer. That
costs time at each call. ``use_kernels`` turns to torch's own int4 and int8 kernels, which read the levels as they are.
Longer than other files: the layer, the model that is made of it, and the kernels that take it over.

    Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ", 2022, https://arxiv.org/abs/2210.17323, section 5 (practical
    speedups: the weight is dequantized when a product needs it)
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compresslab.quantization.affine import Grid, Quantized
from compresslab.quantization.packing import pack, unpack

__all__ = ["KernelLinear", "PackedLinear", "PackedModel", "pack_linears", "use_kernels"]

BLOCK = 2**18  # levels that are packed at a time; a multiple of 8, so that blocks end where bytes end


class PackedLinear(nn.Module):
    """A Linear layer that holds packed levels, scales and zero points instead of a weight.

    Cast to a 16-bit dtype (``layer.half()``) its scales are rounded too, and take half the bytes.

    Args:
        quantized: the weight, (out, in), at most 8 bits; one scale for the tensor, each row or each group.
        bias: (out,), or None.

    Raises:
        ValueError: the levels are no matrix, have more than 8 bits, or their scales belong to another axis.

    Example:
        >>> from compresslab.quantization.affine import quantize
        >>> layer = PackedLinear(quantize(torch.tensor([[7.0, 2.4], [-2.6, 0.0]]), bits=4))  # scale 1
        >>> layer(torch.tensor([[1.0, 10.0]])).tolist(), layer.nbytes  # 7 + 20 and -3; 4 levels and a scale
        ([[27.0, -3.0]], 6)
    """

    def __init__(self, quantized: Quantized, bias: Tensor | None = None) -> None:
        super().__init__()
        grid, levels = quantized.grid, quantized.levels
        if levels.dim() != 2 or grid.bits > 8 or grid.axis not in (None, 0, -2):
            got = f"shape {tuple(levels.shape)}, bits={grid.bits}, axis={grid.axis}"
            raise ValueError(f"a packed weight must be (out, in), of 1 to 8 bits, with axis 0 or groups, got {got}")
        self.out_features, self.in_features = levels.shape
        self.bits, self.symmetric, self.dtype = grid.bits, grid.symmetric, quantized.dtype
        parts = [pack(part, bits=grid.bits, signed=grid.symmetric) for part in levels.reshape(-1).split(BLOCK)]
        self.register_buffer("packed", torch.cat(parts))
        self.register_buffer("scale", grid.scale.detach().clone())  # (), (O,) or (O, groups)
        zero_point = None if grid.symmetric else pack(grid.zero_point, bits=grid.bits, signed=False)
        self.register_buffer("zero_point", zero_point)
        self.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias.detach().clone())

    @classmethod
    def empty(
        cls,
        in_features: int,
        out_features: int,
        *,
        bits: int = 4,
        group_size: int | None = 32,
        symmetric: bool = False,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> PackedLinear:
        """A layer of zeros, made without any float weight, for ``load_state_dict`` to fill.

        Args:
            in_features, out_features: columns and rows of the weight.
            bits, group_size, symmetric: as the levels were made; a ``group_size`` of None is one scale for each row.
            bias: whether there is one.
            dtype: of the bias and of ``weight``.

        Raises:
            ValueError: ``group_size`` does not divide ``in_features``, or ``bits`` is not in 1..8.

        Example:
            >>> {name: tuple(t.shape) for name, t in PackedLinear.empty(64, 2, bits=3).state_dict().items()}
            {'bias': (2,), 'packed': (48,), 'scale': (2, 2), 'zero_point': (2,)}
        """
        size = in_features if group_size is None else group_size
        if size < 1 or in_features % size:
            raise ValueError(f"group_size={group_size} must divide in_features={in_features}; try None or a divisor")
        one_column = Grid(torch.ones(out_features), torch.zeros(out_features, dtype=torch.int32), bits, symmetric, 0)
        zeros = torch.zeros(out_features, 1, dtype=torch.int8)
        zeros = zeros - 1 if bits == 1 and symmetric else zeros  # with 1 bit no level is 0
        layer = cls(Quantized(zeros, one_column, dtype), torch.zeros(out_features, dtype=dtype) if bias else None)
        layer.in_features, groups = in_features, in_features // size
        layer.packed = torch.zeros(-(-out_features * in_features * bits // 8), dtype=torch.uint8)
        layer.scale = layer.scale.to(torch.promote_types(dtype, torch.float32))  # as quantize makes them
        if group_size is not None:
            layer.scale = layer.scale.unsqueeze(-1).repeat(1, groups)
            if not symmetric:
                layer.zero_point = torch.zeros(-(-out_features * groups * bits // 8), dtype=torch.uint8)
        return layer

    @property
    def quantized(self) -> Quantized:
        """The levels, unpacked, with their grid."""
        size = self.in_features // self.scale.shape[1] if self.scale.dim() == 2 else None
        axis = 0 if self.scale.dim() == 1 else None
        zero_point = torch.zeros_like(self.scale) if self.symmetric else self._zeros()
        grid = Grid(self.scale, zero_point.to(torch.int32), self.bits, self.symmetric, axis, size)
        return Quantized(self._levels(), grid, self.dtype)

    @property
    def weight(self) -> Tensor:
        """The weight written out, (out, in), in the dtype that it had; for code that reads ``layer.weight``."""
        return self._values(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight: packed levels, scales, packed zero points."""
        return self.packed.nbytes + self.scale.nbytes + (0 if self.symmetric else self.zero_point.nbytes)

    @property
    def bits_per_weight(self) -> float:
        """Bits held for each weight, scales and zero points included; infinite for an empty layer."""
        elements = self.in_features * self.out_features
        return 8 * self.nbytes / elements if elements else float("inf")

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        """The layer's output; weight and bias are taken in the dtype of ``x``."""
        return F.linear(x, self._values(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return f"{sizes}, bits={self.bits}, symmetric={self.symmetric}, {self.bits_per_weight:.3f} bits per weight"

    def _values(self, dtype: torch.dtype) -> Tensor:
        scale = self.scale.to(torch.promote_types(self.scale.dtype, torch.float32)).unsqueeze(-1)
        share = self.in_features * self.out_features // max(self.scale.numel(), 1)  # elements of a scale: side by side
        values = self._levels().reshape(*self.scale.shape, share).to(scale.dtype)
        if not self.symmetric:
            values = values.sub_(self._zeros().unsqueeze(-1))
        return values.mul_(scale).reshape(self.out_features, self.in_features).to(dtype)

    def _zeros(self) -> Tensor:
        return unpack(self.zero_point, self.scale.shape, bits=self.bits, signed=False)

    def _levels(self) -> Tensor:
        count, parts = self.out_features * self.in_features, self.packed.split(BLOCK * self.bits // 8)
        counts = [min(BLOCK, count - place) for place in range(0, max(count, 1), BLOCK)]
        parts = [unpack(p, n, bits=self.bits, signed=self.symmetric) for p, n in zip(parts, counts, strict=True)]
        return torch.cat(parts).reshape(self.out_features, self.in_features)


@dataclass(frozen=True, eq=False)
class PackedModel:
    """A model with packed layers, and what was not packed."""

    model: nn.Module  # a new model
    packed: tuple[str, ...]  # layers that are PackedLinear now
    skipped: dict[str, str]  # parameters that stayed as they were: why
    nbytes: int  # of all parameters and buffers; tied tensors once


def pack_linears(model: nn.Module, quantized: Mapping[str, Quantized]) -> PackedModel:
    """A new model whose Linear layers are packed, with a list of the parameters that are not.

    Args:
        model: the one that the levels belong to, as ``quantize_weights`` or ``gptq_model`` returned it (what is not
            packed is taken from it), or on the meta device: the weights that are packed are never read.
        quantized: levels by parameter, such as ``quantize_weights(...).weights``.

    Raises:
        ValueError: a name is no parameter of the model, a shape is another, or there is nothing to pack.

    Example:
        >>> from compresslab.quantization.weight_only import quantize_weights
        >>> found = quantize_weights(nn.Sequential(nn.Linear(64, 64)), bits=4, group_size=32)
        >>> result = pack_linears(found.model, found.weights)
        >>> result.packed, result.skipped, result.nbytes  # 64 * 32 of levels, 64 * 2 scales and 64 biases of 4
        (('0',), {'0.bias': 'Linear: only the weights of Linear layers are packed'}, 2816)
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    if unknown := [name for name in quantized if name not in every]:
        raise ValueError(f"{unknown} must be parameters of the model; choose from {list(every)}")
    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    memo, packed, skipped, given = {}, [], {}, {id(every[name]): name for name in quantized}
    for name, parameter in every.items():
        module = model.get_submodule(name.rpartition(".")[0])
        if id(module) in memo and parameter is module.weight:  # another name of a layer that is packed
            packed.append(name.rpartition(".")[0])
        elif type(module) is not nn.Linear or parameter is not module.weight:
            skipped[name] = f"{type(module).__name__}: only the weights of Linear layers are packed"
        elif id(parameter) not in given:
            skipped[name] = "no levels were given"
        elif owners[id(parameter)] > 1:
            skipped[name] = "its weight is shared with another layer; packing it would break the tie"
        elif module._forward_hooks or module._forward_pre_hooks:
            skipped[name] = "its layer has hooks, which a packed layer would lose"
        elif (weight := quantized[given[id(parameter)]]).bits > 8:
            skipped[name] = f"{weight.bits} bits: at most 8 are packed"
        elif weight.levels.shape != parameter.shape:
            shapes = f"{tuple(weight.levels.shape)}, the weight {tuple(parameter.shape)}"
            raise ValueError(f"the levels of {name} have shape {shapes}; quantize this model again")
        else:
            # deepcopy takes what the memo holds: the floats of a packed layer are not copied, shared layers stay one.
            memo[id(module)] = PackedLinear(weight, copy.deepcopy(module.bias, memo)).train(module.training)
            packed.append(name.rpartition(".")[0])
    if not packed:
        raise ValueError(f"{type(model).__name__} has no Linear layer to pack: {skipped or 'it has no parameters'}")
    result = copy.deepcopy(model, memo)
    nbytes = sum(tensor.nbytes for tensor in (*result.parameters(), *result.buffers()))
    return PackedModel(result, tuple(packed), skipped, nbytes)


class KernelLinear(nn.Module):
    """A packed layer in the layout of torch's int4 or int8 kernel; it computes in bfloat16.

    The levels take as many bytes as before. Scales, zero points and activations are rounded to bfloat16 (8 bits), so
    that |y - y_packed| <= 2^-6 (sum_i r_og |x_i| + |b_o|), r_og the width of the grid of the group of i (levels - 1
    times the scale). The layout depends on the processor: save the packed model.

    Args:
        layer: of 4 bits in groups of 32, 64, 128 or 256 with outputs in sixteens, or symmetric of 8 bits with a scale
            for each row.

    Raises:
        ValueError: there is no kernel for the layer.
    """

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__()
        weight = layer.quantized
        self.group_size, self.bias = weight.grid.group_size, layer.bias
        four = layer.bits == 4 and self.group_size in (32, 64, 128, 256) and layer.out_features % 16 == 0
        if not four and not (layer.bits == 8 and layer.symmetric and weight.grid.axis == 0):
            raise ValueError(f"no kernel for {layer.extra_repr()}; 4 bits in groups of 32 or symmetric 8 bits by row")
        levels, scale, zero_point = weight.levels, weight.scale, weight.zero_point
        if four:  # the kernel's weight is (u - 8) scale + offset, u = 0..15
            middle = 0 if layer.symmetric else 8
            offset = (middle - zero_point) * scale
            levels = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32) + 8 - middle, 1)
            scale = torch.stack([scale, offset], dim=-1).transpose(0, 1).contiguous()  # (groups, O, 2)
        self.register_buffer("levels", levels)
        self.register_buffer("scale", scale.to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        """The layer's output in the dtype of ``x``; no gradient."""
        rows = x.detach().to(torch.bfloat16).reshape(-1, x.shape[-1])
        if self.group_size is None:
            y = torch._weight_int8pack_mm(rows, self.levels, self.scale)
        else:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.levels, self.group_size, self.scale)
        y = y.reshape(*x.shape[:-1], y.shape[-1]).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def use_kernels(model: nn.Module) -> nn.Module:
    """A new model, for inference on a CPU, whose packed layers run by torch's kernels where there is one.

    The fewer rows an input has (a batch times a sequence), the more is won: measured, it beat a bfloat16 Linear layer up
    to some ten rows and the packed layer up to some hundred, and was slower beyond.

    Raises:
        ValueError: there is a kernel for none of its layers.

    Example:
        >>> from compresslab.quantization.affine import quantize
        >>> use_kernels(PackedLinear(quantize(torch.ones(2, 32), axis=0)))(torch.ones(1, 32)).tolist()
        [[32.0, 32.0]]
    """
    memo, why = {}, f"{type(model).__name__} holds no PackedLinear layer; pack_linears makes them"
    for module in model.modules():
        if isinstance(module, PackedLinear):
            try:
                memo[id(module)] = KernelLinear(copy.deepcopy(module)).train(module.training)
            except ValueError as error:
                why = error
    if not memo:
        raise ValueError(str(why))
    return copy.deepcopy(model, memo)
