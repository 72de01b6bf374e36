"""Wanda: by hand, exact counts, the definition for convolutions and groups, layers one after the other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.pruning.layer_inputs import InputStatistics
from compresslab.pruning.wanda import row_masks, wanda, wanda_model, wanda_scores
from compresslab.testing import check_compressor, hostile


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    # inputs (3, 0) and (4, 2): squares 25 and 4, norms 5 and 2. |W| times norm: 5 and 6; 10 and 2.
    seen = InputStatistics(gram=False)
    seen.update(torch.tensor([[3.0, 0.0], [4.0, 2.0]]))
    weight = torch.tensor([[1.0, -3.0], [-2.0, 1.0]])
    assert wanda_scores(weight, seen.squares).tolist() == [[5, 6], [10, 2]]
    assert wanda(weight, seen.squares).tolist() == [[False, True], [True, False]]
    # by magnitude, and over the whole layer, it would be the 1s
    assert wanda(weight, torch.ones(2)).tolist() == [[False, True], [True, False]]
    # an input that is always 0 goes, however large its weight
    assert wanda(torch.tensor([[9.0, 0.1]]), torch.tensor([0.0, 1.0])).tolist() == [[False, True]]


def test_the_square_is_the_increase_of_the_error():
    """Uncorrelated inputs: what removing weights costs is the sum of their squared scores, over tokens."""
    x = torch.linalg.qr(noise(64, 8))[0] * torch.arange(1.0, 9.0)
    weight, squares = noise(5, 8, seed=1), x.square().sum(0)
    mask = wanda(weight, squares, sparsity=0.5)
    cost = (x @ (weight * ~mask).T).square().sum()
    assert cost.item() == pytest.approx((wanda_scores(weight, squares) * ~mask).square().sum().item(), rel=1e-4)
    for seed in range(20):  # and no other choice of four in each row costs less
        other = row_masks(noise(5, 8, seed=seed), 0.5)
        assert (x @ (weight * ~other).T).square().sum() >= cost


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 130), percent=st.integers(0, 100), levels=st.sampled_from([1, 50])
)
def test_exactly_floor_of_each_row(rows, columns, percent, levels):
    """One too many, as with `<=` the threshold, or one too few, as with 100 * 0.29 = 28.999..., is a fault."""
    scores = (noise(rows, columns) * levels).round()
    mask = row_masks(scores, percent / 100)
    assert ((~mask).sum(1) == columns * percent // 100).all()
    for row, kept in zip(scores, mask, strict=True):
        assert torch.equal(row[kept].sort().values, row.sort().values[columns * percent // 100 :])


def test_29_of_100_are_29():
    assert int((~row_masks(torch.arange(100.0).unsqueeze(0), 0.29)).sum()) == 29  # 100 * 0.29 is 28.999...


def test_ties_go_in_order():
    assert row_masks(torch.ones(2, 4), 0.5).int().tolist() == [[0, 0, 1, 1]] * 2
    assert wanda(torch.ones(1, 4), torch.ones(4), n=1, m=2).int().tolist() == [[0, 1, 0, 1]]


def test_n_m_and_convolutions():
    weight, squares = noise(6, 8), noise(8, seed=1).square()
    mask = wanda(weight, squares, n=2, m=4)
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()
    groups = (weight.abs() * squares.sqrt()).unflatten(1, (-1, 4))
    assert (
        groups.masked_fill(~mask.unflatten(1, (-1, 4)), 9e9).amin(-1) >= (groups * ~mask.unflatten(1, (-1, 4))).amax(-1)
    ).all()
    kernel, squares = noise(4, 4, 3, 3), noise(36, seed=1).square()
    mask = wanda(kernel, squares)
    assert mask.shape == kernel.shape
    assert torch.equal(mask.flatten(1), wanda(kernel.flatten(1), squares))
    mask = wanda(kernel, squares, n=2, m=4)  # of channels, not of neighbours in the kernel
    assert (mask.sum(1) == 2).all()


def test_groups_have_their_own_norms():
    weight, squares = noise(6, 9), noise(3, 9, seed=1).square()
    parts = [wanda(weight[2 * g : 2 * g + 2], squares[g]) for g in range(3)]
    assert torch.equal(wanda(weight, squares), torch.cat(parts))
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False))
    x = noise(5, 4, 6, 6)
    mask = wanda_model(model, [(x, None)]).masks["0.weight"]
    for g in range(2):
        patches = nn.functional.unfold(x[:, 2 * g : 2 * g + 2], 3)  # (B, C * K * K, positions): torch's own im2col
        expected = wanda(model[0].weight[3 * g : 3 * g + 3].detach(), patches.square().sum((0, 2)))
        assert torch.equal(mask[3 * g : 3 * g + 3], expected)


def test_each_layer_sees_the_pruned_ones_before_it():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 5)).train()
    batches = [(noise(9, 6), None), (noise(3, 6, seed=1), None)]
    result = wanda_model(model, batches, sparsity=0.6)
    x = torch.cat([x for x, _ in batches])
    first = wanda(model[0].weight.detach(), x.square().sum(0), sparsity=0.6)
    assert torch.equal(result.masks["0.weight"], first)
    hidden = (x @ (model[0].weight * first).T + model[0].bias).relu().detach()
    second = wanda(model[2].weight.detach(), hidden.square().sum(0), sparsity=0.6)
    assert torch.equal(result.masks["2.weight"], second)
    assert torch.equal(result.model[2].weight, model[2].weight * second)
    dense = wanda(model[2].weight.detach(), model[:2](x).detach().square().sum(0), sparsity=0.6)
    assert not torch.equal(second, dense)
    assert result.tokens == {"0.weight": 12, "2.weight": 12}
    assert result.model.training


def test_errors():
    weight = torch.ones(4, 6)
    for wrong in (torch.ones(5), torch.ones(3, 6), torch.tensor(1.0), -torch.ones(6)):
        with pytest.raises(
            ValueError, match=r"squares \(I,\) or \(groups, I\), at least 0, must fit, got \(4, 6\) and"
        ):
            wanda(weight, wrong)
    with pytest.raises(ValueError, match="weight must be finite, got 1 NaN"):
        wanda(torch.tensor([[float("nan")]]), torch.ones(1))
    with pytest.raises(ValueError, match="squares must be finite, got 0 NaN and 1 infinite"):
        wanda(torch.ones(1, 1), torch.tensor([float("inf")]))
    for function in (lambda s: wanda(weight, torch.ones(6), sparsity=s), lambda s: row_masks(weight, s)):
        with pytest.raises(ValueError, match=r"sparsity=1\.2 must be the fraction removed"):
            function(1.2)
    with pytest.raises(ValueError, match="scores must be finite"):
        row_masks(torch.tensor([[float("nan")]]), 0.5)
    model, batches = hostile("mlp").model, hostile("mlp").batches
    with pytest.raises(ValueError, match="n=2 and m=None must be integers"):
        wanda_model(model, batches, n=2)
    with pytest.raises(ValueError, match=r"sparsity=-1 must be the fraction removed"):
        wanda_model(model, batches, sparsity=-1)


def test_the_common_checks():
    check_compressor(
        lambda model, batches: wanda_model(model, batches).model,
        must_accept=("mlp", "conv_bn", "depthwise", "grouped", "conv1d", "residual", "shared", "float16", "bfloat16"),
    )
    check_compressor(lambda model, batches: wanda_model(model, batches, n=1, m=2).model)
