"""Squared gradients of each sample: by hand, against loops, vmap and exact Fisher matrices; what batches do to them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from compresslab.importance import (
    fisher_diagonal,
    fisher_scores,
    per_sample,
    scored_weights,
    scoring,
    spearman,
    taylor_scores,
)
from compresslab.importance.patches import patches
from compresslab.testing import HOSTILE, hostile


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def by_loop(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The definition."""
    weights = scored_weights(model)
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    with scoring(model, weights):
        for i in range(len(x)):
            loss = loss_fn(model(x[i : i + 1]), y[i : i + 1])
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += gradient.double().square() / len(x)
    return total


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in scores.values()])


def test_by_hand():
    # y = w x, loss (y - t)^2 / 2, w = 2: gradients x (2 x - t) = 1 * 2 = 2 and 2 * (4 - 7) = -6: (4 + 36) / 2 = 20.
    # The gradient of the batch is (2 - 6) / 2 = -2, its square 4: wrong. 1/2 F w^2 = 40.
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    batches = [(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [7.0]]))]

    def half(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() / 2

    assert fisher_diagonal(layer, batches, half)["weight"].item() == 20
    assert fisher_scores(layer, batches, half)["weight"].item() == 40
    # A reduction that is a sum changes nothing, since each sample is alone.
    assert fisher_diagonal(layer, batches, lambda o, t: (o - t).square().sum() / 2)["weight"].item() == 20


@pytest.mark.parametrize(
    "name", [n for n in HOSTILE if n not in ("no_layers", "nan", "infinity", "meta", "float16", "bfloat16")]
)
def test_it_is_the_loop_over_samples(name):
    case = hostile(name)
    x, y = (torch.cat(parts) for parts in zip(*case.batches, strict=True))
    found = fisher_diagonal(case.model, [(x[:7], y[:7]), (x[7:], y[7:])], loss_fn)
    for key, truth in by_loop(case.model, x, y).items():
        torch.testing.assert_close(found[key].double(), truth, rtol=2e-4, atol=2e-6 * float(truth.max()) + 1e-30)


def test_it_is_vmap_of_grad():
    case = hostile("conv_bn")
    model, (x, y) = case.model.eval(), case.batches[0]
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def loss(parameters: dict, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {**state, **parameters}, (x[None],)), y[None])

    parameters = {name: w.detach() for name, w in scored_weights(model).items()}
    every = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    found = fisher_diagonal(model, [(x, y)], loss_fn)
    for name in parameters:
        torch.testing.assert_close(found[name], every[name].square().mean(0), rtol=1e-4, atol=1e-10)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.integers(1, 2), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 2), st.integers(1, 2),
    st.sampled_from([0, 1, "same"]), st.sampled_from(["zeros", "circular"]),
)  # fmt: skip
def test_any_convolution(axes, groups, kernel, stride, dilation, padding, mode):
    stride = 1 if padding == "same" else stride
    kind = (nn.Conv1d, nn.Conv2d)[axes - 1]
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups, "padding_mode": mode}
    model = nn.Sequential(kind(4, 8, kernel, **options), nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = noise(3, 4, *([7] * axes), dtype=torch.float64), torch.tensor([0, 1, 2])
    model(x)
    model[0].weight.data = noise(*model[0].weight.shape, seed=1, dtype=torch.float64)
    model[2].weight.data = noise(*model[2].weight.shape, seed=2, dtype=torch.float64)
    slow: list = []
    original = per_sample._alone
    try:
        per_sample._alone = lambda *args, **kwargs: slow.append(1) or original(*args, **kwargs)
        found = fisher_diagonal(model, [(x, y)], loss_fn)
    finally:
        per_sample._alone = original
    assert len(slow) == 1  # one sample compared; no loop
    for key, truth in by_loop(model, x, y).items():
        torch.testing.assert_close(found[key], truth, rtol=1e-9, atol=1e-12 * float(truth.max()))


def test_patches_times_weight_is_the_convolution():
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1, dilation=2, bias=False)
    x = noise(2, 3, 9, 9)
    rows = patches(layer, x)
    torch.testing.assert_close((rows.flatten(-3) @ layer.weight.flatten(1).T).movedim(-1, 1), layer(x))
    assert patches(layer, x[0]).shape[0] == 1  # without a batch axis


def test_memory_is_bounded_by_chunks(monkeypatch):
    case = hostile("conv_bn")
    whole = fisher_diagonal(case.model, case.batches, loss_fn)
    monkeypatch.setattr(per_sample, "CHUNK", 1)  # sample by sample
    parts = fisher_diagonal(case.model, case.batches, loss_fn)
    torch.testing.assert_close(flat(parts), flat(whole))


def test_a_layer_in_place_of_whose_output_a_relu_writes():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, 3))
    model, x, y = model.double(), noise(4, 2, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(flat(fisher_diagonal(model, [(x, y)], loss_fn)), flat(by_loop(model, x, y)))


def test_samples_along_another_axis_are_seen_and_looped_over():
    # The layer gets (positions, samples, I), as many of the one as of the other.
    class SequenceFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.layer(x.transpose(0, 1))).transpose(0, 1)[:, -1])

    model, x, y = SequenceFirst().double(), noise(5, 5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(flat(fisher_diagonal(model, [(x, y)], loss_fn)), flat(by_loop(model, x, y)))


@pytest.mark.parametrize("labels", ["exact", "sampled"])
def test_the_true_fisher_of_a_softmax_layer(labels):
    # Logits W x: F of W_ci is the mean over samples of p_c (1 - p_c) x_i^2, whatever the labels of the data are.
    layer, x = nn.Linear(4, 3, bias=False), noise(6, 4)
    layer.weight.data = noise(3, 4, seed=1)
    p = layer(x).detach().softmax(1)
    truth = torch.einsum("nc,ni->ci", p * (1 - p), x.square()) / 6
    y = torch.tensor([0, 0, 0, 0, 0, 0])
    repeats = 1 if labels == "exact" else 1500
    found = fisher_diagonal(layer, [(x.repeat(repeats, 1), y.repeat(repeats))], loss_fn, labels=labels)["weight"]
    torch.testing.assert_close(found, truth, rtol=1e-5 if labels == "exact" else 0.1, atol=1e-6)
    empirical = fisher_diagonal(layer, [(x, y)], loss_fn)["weight"]
    assert not torch.allclose(empirical, truth, rtol=0.3)  # the data's labels are others


def test_the_exact_fisher_is_the_gauss_newton_matrix():
    # sum_c p_c (d log p_c)^2 = J^T (diag p - p p^T) J, with two layers, in float64.
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = noise(5, 3, dtype=torch.float64)
    weights = scored_weights(model)
    total = 0
    for i in range(5):
        logits = model(x[i : i + 1])[0]
        rows = [torch.autograd.grad(z, list(weights.values()), retain_graph=True) for z in logits]
        jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])  # (C, parameters)
        p = logits.softmax(0)
        total = total + (jacobian.T @ (p.diag() - torch.outer(p, p)) @ jacobian).diagonal() / 5
    found = fisher_diagonal(model, [(x[:2], torch.zeros(2)), (x[2:], torch.zeros(3))], loss_fn, labels="exact")
    torch.testing.assert_close(flat(found), total.detach())


def test_sampled_labels_follow_the_generator():
    case = hostile("embedding")
    runs = [
        flat(fisher_diagonal(case.model, case.batches, loss_fn, labels="sampled", generator=g))
        for g in (None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_one_sample_in_each_batch_is_taylors():
    case = hostile("mlp")
    x, y = case.batches[0]
    alone = [(x[i : i + 1], y[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(
        flat(taylor_scores(case.model, alone, loss_fn)), 2 * flat(fisher_scores(case.model, case.batches[:1], loss_fn))
    )


def test_refusals():
    case = hostile("embedding")
    with pytest.raises(ValueError, match=r"labels='true' must be one of \('data', 'sampled', 'exact'\)"):
        fisher_diagonal(case.model, case.batches, loss_fn, labels="true")
    with pytest.raises(ValueError, match=r"labels='exact' needs outputs \(B, C\), got \(4, 6, 11\)"):
        fisher_diagonal(case.model, case.batches, loss_fn, labels="exact")


def test_the_fault_of_squared_batch_gradients():
    # The square of a batch's gradient for the mean of squares: at random weights the order is lost as batches grow,
    # and the size falls with the batch: near 1 / batch.
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 10))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=0.3, generator=generator)
    x, y = noise(1024, 20, seed=3), torch.randint(10, (1024,), generator=generator)
    truth = flat(fisher_diagonal(model, [(x, y)], loss_fn))

    def wrong(size: int) -> Tensor:
        weights, total = scored_weights(model), 0
        for part in range(0, 1024, size):
            loss = loss_fn(model(x[part : part + size]), y[part : part + size])
            g = torch.autograd.grad(loss, list(weights.values()))
            total = total + torch.cat([t.flatten() for t in g]).square() * size / 1024
        return total.double()

    rho = {size: spearman(wrong(size), truth) for size in (1, 8, 64, 512)}
    print(rho, {size: float(truth.mean() / wrong(size).mean()) for size in rho})
    assert rho[1] > 0.999
    assert rho[1] > rho[8] > rho[64] > rho[512]
    assert rho[512] < 0.5
    assert 5 < truth.mean() / wrong(8).mean() < 10
    assert 25 < truth.mean() / wrong(64).mean() < 80


def test_the_fault_of_fisher_alone():
    # Two weights: a large one on a small input, a small one on a large input. Removing the large one costs more.
    # y = 10 * 0.3 + 0.1 * 1: F says 0.09 < 1; 1/2 F w^2 says 4.5 > 0.005, and so does the loss.
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[10.0, 0.1]])
    x, target = torch.tensor([[0.3, 1.0]]), torch.tensor([[2.1]])  # y = 3.1, one too many

    def half(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() / 2

    f = fisher_diagonal(layer, [(x, target)], half)["weight"][0]
    saliency = fisher_scores(layer, [(x, target)], half)["weight"][0]
    assert f.tolist() == pytest.approx([0.09, 1.0], rel=1e-4)
    assert saliency.tolist() == pytest.approx([4.5, 0.005], rel=1e-4)
