"""Batch norm folding: by hand, torch's own fusion as the oracle, and the same function on every kind of model."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

from compresslab.quantization.batchnorm import fold_batchnorm, folded_weight
from compresslab.testing import check_compressor
from compresslab.workbench import models
from compresslab.workbench.vision import torchvision


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norms as after training: no statistic and no weight at its default, and no activation that dies."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.1, generator=generator)
    return model.eval()


def assert_same_function(model: nn.Module, folded: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        wanted, got = model(x), folded(x)
    assert wanted.std() > 1e-3
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max().clamp(min=1)


def test_by_hand():
    # Channel 0: (3 x + 1 - 2) / sqrt(4) * 2 + 5 = 3 x + 4. Channel 1: (x + 0 - 0) / sqrt(1) * -1 + 0 = -x.
    layer, norm = nn.Linear(1, 2), nn.BatchNorm1d(2, eps=0.0).eval()
    for tensor, values in (
        (layer.weight, [[3.0], [1.0]]), (layer.bias, [1.0, 0.0]), (norm.weight, [2.0, -1.0]), (norm.bias, [5.0, 0.0]),
        (norm.running_mean, [2.0, 0.0]), (norm.running_var, [4.0, 1.0]),
    ):  # fmt: skip
        tensor.data.copy_(torch.tensor(values))
    weight, bias = folded_weight(layer, norm)
    assert weight.tolist() == [[3.0], [-1.0]]
    assert bias.tolist() == [4.0, 0.0]


LAYERS = [
    (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d(6), (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), (2, 4, 9, 9)),
    (nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4, affine=False), (2, 4, 9, 9)),
    (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), (2, 2, 4, 4, 4)),
    (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (2, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2, stride=2), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    (nn.ConvTranspose3d(2, 4, 2, groups=2, bias=False), nn.BatchNorm3d(4), (2, 2, 3, 3, 3)),
    (nn.Linear(5, 7), nn.BatchNorm1d(7), (6, 5)),
    (nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7, eps=0.1), (6, 5)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), LAYERS, ids=lambda part: getattr(type(part), "__name__", ""))
def test_every_kind_of_layer(layer, norm, shape):
    model = lived_in(nn.Sequential(layer, norm, nn.ReLU()))
    result = fold_batchnorm(model)
    assert result.folded == {"1": "0"}
    assert result.kept == {}
    assert isinstance(result.model[1], nn.Identity)
    assert_same_function(model, result.model, noise(*shape))
    assert_same_function(model.double(), fold_batchnorm(model).model, noise(*shape).double())
    model.float()
    if isinstance(layer, nn.Conv2d) and norm.affine:
        theirs = fuse_conv_bn_eval(copy.deepcopy(layer), norm)
        assert torch.allclose(result.model[0].weight, theirs.weight, atol=1e-6)
        assert torch.allclose(result.model[0].bias, theirs.bias, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "vgg", "separable"])
def test_the_models_of_the_course(name):
    model = lived_in(models.build(name))
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    result = fold_batchnorm(model)
    assert len(result.folded) == norms
    assert not result.kept
    assert_same_function(model, result.model, noise(2, 1, 32, 32))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision(name):
    model = lived_in(torchvision().models.get_model(name, weights=None, num_classes=10))
    norms = {path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    result = fold_batchnorm(model)
    assert set(result.folded) | set(result.kept) == norms
    assert not set(result.folded) & set(result.kept)
    assert not result.kept
    assert_same_function(model, result.model, noise(1, 3, 32, 32))


class Asymmetric(nn.Module):
    """Defined in one order, called in another; only ``norm`` follows ``b`` alone."""

    def __init__(self, *, branch: bool = False, twice: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.unused = nn.BatchNorm2d(3)
        self.branch, self.twice = branch, twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x))
        z = self.norm(y)
        if self.twice:
            z = self.norm(self.b(z))
        return y + z if self.branch else z


def test_the_data_flow_decides():
    model = lived_in(Asymmetric())
    result = fold_batchnorm(model)
    assert result.folded == {"norm": "b"}
    assert result.kept == {"unused": "it is never called"}
    assert_same_function(model, result.model, noise(2, 3, 4, 4))


def test_what_cannot_be_folded_is_kept_and_named():
    for options, reason in (({"branch": True}, "b feeds other layers too"), ({"twice": True}, "called more than once")):
        model = lived_in(Asymmetric(**options))
        result = fold_batchnorm(model)
        assert result.folded == {}
        assert reason in result.kept["norm"]
        assert_same_function(model, result.model, noise(2, 3, 4, 4))
    first = lived_in(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
    assert "what comes before is not" in fold_batchnorm(first).kept["1"]
    at_the_start = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    assert "what comes before is not" in fold_batchnorm(at_the_start).kept["0"]
    tied = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    tied[2].weight = tied[0].weight
    assert "the weight of 0 is used elsewhere too" in fold_batchnorm(tied).kept["1"]
    live = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    assert "keeps no running statistics" in fold_batchnorm(live).kept["1"]
    sequence = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4))  # (N, 4, 5) -> (N, 4, 7): its channels are the 4
    assert "does not normalize the channels of 0" in fold_batchnorm(sequence).kept["1"]


def test_flags_and_the_model_given_stay():
    model = Asymmetric().train()
    model.a.eval()
    model.b.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    result = fold_batchnorm(model).model
    assert (result.training, result.a.training, result.b.training) == (True, False, True)
    assert not result.b.weight.requires_grad
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 99))
def test_any_convolution(groups, per_group_in, per_group_out, bias, transposed, seed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(groups * per_group_in, groups * per_group_out, 2, groups=groups, bias=bias).double()
    model = lived_in(nn.Sequential(layer, nn.BatchNorm2d(groups * per_group_out)).double(), seed)
    x = noise(2, groups * per_group_in, 3, 3, seed=seed).double()
    assert torch.allclose(model(x), fold_batchnorm(model).model(x), atol=1e-12)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_errors():
    with pytest.raises(ValueError, match=r"data flow of Untraceable cannot be traced .*folded_weight"):
        fold_batchnorm(Untraceable())
    with pytest.raises(ValueError, match="Linear has no batch norm to fold"):
        fold_batchnorm(nn.Linear(2, 2))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    model[1].running_var.fill_(-1)
    with pytest.raises(ValueError, match="1 folded into 0 must be finite, got 12 NaN"):
        fold_batchnorm(model)
    model[0].weight.data[0] = float("inf")
    with pytest.raises(ValueError, match=r"0\.weight must be finite, got 0 NaN and 3 infinite of 9"):
        fold_batchnorm(model)


def test_the_common_checks():
    check_compressor(lambda model, batches: fold_batchnorm(model).model, must_accept=["conv_bn", "depthwise"])
