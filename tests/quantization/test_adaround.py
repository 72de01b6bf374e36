"""AdaRound: by hand, against all roundings tried one by one, and on models of every kind."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.adaround import adaround, adaround_model
from compresslab.quantization.affine import Grid, choose_grid, quantize
from compresslab.quantization.batchnorm import fold_batchnorm
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.layer_samples import feeds_relu, patches, sample_inputs, sample_outputs
from compresslab.quantization.soft_rounding import search_rounding
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return (noise(rows, columns // 2, seed=seed) @ noise(columns // 2, columns, seed=99)).relu() + 0.1


UNIT = Grid(torch.tensor(1.0), torch.tensor(0), bits=4)


def test_by_hand():
    # Nearest gives 0 + 0 where 0.85 is wanted. One rounded up gives 1: the error falls from 0.85^2 to 0.15^2, both
    # over the mean square of the target, 0.85^2. Half of the weights are flipped.
    found = adaround(torch.tensor([[0.45, 0.4]]), torch.ones(4, 2), UNIT, steps=200)
    assert found.weight.levels.tolist() == [[1, 0]]
    assert found.nearest_error == pytest.approx(1)
    assert found.error == pytest.approx((0.15 / 0.85) ** 2)
    assert found.flipped == 0.5
    assert found.undecided == 0
    # The input of the second is 3 times as large: 0.45 + 1.2 = 1.65 is wanted, 0, 1, 3 or 4 can be had: 1.
    found = adaround(torch.tensor([[0.45, 0.4]]), torch.tensor([[1.0, 3.0]]), UNIT)
    assert found.weight.levels.tolist() == [[1, 0]]
    assert found.error == pytest.approx((0.65 / 1.65) ** 2)


def test_targets_bias_and_relu_by_hand():
    weight, ones = torch.tensor([[0.45, 0.4]]), torch.ones(4, 2)
    # the input was larger before earlier layers were rounded: 1.7 is wanted, 2 is nearest to it
    assert adaround(weight, ones, UNIT, targets=torch.full((4, 1), 1.7), steps=200).weight.levels.tolist() == [[1, 1]]
    # bias -0.85: a ReLU makes everything up to 0.85 the same 0, which is wanted; 0 + 0 is as good as 0.85 - 0.85
    found = adaround(weight, ones, UNIT, bias=torch.tensor([-0.85]), relu=True)
    assert found.weight.levels.tolist() == [[0, 0]]
    assert found.error == found.nearest_error == 0
    # without it, 1 - 0.85 is nearer to 0 than 0 - 0.85
    found = adaround(weight, ones, UNIT, bias=torch.tensor([-0.8]))
    assert found.weight.levels.tolist() == [[1, 0]]
    assert found.error == pytest.approx(0.15**2 / 0.05**2, rel=1e-4)


@pytest.mark.parametrize("symmetric", [True, False])
def test_an_error_that_says_nothing_leaves_rounding_to_nearest(symmetric):
    weight = noise(4, 50)
    grid = clipped_grid(weight, bits=3, symmetric=symmetric, axis=0)
    for steps in (1, 100):
        found = search_rounding(weight, grid, lambda rounded: 0 * rounded.sum(), steps=steps)
        assert torch.equal(found.weight.levels, grid.quantize(weight).levels)
    assert found.undecided == 0


def test_the_search_starts_at_the_weights_and_sees_what_it_will_be_given():
    weight, seen = noise(3, 20), []
    grid = choose_grid(-4.0, 4.0, bits=4, symmetric=False)

    def error(rounded: torch.Tensor) -> torch.Tensor:
        seen.append(rounded.detach())
        return (rounded - weight - 0.1).square().mean() * 100  # all are wanted higher

    found = search_rounding(weight, grid, error, steps=50)
    assert len(seen) == 50
    assert torch.allclose(seen[0], weight, atol=1e-3)
    assert (found.weight.levels >= grid.quantize(weight).levels).all()
    assert found.weight.levels.float().mean() > grid.quantize(weight).levels.float().mean() + 0.1


def test_the_penalty_weighs_a_mean_over_the_weights():
    # 64 weights that are best where they are, 0.3: a weak penalty leaves them there, one 64 times as strong does not
    def undecided(penalty: float) -> float:
        weight = torch.full((64,), 0.3)
        error = lambda rounded: 4 * (rounded - 0.3).square().mean()  # noqa: E731
        return search_rounding(weight, UNIT, error, steps=200, penalty=penalty).undecided

    assert undecided(0.1) == 1
    assert undecided(6.4) == 0


def brute_force(weight, inputs, grid, targets, bias, relu) -> float:
    """The least error of all roundings, each channel by itself, in float64."""
    scale = grid.scale.double().reshape(-1, 1).expand(len(weight), 1)
    wanted = targets.double()
    total = power = 0.0
    for channel, row in enumerate(weight.double()):
        down = (row / scale[channel]).floor()
        least = float("inf")
        for ups in itertools.product([0.0, 1.0], repeat=len(row)):
            levels = (down + torch.tensor(ups, dtype=torch.float64)).clamp(grid.quant_min, grid.quant_max)
            y = inputs.double() @ (levels * scale[channel]) + bias[channel].double()
            t = wanted[:, channel]
            least = min(least, ((F.relu(y) - F.relu(t)) if relu else y - t).square().mean().item())
        total += least
        power += (F.relu(t) if relu else t).square().mean().item()
    return total / power


@pytest.mark.parametrize("relu", [False, True])
def test_against_all_roundings(relu):
    """Of what the best of all roundings wins over nearest, the search finds more than a third, and never beats it."""
    won = possible = 0.0
    for seed in range(4):
        weight, inputs, bias = noise(3, 8, seed=seed), correlated(200, 8, seed=seed), 0.2 * noise(3, seed=seed)
        targets = (inputs + 0.05 * noise(200, 8, seed=seed + 1)) @ weight.T + bias
        grid = quantize(weight, bits=3, axis=0).grid
        found = adaround(weight, inputs, grid, targets=targets, bias=bias, relu=relu, steps=400)
        best = brute_force(weight, inputs, grid, targets, bias, relu)
        y, t = inputs @ found.weight.dequantize().T + bias, targets
        y, t = (y.relu(), t.relu()) if relu else (y, t)
        assert found.error == pytest.approx(((y - t).square().sum() / t.square().sum()).item(), rel=1e-4)
        assert best * (1 - 1e-4) <= found.error <= found.nearest_error
        won += 1 - found.error / found.nearest_error
        possible += 1 - best / found.nearest_error
    assert won > possible / 3


@settings(derandomize=True, deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 6), symmetric=st.booleans(), steps=st.sampled_from([1, 40]))
def test_one_step_of_the_grid_and_never_worse(seed, bits, symmetric, steps):
    weight, inputs = noise(4, 10, seed=seed), noise(30, 10, seed=seed + 1)
    grid = clipped_grid(weight, bits=bits, symmetric=symmetric, axis=0)
    found = adaround(weight, inputs, grid, steps=steps)
    nearest = grid.quantize(weight)
    exact = weight / grid.scale.unsqueeze(1) + grid.zero_point.unsqueeze(1)
    inside = (exact > grid.quant_min) & (exact < grid.quant_max)
    assert ((found.weight.levels - exact).abs() < 1 + 1e-5)[inside].all()
    assert torch.equal(found.weight.levels[~inside], nearest.levels[~inside])
    assert found.weight.levels.dtype is nearest.levels.dtype
    assert found.error <= found.nearest_error
    errors = [(inputs @ (q.dequantize() - weight).T).square().mean(0) for q in (found.weight, nearest)]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_a_layer_of_usual_size():
    """About 15 % are flipped, all are decided, and inputs that were not seen are better off too."""
    weight, inputs = noise(32, 64) / 8, correlated(3000, 64)
    grid = clipped_grid(weight, bits=4, axis=0)
    found = adaround(weight, inputs[:2000], grid, steps=500)
    assert found.undecided < 0.01
    assert 0.08 < found.flipped < 0.3
    unseen = [
        (inputs[2000:] @ (q.dequantize() - weight).T).square().mean() for q in (found.weight, grid.quantize(weight))
    ]
    assert unseen[0] < 0.6 * unseen[1]
    again = adaround(weight, inputs[:2000], grid, steps=500)
    assert torch.equal(again.weight.levels, found.weight.levels)


def test_the_unit_of_the_inputs_does_not_matter():
    weight, inputs = noise(4, 16), correlated(300, 16)
    grid = quantize(weight, bits=3, axis=0).grid
    small, large = (adaround(weight, inputs * unit, grid, steps=200) for unit in (2.0**-10, 2.0**10))
    assert torch.equal(small.weight.levels, large.weight.levels)


def test_what_is_on_the_grid_stays():
    grid = choose_grid(torch.tensor([-7.0, -3.5]), torch.tensor([7.0, 3.5]), bits=4, axis=0)
    weight = grid.quantize(5 * noise(2, 12)).dequantize()
    found = adaround(weight, correlated(100, 12), grid, steps=300)
    assert torch.equal(found.weight.dequantize(), weight)
    assert found.error == found.flipped == 0


def test_groups_are_separate_layers():
    # two groups of two outputs, each with its own inputs; the mean square of the targets is the same for both
    weight, inputs = noise(2, 6).repeat(2, 1), correlated(100, 6)
    grid = quantize(weight, bits=3, axis=0).grid
    both = adaround(weight, torch.stack([inputs, inputs], 1), grid, steps=200)
    one = adaround(weight[:2], inputs, quantize(weight[:2], bits=3, axis=0).grid, steps=200)
    assert torch.equal(both.weight.levels, one.weight.levels.repeat(2, 1))
    assert both.error == pytest.approx(one.error, rel=1e-5)


LAYERS = [
    (nn.Linear(3, 5), (4, 7, 3)), (nn.Linear(3, 5), (3,)), (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 2), groups=2, dilation=2, bias=False), (2, 4, 9, 8)), (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 5)),
    (nn.Conv2d(3, 5, (4, 3), padding="same"), (2, 3, 7, 6)), (nn.Conv2d(3, 5, 3, padding=(2, 1), padding_mode="circular"), (2, 3, 7, 6)),
    (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 3)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch copies for even kernels, which we want to see
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=str)
def test_patches_times_weight_is_the_layer(layer, shape):
    model, x = nn.Sequential(layer), [noise(*shape), noise(*shape, seed=1)]
    samples = sample_outputs(model, ["0"], x, samples=11)["0"]
    inputs = sample_inputs(model, "0", x, samples)
    groups = getattr(layer, "groups", 1)
    wanted = torch.cat(samples.outputs)
    assert inputs.shape == (len(wanted), groups, layer.weight.flatten(1).shape[1])
    assert len(wanted) == 12 or len(shape) == 1
    parts = [part @ w.T for part, w in zip(inputs.unbind(1), layer.weight.flatten(1).chunk(groups), strict=True)]
    y = torch.cat(parts, 1) + (0 if layer.bias is None else layer.bias)
    assert torch.allclose(y, wanted, atol=1e-5)


def test_a_sample_is_of_different_positions():
    model = nn.Sequential(nn.Conv2d(1, 1, 1))
    samples = sample_outputs(model, ["0"], [noise(2, 1, 4, 4)], samples=32)["0"]
    assert len(set(zip(*(index.tolist() for index in samples.positions[0]), strict=True))) == 32
    few = sample_outputs(model, ["0"], [noise(2, 1, 4, 4)], samples=12)["0"]
    assert set(few.positions[0][0].tolist()) == {0, 1}  # both images
    assert patches(model[0], noise(2, 1, 4, 4)).shape == (2, 4, 4, 1, 1, 1)


def test_which_layers_feed_a_relu():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(2, 2) for _ in range(4))
            self.relu, self.act = nn.ReLU(inplace=True), nn.GELU()

        def forward(self, x):
            x = self.relu(self.a(x))
            y = F.relu(self.b(x))
            z = self.c(y)
            return self.act(self.d(F.relu(z))) + z  # c goes elsewhere too, d into another activation

    assert feeds_relu(Net()) == {"a", "b"}
    resnet = fold_batchnorm(models.build("resnet", depth=1, width=4)).model
    convolutions = {name for name in feeds_relu(resnet) if isinstance(resnet.get_submodule(name), nn.Conv2d)}
    assert convolutions == {"conv1", "layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"}

    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert feeds_relu(nn.Sequential(Branch(), nn.ReLU())) == set()


def batches(*shape: int, count: int = 2) -> list:
    return [(noise(*shape, seed=seed), None) for seed in range(count)]


def test_a_residual_network():
    model = models.build("resnet", depth=1, width=8, generator=torch.Generator().manual_seed(0)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, std=0.3, generator=torch.Generator().manual_seed(1))
    model = fold_batchnorm(model).model.train()
    before, data = copy.deepcopy(model.state_dict()), batches(16, 1, 16, 16)
    result = adaround_model(model, data, bits=3, samples=500, steps=150)
    assert result.model.training and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rtn = quantize_weights(model, bits=3, method="mse")
    assert list(result.weights) == list(rtn.weights) and result.nbytes == rtn.nbytes and result.skipped == rtn.skipped
    order = [name for name in result.layers if "shortcut" not in name]
    assert (
        order[:3] == ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight"] and order[-1] == "linear.weight"
    )
    assert {*result.layers} == {*result.weights} and result.nearest == {}
    for name, weight in result.weights.items():
        assert torch.equal(result.model.get_parameter(name).flatten(1), weight.dequantize())
        assert torch.equal(weight.scale, rtn.weights[name].scale)
    x = noise(32, 1, 16, 16, seed=7)  # not seen
    with torch.no_grad():
        wanted = model.eval()(x)
        errors = [(each.model.eval()(x) - wanted).square().mean() for each in (result, rtn)]
    assert errors[0] < 0.6 * errors[1]


def test_inputs_come_from_the_quantized_model_and_targets_from_the_float_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1, bias=False))
    data = [(noise(64, 4).abs(), None)]
    result = adaround_model(model, data, bits=2, steps=100)
    with torch.no_grad():
        hidden, wanted = result.model[:2](data[0][0]), model(data[0][0])
        outputs = hidden @ result.weights["2.weight"].dequantize().T
    error = (outputs - wanted).square().sum() / wanted.square().sum()
    assert result.layers["2.weight"].error == pytest.approx(error.item(), rel=1e-3)
    first = model[:2](data[0][0])  # the ReLU counts
    error = (hidden - first).square().sum() / first.square().sum()
    assert result.layers["0.weight"].error == pytest.approx(error.item(), rel=1e-3)
    assert not torch.allclose(hidden, model[:2](data[0][0]), rtol=1e-2)


def test_what_is_only_rounded_to_nearest_is_listed():
    tied = adaround_model(hostile("tied").model, hostile("tied").batches, steps=5)
    assert tied.nearest["embedding.weight"] == "Embedding: only Linear and Conv layers are searched"
    assert tied.model.head.weight is tied.model.embedding.weight
    shared = nn.Linear(3, 3)
    twice = nn.Sequential(shared, nn.ReLU(), shared, nn.ConvTranspose1d(3, 2, 1))
    result = adaround_model(twice, [(noise(4, 3, 3), None)], steps=5)
    assert result.nearest == {
        "0.weight": "it is used elsewhere too",
        "3.weight": "ConvTranspose1d: only Linear and Conv layers are searched",
    }
    assert result.layers == {}
    attention = adaround_model(hostile("attention").model, hostile("attention").batches, steps=5)
    assert attention.nearest["attention.in_proj_weight"].startswith("MultiheadAttention: only")
    assert {*attention.layers, *attention.nearest} == {*attention.weights}

    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.a(self.a(input=self.b(input=x)))

    often = adaround_model(Often(), batches(4, 3), steps=5)
    assert often.nearest == {
        "a.weight": "it is not called exactly once, with inputs of the same shape, in each batch"
    }  # fmt: skip
    assert list(often.layers) == ["b.weight"]
    one = adaround_model(nn.Sequential(nn.Linear(3, 3)), batches(4, 3), bits=1, steps=5)
    assert one.nearest == {"0.weight": "there is no level between -1 and 1"}


def test_a_layer_whose_inputs_change_shape_is_listed():
    class Filter(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)

        def forward(self, x):
            return self.second(x[self.first(x)[:, 0] > 0])

    model = Filter()
    model.first.weight.data = torch.tensor([[1.0, 0.2]])  # 0.2 becomes 0 at 2 bits: other rows are chosen
    x = torch.tensor([[-0.1, 1.0], [1.0, 1.0], [1.0, 0.0]])
    result = adaround_model(model, [(x, None)], bits=2, steps=5)
    assert list(result.layers) == ["first.weight"]
    assert result.nearest["second.weight"].startswith("it is not called exactly once, with inputs of the same shape")


def test_bits_for_each_weight():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 2))
    result = adaround_model(model, batches(8, 6), bits={"0.weight": 3, "3.weight": 5}, symmetric=False, steps=5)
    assert {name: found.weight.bits for name, found in result.layers.items()} == {"0.weight": 3, "3.weight": 5}
    assert not result.weights["0.weight"].grid.symmetric
    assert result.skipped["2.weight"] == "left out by the caller"
    assert torch.equal(result.model[2].weight, model[2].weight)
    assert (
        result.bits_per_weight
        == quantize_weights(model, bits={"0.weight": 3, "3.weight": 5}, symmetric=False).bits_per_weight
    )


def test_errors():
    weight, inputs = torch.tensor([[0.4, 0.4]]), torch.ones(4, 2)
    with pytest.raises(ValueError, match="a symmetric grid of bits=1 has no level between -1 and 1; try symmetric=F"):
        adaround(weight, inputs, choose_grid(-1.0, 1.0, bits=1))
    with pytest.raises(ValueError, match="steps=0 must be an integer of at least 1; try 1000"):
        adaround(weight, inputs, UNIT, steps=0)
    with pytest.raises(ValueError, match=r"penalty=0\.0 must be above 0 and finite; try 100"):
        adaround(weight, inputs, UNIT, penalty=0.0)
    with pytest.raises(ValueError, match=r"inputs must be finite, got 1 NaN"):
        adaround(weight, torch.tensor([[1.0, float("nan")]]), UNIT)
    with pytest.raises(ValueError, match=r"targets must be finite, got 0 NaN and 4 infinite"):
        adaround(weight, inputs, UNIT, targets=torch.full((4, 1), float("inf")))
    with pytest.raises(ValueError, match=r"targets \(4, 2\) must be \(N, O\), here \(4, 1\)"):
        adaround(weight, inputs, UNIT, targets=torch.ones(4, 2))
    for wrong in (torch.ones(4, 3), torch.ones(2), torch.ones(0, 2), torch.ones(4, 2, 2)):
        with pytest.raises(ValueError, match=r"must fit, N at least 1, got \(1, 2\) and"):
            adaround(weight, wrong, UNIT)
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="samples=0 must be an integer of at least 1; try 4096"):
        adaround_model(model, [(torch.ones(1, 2), None)], samples=0)
    with pytest.raises(ValueError, match="batches holds no batch; pass at least one"):
        adaround_model(model, [])
    with pytest.raises(ValueError, match="inputs of batch 1 must be finite, got 1 NaN"):
        adaround_model(model, [(torch.ones(1, 2), None), (torch.tensor([[1.0, float("nan")]]), None)])


def test_works_where_gradients_are_off():
    with torch.no_grad():
        assert adaround(torch.tensor([[0.45, 0.4]]), torch.ones(4, 2), UNIT).flipped == 0.5


def test_the_common_checks():
    check_compressor(
        lambda model, batches: adaround_model(model, batches, samples=64, steps=5).model,
        must_accept=("mlp", "conv_bn", "depthwise", "residual"),
    )
