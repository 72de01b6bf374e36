"""Hutchinson's diagonal against exact Hessians: unbiased, with the variance that theory says; and row sums, which are wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.importance import hessian_diagonal, hessian_scores, scored_weights, spearman
from compresslab.importance.hessian import twice_differentiable
from compresslab.testing import hostile
from compresslab.workbench import models


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in scores.values()])


def classifier(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    for place in (0, 2):
        model[place].weight.data = noise(*model[place].weight.shape, seed=seed + place)
    return model, noise(12, 5, seed=9), torch.arange(12) % 4


def exact(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The whole Hessian of the mean loss by the weights, column by column, and the gradient."""
    weights = list(scored_weights(model).values())
    g = torch.autograd.grad(F.cross_entropy(model(x), y), weights, create_graph=True)
    g = torch.cat([t.flatten() for t in g])
    rows = [torch.autograd.grad(entry, weights, retain_graph=True) for entry in g]
    return torch.stack([torch.cat([t.flatten() for t in row]) for row in rows]), g.detach()


def test_by_hand():
    # L = 3 w_0^2 + w_0 w_1 + 2 w_1^2 at (1, 2): H = [[6, 1], [1, 4]], g = (8, 9). A probe gives 6 +- 1 and 4 +- 1:
    # the deviation of m of them is 1 / sqrt(m), their mean's error.
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0]])

    def quadratic(outputs: Tensor, targets: Tensor) -> Tensor:
        w = layer.weight[0]
        return 3 * w[0] ** 2 + w[0] * w[1] + 2 * w[1] ** 2 + 0 * outputs.sum()

    found = hessian_diagonal(layer, [(torch.ones(1, 2), None)], quadratic, probes=400)
    assert found.gradient["weight"].tolist() == [[8, 9]]
    assert found.probes == 400
    h, error = found.values["weight"][0], found.standard_error["weight"][0]
    assert (h[0] - 6).item() == pytest.approx((h[1] - 4).item(), abs=1e-5)  # the same sign in both
    assert 0 < abs(h[0].item() - 6) < 0.2
    assert error.tolist() == pytest.approx([0.05, 0.05], rel=0.03)
    # Saliency 1/2 h w^2 and, since (1, 2) is no optimum, less g w.
    scores = hessian_scores(layer, [(torch.ones(1, 2), None)], quadratic, probes=400)["weight"][0]
    assert scores.tolist() == pytest.approx([h[0].item() / 2, h[1].item() * 2])
    with_slope = hessian_scores(layer, [(torch.ones(1, 2), None)], quadratic, probes=400, first_order=True)["weight"][0]
    assert with_slope.tolist() == pytest.approx([h[0].item() / 2 - 8, h[1].item() * 2 - 18], rel=1e-5)


def test_unbiased_with_the_variance_that_theory_says():
    model, x, y = classifier()
    matrix, gradient = exact(model, x, y)
    found = hessian_diagonal(model, [(x, y)], F.cross_entropy, probes=3000)
    values, error = flat(found.values), flat(found.standard_error)
    torch.testing.assert_close(flat(found.gradient), gradient)
    away = (values - matrix.diagonal()) / error
    assert away.abs().max() < 4.5  # of 54 entries, in standard errors
    assert 0.8 < away.square().mean() < 1.25 or away.abs().mean() < 1.0
    variance = matrix.square().sum(1) - matrix.diagonal().square()
    torch.testing.assert_close(error.square() * 3000, variance, rtol=0.15, atol=1e-3 * float(variance.max()))


def test_batches_are_weighted_by_samples_and_their_probes_are_independent():
    model, x, y = classifier()
    matrix, _ = exact(model, x, y)
    parts = [(x[:8], y[:8]), (x[8:], y[8:])]
    found = hessian_diagonal(model, parts, F.cross_entropy, probes=2000)
    away = (flat(found.values) - matrix.diagonal()) / flat(found.standard_error)
    assert away.abs().max() < 4.5
    variances = []
    for share, (inputs, labels) in zip((8 / 12, 4 / 12), parts, strict=True):
        part, _ = exact(model, inputs, labels)
        variances.append(share**2 * (part.square().sum(1) - part.diagonal().square()))
    expected = sum(variances)
    torch.testing.assert_close(
        flat(found.standard_error).square() * 2000, expected, rtol=0.2, atol=1e-3 * float(expected.max())
    )


def test_the_generator_decides():
    model, x, y = classifier()
    runs = [
        flat(hessian_diagonal(model, [(x, y)], F.cross_entropy, probes=2, generator=g).values)
        for g in (None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_a_transformer_has_second_derivatives():
    case = hostile("attention")
    scores = hessian_scores(case.model, case.batches, F.cross_entropy, probes=2)
    assert flat(scores).abs().sum() > 0
    gpt, tokens = models.build("gpt", depth=1, width=16, heads=2), torch.arange(20).reshape(2, 10)
    found = hessian_scores(
        gpt, [(tokens, tokens)], lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()), probes=2
    )
    assert all(tensor.isfinite().all() for tensor in found.values())
    q = torch.ones(1, 1, 2, 2, requires_grad=True)
    with twice_differentiable():
        y = F.scaled_dot_product_attention(q, q, q).sum()
        (g,) = torch.autograd.grad(y, q, create_graph=True)
    assert torch.autograd.grad(g.sum(), q)[0].shape == q.shape


def test_a_linear_loss_has_no_curvature():
    layer = nn.Linear(2, 1, bias=False)
    found = hessian_diagonal(layer, [(torch.ones(1, 2), None)], lambda y, t: y.mean(), probes=2)
    assert found.values["weight"].tolist() == [[0, 0]]


def test_too_few_probes():
    case = hostile("mlp")
    with pytest.raises(ValueError, match="probes=1 must be a whole number of at least 2"):
        hessian_diagonal(case.model, case.batches, F.cross_entropy, probes=1)


def test_removal_is_foretold_to_second_order():
    # -g w + 1/2 h w^2 is the change of the loss when a small weight goes; without the slope it is not.
    model, x, y = classifier()
    with torch.no_grad():
        for place in (0, 2):
            model[place].weight *= 0.1
    matrix, gradient = exact(model, x, y)
    weights = scored_weights(model)
    w = flat({name: weight.detach() for name, weight in weights.items()})
    before, change = F.cross_entropy(model(x), y).item(), []
    with torch.no_grad():
        for weight in weights.values():
            for index in range(weight.numel()):
                kept = weight.view(-1)[index].item()
                weight.view(-1)[index] = 0
                change.append(F.cross_entropy(model(x), y).item() - before)
                weight.view(-1)[index] = kept
    change = torch.tensor(change, dtype=torch.float64)
    second = -gradient * w + matrix.diagonal() * w.square() / 2
    assert (second - change).norm() < 0.1 * change.norm()
    assert (second - change).norm() < 0.5 * (-gradient * w - change).norm()
    found = hessian_scores(model, [(x, y)], F.cross_entropy, probes=2000, first_order=True)
    assert spearman(flat(found), change) > 0.98


def test_the_fault_of_row_sums():
    # The gradient of the sum of a layer's gradient is the sum of each row of its block of H. For the last layer under a
    # softmax it is 0, since the gradients by all classes add up to 0: that whole layer would be pruned first.
    model, x, y = classifier()
    matrix, _ = exact(model, x, y)
    first, last = slice(0, 30), slice(30, None)
    truth, wrong = matrix.diagonal(), torch.cat([matrix[block, block].sum(1) for block in (first, last)])
    print(spearman(wrong, truth), (wrong - truth).norm() / truth.norm(), wrong[last].abs().max() / truth[last].mean())
    assert wrong[last].abs().max() < 1e-12 < truth[last].min()
    assert (wrong - truth).norm() > 0.5 * truth.norm()
    assert spearman(wrong, truth) < 0.6
    found = flat(hessian_diagonal(model, [(x, y)], F.cross_entropy, probes=1000).values)
    assert (found - truth).norm() < 0.15 * truth.norm()
    assert spearman(found, truth) > 0.9
