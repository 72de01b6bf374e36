"""Low rank: Eckart-Young by hand, the weighted optimum against whitening and against descent, models and what they skip."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab.factorization import LowRankLinear, decompose, factorize_linears, input_covariances
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import models


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class HalfUsed(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.used(x)


def test_by_hand():
    # W = 4 u1 v1^T + 2 u2 v2^T with u = (1, 1), (1, -1) over sqrt 2, v the axes: columns (4, 4) and (2, -2), over sqrt 2
    weight = torch.tensor([[4.0, 2.0], [4.0, -2.0]]) / 2**0.5
    found = decompose(weight)
    assert torch.allclose(found.singular_values, torch.tensor([4.0, 2.0], dtype=torch.float64))
    left, right = found.factors(1)
    assert torch.allclose(left @ right, torch.tensor([[4.0, 0.0], [4.0, 0.0]]) / 2**0.5, atol=1e-6)
    assert found.error(1) == pytest.approx(2 / 20**0.5, abs=1e-6)
    assert torch.allclose(left.norm(dim=0), torch.tensor([2.0]))  # both factors have the norm sqrt(4)
    assert torch.allclose(right.norm(dim=1), torch.tensor([2.0]))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6), (1, 4)])
def test_plain_is_torchs_svd(shape):
    weight = draw(*shape)
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    for rank in range(1, min(shape) + 1):
        left, right = decompose(weight).factors(rank)
        assert left.shape == (shape[0], rank)
        assert torch.allclose(left @ right, u[:, :rank] * s[:rank] @ vh[:rank], atol=1e-9)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_weighted_is_the_whitened_solution(shape):
    # SVD-LLM's: S = Cholesky(C), cut SVD of W S, times the inverse of S
    weight, x = draw(*shape), draw(200, shape[1], seed=1) @ draw(shape[1], shape[1], seed=2)
    covariance = x.T @ x / 200
    root = torch.linalg.cholesky(covariance)
    u, s, vh = torch.linalg.svd(weight @ root, full_matrices=False)
    for rank in (1, 3, 5):
        theirs = (u[:, :rank] * s[:rank] @ vh[:rank]) @ torch.linalg.inv(root)
        found = decompose(weight, covariance=covariance, ridge=0.0)
        left, right = found.factors(rank)
        assert torch.allclose(left @ right, theirs, atol=1e-8)
        lost = ((weight - left @ right) @ x.T).norm() / (weight @ x.T).norm()
        assert found.error(rank) == pytest.approx(float(lost), rel=1e-6, abs=1e-9)


def test_fewer_inputs_than_features():
    weight, x = draw(8, 12), draw(4, 12, seed=1)  # C has rank 4: rank 4 loses nothing on these inputs
    found = decompose(weight, covariance=x.T @ x)
    left, right = found.factors(4)
    assert torch.allclose(x @ (left @ right).T, x @ weight.T, atol=1e-5)
    assert (weight - left @ right).norm() < weight.norm()  # elsewhere it projects, it does not make things up
    best = torch.linalg.svdvals(weight @ x.T)[2:].norm()
    left, right = found.factors(2)
    assert float(((weight - left @ right) @ x.T).norm()) == pytest.approx(float(best), rel=1e-4)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 7), st.integers(2, 7), st.integers(1, 12), st.integers(0, 10**6))
def test_no_other_matrix_of_the_rank_is_better(out, into, samples, seed):
    weight, x = draw(out, into, seed=seed), draw(samples, into, seed=seed + 1)
    rank = 1 + seed % min(out, into)
    left, right = decompose(weight, covariance=x.T @ x, ridge=0.0).factors(rank)
    ours = ((weight - left @ right) @ x.T).norm()
    best = torch.linalg.svdvals(weight @ x.T)[rank:].norm()  # Eckart and Young, for the outputs
    assert float(ours) <= float(best) + 1e-6 * float(weight.norm() * x.norm())


def test_without_inputs_the_ridge_lets_the_weights_decide():
    weight = draw(4, 6)
    left, right = decompose(weight, covariance=torch.zeros(6, 6)).factors(2)
    assert left.isfinite().all() and right.isfinite().all()
    plain = decompose(weight)
    half = torch.eye(6, dtype=torch.float64) * 3  # a multiple of the identity changes nothing
    assert decompose(weight, covariance=half).error(2) == pytest.approx(plain.error(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_and_a_zero_matrix(dtype):
    left, right = decompose(torch.zeros(3, 4, dtype=dtype)).factors(2)
    assert left.dtype == right.dtype == dtype
    assert not (left @ right).any() and decompose(torch.zeros(3, 4)).error(1) == 0


def test_errors_of_decompose():
    with pytest.raises(ValueError, match=r"weight must be a finite matrix, got \(2, 2, 2\)"):
        decompose(torch.ones(2, 2, 2))
    with pytest.raises(ValueError, match="weight must be a finite matrix"):
        decompose(torch.full((2, 2), float("nan")))
    with pytest.raises(ValueError, match=r"covariance must be finite and \(2, 2\), got \(3, 3\)"):
        decompose(torch.ones(3, 2), covariance=torch.eye(3))
    with pytest.raises(ValueError, match="ridge=-1 must be finite and at least 0"):
        decompose(torch.ones(3, 2), ridge=-1)
    with pytest.raises(ValueError, match=r"rank=3 must be a whole number in 1\.\.2"):
        decompose(torch.ones(3, 2)).factors(3)


def test_covariances_by_hand_and_over_all_calls():
    shared = nn.Linear(2, 2, bias=False)
    shared.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    model = nn.Sequential(shared, nn.Dropout(0.9), shared).train()  # gets (1, 2), then (2, 1)
    found = input_covariances(model, [(torch.tensor([[1.0, 2.0]]), None)], layers=["0"])
    assert found["0"].tolist() == [[2.5, 2.0], [2.0, 2.5]]
    assert model.training and not shared._forward_pre_hooks
    sequence = input_covariances(nn.Sequential(nn.Linear(2, 1)), [(torch.ones(3, 5, 2), None)], layers=["0"])
    assert sequence["0"].tolist() == [[1.0, 1.0], [1.0, 1.0]]  # a mean over 15 positions
    with pytest.raises(ValueError, match="batches holds no batch"):
        input_covariances(model, [], layers=["0"])
    with pytest.raises(ValueError, match="inputs of batch 1 must be finite"):
        input_covariances(model, [(torch.ones(1, 2),), (torch.full((1, 2), torch.inf),)], layers=["0"])


def test_a_model_by_hand():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.LayerNorm(10))
    result = factorize_linears(model, rank=5)
    assert result.ranks == {"0": (5,), "2": (5,)}
    assert result.skipped == {"3": "LayerNorm: only Linear is replaced"}
    assert result.parameters_before == 20 * 30 + 30 + 30 * 10 + 10 + 20
    assert result.parameters == 5 * 50 + 30 + 5 * 40 + 10 + 20
    first = result.model[0]
    assert isinstance(first, LowRankLinear) and first[0].weight.shape == (5, 20) and first[0].bias is None
    assert torch.equal(first.bias, model[0].bias) and first.bias is not model[0].bias
    wanted = decompose(model[0].weight).factors(5)
    assert torch.allclose(first.weight, wanted[0] @ wanted[1])
    x = torch.randn(3, 20)
    assert torch.allclose(first(x), x @ first.weight.T + first.bias, atol=1e-6)


def test_batches_make_it_better_on_their_outputs():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32))
    mixing = torch.randn(32, 32, generator=generator) * torch.logspace(0, -3, 32)
    batches = [(torch.randn(64, 32, generator=generator) @ mixing.T, None) for _ in range(4)]
    errors = []
    for data in (None, batches):
        new = factorize_linears(model, data, rank=4).model
        errors.append(sum((new(x) - model(x)).square().sum().item() for x, _ in batches))
    assert errors[1] < 0.7 * errors[0]


def test_energy_and_budget_and_names():
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([10.0, 1.0] + [0.01] * 14)))  # 100 of 101
        model[1].weight.copy_(torch.eye(16))
    found = factorize_linears(model, energy=0.98)
    assert found.ranks == {"0": (1,)}
    assert found.skipped == {"1": "rank 16 saves nothing: (16, 16) breaks even below 8"}
    spent = factorize_linears(
        model, budget=0.75
    )  # 384 of 512: 256 for the identity, and rank 4 of at most 7 for the other
    assert spent.skipped == {"1": "the budget has room for it as it is"} and spent.ranks == {"0": (4,)}
    named = factorize_linears(model, rank={"1": 3})
    assert named.ranks == {"1": (3,)} and named.skipped == {"0": "left out by the caller"}
    assert factorize_linears(model, rank=3, skip=["0"]).ranks == {"1": (3,)}


def test_a_budget_is_shared_by_the_weights_and_cut_by_the_outputs():
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    loud = torch.randn(64, 32, generator=generator) * torch.logspace(0, -6, 32)  # nearly one direction
    plain, seen = (factorize_linears(model, batches, budget=0.5) for batches in (None, [(loud, None)]))
    assert plain.ranks == seen.ranks
    left, right = decompose(model[0].weight, covariance=input_covariances(model, [(loud,)], layers=["0"])["0"]).factors(
        seen.ranks["0"][0]
    )
    assert torch.allclose(seen.model[0].weight, left @ right, atol=1e-6)


def test_who_is_left_alone():
    tied = factorize_linears(models.build("gpt", width=32, depth=1), rank=2)
    assert tied.skipped["head"] == "its weight is tied to another layer's" and "blocks.0.attn.qkv" in tied.ranks
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].register_forward_hook(lambda *args: None)
    assert factorize_linears(model, rank=2).skipped == {"0": "it has hooks, which would be lost"}
    half = factorize_linears(HalfUsed(), [(torch.ones(2, 8), None)], rank=2)
    assert half.skipped == {"unused": "no input reached it"} and half.ranks == {"used": (2,)}
    shared = hostile("shared").model
    result = factorize_linears(shared, rank=2).model
    assert result.first is result.again
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()  # its fast path reads weights directly
    new = factorize_linears(layer, rank=8).model.eval()
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        fast = new(x)
    assert torch.allclose(fast, new(x), atol=1e-5)


def test_a_frozen_layer_stays_frozen_and_a_new_one_learns():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    new = factorize_linears(model, rank=2).model
    new(torch.ones(1, 8)).sum().backward()
    assert [p.requires_grad for p in new.parameters()] == [False] * 3 + [True] * 3
    assert new[1][0].weight.grad.abs().sum() > 0


def test_it_exports_and_its_state_loads():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    new, fresh = (factorize_linears(model, rank=rank).model for rank in (2, 2))
    x = torch.randn(3, 8)
    program = torch.export.export(new, (x,))
    assert torch.allclose(program.module()(x), new(x))
    with torch.no_grad():
        new[0][0].weight.add_(1.0)
    fresh.load_state_dict(new.state_dict())
    assert torch.equal(fresh(x), new(x)) and list(new.state_dict())[:2] == ["0.0.weight", "0.1.weight"]


def test_errors_of_models():
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="give one of rank=None, energy=None and budget=None"):
        factorize_linears(model)
    with pytest.raises(ValueError, match=r"give one of rank=2, energy=0\.5"):
        factorize_linears(model, rank=2, energy=0.5)
    with pytest.raises(ValueError, match=r"rank=\['1'\] must name layers that can be replaced: \['0'\]"):
        factorize_linears(model, rank={"1": 2})
    with pytest.raises(ValueError, match=r"0=9 must be a whole number in 1\.\.8"):
        factorize_linears(model, rank={"0": 9})
    with pytest.raises(ValueError, match="rank=0 must be a whole number in 1"):
        factorize_linears(model, rank=0)
    with pytest.raises(ValueError, match=r"energy=1\.5 must be greater than 0 and at most 1"):
        factorize_linears(model, energy=1.5)
    with pytest.raises(ValueError, match="budget=0 must be greater than 0"):
        factorize_linears(model, budget=0)
    with pytest.raises(ValueError, match=r"skip=\['conv'\] must be names of layers"):
        factorize_linears(model, rank=2, skip=["conv"])
    with pytest.raises(ValueError, match=r"Sequential has no layer to replace: \{'0': 'rank 4 saves nothing"):
        factorize_linears(model, rank=4)
    with pytest.raises(ValueError, match="budget=6 is below rank 1 in every layer; give at least 16"):
        factorize_linears(model, budget=0.1)


@pytest.mark.parametrize("how", ["rank", "energy", "budget"])
def test_the_common_checks(how):
    compress = {
        "rank": lambda model, batches: factorize_linears(model, rank=2).model,
        "energy": lambda model, batches: factorize_linears(model, batches, energy=0.3).model,
        "budget": lambda model, batches: factorize_linears(model, batches, budget=0.7).model,
    }[how]
    refused = {verdict.model for verdict in check_compressor(compress) if verdict.outcome == "refused"}
    assert refused == {"no_layers", "nan", "infinity", "meta"}
