"""Integer-only inference: what ``quantize_static`` simulates, computed without a single fractional number.

The sum of a layer is a 32-bit integer in steps of S1 S2; the next layer wants levels in steps of S3. With

    M = S1 S2 / S3 = M0 2^-n,      M0 an integer in [2^30, 2^31)
    q3 = Z3 + (M0 sum + 2^(n-1)) >> n

that is one multiplication and one shift. The product is taken in 64 bits and rounded once, ties up. (gemmlowp keeps the
high half of a doubled product and shifts that: it rounds twice, for processors without a 64-bit product.) An addition
brings both inputs to one shift, adds, and rounds once; average pooling divides by its window within M.

Between the layers stand q - Z, so 0 is 0.0 to padding, ReLU and pooling. A runtime stores q, pads with Z and takes Z
out of the sum: sum (q - Z) w = sum q w - Z sum w, the same number.

    Jacob and others, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    2017, https://arxiv.org/abs/1712.05877, sections 2.2 and 2.3, appendix A.2
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from compresslab.quantization.affine import integer_levels
from compresslab.quantization.static import KEEPS, QuantizedLayer, Quantizer, StaticQuantized, kind_of

__all__ = ["integer_only", "quantize_multiplier", "requantize"]


def quantize_multiplier(m: Tensor | float) -> tuple[Tensor, Tensor]:
    """Integers with m ~ multiplier / 2^shift, to a relative error of 2^-31.

    Args:
        m: positive, below 2^30, any shape.

    Returns:
        The multiplier, int64 in [2^30, 2^31), and the shift, int64, at most 62: below m = 2^-32 the multiplier shrinks
        instead, and no 32-bit sum reaches 1.

    Raises:
        ValueError: ``m`` is not positive, not finite or too large.

    Example:
        >>> multiplier, shift = quantize_multiplier(0.75)
        >>> multiplier.item() == 3 * 2**29, shift.item()
        (True, 31)
    """
    m = torch.as_tensor(m, dtype=torch.float64)
    if not ((m > 0) & (m < 2**30)).all():
        wrong = m[~((m > 0) & (m < 2**30))].flatten()[0].item()
        raise ValueError(f"m={wrong:g} must be above 0 and below 2^30; it is a ratio of scales: calibrate again")
    shift = (31 - torch.frexp(m).exponent).clamp(max=62).long()
    multiplier = torch.ldexp(m, shift.double()).round().long()
    over = multiplier == 2**31  # the mantissa was rounded up to 1
    return torch.where(over, 2**30, multiplier), shift - over.long()


def requantize(
    acc: Tensor,
    multiplier: Tensor | int,
    shift: Tensor,
    *,
    zero_point: Tensor | int = 0,
    count: int = 1,
    bits: int = 8,
    symmetric: bool = False,
) -> Tensor:
    """Levels of another grid: acc multiplier / (count 2^shift), rounded to the nearest, moved and clamped.

    Args:
        acc: integers; their products with ``multiplier`` fit into 63 bits, as those of 32-bit sums do.
        multiplier, shift: from ``quantize_multiplier``; they broadcast against ``acc``.
        zero_point: of the result's grid.
        count: how many levels each sum is the mean of.
        bits, symmetric: of the result's grid.

    Returns:
        int32, shape of ``acc``. Ties are rounded up.

    Raises:
        TypeError: ``acc`` does not hold integers.

    Example:
        >>> requantize(torch.tensor([10, -10, 9999]), *quantize_multiplier(0.25), zero_point=3).tolist()  # 2.5, -2.5
        [6, 1, 255]
    """
    if acc.is_floating_point():
        raise TypeError(f"acc must hold integers, got {acc.dtype}; requantize the sums of levels")
    levels, divisor = integer_levels(bits, symmetric=symmetric), count << shift
    rounded = torch.div(acc.long() * multiplier + (divisor >> 1), divisor, rounding_mode="floor")
    return (rounded + zero_point).clamp(levels[0], levels[-1]).to(torch.int32)


class Enter(nn.Module):
    """Floating point to levels less their zero point, where the model begins."""

    def __init__(self, grid: Quantizer) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """int32, shape of ``x``."""
        return (self.grid.levels(x) - self.grid.zero_point).to(torch.int32)


class Leave(nn.Module):
    """Integers to floating point, where it ends."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, q: Tensor) -> Tensor:
        """The values that the integers stand for."""
        return q * self.scale


class Sums(nn.Module):
    """A layer's 32-bit sums, bias included. float64 is the engine: torch has no fast integer product for every layer,
    and up to 2^53 it holds whole numbers exactly."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)

    def forward(self, q: Tensor) -> Tensor:
        """int32, the layer's output shape."""
        acc = self.layer.run(q.double(), self.layer.levels.double()).to(torch.int32)
        if self.layer.bias is None:
            return acc
        return acc + self.layer.bias.reshape(-1, *[1] * (self.layer.levels.dim() - 2))


class Onto(nn.Module):
    """Integers in other steps onto a grid, less its zero point, clipped as the activation between them does.

    Args:
        ratios: for each input, its steps over the scale of the grid.
        grid: where the result lies.
        low, high: the ends of the activation.
    """

    def __init__(self, ratios: list[Tensor], grid: Quantizer, low: float, high: float) -> None:
        super().__init__()
        self.bits, self.symmetric = grid.bits, grid.symmetric
        _, shift = quantize_multiplier(torch.stack(ratios).amax(0))  # one for all inputs: they are added, then rounded
        ends = grid.levels(torch.tensor([low, high], device=grid.scale.device)) - grid.zero_point
        self.register_buffer("multipliers", torch.stack([(r.double() * 2.0**shift).round().long() for r in ratios]))
        self.register_buffer("shift", shift)
        self.register_buffer("zero_point", grid.zero_point)
        self.register_buffer("ends", ends.to(torch.int32))

    def forward(self, *inputs: Tensor, count: int = 1) -> Tensor:
        """int32; ``count`` as in ``requantize``."""
        acc = sum(q.long() * multiplier for q, multiplier in zip(inputs, self.multipliers, strict=True))
        options = {"zero_point": self.zero_point, "count": count, "bits": self.bits, "symmetric": self.symmetric}
        return (requantize(acc, 1, self.shift, **options) - self.zero_point).clamp(*self.ends)


class Mean(nn.Module):
    """Average pooling, rounded once, onto another grid."""

    def __init__(self, average: Callable[[Tensor], Tensor], onto: Onto) -> None:
        super().__init__()
        self.average, self.onto = average, onto

    def forward(self, q: Tensor) -> Tensor:
        """int32, the pooled shape."""
        mean = self.average(q.double())
        kernel = getattr(self.average, "kernel_size", None)
        count = q.numel() // mean.numel()
        if kernel is not None:  # windows may leave a rest or reach into the padding
            count = math.prod(kernel) if isinstance(kernel, tuple) else kernel ** (q.dim() - 2)
        elif mean.dim() == q.dim() and any(a % b for a, b in zip(q.shape, mean.shape, strict=True)):
            raise ValueError(
                f"shape {tuple(mean.shape)} must divide {tuple(q.shape)}; windows of one size are averaged"
            )
        return self.onto((mean * count).round().long(), count=count)


def integer_only(model: StaticQuantized) -> fx.GraphModule:
    """A new model that computes with integers alone between its first grid and its last.

    Args:
        model: from ``quantize_static`` with ``activations="all"``, of layers, ReLU, additions, pooling by maximum or
            average, and what moves numbers (flatten, pad, slices).

    Returns:
        A graph of the same function: floating point comes in and goes out, int32 passes between its nodes.

    Raises:
        ValueError: an operation has no integer form here; the message names it.

    Example:
        >>> from compresslab.quantization.static import quantize_static
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten())
        >>> images = torch.linspace(-1, 1, 8).reshape(2, 1, 2, 2)
        >>> simulation = quantize_static(net, [(images, None)])
        >>> torch.allclose(integer_only(simulation)(images), simulation(images), atol=1e-6)
        True
    """
    if not isinstance(model, StaticQuantized):
        raise TypeError(f"model must come from quantize_static, got {type(model).__name__}")
    modules, graph, parts = dict(model.named_modules(remove_duplicate=False)), fx.Graph(), {}
    new: dict[fx.Node, fx.Node] = {}  # by node of the simulation: the node that has its integers
    steps: dict[fx.Node, Tensor] = {}  # what one of these integers stands for
    waiting: dict[fx.Node, tuple] = {}  # computed but not on a grid yet: inputs, how to average, low and high end

    def call(name: str, module: nn.Module, *inputs: fx.Node) -> fx.Node:
        parts[name] = module
        return graph.call_module(name, inputs)

    def leave(node: fx.Node) -> fx.Node:
        return call(f"{node.name}_leave", Leave(steps[node].float()), new[node]) if node in steps else new[node]

    for node in model.graph.nodes:
        kind, found, inputs = kind_of(node, modules), modules.get(node.target), node.all_input_nodes
        first, ready = next(iter(inputs), None), bool(inputs) and all(each in steps for each in inputs)
        if node.op == "placeholder":
            new[node] = graph.node_copy(node)
        elif isinstance(found, Quantizer) and first in waiting:
            sources, average, low, high = waiting[first]
            grid = copy.deepcopy(found)
            onto = Onto([steps[each].double() / grid.scale.double() for each in sources], grid, low, high)
            module = onto if average is None else Mean(average, onto)
            new[node], steps[node] = call(f"{first.name}_onto", module, *(new[each] for each in sources)), found.scale
        elif isinstance(found, Quantizer) and first in new and not ready:
            new[node], steps[node] = call(f"{first.name}_enter", Enter(copy.deepcopy(found)), new[first]), found.scale
        elif isinstance(found, QuantizedLayer) and ready:
            new[node] = call(f"{node.name}_sums", Sums(found), new[first])
            size = steps[first].double() * found.scale.double()
            if size.dim():  # (O, 1, ...), as the sums are (N, O, ...)
                size = size.repeat(getattr(found.layer, "groups", 1) if found.axis else 1)
                size = size.reshape(-1, *[1] * (found.levels.dim() - 2))
            steps[node], waiting[node] = size, ([node], None, -math.inf, math.inf)
        elif kind in ("relu", "relu6") and first in waiting:
            waiting[node] = (*waiting[first][:2], 0.0, 6.0 if kind == "relu6" else math.inf)
        elif kind in ("add", "iadd") and len(inputs) == 2 and ready and not waiting.keys() & set(inputs):
            waiting[node] = (inputs, None, -math.inf, math.inf)
        elif _averages(kind, found) and ready and first not in waiting:
            waiting[node] = ([first], _function(node, found), -math.inf, math.inf)
        elif kind in KEEPS | {"size", "getattr"} and first in new and first not in waiting and not _fills(node, kind):
            new[node] = graph.node_copy(node, lambda each: new[each])
            if node.op == "call_module":
                parts[node.target] = copy.deepcopy(found)
            if first in steps and kind in KEEPS:
                steps[node] = steps[first]
        elif node.op == "output" and all(each in new for each in inputs):
            graph.output(fx.map_arg(node.args[0], leave))
        else:
            raise ValueError(
                f"{node.name} ({kind}) has no integer form here; integer_only knows layers, ReLU, additions, pooling, "
                'and what moves numbers, of quantize_static(..., activations="all")'
            )
    return fx.GraphModule(parts, graph)


def _averages(kind: str, module: nn.Module | None) -> bool:
    """Whether an operation is a mean over windows of one size."""
    if kind in ("avgpool1d", "avgpool2d", "avgpool3d") and module is not None:
        padded = module.padding not in (0, (0,), (0, 0), (0, 0, 0)) and not module.count_include_pad
        return not (padded or module.ceil_mode or getattr(module, "divisor_override", None))
    return kind == "mean" or kind.startswith("adaptiveavgpool")


def _function(node: fx.Node, module: nn.Module | None) -> Callable[[Tensor], Tensor]:
    if module is not None:
        return copy.deepcopy(module)
    if node.op == "call_method":
        return lambda x: getattr(x, node.target)(*node.args[1:], **node.kwargs)
    return lambda x: node.target(x, *node.args[1:], **node.kwargs)


def _fills(node: fx.Node, kind: str) -> bool:
    """Whether an operation pads with something but 0."""
    return kind == "pad" and bool(node.kwargs.get("value") or (node.args[3] if len(node.args) > 3 else 0))
