"""Reconstruction: least squares by hand and against lstsq, what it must repair exactly, and a trained model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compresslab.pruning.batchnorm_statistics import reestimate_batchnorm
from compresslab.pruning.channels import count_macs, prune_channels, prune_to
from compresslab.pruning.least_squares import ridge_fit
from compresslab.pruning.reconstruction import reconstruct
from compresslab.pruning.rounds import prune_in_rounds
from compresslab.testing import check_compressor
from compresslab.workbench import checkpoints, data


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    """x = 1, 2; y = 3, 5: sum xy = 13, sum xx = 5. With weight 1 and ridge 1: (13 + 5 * 1) / (5 + 5)."""
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]])
    assert ridge_fit(x.T @ x, y.T @ x, torch.ones(1, 1), ridge=1e-12).item() == pytest.approx(13 / 5)
    assert ridge_fit(x.T @ x, y.T @ x, torch.ones(1, 1), ridge=1.0).item() == pytest.approx(18 / 10)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_equal_to_least_squares(inputs, outputs, seed):
    x, y = noise(30, inputs, seed=seed).double(), noise(30, outputs, seed=seed + 1).double()
    found = ridge_fit(x.T @ x, y.T @ x, noise(outputs, inputs), ridge=1e-13)
    torch.testing.assert_close(found, torch.linalg.lstsq(x, y).solution.T)


def test_more_ridge_stays_nearer():
    x, start = noise(30, 4), torch.zeros(2, 4)
    y = x @ noise(4, 2, seed=1)
    lengths = [ridge_fit(x.T @ x, y.T @ x, start, ridge=ridge).norm().item() for ridge in (1e-6, 0.1, 1.0, 100.0)]
    assert lengths == sorted(lengths, reverse=True)
    with pytest.raises(ValueError, match="ridge=0 must be above 0"):
        ridge_fit(x.T @ x, y.T @ x, start, ridge=0)


def test_a_channel_that_repeats_another_is_made_good():
    """The second channel is twice the first: without it, the next layer has all it needs."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(32, 4))
    model[0].weight.data[1], model[0].bias.data[1] = 2 * model[0].weight[0], 2 * model[0].bias[0]
    x = noise(20, 1, 6, 6)
    scores = {"0": torch.tensor([2.0, 1.0, 3.0])}
    pruned = prune_channels(model, x[:1], ratio={"0": 0.34}, scores=scores)
    assert pruned.kept["0.weight"][0].tolist() == [0, 2]
    assert (pruned.model(x) - model(x)).abs().max() > 1e-2
    repaired = reconstruct(model, pruned, [(x, None)], ridge=1e-9)
    torch.testing.assert_close(repaired.model(x), model(x), atol=1e-4, rtol=1e-3)
    before, after = repaired.errors["2"]
    assert before > 1e-3
    assert after < 1e-8
    assert repaired.skipped == {}


def test_what_is_skipped_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.c, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.c(self.c(self.b(self.a(x))).relu()).mean((2, 3)))

    model, x = Odd().eval(), noise(8, 1, 6, 6)
    repaired = reconstruct(model, prune_channels(model, x), [(x, None)])
    assert repaired.skipped == {"b": "a convolution with groups", "c": "it runs several times for one input"}
    assert list(repaired.errors) == ["a", "head"]
    with pytest.raises(ValueError, match="positions=0 must be at least 1"):
        reconstruct(model, prune_channels(model, x), [(x, None)], positions=0)


def test_statistics_of_batch_norms_by_hand():
    """Two batches, means 2 and 6, variances 2 and 2: their means; the momentum stays."""
    model = nn.Sequential(nn.BatchNorm1d(1, momentum=0.3), nn.Dropout(0.5)).eval()
    batches = [(torch.tensor([[1.0], [3.0]]), None), (torch.tensor([[5.0], [7.0]]), None)]
    found = reestimate_batchnorm(model, batches)
    assert (found[0].running_mean.item(), found[0].running_var.item()) == (4.0, 2.0)
    assert (found[0].momentum, found.training, found[0].training) == (0.3, False, False)
    assert model[0].running_mean.item() == 0
    with pytest.raises(ValueError, match="batches holds no batch"):
        reestimate_batchnorm(model, [])


def test_a_trained_model_is_repaired():
    """Three quarters of the multiplications, no training: each repair brings more of the accuracy back."""
    model = checkpoints.load("resnet")
    splits = data.load("glyphs")
    batches = list(splits.train.take(512).batches(128))
    held = list(splits.val.take(500).batches(250))

    def accuracy(candidate: nn.Module) -> float:
        with torch.no_grad():
            return sum(int((candidate(x).argmax(1) == y).sum()) for x, y in held) / 500

    pruned = prune_to(model, batches[0][0][:1], target=0.7)
    before = {name: value.clone() for name, value in pruned.model.state_dict().items()}
    repaired = reconstruct(model, pruned, batches)
    cut, counted, fitted = map(accuracy, (pruned.model, reestimate_batchnorm(pruned.model, batches), repaired.model))
    assert cut + 0.05 < counted
    assert counted + 0.05 < fitted
    assert all(torch.equal(before[name], value) for name, value in pruned.model.state_dict().items())
    assert all(after <= first + 1e-9 for first, after in repaired.errors.values())


def test_hostile_models():
    def compress(model: nn.Module, batches) -> nn.Module:
        batches = list(batches)
        pruned = prune_channels(model, batches[0][0] if batches else torch.zeros(0))
        return reconstruct(model, pruned, batches).model

    check_compressor(compress)


def test_rounds_keep_count_of_the_original():
    """Each round's indices are of the model before; those returned are of the first."""
    model, batches = checkpoints.load("resnet"), list(data.load("glyphs").train.take(64).batches(64))
    found = prune_in_rounds(model, batches, target=0.5, rounds=2)
    cost = count_macs(found.model, batches[0][0][:1]) / count_macs(model, batches[0][0][:1])
    assert 0.48 < cost <= 0.5
    small = dict(found.model.named_parameters())
    for name, axes in found.kept.items():
        if name in small:
            assert all(small[name].shape[axis] == len(indices) for axis, indices in axes.items())
    for name in ("layer1.0.bn1.weight", "layer3.0.bn1.bias"):  # batch norms are cut, not fitted
        assert torch.equal(small[name], model.get_parameter(name)[found.kept[name][0]])
    assert not found.exact
    assert sum(found.removed.values()) == sum(
        model.get_parameter(f"{name}").shape[0] - small[name].shape[0] for name in found.removed
    )
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        prune_in_rounds(model, batches, target=0.5, rounds=0)
    with pytest.raises(ValueError, match="target=1 must be above 0 and below 1"):
        prune_in_rounds(model, batches, target=1)
