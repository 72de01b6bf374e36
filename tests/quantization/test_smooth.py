"""SmoothQuant: scales by hand, the same function in float64, and what it does to loud channels."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslab.quantization.affine import quantize
from compresslab.quantization.dynamic import quantize_dynamic
from compresslab.quantization.joints import find_joints, move_scales
from compresslab.quantization.smooth import smooth_model, smoothing_scales
from compresslab.testing import HOSTILE, check_compressor
from compresslab.workbench import checkpoints, data


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_scales_by_hand():
    # alpha = 1/2: sqrt(max|x| / max|w|). Columns' largest weights over both layers: 4, 1, 9; so sqrt(1/4), sqrt(16/1),
    # sqrt(36/9).
    weights = [torch.tensor([[4.0, -1.0, 1.0]]), torch.tensor([[1.0, 0.5, -9.0], [2.0, 0.0, 3.0]])]
    largest = torch.tensor([1.0, 16.0, 36.0])
    assert smoothing_scales(weights, largest).tolist() == [0.5, 4.0, 2.0]
    # alpha = 1: max|x| alone. alpha = 0: 1 / max|w| alone. alpha = 3/4: 16^(3/4) / 1 = 8.
    assert smoothing_scales(weights, largest, alpha=1).tolist() == [1.0, 16.0, 36.0]
    assert torch.allclose(smoothing_scales(weights, largest, alpha=0), torch.tensor([1 / 4, 1.0, 1 / 9]))
    assert smoothing_scales(weights, largest, alpha=0.75)[1].item() == pytest.approx(8)


def test_a_silent_channel_and_one_that_nobody_reads_stay():
    scales = smoothing_scales([torch.tensor([[2.0, 0.0, 2.0]])], torch.tensor([0.0, 8.0, 8.0]))
    assert scales.tolist() == [1, 1, 2]


def test_a_model_by_hand():
    # A layer norm without its normalization to worry about: of (1, -1) and (-1, 1) it makes the same, times the weight
    # (4, 1) plus the bias (0, 8): |x| is at most 4 and 9. Columns' largest weights are 1 and 9: s = 2 and 1.
    model = nn.Sequential(nn.LayerNorm(2, eps=0.0), nn.Linear(2, 2))
    model[0].weight.data, model[0].bias.data = torch.tensor([4.0, 1.0]), torch.tensor([0.0, 8.0])
    model[1].weight.data = torch.tensor([[1.0, 9.0], [-0.5, 0.0]])
    result = smooth_model(model, [(torch.tensor([[1.0, -1.0]]), None), (torch.tensor([[-1.0, 1.0]]), None)])
    assert result.scales[("1",)].tolist() == [2, 1]
    assert result.model[0].weight.tolist() == [2, 1]
    assert result.model[0].bias.tolist() == [0, 8]
    assert result.model[1].weight.tolist() == [[2, 9], [-1, 0]]
    assert result.unsmoothed == {}


@settings(derandomize=True, deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), alpha=st.floats(0, 1))
def test_the_function_stays_in_float64(seed, alpha):
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2))
    for place, parameter in enumerate(model.double().parameters()):
        parameter.data = noise(*parameter.shape, seed=seed + place).double()
    x = noise(3, 5, 6, seed=seed).double()
    result = smooth_model(model, [(x[:1], None), (x[1:], None)], alpha=alpha)
    assert list(result.scales) == [("3",), ("1",)]
    assert list(result.unsmoothed) == ["5"]
    assert (result.model(x) - model(x)).abs().max() <= 1e-12 * model(x).abs().max()
    # The last layer first: its scales go into the rows of the one before, whose columns are then scaled.
    h = model[:3](x)
    assert torch.allclose(result.scales[("3",)], smoothing_scales([model[3].weight], h.abs().amax((0, 1)), alpha=alpha))
    rows = model[1].weight / result.scales[("3",)].unsqueeze(1)
    largest = model[0](x).abs().amax((0, 1))
    assert torch.allclose(result.scales[("1",)], smoothing_scales([rows], largest, alpha=alpha))


def test_three_loud_channels():
    """Per tensor, 8 bits for both: alpha = 0 is worse than nothing, and the best alpha lies between 0 and 1."""
    x, w = noise(512, 64).double(), noise(64, 64, seed=1).double() / 8
    x[:, [3, 20, 41]] *= 60

    def error(s: Tensor) -> float:
        y = quantize(x / s).dequantize() @ quantize(w * s).dequantize().T
        return ((y - x @ w.T).square().mean() / (x @ w.T).square().mean()).item()

    plain = error(torch.ones(64).double())
    errors = {a: error(smoothing_scales([w], x.abs().amax(0), alpha=a)) for a in (0, 0.25, 0.5, 0.75, 1)}
    assert errors[0] > plain
    assert min(errors, key=errors.get) in (0.5, 0.75)
    assert errors[0.5] < plain / 10


def test_outliers_planted_in_the_gpt_are_mended():
    """Three channels of each norm times 60, and the columns that read them divided: the same function, hard to round."""
    splits = data.load("python-docs")
    train, val = (list(split.batches(16, context=128)) for split in (splits.train, splits.val))
    gpt = checkpoints.load("gpt")
    planted = copy.deepcopy(gpt)
    for joint in find_joints(gpt, train[0][0]).found:
        if "norm" in joint.source:
            scales = torch.ones(96)
            scales[[5, 40, 77]] = 1 / 60
            move_scales(planted, joint, scales)

    @torch.no_grad()
    def loss(model: nn.Module) -> float:
        return nn.functional.cross_entropy(model(val[0][0]).flatten(0, 1), val[0][1].flatten()).item()

    smoothed = smooth_model(planted, train[:2])
    assert len(smoothed.scales) == 12
    assert {*smoothed.unsmoothed} == {*(f"blocks.{place}.mlp.fc2" for place in range(4)), "head"}
    plain = loss(gpt)
    assert loss(planted) == pytest.approx(plain, abs=1e-4)
    assert loss(smoothed.model) == pytest.approx(plain, abs=1e-4)
    for per_token in (False, True):
        lost, mended = (
            loss(quantize_dynamic(each, per_token=per_token).model) - plain for each in (planted, smoothed.model)
        )
        assert lost > 0.03
        assert mended < 0.01


def test_the_largest_value_of_all_batches_counts():
    model, x = filled(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))), noise(40, 2)
    one, two = (smooth_model(model, batches) for batches in ([(x, None)], [(x[:20], None), (x[20:], None)]))
    assert torch.allclose(one.scales[("2",)], two.scales[("2",)])


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    for place, parameter in enumerate(model.parameters()):
        parameter.data = noise(*parameter.shape, seed=seed + place)
    return model


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.down = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.down(torch.relu(self.mix(y)) + y)


def test_a_residual_that_also_reads_the_norm_is_refused():
    with pytest.raises(ValueError, match=r"Skip has no Linear layer whose input can be scaled: \{'mix': 'norm writes"):
        smooth_model(filled(Skip()), [(noise(4, 6), None)])


def test_the_model_given_stays():
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Dropout(0.5)).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    result = smooth_model(model, [(noise(4, 6), None)]).model
    assert [module.training for module in result.modules()] == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_errors():
    weight, x = torch.ones(2, 3), torch.ones(3)
    with pytest.raises(ValueError, match=r"alpha=1\.5 must be in 0\.\.1; try 0\.5"):
        smoothing_scales([weight], x, alpha=1.5)
    with pytest.raises(ValueError, match="largest must be finite, got 1 NaN"):
        smoothing_scales([weight], torch.tensor([1.0, float("nan"), 1.0]))
    with pytest.raises(ValueError, match="largest must be at least 0, got -1; pass maxima"):
        smoothing_scales([weight], -x)
    with pytest.raises(ValueError, match=r"must fit the channels \(2,\), got \[\(2, 3\)\]"):
        smoothing_scales([weight], x[:2])
    with pytest.raises(ValueError, match=r"must fit the channels \(3,\), got \[\]"):
        smoothing_scales([], x)
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="alpha=-1 must be in"):
        smooth_model(model, [(noise(4, 3), None)], alpha=-1)
    with pytest.raises(ValueError, match="batches holds no batch"):
        smooth_model(model, [])
    model[0].bias.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"0\.bias must be finite"):
        smooth_model(model, [(noise(4, 3), None)])


def test_the_common_checks():
    # Nothing changes where no weight reads the channels: the scales of "all_zero" are all 1.
    names = [name for name in HOSTILE if name != "all_zero"]
    check_compressor(
        lambda model, batches: smooth_model(model, batches).model, models=names, must_accept=["mlp", "prime_sizes"]
    )
