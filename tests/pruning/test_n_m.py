"""N:M masks and the order of the inputs: by hand, against torch and brute force over all permutations, on models."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.pruning.n_m import check_n_m, n_m_mask, permute_columns, prune_n_m, why_not_n_m
from compresslab.testing import check_compressor, hostile


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept(scores: torch.Tensor, order: torch.Tensor, n: int, m: int) -> float:
    scores = scores[:, order]
    return (scores * n_m_mask(scores, n=n, m=m)).double().sum().item()


def test_by_hand():
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.0, 1.0, 1.0, 1.0, 9.0]])
    # 4 and 3; of 1 1 1 9 the last 1 and the 9
    assert n_m_mask(scores).int().tolist() == [[1, 0, 1, 0, 0, 0, 1, 1]]
    assert n_m_mask(scores, n=1, m=2).int().tolist() == [[1, 0, 1, 0, 0, 1, 0, 1]]
    assert n_m_mask(scores, n=0, m=4).sum() == 0
    assert n_m_mask(scores, n=8, m=8).all()
    # a convolution's groups are of input channels, at each place of the kernel by itself
    kernel = torch.tensor([[[1.0, 2.0], [3.0, 1.0]]])  # (1 output, 2 inputs, 2 places)
    assert n_m_mask(kernel, n=1, m=2).int().tolist() == [[[0, 1], [1, 0]]]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    shape=st.sampled_from([(3, 1), (2, 3), (1, 2, 3, 2), (4, 1, 1)]),
    n=st.integers(0, 8),
    more=st.integers(0, 8),
    levels=st.sampled_from([1, 100]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
)
def test_exactly_n_of_every_m_the_highest(shape, n, more, levels, dtype):
    m = max(n + more, 1)
    shape = (shape[0], shape[1] * m, *shape[2:])
    scores = (noise(*shape) * levels).round().to(dtype)
    mask = n_m_mask(scores, n=n, m=m)
    groups = mask.movedim(1, -1).unflatten(-1, (-1, m))
    assert (groups.sum(-1) == n).all()
    values = scores.movedim(1, -1).unflatten(-1, (-1, m))
    if 0 < n < m:
        least = values.masked_fill(~groups, torch.inf).amin(-1)
        most = values.masked_fill(groups, -torch.inf).amax(-1)
        assert (least >= most).all()


def test_the_best_order_is_found_by_brute_force():
    """All orders of up to 6 columns in pairs, 8 in fours, 9 in threes: none keeps more."""
    for columns, m in ((4, 2), (6, 2), (6, 3), (8, 4)):
        for seed in range(3):
            scores = noise(5, columns, seed=seed).abs()
            for n in (1, m - 1):
                found = permute_columns(scores, n=n, m=m)
                assert sorted(found.tolist()) == list(range(columns))
                groups = {
                    tuple(sorted(order[at : at + m] for at in range(0, columns, m)))
                    for order in permutations(range(columns))
                }
                groups = {group for group in groups if all(list(part) == sorted(part) for part in group)}
                best = max(kept(scores, torch.tensor(sum(group, ())), n, m) for group in groups)
                assert kept(scores, found, n, m) == pytest.approx(best, rel=1e-6)


def test_large_columns_side_by_side_are_parted():
    # Four columns of 9s in one group: two of them would go. Shared out, 2 and 2, all of them stay.
    scores = torch.ones(3, 32)
    scores[:, 4:8] = 9
    for columns in (scores[:, :12], scores):  # all groupings; pairs of groups
        order = permute_columns(columns)
        assert kept(columns, order, 2, 4) == 3 * (4 * 9 + (columns.shape[1] / 2 - 4))
    assert permute_columns(scores, sweeps=0).tolist() == list(range(32))
    # twelve columns of 9s in three groups of eight: pairs have to be gone through more than once or in a good order
    scores = torch.cat([torch.full((2, 12), 9.0), torch.ones(2, 20)], 1)
    assert kept(scores, permute_columns(scores), 2, 4) == 2 * (12 * 9 + 4)


def test_pairs_only_ever_keep_more():
    scores = noise(16, 64).abs() * (2 * noise(64, seed=1)).exp()
    values = [kept(scores, permute_columns(scores, sweeps=sweeps), 2, 4) for sweeps in (0, 1, 2, 5)]
    assert values[0] < values[1] <= values[2] <= values[3]
    assert values[3] > 1.02 * values[0]
    kernel = noise(4, 12, 3, 3).abs()  # an order of channels, for all places alike
    flat = kernel.movedim(1, -1).reshape(-1, 12)
    assert torch.equal(permute_columns(kernel), permute_columns(flat))


@pytest.mark.parametrize("permute", [False, True])
def test_the_pattern_holds_in_the_order_found_and_the_function_is_the_same(permute):
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    for index in (0, 2):
        model[index].weight.data = noise(*model[index].weight.shape, seed=index)
    result = prune_n_m(model, permute=permute)
    assert result.sparsity == 0.5
    x = noise(5, 16)
    for index in (0, 2):
        name, layer = f"{index}.weight", result.model[index]
        order = result.orders[name]
        in_order = layer.weight[:, order]
        assert ((in_order != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()
        inputs = x[:, : layer.in_features]
        assert torch.allclose(F.linear(inputs[:, order], in_order, layer.bias), layer(inputs), atol=1e-6)
        assert torch.equal(layer.weight, model[index].weight * result.masks[name])
    assert torch.equal(result.orders["0.weight"], torch.arange(16)) != permute
    if permute:
        kept_sum = [
            sum(m.weight.abs().sum() for m in r.model if isinstance(m, nn.Linear)) for r in (result, prune_n_m(model))
        ]
        assert kept_sum[0] > kept_sum[1]


def test_convolutions_and_given_scores():
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8, 4))
    result = prune_n_m(model, n=1, m=2)
    for name, mask in result.masks.items():
        assert (mask.movedim(1, -1).unflatten(-1, (-1, 2)).sum(-1) == 1).all(), name
    scores = {"3.weight": -model[3].weight.detach().abs()}
    lowest = prune_n_m(model, n=1, m=2, scores=scores, names=["3.weight"]).masks["3.weight"]
    assert torch.equal(lowest, ~result.masks["3.weight"])


def test_what_does_not_fit_is_listed():
    result = prune_n_m(hostile("transposed").model)
    assert list(result.masks) == ["6.weight"]
    assert result.skipped["0.weight"] == "m=4 does not divide its 3 inputs"
    assert result.skipped["3.weight"] == "ConvTranspose2d: its inputs do not lie along axis 1"
    assert result.skipped["6.bias"] == "Linear: only matrices and kernels are pruned"
    model = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 4), nn.LayerNorm(4))
    named = prune_n_m(model, names=["0.weight", "1.weight", "1.bias", "2.weight"])
    assert list(named.masks) == ["1.weight"]
    assert named.skipped == {
        "0.weight": "Embedding: its inputs do not lie along axis 1",
        "1.bias": "Linear: its inputs do not lie along axis 1",
        "2.weight": "LayerNorm: its inputs do not lie along axis 1",
        "2.bias": "LayerNorm: only matrices and kernels are pruned",
    }
    assert why_not_n_m(nn.Linear(8, 1), "weight", 4) == ""


def test_errors():
    scores = torch.ones(2, 6)
    for n, m in ((3, 2), (-1, 4), (0, 0), (2.0, 4), (2, None)):
        with pytest.raises(ValueError, match=rf"n={n!r} and m={m!r} must be integers, 0 <= n <= m"):
            check_n_m(n, m)
        with pytest.raises(ValueError, match=f"n={n!r} and m={m!r} must be"):
            n_m_mask(scores, n=n, m=m)
    for wrong in (scores, torch.ones(8)):
        with pytest.raises(ValueError, match=r"m=4 must divide the inputs \(axis 1\) of \((2, 6|8,)\); try permuting"):
            n_m_mask(wrong)
    with pytest.raises(ValueError, match="scores must be finite, got 1 NaN"):
        n_m_mask(torch.tensor([[float("nan"), 1.0]]), n=1, m=2)
    with pytest.raises(ValueError, match="m=8 must leave at most 6000 ways to share two groups, got 6435; try m=4"):
        permute_columns(torch.ones(2, 16), m=8)
    with pytest.raises(ValueError, match=r"Linear has no weight with inputs in groups of m=4: .*divide its 6 inputs"):
        prune_n_m(nn.Linear(6, 2))


def test_the_common_checks():
    check_compressor(
        lambda model, batches: prune_n_m(model, n=1, m=2).model,
        must_accept=("mlp", "conv_bn", "attention", "shared", "float16", "bfloat16"),
    )
    permuted = ("mlp", "conv1d", "attention", "tied", "non_contiguous", "float16", "nan", "meta")
    check_compressor(lambda model, batches: prune_n_m(model, n=2, m=4, permute=True).model, models=permuted)
