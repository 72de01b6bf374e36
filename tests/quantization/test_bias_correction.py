"""Bias correction: the shift by hand, the means that it promises, and the model given left alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compresslab.quantization.bias_correction import channel_means, correct_bias
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    # y = 2 x + 1 became y = 2.5 x + 1. The mean of x is (1 + 3) / 2 = 2, so outputs moved by 1: the bias becomes 0.
    model = nn.Sequential(nn.Linear(1, 1))
    model[0].weight.data.fill_(2.0)
    model[0].bias.data.fill_(1.0)
    rounded = copy.deepcopy(model)
    rounded[0].weight.data.fill_(2.5)
    result = correct_bias(model, rounded, [(torch.tensor([[1.0]]), None), (torch.tensor([[3.0]]), None)])
    assert result.shifts["0"].item() == 1
    assert result.model[0].bias.item() == 0
    assert rounded[0].bias.item() == 1


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(3, 5), (4, 7, 3)), (nn.Conv1d(3, 5, 2), (4, 3, 6)), (nn.Conv2d(3, 5, 2), (4, 3, 6, 5)),
        (nn.ConvTranspose2d(3, 5, 2), (4, 3, 6, 5)), (nn.Conv3d(3, 5, 2), (2, 3, 4, 4, 4)), (nn.Conv2d(3, 5, 2), (3, 6, 5)),
    ],
    ids=str,
)  # fmt: skip
def test_means_are_over_all_but_the_channels(layer, shape):
    model, x = nn.Sequential(layer), noise(*shape)
    y = model(x)
    axis = [place for place, size in enumerate(y.shape) if size == 5][-1 if isinstance(layer, nn.Linear) else 0]
    expected = y.mean([place for place in range(y.dim()) if place != axis])
    assert torch.allclose(channel_means(model, ["0"], [(x, None)])["0"].float(), expected, atol=1e-6)


def test_batches_of_unequal_size_count_by_sample():
    model, x = nn.Sequential(nn.Linear(3, 2)), noise(10, 3)
    whole = channel_means(model, ["0"], [(x, None)])["0"]
    parts = channel_means(model, ["0"], [(x[:1], None), (x[1:], None)])["0"]
    assert torch.allclose(whole, parts)


def test_every_layer_has_the_means_of_the_float_model():
    model = models.build("resnet", depth=1, width=8).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.copy_(0.3 * noise(module.num_features))
    batches = [(noise(8, 1, 16, 16, seed=seed).abs(), None) for seed in range(2)]
    rounded = quantize_weights(model, bits=3).model
    result = correct_bias(model, rounded, batches)
    names = list(result.shifts)
    wanted, before, after = (channel_means(each, names, batches) for each in (model, rounded, result.model))
    for name in names:
        assert torch.allclose(after[name], wanted[name], atol=1e-5)
    assert any((before[name] - wanted[name]).abs().max() > 1e-2 for name in names)
    assert not result.skipped
    x = batches[0][0]
    with torch.no_grad():
        errors = [(each(x) - model(x)).square().mean() for each in (result.model, rounded)]
    assert errors[0] < errors[1]


def test_what_is_never_called_is_listed():
    model = hostile("attention").model
    result = correct_bias(model, quantize_weights(model, bits=4).model, hostile("attention").batches)
    assert list(result.shifts) == ["head"]
    assert result.skipped == {"attention.out_proj": "it is never called"}


def test_flags_stay():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train()
    before = copy.deepcopy(model.state_dict())
    result = correct_bias(model, model, [(noise(4, 3), None)])
    assert result.model.training
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_errors():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="batches holds no batch; pass at least one"):
        correct_bias(model, model, [])
    with pytest.raises(ValueError, match="inputs of batch 1 must be finite, got 1 NaN"):
        correct_bias(model, model, [(torch.ones(1, 2), None), (torch.tensor([[1.0, float("nan")]]), None)])
    with pytest.raises(ValueError, match=r"must have the same layers, got \['0'\] and \['1'\]"):
        correct_bias(model, nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), [(torch.ones(1, 2), None)])
    with pytest.raises(ValueError, match="layer of ReLU is called"):
        correct_bias(nn.ReLU(), nn.ReLU(), [(torch.ones(1, 2), None)])


def test_the_common_checks():
    check_compressor(
        lambda model, batches: correct_bias(model, quantize_weights(model, bits=4).model, batches).model,
        must_accept=("mlp", "conv_bn", "depthwise", "residual"),
    )
