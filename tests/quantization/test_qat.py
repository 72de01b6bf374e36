"""Quantization-aware training: what is prepared, what is trained, what is frozen, and the same bits after conversion."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from compresslab.quantization.batchnorm import fold_batchnorm
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.fake_quantize import Dequantize, FakeQuantize, FakeQuantizeWeight
from compresslab.quantization.qat import convert, freeze, prepare_qat
from compresslab.quantization.ranges import calibrate
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models
from compresslab.workbench.train import fit
from compresslab.workbench.vision import torchvision

METHODS = ["lsq", "ste"]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(count: int = 2, channels: int = 1, size: int = 32, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(noise(4, channels, size, size, seed=seed + i), torch.arange(4) % 3) for i in range(count)]


def small_cnn() -> nn.Sequential:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3),
    ).eval()  # fmt: skip


def trained(model: nn.Module, batches: list, *, steps: int = 6, lr: float = 0.05) -> nn.Module:
    """SGD in place, as in anybody's loop."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    model.train()
    for step in range(steps):
        inputs, labels = batches[step % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


def test_by_hand():
    # 2 bits, STE: row [3, -1.4] has scale 3 (levels -1..1) -> [3, 0]. Calibration saw 0..6, so inputs step by 2:
    # [1.2, 5] -> [2, 4 or 6: 2.5 rounds to even, 2 -> 4]. Output 3 * 2 + 0 * 4 = 6, plus bias 0.5.
    layer = nn.Linear(2, 1)
    layer.weight.data, layer.bias.data = torch.tensor([[3.0, -1.4]]), torch.tensor([0.5])
    batches = [(torch.tensor([[0.0, 6.0], [1.0, 2.0]]), None)]
    options = {"weight_bits": 2, "activation_bits": 2, "method": "ste", "start": "mean", "first_last_bits": None}
    prepared = prepare_qat(layer.eval(), batches, **options)
    assert prepared.model.weight.tolist() == [[3.0, 0.0]]
    assert prepared.model(torch.tensor([[1.2, 5.0]])).tolist() == [[6.5]]
    assert prepared.weight_bits == {"weight": 2}
    assert prepared.activation_bits == {"": 2}
    assert prepared.skipped == {
        "bias": "Linear: only matrices and kernels are quantized, and not those of recurrent layers"
    }
    converted = convert(prepared.model)
    assert converted.weights["weight"].levels.tolist() == [[1, 0]]
    assert converted.model(torch.tensor([[1.2, 5.0]])).tolist() == [[6.5]]
    # one scale and four levels of 2 bits -> 4 + 1 bytes; bias 4; of the input: minimum, maximum, scale, zero point
    assert converted.nbytes == 4 + 1 + 4 + 4 * 4


def test_lsq_by_hand():
    # Weight, 3 bits: step 2 * mean(2, 4) / sqrt(3) = 3.46: 2 -> 0.58 -> 1 step, -4 -> -1.15 -> -1 step.
    # Input, 2 bits, 0..3 with mean 1.5: step 3 / sqrt(3) = 1.73: 3 -> 1.73 -> 2 steps, 0.5 -> 0.29 -> 0.
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, -4.0]])
    batches = [(torch.tensor([[0.0, 3.0]]), None)]
    prepared = prepare_qat(layer, batches, weight_bits=3, activation_bits=2, start="mean", first_last_bits=None)
    step, inputs = 6 / math.sqrt(3), 3 / math.sqrt(3)
    assert torch.allclose(prepared.model.weight, torch.tensor([[step, -step]]))
    assert prepared.model(torch.tensor([[3.0, 0.5]])).item() == pytest.approx(2 * inputs * step)


@pytest.mark.parametrize("per_channel", [True, False])
def test_before_training_straight_through_is_post_training_quantization(per_channel):
    model = small_cnn()
    options = {"activation_bits": None, "first_last_bits": None, "method": "ste", "per_channel": per_channel}
    prepared = prepare_qat(model, weight_bits=3, **options)
    rounded = quantize_weights(fold_batchnorm(model).model, bits=3, per_channel=per_channel).model
    x = noise(4, 1, 8, 8)
    assert torch.equal(prepared.model(x), rounded(x))


KINDS = [
    (nn.Linear(6, 4), (5, 6)), (nn.Conv1d(4, 6, 3), (2, 4, 9)), (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    (nn.Conv2d(4, 4, 3, groups=4, padding_mode="circular", padding=1), (2, 4, 7, 7)),
    (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)), (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 5, 5)), (nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3)),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("layer", "shape"), KINDS, ids=lambda part: getattr(type(part), "__name__", ""))
def test_every_kind_of_layer(layer, shape, method):
    x = noise(*shape)
    model = nn.Sequential(layer)
    prepared = prepare_qat(model, [(x, None)], method=method, first_last_bits=None)
    quantizer = prepared.model[0].parametrizations.weight[0]
    transposed = isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    assert quantizer.axis == (1 if transposed else 0)
    y = prepared.model(x)
    y.square().sum().backward()
    assert prepared.model[0].parametrizations.weight.original.grad.abs().sum() > 0
    converted = convert(prepared.model)
    assert torch.equal(converted.model(x), y)
    # an oracle: the layer's own function of what torch rounds
    grid, inputs = quantizer.grid(layer.weight), prepared.model[0].input_quantizer.grid()
    ends = (grid.quant_min, grid.quant_max)
    weight = torch.fake_quantize_per_channel_affine(
        layer.weight, grid.scale.detach(), grid.zero_point, quantizer.axis, *ends
    )
    rounded = torch.fake_quantize_per_tensor_affine(x, inputs.scale, inputs.zero_point, 0, 15)
    twin = copy.deepcopy(layer)
    twin.weight.data = weight.detach()
    assert torch.allclose(twin(rounded), y, atol=1e-6)


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    st.sampled_from(METHODS), st.integers(2, 9), st.sampled_from([None, 2, 5, 8]), st.booleans(), st.booleans(),
    st.integers(0, 99),
)  # fmt: skip
def test_the_same_predictions_to_the_bit_after_conversion(
    method, weight_bits, activation_bits, per_channel, fold, seed
):
    batches = images(size=8, seed=seed)
    options = {"method": method, "per_channel": per_channel, "fold": fold, "activation_bits": activation_bits}
    model = trained(prepare_qat(small_cnn(), batches, weight_bits=weight_bits, **options).model, batches)
    converted = convert(model)
    x = noise(5, 1, 8, 8, seed=seed + 7)
    assert torch.equal(converted.model(x), model(x))
    for name, quantized in converted.weights.items():
        assert not quantized.levels.is_floating_point()
        assert quantized.levels.unique().numel() <= 2**quantized.bits
        assert quantized.bits == (weight_bits if name == "3.weight" else max(8, weight_bits))


@pytest.mark.parametrize("method", METHODS)
def test_saved_as_integers_and_loaded(method):
    batches = images(size=8)
    model = trained(prepare_qat(small_cnn(), batches, method=method).model, batches)
    converted = convert(model).model
    state = load(save(converted.state_dict()))
    assert state["3.parametrizations.weight.original"].dtype == (torch.int8 if method == "ste" else torch.uint8)
    fresh = convert(prepare_qat(small_cnn(), images(size=8, seed=9), method=method).model).model
    x = noise(3, 1, 8, 8)
    assert not torch.equal(fresh(x), converted(x))
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), converted(x))
    assert isinstance(converted[3].parametrizations.weight[0], Dequantize)
    assert converted.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("method", METHODS)
def test_training_reaches_everything_and_helps(method):
    batches = images(size=8)
    model = prepare_qat(small_cnn(), batches, weight_bits=3, activation_bits=3, method=method).model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = sum(F.cross_entropy(model(x), y).item() for x, y in batches)
    trained(model, batches, steps=20)
    assert sum(F.cross_entropy(model(x), y).item() for x, y in batches) < first / 2
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    scales = [name for name in before if name.endswith("scale")]
    assert len(scales) == (6 if method == "lsq" else 0)  # three weights and three inputs
    assert all(p.dim() < 2 for name, p in model.named_parameters() if name in scales)  # so: no weight decay


def test_an_optimizer_of_the_old_model_trains_nothing():
    model = small_cnn()
    batches = images(size=8)
    prepared = prepare_qat(model, batches).model
    before = copy.deepcopy(prepared.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    F.cross_entropy(prepared.eval()(batches[0][0]), batches[0][1]).backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_with_the_courses_training_loop(method):
    model = models.build("vgg", classes=3, width=4)
    batches = images(3)
    prepared = prepare_qat(model, batches, method=method)
    fitted = fit(prepared.model, batches, epochs=4, lr=3e-3)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]
    assert type(fitted.model) is type(model)
    assert torch.equal(convert(fitted.model).model(batches[0][0]), fitted.model(batches[0][0]))


def test_which_layers_get_how_many_bits():
    model = hostile("prime_sizes").model
    batches = hostile("prime_sizes").batches
    prepared = prepare_qat(model, batches, weight_bits=3, activation_bits=2)
    assert prepared.weight_bits == {"0.weight": 8, "2.weight": 3, "4.weight": 8}
    assert prepared.activation_bits == {"0": 8, "2": 2, "4": 8}
    alike = prepare_qat(model, batches, weight_bits=3, activation_bits=2, first_last_bits=None)
    assert set(alike.weight_bits.values()) == {3}
    assert set(alike.activation_bits.values()) == {2}
    assert prepare_qat(model, activation_bits=None, weight_bits=16).weight_bits["0.weight"] == 16  # never fewer
    assert prepare_qat(model, activation_bits=None).activation_bits == {}


class Backwards(nn.Module):
    """Defined in one order, called in another, by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.middle, self.first = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(input=torch.relu(self.middle(torch.relu(self.first(x)))))


def test_first_and_last_are_those_that_run_first_and_last():
    class Called(Backwards):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.early = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.early(x))

    prepared = prepare_qat(Called(), [(noise(8, 4), None)])
    assert prepared.weight_bits == {"last.weight": 8, "middle.weight": 4, "first.weight": 4, "early.weight": 8}
    assert prepared.activation_bits["last"] == 8
    x = noise(8, 4)
    assert torch.equal(convert(prepared.model).model(x), prepared.model(x))
    assert prepare_qat(Called(), activation_bits=None).weight_bits["middle.weight"] == 4


def test_zero_points():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(noise(20, 4), None)]
    learned = prepare_qat(model, batches, start="mean").model
    observed = prepare_qat(model, batches, method="ste", start="mean").model
    assert learned[0].input_quantizer.quant_min < 0 == learned[2].input_quantizer.quant_min
    assert observed[0].input_quantizer.zero_point > 0 == observed[2].input_quantizer.zero_point
    assert observed[0].input_quantizer.maximum == batches[0][0].max()
    with torch.no_grad():
        hidden = torch.relu(model[0](batches[0][0]))
    quantizer = learned[2].input_quantizer
    assert quantizer.step().item() == pytest.approx(2 * hidden.mean().item() / math.sqrt(255), rel=1e-5)


def test_the_start_of_least_squared_error():
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    batches = [(noise(50, 4, seed=seed), None) for seed in (0, 1)]
    with torch.no_grad():
        hidden = [torch.relu(model[0](x)) for x, _ in batches]
    grid = calibrate(hidden, method="mse", bits=3, symmetric=False).grid(bits=3, symmetric=False)
    options = {"weight_bits": 3, "activation_bits": 3, "first_last_bits": None}
    for method in METHODS:
        quantizer = prepare_qat(model, batches, method=method, **options).model[2].input_quantizer
        assert torch.equal(quantizer.grid().scale, grid.scale)
        assert torch.equal(quantizer.grid().zero_point, grid.zero_point)
    layer = prepare_qat(model, batches, **options).model[2]
    assert torch.equal(layer.parametrizations.weight[0].scale, clipped_grid(model[2].weight, bits=3, axis=0).scale)
    mean = prepare_qat(model, batches, start="mean", **options).model[2]
    wanted = model[2].weight
    assert (layer.weight - wanted).square().sum() < (mean.weight - wanted).square().sum()


def test_an_input_that_is_always_zero():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model[0].weight.data.zero_()
    model[0].bias.data.fill_(-1)
    for method in METHODS:
        for start in ("mse", "mean"):
            prepared = prepare_qat(model.eval(), [(noise(4, 2), None)], method=method, start=start).model
            assert torch.allclose(prepared(noise(4, 2)), model[2].bias.expand(4, 2))
            assert prepared[2].input_quantizer.scale == 1


def test_calibration_sees_all_batches_alike():
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    parts = [noise(n, 2, seed=n) * n for n in (1, 5, 9)]
    one = prepare_qat(model, [(torch.cat(parts), None)]).model
    three = prepare_qat(model, [(part, None) for part in parts]).model
    assert torch.allclose(one[0].input_quantizer.scale, three[0].input_quantizer.scale)


def test_observers_stand_still_in_eval_mode_and_when_frozen():
    batches = images(size=8)
    model = prepare_qat(small_cnn(), batches, method="ste").model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loud = 4 * batches[0][0]
    with torch.no_grad():
        model.eval()(loud)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        freeze(model).train()(loud)
        model.train()(loud)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "0.input_quantizer.maximum" in moved
    assert all("input_quantizer" in name for name in moved)
    frozen = freeze(model).train()
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen(noise(4, 1, 8, 8) * 9)
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_frozen_batch_norms_stay():
    batches = images(size=8)
    model = prepare_qat(small_cnn(), batches, fold=False).model.train()
    model(batches[0][0])
    assert model[1].num_batches_tracked == 1
    frozen = freeze(freeze(model)).train()
    assert len(frozen[1]._forward_pre_hooks) == 1
    before = copy.deepcopy(frozen[1].state_dict())
    y = frozen(batches[1][0])
    assert torch.equal(y, frozen.eval()(batches[1][0]))
    assert all(torch.equal(value, before[name]) for name, value in frozen[1].state_dict().items())
    y.sum().backward()
    assert frozen[1].weight.grad is not None
    assert frozen[0].parametrizations.weight[0].scale.grad is None
    assert not hasattr(model[1], "grad")
    assert len(model[1]._forward_pre_hooks) == 0


def test_fewer_bits_stage_by_stage():
    batches = images(size=8)
    model = small_cnn()
    eight = trained(prepare_qat(model, batches, weight_bits=8, activation_bits=8).model, batches)
    x = noise(3, 1, 8, 8)
    output = eight(x)
    four = prepare_qat(eight, batches, weight_bits=4, activation_bits=4, method="ste")
    assert torch.equal(eight(x), output)  # a class that copies share must not lose its weight
    assert four.weight_bits["3.weight"] == 4
    beneath = eight[3].parametrizations.weight.original
    assert torch.equal(four.model[3].parametrizations.weight.original, beneath)
    assert len(four.model[3].parametrizations.weight) == 1
    assert len(four.model[3]._forward_pre_hooks) == 1
    assert torch.equal(four.model[3].weight, FakeQuantizeWeight(bits=4, axis=0)(beneath))
    only_weights = prepare_qat(four.model, activation_bits=None).model
    assert not any(isinstance(module, FakeQuantize) for module in only_weights.modules())
    assert torch.equal(convert(four.model).model(x), four.model(x))
    assert torch.equal(eight(x), output)


def test_copies_are_independent():
    batches = images(size=8)
    model = prepare_qat(small_cnn(), batches, method="ste").model
    twin = copy.deepcopy(model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin(9 * batches[0][0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert twin[0].input_quantizer.maximum > model[0].input_quantizer.maximum


@pytest.mark.parametrize("method", METHODS)
def test_ties_and_shared_layers(method):
    case = hostile("tied")
    prepared = prepare_qat(case.model, case.batches, method=method)
    model = prepared.model.eval()  # in train mode the ranges would move between the calls below
    tied = [layer.parametrizations.weight for layer in (model.embedding, model.head)]
    assert tied[0].original is tied[1].original
    assert tied[0][0] is tied[1][0]
    assert prepared.weight_bits == {"embedding.weight": 8, "mix.weight": 4}
    assert "Embedding: its input is not quantized" in prepared.skipped["embedding"]
    converted = convert(model)
    tied = [layer.parametrizations.weight for layer in (converted.model.embedding, converted.model.head)]
    assert tied[0].original is tied[1].original
    assert list(converted.weights) == ["embedding.weight", "mix.weight"]
    x = case.batches[0][0]
    assert torch.equal(converted.model(x), model(x))
    again = prepare_qat(model, case.batches, method=method).model
    assert again.head.parametrizations.weight.original is again.embedding.parametrizations.weight.original
    shared = prepare_qat(hostile("shared").model, hostile("shared").batches, method=method).model
    assert shared.first is shared.again
    assert len(shared.first._forward_pre_hooks) == 1


def test_nothing_is_left_unsaid():
    for name in ("attention", "recurrent", "extras", "tied", "shared", "conv_bn"):
        case = hostile(name)
        folded = fold_batchnorm(case.model).model if name == "conv_bn" else case.model
        prepared = prepare_qat(case.model, case.batches)
        parameters, layers = dict(folded.named_parameters()), dict(folded.named_modules())
        assert {*parameters} == {*prepared.weight_bits} | ({*prepared.skipped} - {*layers})
        weighted = {
            path for path, _ in layers.items() if any(n.rpartition(".")[0] == path for n in prepared.weight_bits)
        }
        assert weighted <= {*prepared.activation_bits} | {*prepared.skipped}
    attention = prepare_qat(hostile("attention").model, hostile("attention").batches)
    assert attention.skipped["attention"] == "MultiheadAttention: its input is not quantized"
    assert "calibration brought nothing to it" in attention.skipped["attention.out_proj"]
    recurrent = prepare_qat(hostile("recurrent").model, hostile("recurrent").batches)
    assert "not those of recurrent layers" in recurrent.skipped["lstm.weight_hh_l0"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_torchvision(name):
    torch.default_generator.manual_seed(0)
    model = torchvision().models.get_model(name, weights=None, num_classes=10)
    batches = images(1, channels=3, size=32)
    for _ in range(2):
        model.train()(batches[0][0])  # or eval mode's statistics make the output collapse
    prepared = prepare_qat(model.eval(), batches)
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert len(prepared.weight_bits) == len(prepared.activation_bits) == layers
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.model.modules())
    with torch.no_grad():
        assert torch.equal(convert(prepared.model).model(batches[0][0]), prepared.model(batches[0][0]))


def test_the_mode_of_each_part_is_kept():
    model = small_cnn().train()
    model[3].eval()
    model[7].requires_grad_(False)
    prepared = prepare_qat(model, images(size=8)).model
    for part in (prepared, convert(prepared).model):
        assert part.training
        assert not part[3].training
        assert part[0].input_quantizer.training
        assert not part[3].input_quantizer.training
    assert not prepared[7].parametrizations.weight[0].scale.requires_grad
    assert prepared[0].parametrizations.weight[0].scale.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes(dtype):
    layer, x = nn.Linear(6, 3).to(dtype), noise(4, 6).to(dtype)
    for method in METHODS:
        prepared = prepare_qat(layer, [(x, None)], method=method).model
        assert prepared.weight.dtype == dtype
        assert prepared(x).dtype == dtype
        wide = torch.promote_types(dtype, torch.float32)
        assert prepared.input_quantizer.scale.dtype == wide
        assert prepared.parametrizations.weight[0].grid(layer.weight).scale.dtype == wide
        assert torch.equal(convert(prepared).model(x), prepared(x))


@pytest.mark.parametrize("method", METHODS)
def test_the_converted_model_exports_with_any_batch_size(method):
    batches = images(size=8)
    model = convert(prepare_qat(small_cnn(), batches, method=method).model).model
    program = torch.export.export(model, (batches[0][0],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    x = noise(7, 1, 8, 8)
    assert torch.allclose(program(x), model(x), atol=1e-6)


def test_errors():
    model, batches = small_cnn(), images(size=8)
    with pytest.raises(ValueError, match="method='pact' must be 'lsq' or 'ste'"):
        prepare_qat(model, batches, method="pact")
    with pytest.raises(ValueError, match="start='best' must be 'mse' or 'mean'"):
        prepare_qat(model, batches, start="best")
    for name, value in (("weight_bits", 1), ("weight_bits", None), ("activation_bits", 17), ("first_last_bits", 2.5)):
        with pytest.raises(ValueError, match=rf"{name}={value} must be an integer in 2\.\.16"):
            prepare_qat(model, batches, **{name: value})
    with pytest.raises(ValueError, match="activation_bits=4 needs batches for the first ranges"):
        prepare_qat(model)
    with pytest.raises(ValueError, match="batches holds no batch; pass at least one"):
        prepare_qat(model, [])
    with pytest.raises(ValueError, match="inputs of batch 1 must be finite, got 64 NaN"):
        prepare_qat(model, [batches[0], (torch.full((1, 1, 8, 8), float("nan")), None)])
    huge = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    huge[0].weight.data.fill_(3e38)
    with pytest.raises(ValueError, match="batch 0 of activations of '1' must be finite, got 0 NaN and 1 infinite"):
        prepare_qat(huge, [(torch.tensor([[9.0]]), None)])
    with pytest.raises(ValueError, match=r"LayerNorm has no weight to quantize: \{'weight': 'LayerNorm: only"):
        prepare_qat(nn.LayerNorm(3), activation_bits=None)
    with pytest.raises(ValueError, match="ReLU has no weight to quantize: it has no parameters"):
        prepare_qat(nn.ReLU(), activation_bits=None)
    for function in (freeze, convert):
        with pytest.raises(ValueError, match="Sequential has no fake quantizer to freeze; call prepare_qat first"):
            function(model)
    prepared = prepare_qat(model, batches).model
    with pytest.raises(ValueError, match="the weight of '0' is integers already; pass the model that was converted"):
        prepare_qat(convert(prepared).model, batches)
    prepared[3].parametrizations.weight.original.data[0] = float("nan")
    with pytest.raises(ValueError, match=r"3\.weight must be finite, got 18 NaN"):
        prepare_qat(prepared, batches)
    with pytest.raises(ValueError, match=r"3\.weight must be finite, got \d+ NaN"):
        convert(prepared)


@pytest.mark.parametrize("method", METHODS)
def test_the_common_checks(method):
    def compress(model: nn.Module, batches: list) -> nn.Module:
        if method == "lsq":
            return prepare_qat(model, batches).model
        options = {"per_channel": False, "fold": False}
        return convert(prepare_qat(model, batches, method="ste", **options).model).model

    verdicts = check_compressor(compress)
    refused = {verdict.model for verdict in verdicts if verdict.outcome == "refused"}
    assert refused == {"no_layers", "nan", "infinity", "meta"}
