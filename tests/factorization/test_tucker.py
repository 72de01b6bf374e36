"""Tucker-2: exact tensors found again, HOOI never worse than HOSVD, and as good as the best of many descents."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.factorization import tucker2, tucker_conv


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand():
    # two orthogonal products with norms 3 and 1: of rank (1, 1) the larger stays, and the error is 1 / sqrt(10)
    weight = torch.zeros(2, 2, 2)
    weight[0, 0, 0], weight[1, 1, 1] = 3.0, 1.0
    found = tucker2(weight, (1, 1))
    assert found.error == pytest.approx(10**-0.5)
    assert float(found.core.norm()) == pytest.approx(3.0)
    full = found.full()
    assert full[0, 0, 0].item() == pytest.approx(3.0) and float(full.abs().sum()) == pytest.approx(3.0)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(1, 4), st.integers(0, 10**6))
def test_properties(out, into, kernel, seed):
    weight = draw(out, into, kernel, kernel, seed=seed)
    ranks = (1 + seed % out, 1 + seed % into)
    errors = [tucker2(weight, ranks, steps=steps).error for steps in (0, 1, 3, 30)]
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))
    # a lower bound: no rank of one side alone can be better than its own cut SVD; an upper one: HOSVD's sum of tails
    tails = [
        torch.linalg.svdvals(weight.movedim(axis, 0).flatten(1))[rank:].square().sum()
        for axis, rank in enumerate(ranks)
    ]
    square = errors[-1] ** 2 * weight.square().sum()
    assert max(tails) - 1e-9 <= square and errors[0] ** 2 * weight.square().sum() <= sum(tails) + 1e-9
    found = tucker2(weight, ranks)
    assert float((weight - found.full()).norm() / weight.norm()) == pytest.approx(found.error, abs=1e-9)
    lost = (1 - found.core.square().sum() / weight.square().sum()).clamp_min(0).sqrt()  # bases are orthonormal
    assert float(lost) == pytest.approx(found.error, abs=1e-6)
    assert torch.allclose(found.out_basis.T @ found.out_basis, torch.eye(ranks[0], dtype=torch.float64), atol=1e-9)


def test_a_tensor_of_these_ranks_is_found_again():
    weight = torch.einsum("pqhw,op,cq->ochw", draw(2, 3, 3, 3), draw(8, 2, seed=1), draw(9, 3, seed=2))
    assert tucker2(weight, (2, 3)).error < 1e-12
    assert tucker2(weight, (2, 2)).error > 0.01


def test_as_good_as_the_best_of_many_starts():
    weight = draw(6, 5, 3, 3, seed=7)
    best = 1.0
    for seed in range(12):  # HOOI from random bases
        v = torch.linalg.qr(draw(5, 2, seed=seed)).Q
        for _ in range(60):
            half = torch.einsum("ochw,cq->oqhw", weight, v).flatten(1)
            u = torch.linalg.svd(half, full_matrices=False).U[:, :3]
            other = torch.einsum("ochw,op->cphw", weight, u).flatten(1)
            v = torch.linalg.svd(other, full_matrices=False).U[:, :2]
        core = torch.einsum("ochw,op,cq->pqhw", weight, u, v)
        best = min(best, float((1 - core.square().sum() / weight.square().sum()).sqrt()))
    assert tucker2(weight, (3, 2), steps=60).error <= best * 1.005


def test_groups_are_treated_one_by_one():
    weight = draw(3, 6, 5, 3, 3)
    found = tucker2(weight, (2, 3), grouped=True)
    assert found.core.shape == (3, 2, 3, 3, 3) and found.full().shape == weight.shape
    for index in range(3):
        assert torch.allclose(found.full()[index], tucker2(weight[index], (2, 3)).full(), atol=1e-9)


def test_a_layers_factors_have_one_size():
    layer = nn.Conv2d(16, 24, 3, padding=1)
    new = tucker_conv(layer, (6, 4))
    norms = [float(part.weight.detach().norm()) for part in new]
    assert max(norms) == pytest.approx(min(norms), rel=1e-4)
    wanted = tucker2(layer.weight, (6, 4)).full().float()
    x = torch.randn(2, 16, 7, 7)
    assert torch.allclose(new(x), nn.functional.conv2d(x, wanted, layer.bias, padding=1), atol=1e-5)
    zero = nn.Conv2d(4, 4, 3)
    nn.init.zeros_(zero.weight)
    assert all(part.weight.isfinite().all() for part in tucker_conv(zero, (2, 2)))


def test_errors():
    weight = torch.ones(4, 3, 2)
    with pytest.raises(ValueError, match=r"r_out=5 must be a whole number in 1\.\.4"):
        tucker2(weight, (5, 1))
    with pytest.raises(ValueError, match=r"r_in=0 must be a whole number in 1\.\.3"):
        tucker2(weight, (1, 0))
    with pytest.raises(ValueError, match="steps=-1 must be a whole number, at least 0"):
        tucker2(weight, (1, 1), steps=-1)
    with pytest.raises(ValueError, match=r"weight must be a finite tensor \(O, C, K...\), got \(3,\)"):
        tucker2(torch.ones(3), (1, 1))
    with pytest.raises(ValueError, match="weight must be a finite tensor"):
        tucker2(weight * float("inf"), (1, 1))
