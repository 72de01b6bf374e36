"""SNIP, GraSP and SynFlow: by hand, the identities they rest on, and layers that collapse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.importance import (
    grasp_scores,
    magnitude_scores,
    scored_weights,
    snip_scores,
    spearman,
    synflow,
    synflow_masks,
    synflow_scores,
)
from compresslab.testing import hostile
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in scores.values()])


def test_snip_is_the_derivative_by_a_gate_on_each_weight():
    first, second = noise(4, 3, dtype=torch.float64), noise(2, 4, seed=1, dtype=torch.float64)
    x, y = noise(5, 3, seed=2, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    gates = [torch.ones_like(w, requires_grad=True) for w in (first, second)]
    F.cross_entropy(torch.tanh(x @ (gates[0] * first).T) @ (gates[1] * second).T, y).backward()
    truth = torch.cat([gate.grad.abs().flatten() for gate in gates])
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()
    model[0].weight.data, model[2].weight.data = first, second
    found = flat(snip_scores(model, [(x[:2], y[:2]), (x[2:], y[2:])], F.cross_entropy))  # the mean before |.|
    torch.testing.assert_close(found, truth / truth.sum())
    assert found.sum().item() == pytest.approx(1)


def test_snip_uses_the_statistics_of_the_batch():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    x, y = 50 + noise(8, 3), torch.tensor([0, 1] * 4)
    mean = model[1].running_mean.clone()
    found = snip_scores(model, [(x, y)], F.cross_entropy)
    assert torch.equal(model[1].running_mean, mean)
    model.train()
    weights = list(scored_weights(model).values())
    gradients = torch.autograd.grad(F.cross_entropy(model(x), y), weights)
    truth = torch.cat([(g * w).abs().flatten() for g, w in zip(gradients, weights, strict=True)]).double()
    torch.testing.assert_close(flat(found), truth / truth.sum(), rtol=1e-5, atol=1e-9)


def test_snip_refuses_what_has_no_gradient():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"all gradients of \['weight'\] are 0"):
        snip_scores(layer, [(torch.zeros(1, 2), None)], lambda y, t: y.mean())


def test_grasp_is_the_change_of_the_squared_gradient():
    # theta H g = 1/2 theta d(g^T g) / d theta, with g taken through the whole batch in float64.
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = noise(6, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    weights = scored_weights(model)
    g = torch.autograd.grad(F.cross_entropy(model(x) / 20, y), list(weights.values()), create_graph=True)
    slope = torch.autograd.grad(sum(t.square().sum() for t in g), list(weights.values()))
    truth = torch.cat([(w * s / 2).flatten() for w, s in zip(weights.values(), slope, strict=True)]).detach()
    found = grasp_scores(model, [(x[:4], y[:4]), (x[4:], y[4:])], F.cross_entropy, temperature=20.0)
    torch.testing.assert_close(flat(found), truth)
    # Removing a weight that the score keeps does lower the squared gradient.
    name, best = "2.weight", int(found["2.weight"].argmax())
    before = sum(t.square().sum() for t in g)
    with torch.no_grad():
        model[2].weight.view(-1)[best] *= 0.9
    after = torch.autograd.grad(F.cross_entropy(model(x) / 20, y), list(weights.values()))
    assert sum(t.square().sum() for t in after) < before, name
    with pytest.raises(ValueError, match=r"temperature=0 must be above 0; the paper has 200"):
        grasp_scores(model, [(x, y)], F.cross_entropy, temperature=0)


def test_synflow_by_hand():
    # Absolute weights 2, 1 and 3, 5: R = 2 * 3 + 1 * 5 = 11 through each layer.
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data, model[1].weight.data = torch.tensor([[2.0], [-1.0]]), torch.tensor([[-3.0, 5.0]])
    found = synflow_scores(model, [(torch.full((7, 1), -4.0), None)])
    assert [tensor.flatten().tolist() for tensor in found.values()] == [[6, 5], [6, 5]]
    assert found["0.weight"].dtype == torch.float64


@pytest.mark.parametrize("architecture", ["mlp", "vgg"])
def test_synflow_is_conserved(architecture):
    model = models.build(architecture)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("bias", "running_mean")):
            tensor.data.zero_()
    sums = [float(s.sum()) for s in synflow_scores(model, [(torch.zeros(2, 1, 32, 32), None)]).values()]
    assert len(sums) > 2
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-9)


def test_synflow_keeps_exactly_as_many_and_spares_a_layer_that_one_shot_empties():
    model = nn.Sequential(
        nn.Linear(20, 300, bias=False), nn.Linear(300, 300, bias=False), nn.Linear(300, 2, bias=False)
    )
    for place, layer in enumerate(model):
        layer.weight.data = noise(*layer.weight.shape, seed=place)
    batches = [(torch.zeros(1, 20), None)]
    total = 20 * 300 + 300 * 300 + 300 * 2
    once, many = (synflow_masks(model, batches, sparsity=0.999, rounds=rounds) for rounds in (1, 100))
    assert sum(once.remaining.values()) == sum(many.remaining.values()) == round(total * 0.001)
    assert "1.weight" in once.collapsed
    assert many.collapsed == ()
    assert {name: int(mask.sum()) for name, mask in many.masks.items()} == many.remaining
    none = synflow_masks(model, batches, sparsity=0)
    assert all(mask.all() for mask in none.masks.values())
    every = synflow_masks(model, batches, sparsity=1.0, rounds=2)
    assert every.collapsed == ("0.weight", "1.weight", "2.weight")


def test_synflow_densities_fall_by_the_same_factor(monkeypatch):
    # 25 % in two rounds: 50 % after the first, not 62.5.
    model, alive = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)), []
    original = synflow._flow

    def watch(positive: nn.Module, weights: dict, ones: Tensor) -> dict[str, Tensor]:
        alive.append(sum(int((w != 0).sum()) for w in weights.values()))
        return original(positive, weights, ones)

    monkeypatch.setattr(synflow, "_flow", watch)
    result = synflow_masks(model, [(torch.zeros(1, 8), None)], sparsity=0.75, rounds=2)
    assert [*alive, sum(result.remaining.values())] == [128, 64, 32]


def test_synflow_ties_are_exact():
    case = hostile("equal_weights")
    masks = synflow_masks(case.model, case.batches, sparsity=0.37).masks
    total = 16 * 6 + 5 * 16
    assert sum(int(mask.sum()) for mask in masks.values()) == round(total * 0.63)


def test_synflow_refuses():
    case = hostile("mlp")
    with pytest.raises(ValueError, match=r"sparsity=1.5 must be in 0..1"):
        synflow_masks(case.model, case.batches, sparsity=1.5)
    with pytest.raises(ValueError, match="rounds=0 must be a whole number of at least 1"):
        synflow_masks(case.model, case.batches, sparsity=0.5, rounds=0)
    deep = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(9))).double()
    for layer in deep:
        layer.weight.data.fill_(1e40)
    with pytest.raises(ValueError, match="the flow must be finite, got inf"):
        synflow_scores(deep, [(torch.ones(1, 1), None)])


def test_magnitude_at_initialization_empties_a_layer():
    # The wide layer of an MLP has the smallest fresh weights: at 96 % they all go. SNIP leaves some.
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 62))
    for layer in (model[0], model[2]):
        nn.init.uniform_(layer.weight, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
    x, y = noise(124, 1024), torch.arange(124) % 62

    def left(scores: dict[str, Tensor]) -> int:
        threshold = flat(scores).sort().values[int(0.96 * flat(scores).numel())]
        return int((scores["0.weight"] >= threshold).sum())

    assert left(magnitude_scores(model)) == 0
    assert left(snip_scores(model, [(x, y)], F.cross_entropy)) > 100


def test_one_batch_at_initialization_is_an_unstable_guess():
    model, y = models.build("mlp"), torch.arange(512) % 10
    x = noise(10, 1, 32, 32)[y] + 3 * noise(512, 1, 32, 32, seed=1)
    a, b = (snip_scores(model, [(x[i:j], y[i:j])], F.cross_entropy) for i, j in ((0, 64), (64, 128)))
    both = [snip_scores(model, [(x[i : i + 256], y[i : i + 256])], F.cross_entropy) for i in (0, 256)]
    assert spearman(flat(a), flat(b)) < spearman(*map(flat, both)) < 0.99
