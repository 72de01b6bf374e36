"""The proof of sameness: it must fail for the mistakes that a check of shapes lets through."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compresslab.pruning import rules
from compresslab.pruning.channels import Pruned, prune_channels
from compresslab.pruning.proof import FunctionChanged, assert_same_function, masked_like
from compresslab.pruning.surgery import cut
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Module:
    model = models.build("resnet", width=8, depth=1).eval()
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    return model


IMAGE = noise(2, 1, 32, 32)


def test_by_hand():
    """Without the second neuron: 2 * tanh(1) + 0; with its slices zeroed the same."""
    model = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 2))
    model[0].weight.data, model[0].bias.data = torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0])
    model[2].weight.data, model[2].bias.data = torch.tensor([[2.0, 7.0], [2.0, 7.0]]), torch.zeros(2)
    kept = {"0.weight": {0: torch.tensor([0])}, "0.bias": {0: torch.tensor([0])}, "2.weight": {1: torch.tensor([0])}}
    pruned = Pruned(cut(model, kept), kept, {}, {"0.weight": 1}, True)
    masked = masked_like(model, pruned)
    assert masked[0].bias.tolist() == [0.0, 0.0]
    assert masked[2].weight.tolist() == [[2.0, 0.0], [2.0, 0.0]]
    found = assert_same_function(model, pruned, torch.ones(1, 1))
    assert found.error == 0
    # tanh(8) = .99999977; (2 tanh(1)) / (2 tanh(1) + 7 tanh(8)) = .1787
    assert found.moved == pytest.approx(1 - 0.1787, abs=1e-4)
    assert model[2].weight.tolist() == [[2.0, 7.0], [2.0, 7.0]]


def test_a_residual_union_that_is_dropped_is_caught(monkeypatch):
    """It runs, all shapes fit, and it is wrong: the sum takes the labels of its first term only."""

    def first_only(trace, a, out):
        trace.put(out, trace.of(a["self"]))

    monkeypatch.setitem(rules.RULES, "add", first_only)
    model = network()
    pruned = prune_channels(model, IMAGE)
    assert pruned.model(IMAGE).shape == (2, 62)
    with pytest.raises(
        FunctionChanged, match=r"the pruned model is .* from the original with the same channels zeroed"
    ):
        assert_same_function(model, pruned, IMAGE)


def test_unknown_taken_for_elementwise_is_caught(monkeypatch):
    """A sort is no element-wise operation; the tool that assumes so gives a model that runs."""

    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x).sort(-1)[0])

    monkeypatch.setitem(rules.RULES, "sort", rules.pointwise)
    model, x = Sorted(), noise(5, 4)
    pruned = prune_channels(model, x)
    assert pruned.model(x).shape == (5, 3)
    with pytest.raises(FunctionChanged, match="the pruned model is"):
        assert_same_function(model, pruned, x)


def test_a_missing_member_is_caught(monkeypatch):
    """Batch norm keeps its width: the model cannot run, so its group stays."""

    def without_statistics(trace, a, out):
        trace.put(out, trace.of(a["input"]))

    monkeypatch.setitem(rules.RULES, "batch_norm", without_statistics)
    with pytest.raises(ValueError, match=r"nothing can be pruned, because .*the model's code does not follow"):
        prune_channels(network(), IMAGE)


def test_a_test_that_cannot_fail_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.zeros_(model[2].weight)
    with pytest.raises(FunctionChanged, match=r"moves the output by 0.0e\+00 only, so nothing is proved"):
        assert_same_function(model, prune_channels(model, noise(5, 4)), noise(5, 4))


def test_another_shape_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    pruned = replace(prune_channels(model, noise(5, 4)), model=nn.Linear(4, 2))
    with pytest.raises(FunctionChanged, match=r"outputs have shapes \[\(5, 2\)\], the original's \[\(5, 3\)\]"):
        assert_same_function(model, pruned, noise(5, 4))


def test_nothing_is_touched():
    model = network()
    pruned = prune_channels(model, IMAGE)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, pruned.model)]
    assert_same_function(model, pruned, IMAGE)
    for state, module in zip(states, (model, pruned.model), strict=True):
        assert all(torch.equal(state[name], value) for name, value in module.state_dict().items())
        assert next(module.parameters()).dtype == torch.float32


def test_in_float32_where_kernels_take_nothing_else():
    model = network()
    pruned = prune_channels(model, IMAGE)
    assert assert_same_function(model, pruned, IMAGE, tolerance=1e-5, dtype=torch.float32).error > 1e-9
    with pytest.raises(FunctionChanged, match="more than 1e-12 is not rounding"):
        assert_same_function(model, pruned, IMAGE, dtype=torch.float32)
