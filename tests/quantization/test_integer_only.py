"""Integer-only inference: multipliers by hand, exact rounding, nothing but integers between, and ONNX Runtime's kernels."""

from __future__ import annotations

import copy
from fractions import Fraction

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compresslab.quantization.affine import Grid
from compresslab.quantization.integer_only import Onto, integer_only, quantize_multiplier, requantize
from compresslab.quantization.static import QuantizedLayer, Quantizer, StaticQuantized, kind_of, quantize_static
from compresslab.workbench import checkpoints, data


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps what every node put out; ``instead`` is what the nodes after it are given."""

    def __init__(self, model: torch.fx.GraphModule, instead: dict[str, torch.Tensor]) -> None:
        super().__init__(model)
        self.values: dict[str, object] = {}
        self.instead = instead

    def run_node(self, node: torch.fx.Node) -> object:
        self.values[node.name] = super().run_node(node)
        return self.instead.get(node.name, self.values[node.name])


def recorded(model: torch.fx.GraphModule, x: torch.Tensor, **instead: torch.Tensor) -> dict[str, torch.Tensor]:
    recorder = Recorder(model, instead)
    with torch.no_grad():
        recorder.run(x)
    return recorder.values


def from_tie(model: torch.fx.GraphModule, values: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """How far the exact value of each level that an ``Onto`` node put out lies from a half."""
    module = model.get_submodule(name)
    onto, count = getattr(module, "onto", module), 1
    parts = [values[each.name].double() for node in model.graph.nodes if node.name == name for each in node.args]
    if onto is not module:
        count = parts[0][0, 0].numel()
        parts = [parts[0].sum((2, 3))]
    exact = (
        sum(q * m.double() for q, m in zip(parts, onto.multipliers, strict=True)) * 2.0 ** -onto.shift.double() / count
    )
    return (exact - exact.floor() - 0.5).abs()


def test_multipliers_by_hand():
    # 0.75 = 3/4: 0.75 2^31 = 3 2^29, in range as it is. 0.1 = 0.8 2^-3: 0.8 2^31 = 1717986918.4 -> 1717986918, shift 34.
    # 5 = 0.625 2^3: 0.625 2^31 = 1342177280, shift 28. 1 - 2^-40 rounds up to 2^31, which becomes 2^30 one shift less.
    multiplier, shift = quantize_multiplier(torch.tensor([0.75, 0.1, 5.0, 1 - 2.0**-40], dtype=torch.float64))
    assert multiplier.tolist() == [3 * 2**29, 1717986918, 1342177280, 2**30]
    assert shift.tolist() == [31, 34, 28, 30]
    assert multiplier.dtype == shift.dtype == torch.int64


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.floats(2.0**-31, 2.0**29))
def test_multipliers_are_in_range_and_close(m):
    multiplier, shift = (part.item() for part in quantize_multiplier(m))
    assert 2**30 <= multiplier < 2**31
    assert abs(Fraction(multiplier, 2**shift) - Fraction(m)) <= Fraction(m) / 2**31


def test_small_multipliers_lose_bits_not_range():
    multiplier, shift = quantize_multiplier(torch.tensor([2.0**-40, 1e-300], dtype=torch.float64))
    assert shift.tolist() == [62, 62]
    assert multiplier.tolist() == [2**22, 0]
    assert requantize(torch.tensor([2**31 - 1] * 2), multiplier, shift).tolist() == [0, 0]


def test_requantize_by_hand():
    # A quarter: 10/4 = 2.5 -> 3 and -10/4 = -2.5 -> -2, ties up; 9/4 -> 2; 11/4 -> 3. Then + 3, into 0..255.
    quarter = quantize_multiplier(0.25)
    acc = torch.tensor([10, -10, 9, 11, 4000, -4000], dtype=torch.int32)
    levels = requantize(acc, *quarter, zero_point=3)
    assert levels.tolist() == [6, 1, 5, 6, 255, 0]
    assert levels.dtype == torch.int32
    assert requantize(acc, *quarter, symmetric=True).tolist() == [3, -2, 2, 3, 127, -127]
    assert requantize(acc, *quarter, bits=2).tolist() == [3, 0, 2, 3, 3, 0]
    # The mean of 3 levels that sum to 10, in quarters: 10 / 12 -> 1; of -10: -0.83 -> -1.
    assert requantize(acc[:2], *quarter, count=3, zero_point=5).tolist() == [6, 4]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(-(2**31), 2**31 - 1), st.floats(1e-9, 100.0), st.integers(1, 64))
def test_requantize_is_exact_arithmetic(acc, m, count):
    multiplier, shift = quantize_multiplier(m)
    exact = Fraction(acc) * multiplier.item() / (count * 2 ** shift.item())
    expected = min(max((exact + Fraction(1, 2)).__floor__(), 0), 2**16 - 1)
    assert requantize(torch.tensor([acc]), multiplier, shift, count=count, bits=16).item() == expected


def test_an_addition_is_rounded_once_by_hand():
    # Steps 1 and 0.5 onto steps of 2: (3 * 1 + 3 * 0.5) / 2 = 2.25 -> 2; each rounded first would be 2 + 1 = 3.
    grid = Quantizer(Grid(torch.tensor(2.0), torch.tensor(10, dtype=torch.int32), 8, False))
    onto = Onto([torch.tensor(0.5), torch.tensor(0.25)], grid, float("-inf"), float("inf"))
    assert onto(torch.tensor([3, -40]), torch.tensor([3, 0])).tolist() == [2, -10]  # -20 ends at level 0
    relu6 = Onto([torch.tensor(0.5), torch.tensor(0.25)], grid, 0.0, 6.0)
    assert relu6(torch.tensor([100, -3]), torch.tensor([0, 0])).tolist() == [3, 0]


class Block(nn.Module):
    """Every operation that has an integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.average, self.adaptive, self.pool = nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(2), nn.MaxPool2d(2)
        self.relu6 = nn.ReLU6()
        self.head = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))  # (N, 8, 8, 8)
        x = torch.relu(self.norm(self.conv2(x)) + x)
        x = self.pool(self.relu6(self.up(x)))  # (N, 8, 8, 8)
        x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))  # (N, 16, 4, 4)
        y = self.adaptive(x)  # (N, 16, 2, 2)
        x = F.relu(self.average(x) + y)
        return self.head(x.reshape(x.size(0), -1))


@pytest.fixture(scope="module")
def block() -> tuple[StaticQuantized, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Block()
    x = noise(32, 3, 16, 16)
    return quantize_static(model, [(x, None)]), x


def test_only_integers_pass_between_first_and_last_grid(block):
    simulation, x = block
    values = recorded(integer_only(simulation), x)
    floats = {name for name, value in values.items() if torch.is_tensor(value) and value.is_floating_point()}
    assert floats == {"x", "head_leave", "output"}
    kinds = {value.dtype for name, value in values.items() if torch.is_tensor(value) and name not in floats}
    assert kinds == {torch.int32}
    assert sum(name.endswith("_onto") for name in values) == 7


def test_it_agrees_with_the_simulation(block):
    simulation, x = block
    integers, sim = integer_only(simulation), recorded(simulation, x)
    theirs = {}
    for node in integers.graph.nodes:
        if node.name.endswith(("_onto", "_enter")):
            name = node.name.rpartition("_")[0]
            grid = simulation.get_submodule(f"grids.{name}")
            theirs[node.name] = (grid.levels(sim[f"grids_{name}"]) - grid.zero_point).to(torch.int32)
    ours = recorded(integers, x, **theirs)  # each operation is given the simulation's levels
    for name, levels in theirs.items():
        differs = (levels - ours[name]).abs()
        assert differs.max() <= 1  # where the exact value is a tie, but for float32's rounding
        assert differs.double().mean() < 1e-4
    step = simulation.get_submodule("head").bias_scale
    assert ((ours["output"] - sim["output"]).abs() / step).max() < 2  # steps of a 32-bit sum


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (9, 6)), (nn.Conv1d(4, 6, 3, padding=1, groups=2), (5, 4, 9)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (4, 3, 6, 5)), (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (3, 4, 5)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("per_channel", [True, False])
def test_layers_of_every_kind(layer, shape, per_channel):
    x = noise(*shape)
    simulation = quantize_static(nn.Sequential(layer, nn.ReLU()), [(x, None)], per_channel=per_channel)
    values = recorded(integer_only(simulation), x)
    with torch.no_grad():
        scale = simulation.get_submodule("grids._1").scale
        assert (values["output"] - simulation(x)).abs().max() < 1e-3 * scale


def test_the_engine_is_exact_and_the_zero_point_may_leave_the_sum():
    # torch's own (slow) integer convolution; and sum (q - Z) w = sum q w - Z sum w, with q padded by Z.
    layer, x = nn.Conv2d(3, 4, 3, padding=1), noise(2, 3, 6, 6)
    simulation = quantize_static(nn.Sequential(layer, nn.ReLU()), [(x, None)])
    values, quantized = recorded(integer_only(simulation), x), simulation.get_submodule("0")
    weight = quantized.levels.to(torch.int32)
    bias = quantized.bias.reshape(-1, 1, 1)
    entered = next(value for name, value in values.items() if name.endswith("_enter"))
    assert torch.equal(values["_0_sums"], F.conv2d(entered, weight, padding=1) + bias)
    zero_point = simulation.get_submodule("grids.input_1").zero_point
    assert zero_point != 0
    q = F.pad(entered + zero_point, (1, 1, 1, 1), value=zero_point.item())
    corrected = F.conv2d(q, weight) + bias - zero_point * weight.sum((1, 2, 3)).reshape(-1, 1, 1)
    assert torch.equal(values["_0_sums"], corrected)


def test_it_is_saved_and_copied(block):
    simulation, x = block
    before = copy.deepcopy(simulation.state_dict())
    integers = integer_only(simulation)
    fresh = copy.deepcopy(integers)
    with torch.no_grad():
        for value in fresh.state_dict().values():
            value.zero_()
        fresh.load_state_dict(integers.state_dict())
        assert torch.equal(fresh(x), integers(x))
    assert all(torch.equal(value, before[name]) for name, value in simulation.state_dict().items())


# ONNX Runtime's integer kernels, on a graph built here node by node.


def as_onnx(model: StaticQuantized) -> onnx.ModelProto:
    """A simulation as QuantizeLinear and DequantizeLinear around float operations, every level an output."""
    modules, nodes, constants, outputs = dict(model.named_modules()), [], [], []

    def constant(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> str:
        constants.append(numpy_helper.from_array(tensor.detach().to(dtype).numpy(), name))
        return name

    def op(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **attributes))
        return output

    def integers(name: str, levels: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> str:
        zeros = constant(f"{name}_zero", torch.zeros_like(scale), dtype)
        parts = [constant(f"{name}_levels", levels, dtype), constant(f"{name}_scale", scale, torch.float32), zeros]
        return op("DequantizeLinear", parts, name, axis=0)

    new = {}
    for node in model.graph.nodes:
        found, kind, inputs = modules.get(node.target), kind_of(node, modules), [new[i] for i in node.all_input_nodes]
        if node.op == "placeholder":
            new[node] = node.name
        elif isinstance(found, Quantizer):
            name = f"{node.name}_levels"
            parts = [constant(f"{node.name}_scale", found.scale, torch.float32)]
            parts.append(constant(f"{node.name}_zero_point", found.zero_point, torch.uint8))
            op("QuantizeLinear", [*inputs, *parts], name)
            outputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, None))
            new[node] = op("DequantizeLinear", [name, *parts], node.name)
        elif isinstance(found, QuantizedLayer):
            inputs.append(integers(f"{node.name}_weight", found.levels, found.scale, torch.int8))
            inputs.append(integers(f"{node.name}_bias", found.bias, found.bias_scale, torch.int32))
            if isinstance(found.layer, nn.Linear):
                new[node] = op("Gemm", inputs, node.name, transB=1)
            else:
                pads = [*found.layer.padding] * 2
                new[node] = op("Conv", inputs, node.name, strides=found.layer.stride, pads=pads)
        elif kind == "mean":
            new[node] = op("Flatten", [op("GlobalAveragePool", inputs, f"{node.name}_pooled")], node.name)
        elif kind in ("relu", "add"):
            new[node] = op(kind.capitalize(), inputs, node.name)
        elif node.op == "output":
            outputs.append(helper.make_tensor_value_info(inputs[0], TensorProto.FLOAT, None))
    images = helper.make_tensor_value_info(next(iter(new.values())), TensorProto.FLOAT, [None, 1, 32, 32])
    graph = helper.make_graph(nodes, "net", [images], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_onnx_runtimes_integer_kernels(tmp_path):
    """The ResNet of the course, level by level, each layer fed the same integers: 0 or 1 apart, 1 only at ties."""
    splits, model = data.load("glyphs"), checkpoints.load("resnet").eval()
    simulation = quantize_static(model, splits.train.take(64).batches(64))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.optimized_model_filepath = 1, str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(as_onnx(simulation).SerializeToString(), options, ["CPUExecutionProvider"])
    optimized = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    print({k: optimized.count(k) for k in optimized})
    assert {kind: optimized.count(kind) for kind in ("QLinearConv", "QLinearAdd", "QGemm", "Conv", "Add", "Gemm")} == {
        "QLinearConv": 15, "QLinearAdd": 6, "QGemm": 1, "Conv": 0, "Add": 0, "Gemm": 0
    }  # fmt: skip
    x = next(iter(splits.test.batches(50)))[0]
    names = [output.name for output in session.get_outputs()]
    results = [torch.from_numpy(result) for result in session.run(None, {session.get_inputs()[0].name: x.numpy()})]
    integers, theirs, logits = integer_only(simulation), {}, None
    parts = dict(integers.named_modules())
    for name, value in zip(names, results, strict=True):
        if value.is_floating_point():
            logits = value
            continue
        node = name.removeprefix("grids_").removesuffix("_levels")
        zero_point = simulation.get_submodule(f"grids.{node}").zero_point
        theirs[f"{node}_onto" if f"{node}_onto" in parts else f"{node}_enter"] = value.int() - zero_point
    ours, whole, levels = recorded(integers, x, **theirs), recorded(integers, x), 0
    assert len(theirs) == 23
    for name, value in theirs.items():
        # One layer at a time. Their kernels multiply the sum by a float32: 0 LSB but where the exact value is within
        # float32's error (2^-24 of 255, thrice for an addition) of a tie, which we round up and they as it falls.
        differs = (value - ours[name]).abs()
        assert differs.max() <= 1, name
        if name.endswith("_onto") and differs.any():
            assert (from_tie(integers, ours | theirs, name)[differs > 0] < 1e-4).all(), name
        # The whole network: a level that fell the other way moves those that it feeds.
        assert torch.bincount((value - whole[name]).abs().flatten(), minlength=3)[2:].sum() == 0, name
        assert (value != whole[name]).double().mean() < 1e-3, name
        levels += value.numel()
    assert levels > 3e6 / 2
    assert (logits - whole["output"]).abs().max() < 1e-2 * logits.std()
    assert torch.equal(logits.argmax(1), whole["output"].argmax(1))


def test_errors():
    with pytest.raises(ValueError, match=r"m=-1 must be above 0 and below 2\^30"):
        quantize_multiplier(torch.tensor([0.5, -1.0]))
    with pytest.raises(ValueError, match=r"m=2e\+09 must be"):
        quantize_multiplier(2e9)
    with pytest.raises(ValueError, match="m=nan must be"):
        quantize_multiplier(float("nan"))
    with pytest.raises(TypeError, match=r"acc must hold integers, got torch.float32; requantize the sums"):
        requantize(torch.ones(2), *quantize_multiplier(0.5))
    with pytest.raises(ValueError, match="bits=0 must be an integer"):
        requantize(torch.ones(2).int(), *quantize_multiplier(0.5), bits=0)
    with pytest.raises(TypeError, match="model must come from quantize_static, got Linear"):
        integer_only(nn.Linear(2, 2))
    for middle, what in (
        (nn.Sigmoid(), "sigmoid"),
        (nn.AvgPool2d(2, ceil_mode=True), "avgpool2d"),
        (nn.GELU(), "gelu"),
    ):
        simulation = quantize_static(nn.Sequential(nn.Conv2d(3, 4, 1), middle), [(noise(2, 3, 6, 6), None)])
        with pytest.raises(ValueError, match=rf"_1 \({what}\) has no integer form here; integer_only knows layers"):
            integer_only(simulation)
    simulation = quantize_static(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(4)), [(noise(2, 3, 6, 6), None)]
    )
    with pytest.raises(ValueError, match=r"shape \(2, 4, 4, 4\) must divide \(2, 4, 6, 6\)"):
        integer_only(simulation)(noise(2, 3, 6, 6))
    only_inputs = quantize_static(checkpoints.load("resnet"), [(noise(4, 1, 32, 32), None)], activations="inputs")
    with pytest.raises(ValueError, match=r"add \(add\) has no integer form here"):
        integer_only(only_inputs)
