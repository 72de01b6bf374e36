"""Static quantization: weights and activations on integer grids that calibration fixed, so integers alone can compute.

To dynamic quantization this adds calibration: a few batches pass by once, an observer at each place notes what it sees,
and from then on every activation has one scale and zero point. A layer's output is then a sum of integers (Jacob's r
are reals, q levels, S scales, Z zero points; 1 input, 2 weight, 3 output),

    r3 = S1 S2 ( sum (q1 - Z1) q2  +  b ),      b: int32, the bias in steps of S1 S2

and everything here is a simulation of that in floating point, whose integers are buffers to export. Weights are
symmetric, one scale for each output channel; activations asymmetric, from 0 to 2^bits - 1.

Where a grid stands is read from a trace of the data flow (torch.fx), as ONNX Runtime wants it: at the input, after each
layer, addition, product, concatenation and average pooling, and after the ReLU that follows one of them alone: its
range starts at 0, so the grid clips for it. What only moves or selects numbers keeps the grid it is given. The sums of
a Linear layer that the model returns are 32 bits wide and stay so. The rest (normalization, softmax, attention) is
computed in floating point and listed with a reason.

A rounded weight is off by E, and the layer's output by E x. Calibration takes the mean of that off the bias (Nagel and
others, 2019), which costs one sample a batch: the layer is linear, so mean(E x) is E mean(x). And it tries some scales
for each channel, on a few samples, and keeps the one with the least variance of E x: inputs are correlated, so one
rounding of all weights of a channel may be several times better than another.

The file is longer than others: where grids stand, what calibration sees and what stands in the end are one thing.

    Jacob and others, "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
    2017, https://arxiv.org/abs/1712.05877, sections 2.1 to 2.4
    Nagel, van Baalen, Blankevoort and Welling, "Data-free quantization through weight equalization and bias
    correction", 2019, https://arxiv.org/abs/1906.04721, section 4.2
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from compresslab.quantization.affine import Grid, Quantized, check_finite, choose_grid, integer_levels
from compresslab.quantization.batchnorm import NORMS, TRANSPOSED, fold_batchnorm
from compresslab.quantization.ranges import OBSERVERS, MinMax, Range

__all__ = ["QuantizedLayer", "Quantizer", "StaticQuantized", "kind_of", "quantize_static"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Embedding)
# Kinds of operation, as ``kind_of`` names them.
CLAMPS = {"relu", "relu6", "hardtanh"}  # the grid after one of these clips as it does
GRIDS = {  # their results get a grid of their own
    "add", "iadd", "sub", "isub", "mul", "imul", "cat", "concat", "mean", "avgpool1d", "avgpool2d", "avgpool3d",
    "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptiveavgpool3d", "relu6", "hardtanh", "sigmoid", "hardsigmoid",
    "hardswish", "silu", "tanh", "leakyrelu",
}  # fmt: skip
KEEPS = {  # their results are on the grid that the input is on
    "relu", "maxpool1d", "maxpool2d", "maxpool3d", "adaptivemaxpool1d", "adaptivemaxpool2d", "flatten", "unflatten",
    "reshape", "view", "permute", "transpose", "contiguous", "unsqueeze", "squeeze", "expand", "chunk", "split",
    "getitem", "pad", "zeropad1d", "zeropad2d", "zeropad3d", "pixelshuffle", "pixelunshuffle", "channelshuffle", "clone",
}  # fmt: skip
SHARES = torch.linspace(1, 0.8, 32).tolist()  # of a weight's range; the first wins ties
SAMPLES = 16
GONE = {"identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featurealphadropout"}


class Quantizer(nn.Module):
    """A grid for one activation: rounds to it and returns the values of the levels (zero gradient)."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.bits, self.symmetric = grid.bits, grid.symmetric
        self.register_buffer("scale", grid.scale)  # ()
        self.register_buffer("zero_point", grid.zero_point)  # () int32

    @property
    def grid(self) -> Grid:
        """Scale and zero point with their levels."""
        return Grid(self.scale, self.zero_point, self.bits, self.symmetric)

    def levels(self, x: Tensor) -> Tensor:
        """The levels of ``x``, whole numbers in the dtype of the scale."""
        steps = (x.to(self.scale.dtype) * (1 / self.scale)).round() + self.zero_point
        return steps.clamp(self.grid.quant_min, self.grid.quant_max)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded, in its dtype."""
        return ((self.levels(x) - self.zero_point) * self.scale).to(x.dtype)

    def extra_repr(self) -> str:
        """Bits, scale and zero point."""
        return f"bits={self.bits}, scale={self.scale.item():.4g}, zero_point={self.zero_point.item()}"


class QuantizedLayer(nn.Module):
    """A layer whose weight and bias are integers; ``layer`` keeps its options (stride, padding, groups ...)."""

    def __init__(self, layer: nn.Module, weight: Quantized, bias: Tensor | None, input_scale: Tensor | None) -> None:
        super().__init__()
        self.layer, self.dtype = copy.deepcopy(layer), layer.weight.dtype
        for name in dict(layer.named_parameters()):
            self.layer.register_parameter(name, None)
        self.register_buffer("levels", weight.levels)  # shape of the weight; int8 up to 8 bits
        self.register_buffer("scale", weight.scale)  # of the weight: (O,) or ()
        self.register_buffer("bias", None)  # (O,) int32
        self.register_buffer("bias_scale", None)  # (O,) or ()
        if bias is not None:
            per_output = self.scale.repeat(layer.groups) if self.axis and self.scale.dim() else self.scale
            self.bias_scale = input_scale * per_output
            steps = bias.detach().double() / self.bias_scale.double()
            self.bias = steps.round().clamp(1 - 2**31, 2**31 - 1).to(torch.int32)

    @property
    def axis(self) -> int:
        """The weight's axis of output channels (of one group)."""
        return _axis(self.layer)

    def weight(self) -> Tensor:
        """The dequantized weight."""
        shape = [-1 if axis == self.axis else 1 for axis in range(self.levels.dim())]
        return (self.levels * (self.scale.reshape(shape) if self.scale.dim() else self.scale)).to(self.dtype)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The layer's function of ``x`` with another weight and bias."""
        return _run(self.layer, x, weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's function with the values that the integers stand for."""
        return self.run(x, self.weight(), None if self.bias is None else (self.bias * self.bias_scale).to(self.dtype))


class StaticQuantized(fx.GraphModule):
    """The simulation: a graph of ``QuantizedLayer``, ``Quantizer`` and whatever stayed in floating point."""

    @property
    def report(self) -> dict[str, str]:
        """By layer or operation, in the order in which they run: how it is computed."""
        return self.meta["report"]

    @property
    def skipped(self) -> dict[str, str]:
        """By layer or operation: why it stayed in floating point."""
        return self.meta["skipped"]


def quantize_static(
    model: nn.Module,
    batches: Iterable,
    *,
    bits: int = 8,
    weight_bits: int | None = None,
    method: str = "mse",
    per_channel: bool = True,
    activations: str = "all",
    refine: bool = True,
    skip: Collection[str] = (),
) -> StaticQuantized:
    """A new model that computes what integers would: weights, biases and activations on fixed grids.

    Args:
        model: batch norms are folded first, then it is traced; in eval mode, whatever its flags say.
        batches: of (inputs, labels) to calibrate with, read once; the labels are not used.
        bits: of activations, 1..16.
        weight_bits: 1..16; None is ``bits``.
        method: how a range is chosen, a name in ``ranges.OBSERVERS``.
        per_channel: a scale for each output channel of a weight, or one for the tensor.
        activations: ``"all"`` for grids at every place of an integer runtime, ``"inputs"`` for the inputs of layers
            alone, and floating point between.
        refine: try ``SHARES`` of each weight's range on the first ``SAMPLES`` inputs, and correct the biases; False
            spans weights from end to end and leaves biases as they are.
        skip: names of modules, or of operations in the report, to leave in floating point.

    Returns:
        A graph of the same function. Dropout and what is never called are gone.

    Raises:
        ValueError: the model cannot be traced, has no layer to quantize or holds a value that is not finite; there is
            no batch, or its inputs are not finite or nothing but 0; an option or a name in ``skip`` is unknown.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
        >>> _ = nn.init.constant_(model[0].weight, 1.27)
        >>> result = quantize_static(model, [(torch.tensor([[2.55], [1.0]]), None)], method="minmax")
        >>> result.get_submodule("0").levels.tolist(), round(result.get_submodule("grids.input_1").scale.item(), 4)
        ([[127]], 0.01)
        >>> result.report
        {'0': '8-bit weight', '1': '8-bit output'}
    """
    if method not in OBSERVERS:
        raise ValueError(f"method={method!r} must be one of {', '.join(OBSERVERS)}")
    if activations not in ("all", "inputs"):
        raise ValueError(f"activations={activations!r} must be 'all' or 'inputs'")
    weight_bits = bits if weight_bits is None else weight_bits
    integer_levels(weight_bits)  # raises
    traced, skipped = _trace(model)
    nodes, modules = list(traced.graph.nodes), dict(traced.named_modules(remove_duplicate=False))
    names = {node: str(node.target) if node.op == "call_module" else node.name for node in nodes}
    kinds = {node: kind_of(node, modules) for node in nodes}
    known = {*modules, *names.values()} - {""}
    if unknown := [name for name in skip if name not in known]:
        raise ValueError(f"skip={unknown} must be modules or operations of the model; choose from {sorted(known)}")
    left = {node for node in nodes if any(f"{names[node]}.".startswith(f"{name}.") for name in skip)}
    layers = _layers(nodes, modules, left)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer to quantize; Linear, convolutions and Embedding are")
    places, gridded = _places(kinds, layers, left, everywhere=activations == "all")
    observers = {node: OBSERVERS[method](bits=bits, symmetric=False, name=names[node]) for node in places}
    calibration = _Calibration(traced, layers, observers, weight_bits, per_channel, refine)
    calibration.read(batches)
    for node, observer in observers.items():
        if observer.batches:  # the others carry tokens or shapes
            _insert(traced, node, places[node], observer)
    _replace(traced, calibration)
    result = StaticQuantized(traced, traced.graph)
    report, leaf = {}, ("placeholder", "get_attr", "output")
    for node in (node for node in nodes if node.op not in leaf):
        kind, name = kinds[node], names[node]
        if node in layers:
            report[name] = f"{weight_bits}-bit weight" + f", {bits}-bit output" * (node in places)
        elif node in gridded:
            if node in calibration.floats:
                report[name] = f"{bits}-bit output" if node in places or kind in GRIDS else "the grid of its input"
        elif node in left:
            skipped[name] = "left out by the caller"
        elif isinstance(modules.get(node.target), LAYERS):
            skipped[name] = "its weight is used in floating point elsewhere"
        elif node.op == "call_module" or (node in calibration.floats and kind not in KEEPS):
            skipped[name] = f"{kind}: computed in floating point"
    result.meta |= {"report": report, "skipped": skipped}
    flags = {name: module.training for name, module in model.named_modules()}
    for name, module in result.named_modules():
        module.training = flags.get(name, model.training)
    return result


def kind_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """What a node of a graph computes: ``relu`` for nn.ReLU, torch.relu, F.relu and Tensor.relu_ alike.

    Example:
        >>> model = fx.symbolic_trace(nn.Sequential(nn.AdaptiveAvgPool2d(1)))
        >>> [kind_of(node, dict(model.named_modules())) for node in model.graph.nodes]
        ['placeholder', 'adaptiveavgpool2d', 'output']
    """
    if node.op == "call_module":
        name = type(modules[node.target]).__name__
    else:
        name = getattr(node.target, "__name__", node.target) if node.op.startswith("call") else node.op
    return str(name).replace("_", "").lower()


def _trace(model: nn.Module) -> tuple[fx.GraphModule, dict[str, str]]:
    """The model in eval mode without batch norms, dropout and identities, and the layers that are not in it."""
    for name, parameter in model.named_parameters():
        check_finite(parameter, name)
    plain, skipped = copy.deepcopy(model).eval(), {}
    plain = nn.Sequential(plain) if type(plain) in LAYERS else plain  # a layer alone would be traced into functions
    try:
        fx.Tracer().trace(plain)
    except Exception as error:  # whatever the model's own code raises when it is given a symbol
        raise ValueError(
            f"the data flow of {type(model).__name__} cannot be traced ({str(error).splitlines()[0]}); quantize the "
            "part that can be, or use quantize_dynamic, which needs no trace"
        ) from error
    if any(isinstance(module, NORMS) for module in plain.modules()):
        plain = fold_batchnorm(plain).model
    graph = fx.Tracer().trace(plain)
    modules = dict(plain.named_modules())
    for node in list(graph.nodes):
        if kind_of(node, modules) in GONE:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    used = [f"{node.target}." for node in graph.nodes]
    for name, module in modules.items():
        called = any(target.startswith(f"{name}.") or f"{name}.".startswith(target) for target in used)
        if name and not called and any(True for _ in module.parameters(recurse=False)):
            skipped[name] = "it is never called"
    return fx.GraphModule(plain, graph), skipped


def _layers(nodes: list[fx.Node], modules: dict[str, nn.Module], left: set[fx.Node]) -> dict[fx.Node, nn.Module]:
    """The calls of layers whose weight nothing uses in floating point."""
    called = {node: modules[node.target] for node in nodes if node.op == "call_module"}
    layers = {node: module for node, module in called.items() if type(module) in LAYERS and node not in left}
    floats = {id(p) for node, m in called.items() if node not in layers for p in m.parameters()}
    for node in nodes:
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            floats.add(id(getattr(modules[owner], name)))
    return {node: module for node, module in layers.items() if id(module.weight) not in floats}


def _places(
    kinds: dict[fx.Node, str], layers: Collection[fx.Node], left: set[fx.Node], *, everywhere: bool
) -> tuple[dict[fx.Node, list[fx.Node]], set[fx.Node]]:
    """After which nodes a grid stands, for which of their users (none: for all), and which nodes are on one."""
    places: dict[fx.Node, list[fx.Node]] = {}
    gridded: set[fx.Node] = set()
    for node, kind in kinds.items():
        inputs = node.all_input_nodes
        if node in gridded or node in left:
            continue
        known = any(source in gridded or source.op == "placeholder" for source in inputs)
        if node in layers or (everywhere and kind in GRIDS and known):
            for source in inputs:
                if source not in gridded:
                    places.setdefault(source, []).append(node)
            returned = kind == "linear" and all(user.op == "output" for user in node.users)
            if everywhere and not returned:
                users = [user for user in node.users if kinds[user] in CLAMPS and user not in left]
                end = users[0] if users and len(node.users) == 1 else node
                places[end] = []
                gridded |= {node, end}
        elif kind in KEEPS and inputs and inputs[0] in gridded:
            gridded.add(node)
    return places, gridded


class _Calibration(fx.Interpreter):
    """Runs the float model: what activations span, which weight scales move outputs least, and by how much in the mean."""

    def __init__(
        self,
        traced: fx.GraphModule,
        layers: dict[fx.Node, nn.Module],
        observers: dict[fx.Node, MinMax],
        bits: int,
        per_channel: bool,
        refine: bool,
    ) -> None:
        super().__init__(traced)
        self.layers, self.observers, self.bits, self.per_channel = layers, observers, bits, per_channel
        self.refine, self.searching = refine, False
        self.floats: set[fx.Node] = set()  # nodes that put out floating-point tensors
        self.weights: dict[int, Quantized] = {}  # by id of the weight, as the next
        self.losses: dict[int, Tensor] = {}  # (shares, scales)
        self.shifts: dict[int, Tensor] = {}  # by id of the layer, (O,): sum over samples of the mean error
        self.samples: Counter[int] = Counter()

    def read(self, batches: Iterable) -> None:
        seen = 0
        for inputs, *_ in batches:
            if inputs.is_floating_point():
                check_finite(inputs, f"inputs of batch {seen}")
            with torch.no_grad():
                if not seen:
                    self._choose_weights(inputs[:SAMPLES])
                self.run(inputs)
            seen += 1
        if not seen:
            raise ValueError("batches holds no batch; pass at least one of (inputs, labels)")

    def run_node(self, node: fx.Node) -> object:
        result, layer = super().run_node(node), self.layers.get(node)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        if self.refine and layer is not None and not isinstance(layer, nn.Embedding):
            x = self.env[node.all_input_nodes[0]]
            x = x.reshape(-1, *x.shape[1 - layer.weight.dim() :])  # (N, C, ...), or (N, I) for Linear
            if self.searching:
                self._try_scales(layer, x)
            else:
                error = self._error(layer, x.mean(0, keepdim=True), self.weights[id(layer.weight)]).mean(1)
                self.shifts[id(layer)] = self.shifts.get(id(layer), 0) + len(x) * error
                self.samples[id(layer)] += len(x)
        if not self.searching:
            self.floats.add(node)
            if node in self.observers:
                self.observers[node].update(result)
        return result

    def _choose_weights(self, samples: Tensor) -> None:
        if self.refine:
            self.searching = True
            self.run(samples)
            self.searching = False
        for layer in self.layers.values():
            losses = self.losses.get(id(layer.weight))
            share = 1.0 if losses is None else torch.tensor(SHARES, device=losses.device)[losses.argmin(0)]
            self.weights[id(layer.weight)] = self._rounded(layer, share)

    def _try_scales(self, layer: nn.Module, x: Tensor) -> None:
        losses = torch.stack(
            [self._error(layer, x, self._rounded(layer, share)).var(1, correction=0) for share in SHARES]
        )
        scales = layer.weight.shape[_axis(layer)] if self.per_channel else 1
        losses = losses.unflatten(1, (-1, scales)).sum(1)  # of the groups of a transposed convolution
        losses = losses if self.per_channel else losses[:, 0]
        self.losses[id(layer.weight)] = self.losses.get(id(layer.weight), 0) + losses

    def _rounded(self, layer: nn.Module, share: Tensor | float) -> Quantized:
        """The weight on a grid over a share of its range."""
        axis = _axis(layer) if self.per_channel else None
        dims = [place for place in range(layer.weight.dim()) if place != axis]
        peak = layer.weight.detach().abs().amax(dims) * share
        return choose_grid(-peak, peak, bits=self.bits, axis=axis).quantize(layer.weight)

    def _error(self, layer: nn.Module, x: Tensor, weight: Quantized) -> Tensor:
        """(O, positions): how far the rounded weight moves the output."""
        y = _run(layer, x, weight.dequantize() - layer.weight)
        return y.movedim(y.dim() - layer.weight.dim() + 1, 0).flatten(1).to(torch.promote_types(y.dtype, torch.float32))


def _insert(traced: fx.GraphModule, node: fx.Node, users: list[fx.Node], observer: MinMax) -> None:
    dead = observer.minimum == observer.maximum == 0 and node.op != "placeholder"  # such as a last layer of zeros
    grid = (Range(0.0, 0.0) if dead else observer.range()).grid(bits=observer.bits, symmetric=False)
    traced.add_submodule(f"grids.{node.name}", Quantizer(grid))
    with traced.graph.inserting_after(node):
        rounded = traced.graph.call_module(f"grids.{node.name}", (node,))
    for user in users or [user for user in node.users if user is not rounded]:
        user.replace_input_with(node, rounded)


def _replace(traced: fx.GraphModule, calibration: _Calibration) -> None:
    """Put a ``QuantizedLayer`` in the place of each call; calls that share a weight share its integers."""
    plans, weights, calls = [], calibration.weights, Counter()
    for node, layer in calibration.layers.items():
        bias, scale, key = getattr(layer, "bias", None), _input_scale(traced, node), id(layer.weight)
        if id(layer) in calibration.shifts:
            shift = calibration.shifts[id(layer)] / calibration.samples[id(layer)]
            bias = -shift if bias is None else bias.detach() - shift
        plans.append((node, layer, bias, scale))
        if bias is not None:  # a channel of weights near 0 would have a scale that its bias does not fit into 32 bits
            least = bias.double().abs().reshape(-1, weights[key].scale.numel()).amax(0) / (scale.double() * 2**30)
            grid = weights[key].grid
            least = least.reshape(grid.scale.shape).to(grid.scale.dtype)
            if (least > grid.scale).any():
                weights[key] = replace(grid, scale=torch.maximum(grid.scale, least)).quantize(layer.weight)
    for node, layer, bias, scale in plans:
        calls[node.target] += 1
        name = node.target if calls[node.target] == 1 else f"{node.target}_call{calls[node.target]}"
        traced.add_submodule(name, QuantizedLayer(layer, weights[id(layer.weight)], bias, scale))
        node.target = name


def _input_scale(traced: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The scale of the grid that a layer's input is on; None for tokens."""
    while node.op != "placeholder":
        node = node.all_input_nodes[0]
        found = traced.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(found, Quantizer):
            return found.scale
    return None


def _axis(layer: nn.Module) -> int:
    """The axis of a weight that its scales lie along: of output channels (in a group)."""
    return int(isinstance(layer, TRANSPOSED))


def _run(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A layer's function of ``x`` with another weight and bias."""
    return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
