"""Cross-layer equalization: scales by hand, the same function, equal ranges."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.batchnorm import fold_batchnorm
from compresslab.quantization.equalization import equalize, equalizing_scales
from compresslab.quantization.weight_only import quantize_weights
from compresslab.testing import HOSTILE, check_compressor
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    # Channel 0: r1 = 8, r2 = 2, s = sqrt(8 / 2) = 2, both ranges become 4. Channel 1: r1 = 1, r2 = 9, s = 1/3, both 3.
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[-8.0], [1.0]])
    model[0].bias.data = torch.tensor([2.0, 1.0])
    model[2].weight.data = torch.tensor([[2.0, 9.0]])
    result = equalize(model)
    assert torch.allclose(result.scales["0", "2"], torch.tensor([2.0, 1 / 3]))
    assert torch.allclose(result.model[0].weight, torch.tensor([[-4.0], [3.0]]))
    assert torch.allclose(result.model[0].bias, torch.tensor([1.0, 3.0]))
    assert torch.allclose(result.model[2].weight, torch.tensor([[4.0, 3.0]]))
    assert equalizing_scales(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])).tolist() == [1, 1]


def chain(kind: str, seed: int) -> nn.Sequential:
    second = {
        "conv": lambda: nn.Conv2d(4, 6, 3), "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
        "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False),
    }[kind]()  # fmt: skip
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), second).double()
    for place, parameter in enumerate(model.parameters()):
        parameter.data = noise(*parameter.shape, seed=seed + place).double()
    return model


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.sampled_from(["conv", "depthwise", "grouped"]), st.integers(0, 50))
def test_the_function_stays_and_the_ranges_become_equal(kind, seed):
    model = chain(kind, seed)
    result = equalize(model)
    x = noise(2, 3, 10, 10).double()
    assert torch.allclose(result.model(x), model(x), atol=1e-10)
    r1 = result.model[0].weight.abs().amax((1, 2, 3))
    weight, groups = result.model[3].weight, result.model[3].groups
    parts = weight.chunk(groups)  # one for each group of outputs
    r2 = torch.cat([part.abs().amax((0, 2, 3)) for part in parts])
    assert torch.allclose(r1, r2, rtol=1e-3)
    assert result.unpaired == ()


@pytest.mark.parametrize(("name", "pairs"), [("resnet", 9), ("vgg", 5), ("separable", 12)])
def test_the_models_of_the_course(name, pairs):
    model = fold_batchnorm(models.build(name).eval()).model
    result = equalize(model)
    # ResNet: conv1 -> conv2 in each of 9 blocks; the sums between blocks join more than two layers. VGG: 6 in a chain,
    # the flattening ends it. Separable: stem, then 6 times depthwise and pointwise; the mean ends it.
    assert len(result.scales) == pairs
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    joined = {path for pair in result.scales for path in pair}
    assert {*result.unpaired} == {*layers} - joined
    x = noise(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(result.model(x), model(x), atol=1e-5)


def test_one_scale_for_a_tensor_gets_better():
    model = chain("depthwise", 0).float()
    with torch.no_grad():
        factors = torch.tensor([0.02, 1.0, 5.0, 40.0])
        model[0].weight *= factors.reshape(-1, 1, 1, 1)
        model[0].bias *= factors
        model[3].weight /= factors.repeat_interleave(2).reshape(-1, 1, 1, 1)
    x = noise(4, 3, 10, 10)
    with torch.no_grad():
        plain, equal = (
            (quantize_weights(each, bits=8, per_channel=False).model(x) - model(x)).square().mean()
            for each in (model, equalize(model).model)
        )
    assert equal < plain / 20


def test_what_ends_a_chain():
    def pairs(*between: nn.Module) -> list:
        return list(equalize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), *between, nn.Linear(4, 4))).scales)

    assert pairs(nn.ReLU()) == [("0", "1"), ("1", "3")]
    assert pairs(nn.Dropout(), nn.Identity()) == [("0", "1"), ("1", "4")]
    for other in (nn.Sigmoid(), nn.ReLU6(), nn.GELU(), nn.BatchNorm1d(4), nn.LayerNorm(4)):
        assert pairs(other) == [("0", "1")]
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    assert list(equalize(tied).scales) == [("4", "5")]


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.a(x))
        return self.d(self.c(self.b(y).relu() + y))


def test_a_branch_is_no_pair():
    model = Skip()
    result = equalize(model)
    assert list(result.scales) == [("c", "d")]
    assert result.unpaired == ("a", "b")
    assert torch.allclose(result.model(torch.ones(2, 4)), model(torch.ones(2, 4)), atol=1e-6)


def test_the_model_given_stays():
    model = chain("conv", 1).train()
    before = copy.deepcopy(model.state_dict())
    assert equalize(model).model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x if x.sum() > 0 else x


def test_errors():
    with pytest.raises(ValueError, match="data flow of Untraceable cannot be traced"):
        equalize(Untraceable())
    with pytest.raises(ValueError, match="Linear has no two layers joined"):
        equalize(nn.Linear(2, 2))
    model = chain("conv", 1)
    model[0].bias.data[1] = float("inf")
    with pytest.raises(ValueError, match=r"0\.bias must be finite, got 0 NaN and 1 infinite of 4"):
        equalize(model)


def test_the_common_checks():
    # Nothing changes where a range is 0: the scales of "all_zero" are all 1.
    names = [name for name in HOSTILE if name != "all_zero"]
    check_compressor(lambda model, batches: equalize(model).model, models=names, must_accept=["mlp", "prime_sizes"])
