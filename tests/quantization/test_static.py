"""Static quantization: a layer by hand, where grids stand, what stays in floating point, and how close it comes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.affine import Grid, quantize
from compresslab.quantization.batchnorm import fold_batchnorm
from compresslab.quantization.ranges import OBSERVERS
from compresslab.quantization.static import QuantizedLayer, Quantizer, StaticQuantized, kind_of, quantize_static
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.vision import torchvision


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sqnr_db(model: nn.Module, other: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        y = model(x)
        return 10 * math.log10(y.square().sum() / (other(x) - y).square().sum())


def places(model: StaticQuantized) -> list[str]:
    """The nodes after which a grid stands."""
    return [name.removeprefix("grids.") for name, module in model.named_modules() if isinstance(module, Quantizer)]


def linear(weight: list[list[float]], bias: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight))
    layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return layer


def test_by_hand():
    # Inputs from -1 to 1.55: scale 2.55 / 255 = 0.01, zero point 100. Rows of weights: peaks 1.27 and 0.254, scales 0.01
    # and 0.002; levels [127, -3] (-0.026 / 0.01 = -2.6) and [50, 127]. Biases in steps of 1e-4 and 2e-5: 0.5 -> 5000
    # and -0.100008 -> -5000.4 -> -5000.
    # Input [0.504, -1] has levels 150 and 0, less 100: 50 and -100. Sums: 127 * 50 + 3 * 100 + 5000 = 11650 -> 1.165
    # and 50 * 50 - 127 * 100 - 5000 = -15200 -> -0.304, which ReLU clips. The largest output is 1.27 * 1.55 + 0.026 + 0.5
    # = 2.4945, level 255 from 0: 1.165 is level 119.09 -> 119, or 1.16410.
    model = nn.Sequential(linear([[1.27, -0.026], [0.1, 0.254]], [0.5, -0.100008]), nn.ReLU(), nn.Identity())
    x = torch.tensor([[0.504, -1.0], [1.55, -1.0], [1.55, 0.0]])
    result = quantize_static(model, [(x, None)], method="minmax", refine=False)
    layer, grid = result.get_submodule("0"), result.get_submodule("grids.input_1")
    assert grid.scale.item() == pytest.approx(0.01)
    assert grid.zero_point.item() == 100
    assert layer.levels.tolist() == [[127, -3], [50, 127]]
    assert layer.levels.dtype == torch.int8
    assert layer.scale.tolist() == pytest.approx([0.01, 0.002])
    assert layer.bias.tolist() == [5000, -5000]
    assert layer.bias.dtype == torch.int32
    assert layer.bias_scale.tolist() == pytest.approx([1e-4, 2e-5])
    with torch.no_grad():
        assert layer(grid(x[:1])).tolist()[0] == pytest.approx([1.165, -0.304])
        out = result.get_submodule("grids._1")
        assert out.scale.item() == pytest.approx(2.4945 / 255)
        assert out.zero_point.item() == 0
        assert result(x[:1]).tolist()[0] == pytest.approx([119 * 2.4945 / 255, 0.0])
    assert result.report == {"0": "8-bit weight", "1": "8-bit output"}
    assert result.skipped == {}


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 16), st.floats(0.001, 10), st.integers(0, 9))
def test_a_quantizer_is_torchs_fake_quantization(bits, scale, seed):
    zero_point = seed * (2**bits - 1) // 9
    quantizer = Quantizer(Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), bits, False))
    x = 3 * scale * 2**bits * noise(200, seed=seed)
    assert torch.equal(
        quantizer(x), torch.fake_quantize_per_tensor_affine(x, quantizer.scale.item(), zero_point, 0, 2**bits - 1)
    )
    assert torch.equal(quantizer(x), quantizer.grid.quantize(x).dequantize())
    assert f"bits={bits}, scale=" in repr(quantizer)
    assert quantizer(torch.tensor([math.nan])).isnan().all()


def test_the_bias_takes_the_mean_error_by_hand():
    # Peak 1.27, one share of it: the level of 0.0126 is 1.26 -> 1, off by -0.0026. The mean of the second input is 10:
    # the output is off by -0.026 in the mean, so the bias becomes 0.026.
    model = nn.Sequential(linear([[1.27, 0.0126]], [0.0]))
    x = torch.tensor([[0.0, 5.0], [0.0, 15.0]])
    options = {"method": "minmax", "bits": 16, "weight_bits": 8}
    plain = quantize_static(model, [(x, None)], refine=False, **options).get_submodule("0")
    assert plain.bias.item() == 0
    result = quantize_static(model, [(x[:1], None), (x[1:], None)], **options)
    layer = result.get_submodule("0")
    error = layer.weight() - model[0].weight
    assert (layer.bias * layer.bias_scale).item() == pytest.approx(-10 * error[0, 1].item(), abs=1e-5)
    with torch.no_grad():
        assert result(x).mean().item() == pytest.approx(model(x).mean().item(), abs=1e-3)


def test_means_and_variances_are_better_than_without():
    model, x = models.build("resnet", width=8, depth=1).eval(), F.interpolate(noise(32, 1, 4, 4), 16).abs()
    folded, options = fold_batchnorm(model).model, {"bits": 16, "weight_bits": 6, "activations": "inputs"}
    means, variances = [], []
    for refine in (True, False):
        result = quantize_static(model, [(x[:20], None), (x[20:], None)], refine=refine, **options)
        with torch.no_grad():  # the first layer is given the same inputs in both
            away = result.get_submodule("conv1")(result.get_submodule("grids.images")(x)) - folded.conv1(x)
        means.append(away.mean((0, 2, 3)).abs().max())
        variances.append(away.var((0, 2, 3)).mean())
    assert means[0] < means[1] / 20
    assert variances[0] < variances[1] / 2


class Net(nn.Module):
    """Shortcut, pooling, concatenation, and a norm that has no integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5)
        self.same, self.pool = nn.Conv2d(8, 8, 1), nn.MaxPool2d(2)
        self.layer_norm, self.head, self.unused = nn.LayerNorm(16), nn.Linear(16, 5), nn.Linear(2, 2)
        self.offset = nn.Parameter(torch.linspace(-1, 1, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.pool(F.relu6(self.drop(self.same(x)) + x))
        x = torch.cat([x, x.sigmoid()], 1).mean((2, 3))
        return self.head(self.layer_norm(x.view(x.shape[0], 16 * 1) + self.offset))


def test_where_grids_stand():
    model, batches = Net(), [(noise(8, 3, 8, 8), None)]
    result = quantize_static(model, batches)
    everywhere = ["x", "relu", "same", "relu6", "sigmoid", "cat", "mean", "offset", "add_1", "layer_norm"]
    assert places(result) == everywhere
    assert result.report == {
        "conv": "8-bit weight", "relu": "8-bit output", "same": "8-bit weight, 8-bit output", "add": "8-bit output",
        "relu6": "8-bit output", "pool": "the grid of its input", "sigmoid": "8-bit output", "cat": "8-bit output",
        "mean": "8-bit output", "view": "the grid of its input", "add_1": "8-bit output", "head": "8-bit weight",
    }  # fmt: skip
    assert result.skipped == {"unused": "it is never called", "layer_norm": "layernorm: computed in floating point"}
    assert sqnr_db(model.eval(), result, batches[0][0]) > 25
    inputs = quantize_static(model, batches, activations="inputs", skip=["same", "sigmoid"])
    assert places(inputs) == ["x", "layer_norm"]
    assert inputs.skipped["same"] == inputs.skipped["sigmoid"] == "left out by the caller"
    assert inputs.skipped["cat"] == "cat: computed in floating point"
    assert type(inputs.get_submodule("same")) is nn.Conv2d
    assert copy.deepcopy(result).report == result.report
    codes = quantize_static(model, batches, bits=16, weight_bits=4)
    assert codes.get_submodule("same").levels.abs().max() <= 7
    assert codes.get_submodule("grids.x").grid.quant_max == 2**16 - 1


def test_a_relu_that_is_not_the_only_user_gets_its_input_on_a_grid():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return torch.relu(y) + y

    result = quantize_static(Forked(), [(noise(9, 3), None)])
    assert places(result) == ["x", "layer", "add"]
    assert result.report["relu"] == "the grid of its input"


def test_one_name_for_one_operation():
    class Relus(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(torch.relu(F.relu(x.relu().relu_())))

    traced = torch.fx.symbolic_trace(Relus())
    kinds = {kind_of(node, dict(traced.named_modules())) for node in traced.graph.nodes}
    assert kinds == {"placeholder", "relu", "output"}


@pytest.mark.parametrize("method", OBSERVERS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_every_observer_comes_close(method, per_channel):
    model, x = models.build("vgg", width=4).eval(), noise(32, 1, 32, 32)
    result = quantize_static(model, [(x[:16], None), (x[16:], None)], method=method, per_channel=per_channel)
    assert sqnr_db(model, result, x) > 20
    again = quantize_static(model, [(x[:16], None), (x[16:], None)], method=method, per_channel=per_channel)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in result.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (8, 3, 6)), (nn.Conv1d(4, 6, 3, groups=2, bias=False), (8, 4, 9)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (8, 3, 6, 5)), (nn.Conv3d(2, 3, 2), (8, 2, 4, 4, 4)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (8, 4, 5, 4)), (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 6)),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("per_channel", [True, False])
def test_layers_of_every_kind(layer, shape, per_channel):
    x = noise(*shape)
    result = quantize_static(nn.Sequential(layer, nn.ReLU()), [(x, None)], per_channel=per_channel, method="minmax")
    assert sqnr_db(nn.Sequential(layer, nn.ReLU()), result, x) > 30
    plain = quantize_static(nn.Sequential(layer, nn.ReLU()), [(x, None)], per_channel=per_channel, refine=False)
    axis = int(isinstance(layer, nn.ConvTranspose2d)) if per_channel else None
    assert torch.equal(plain.get_submodule("0").levels, quantize(layer.weight, axis=axis).levels)


def test_a_layer_alone_is_a_model():
    assert isinstance(quantize_static(nn.Linear(3, 2), [(noise(4, 3), None)]).get_submodule("0"), QuantizedLayer)


def test_shared_weights_share_their_integers():
    tied = quantize_static(hostile("tied").model, hostile("tied").batches)
    assert tied.get_submodule("head").levels is tied.get_submodule("embedding").levels
    assert copy.deepcopy(tied).get_submodule("head").levels is not tied.get_submodule("head").levels
    shared = quantize_static(hostile("shared").model, hostile("shared").batches)
    assert shared.get_submodule("first").levels is shared.get_submodule("first_call2").levels
    assert not torch.equal(shared.get_submodule("first").bias_scale, shared.get_submodule("first_call2").bias_scale)
    half = quantize_static(hostile("tied").model, hostile("tied").batches, skip=["head"])
    assert half.get_submodule("embedding").weight is half.get_submodule("head").weight
    assert half.skipped["embedding"] == "its weight is used in floating point elsewhere"

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.linear(self.layer(x), self.layer.weight))

    assert quantize_static(Reads(), [(noise(4, 3), None)]).skipped.keys() == {"layer", "linear"}


def test_a_bias_always_fits_into_32_bits():
    # A dead channel: its weights are near 0, its bias is not; in steps of 0.01 * 1e-20 the bias would not fit.
    model = nn.Sequential(linear([[1e-18, 0.0], [1.0, 1.0]], [3.0, 0.0]), nn.ReLU())
    result = quantize_static(model, [(noise(16, 2), None)])
    layer = result.get_submodule("0")
    assert (layer.bias[0] * layer.bias_scale[0]).item() == pytest.approx(3.0)
    assert layer.levels[0].tolist() == [0, 0]
    assert layer.levels[1].abs().max() == 127


def test_what_is_always_zero_costs_nothing():
    model = nn.Sequential(linear([[1.0, 1.0]], [-100.0]), nn.ReLU(), linear([[1.0]], [0.5]))
    x = noise(4, 2)
    assert quantize_static(model, [(x, None)])(x).tolist() == [[pytest.approx(0.5, abs=0.5 / 127)]] * 4


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_16"])
def test_models_of_torchvision(name):
    library, options = torchvision(), {"image_size": 32} if name == "vit_b_16" else {}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if name == "vit_b_16":  # the same data flow with fewer and smaller blocks
            size = {"patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
            model = library.models.VisionTransformer(**options, **size)
            nn.init.normal_(model.heads.head.weight)  # torchvision starts it with 0
        else:
            model = getattr(library.models, name)()
    x = noise(8, 3, 32, 32)
    with torch.no_grad():
        for _ in range(20 if name == "mobilenet_v3_small" else 3):
            model(x)  # running statistics that fit
    model.eval()
    result = quantize_static(model, [(x, None)], activations="inputs")
    assert sqnr_db(model, result, x) > 20
    assert isinstance(quantize_static(model, [(x, None)], refine=False), StaticQuantized)
    if name == "vit_b_16":
        assert "multiheadattention" in result.skipped["encoder.layers.encoder_layer_0.self_attention"]


def test_the_course_resnet_keeps_its_answers():
    splits, model = data.load("glyphs"), checkpoints.load("resnet").eval()
    batches, x = splits.train.take(256).batches(64), next(iter(splits.val.batches(256)))[0]
    for activations, least in (("inputs", 36), ("all", 33)):
        result = quantize_static(model, batches, activations=activations)
        assert sqnr_db(model, result, x) > least
        with torch.no_grad():
            assert (result(x).argmax(1) == model(x).argmax(1)).double().mean() > 0.97


def test_flags_batches_and_modes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)).train()
    stream = iter([(noise(4, 3, 6, 6, seed=seed), None) for seed in range(3)])
    result = quantize_static(model, stream)
    assert result.training
    assert model[1].num_batches_tracked == 0
    assert torch.equal(result(noise(2, 3, 6, 6)), result(noise(2, 3, 6, 6)))  # no dropout


def test_errors():
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"method='best' must be one of minmax, average"):
        quantize_static(model, [(x, None)], method="best")
    with pytest.raises(ValueError, match=r"activations='some' must be 'all' or 'inputs'"):
        quantize_static(model, [(x, None)], activations="some")
    with pytest.raises(ValueError, match="bits=0 must be an integer"):
        quantize_static(model, [(x, None)], bits=0)
    with pytest.raises(ValueError, match="bits=17 must be an integer"):
        quantize_static(model, [(x, None)], weight_bits=17)
    with pytest.raises(ValueError, match=r"skip=\['body'\] must be modules or operations .*\['0', 'input_1'"):
        quantize_static(model, [(x, None)], skip=["body"])
    with pytest.raises(ValueError, match="batches holds no batch; pass at least one"):
        quantize_static(model, [])
    with pytest.raises(ValueError, match="inputs of batch 1 must be finite, got 1 NaN"):
        quantize_static(model, [(x, None), (torch.tensor([[1.0, math.nan]]), None)])
    with pytest.raises(ValueError, match="activations of 'input_1' never left 0 in 1 batches"):
        quantize_static(model, [(0 * x, None)])
    with pytest.raises(
        ValueError, match=r"Sequential has no layer to quantize; Linear, convolutions and Embedding are"
    ):
        quantize_static(nn.Sequential(nn.ReLU()), [(x, None)])
    with pytest.raises(ValueError, match=r"0.weight must be finite, got 1 NaN"):
        quantize_static(nn.Sequential(linear([[math.nan, 1.0]], [0.0])), [(x, None)])
    with pytest.raises(
        ValueError, match=r"data flow of GPT cannot be traced \(.*\); quantize the part .*quantize_dynamic"
    ):
        quantize_static(models.build("gpt"), [(torch.zeros(1, 4, dtype=torch.int64), None)])


def test_the_common_checks():
    accept = (
        "mlp",
        "conv_bn",
        "residual",
        "depthwise",
        "grouped",
        "transposed",
        "conv1d",
        "attention",
        "tied",
        "shared",
    )
    check_compressor(quantize_static, must_accept=accept)
    check_compressor(
        lambda model, batches: quantize_static(model, batches, activations="inputs", refine=False, method="minmax"),
        models=("mlp", "residual", "attention", "tied", "extras", "float16"),
        must_accept=("mlp", "residual", "attention", "tied", "extras", "float16"),
    )
