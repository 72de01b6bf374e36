"""The oracle against removal by hand, its correlations, what is counted, and the same table from other processes."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab import importance
from compresslab.importance import Oracle, Passes, channel_oracle, count_passes, split_half, weight_oracle
from compresslab.testing import hostile
from compresslab.workbench.sweeps import sweep


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def trained() -> tuple[nn.Module, list]:
    """A small network that has learned which of four directions an input lies in."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    for layer in model[::2]:
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
        nn.init.zeros_(layer.bias)
    y = torch.arange(256) % 4
    x = 1.5 * torch.eye(8)[y] + noise(256, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model, [(x[:100], y[:100]), (x[100:], y[100:])]


def test_channels_by_hand():
    # y = 3 * relu(x) + 5 * relu(-x): for x = 1 and -2 the losses -y are -3 and -10.
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model[0].weight.data, model[2].weight.data = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0, 5.0]])
    found = channel_oracle(model, [(torch.tensor([[1.0], [-2.0]]), None)], lambda y, t: -y.mean())
    assert found.loss == -6.5
    assert found.increase.tolist() == [1.5, 5]  # the mean without channel 0 is -10 / 2, without channel 1 -3 / 2
    assert found.places == (("0.weight", 0), ("0.weight", 1))


def test_channels_are_removed_with_their_bias_and_batch_norm():
    case = hostile("conv_bn")
    model = case.model.eval().requires_grad_(False)
    model[1].bias.data.fill_(2)
    found = channel_oracle(model, case.batches, loss_fn)
    x, y = (torch.cat(parts) for parts in zip(*case.batches, strict=True))
    assert len(found.places) == 16
    for (name, channel), increase in zip(found.places, found.increase.tolist(), strict=True):
        z = torch.relu(model[1](model[0](x)))
        z = z.index_fill(1, torch.tensor([channel]), 0) if name == "0.weight" else z
        z = torch.relu(model[3](z))
        z = z.index_fill(1, torch.tensor([channel]), 0) if name == "3.weight" else z
        assert increase == pytest.approx(float(loss_fn(model[6](z.flatten(1)), y)) - found.loss, abs=1e-6)


def test_weights_by_brute_force():
    model, batches = trained()
    found = weight_oracle(model, batches, loss_fn, names=["2.weight"])
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert found.loss == pytest.approx(loss_fn(model(x), y).item(), rel=1e-6)
    for (_, index), increase in list(zip(found.places, found.increase.tolist(), strict=True))[::7]:
        kept = model[2].weight.data.clone()
        model[2].weight.data.view(-1)[index] = 0
        assert increase == pytest.approx(loss_fn(model(x), y).item() - found.loss, abs=1e-6)
        model[2].weight.data = kept


def test_a_sample_is_drawn_from_all_and_in_order():
    model, batches = trained()
    every, some = (weight_oracle(model, batches, loss_fn, samples=n) for n in (None, 40))
    assert len(every.places) == 8 * 16 + 16 * 8 + 8 * 4
    assert len(some.places) == 40
    assert len(set(some.places)) == 40
    truth = dict(zip(every.places, every.increase.tolist(), strict=True))
    assert some.increase.tolist() == [truth[place] for place in some.places]
    assert {name for name, _ in some.places} == {"0.weight", "2.weight", "4.weight"}
    other = weight_oracle(model, batches, loss_fn, samples=40, generator=torch.Generator().manual_seed(1))
    assert other.places != some.places
    with pytest.raises(ValueError, match=r"samples=0 must be in 1..288, or None"):
        weight_oracle(model, batches, loss_fn, samples=0)
    with pytest.raises(ValueError, match=r"samples=25 must be in 1..24"):
        channel_oracle(model, batches, loss_fn, samples=25)


def test_other_processes_give_the_same():
    model, batches = trained()
    for oracle in (channel_oracle, weight_oracle):
        here, there = (
            oracle(model, batches, loss_fn, samples=20, sweep=functools.partial(sweep, n_jobs=n)) for n in (1, 2)
        )
        assert here.places == there.places
        assert torch.equal(here.increase, there.increase)


def test_picking_and_correlations():
    places = (*((name, index) for name in "ab" for index in range(3)), ("c", 1))
    oracle = Oracle(places, torch.tensor([1.0, 2.0, 3.0, 30.0, 20.0, 10.0, -50.0]), 0.0)
    scores = {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([[4.0], [5.0], [6.0]]), "c": torch.ones(2) * 7}
    assert oracle.pick(scores).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert oracle.spearman_within(scores) == 0  # +1 and -1, three removals each; c has one
    # Ranks of the increase 2 3 4 7 6 5 1: sum of d^2 = 1 + 1 + 1 + 9 + 1 + 1 + 36 = 50, 1 - 6 * 50 / 336
    assert oracle.spearman(scores) == pytest.approx(1 - 300 / 336)
    # Of its size 1 2 3 6 5 4 7: 4 + 0 + 4 = 8
    assert oracle.spearman(scores, absolute=True) == pytest.approx(1 - 48 / 336)
    assert oracle.spearman_within(scores | {"b": torch.ones(3)}) == 0.5  # no order in b
    with pytest.raises(ValueError, match="scores must hold 'c' with at least 2 numbers, got none"):
        oracle.pick({"a": scores["a"], "b": scores["b"]})
    with pytest.raises(ValueError, match="scores must hold 'a' with at least 2 numbers, got 1 scores"):
        oracle.pick(scores | {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="1 removals give no layer 3 of them"):
        Oracle((("a", 0),), torch.ones(1), 0.0).spearman_within(scores)


def test_scores_of_a_trained_network_follow_the_oracle():
    # The order that the course teaches, on a network small enough for every removal.
    model, batches = trained()
    weights, channels = weight_oracle(model, batches, loss_fn), channel_oracle(model, batches, loss_fn)
    fisher = importance.fisher_scores(model, batches, loss_fn)
    taylor = importance.taylor_scores(
        model, [(x[None], y[None]) for b in batches for x, y in zip(*b, strict=True)], loss_fn
    )
    assert weights.spearman(fisher, absolute=True) > 0.85
    assert weights.spearman(fisher, absolute=True) == pytest.approx(weights.spearman(taylor, absolute=True), abs=1e-3)
    assert weights.spearman(fisher) > weights.spearman(importance.gradient_scores(model, batches, loss_fn))
    joint = importance.fisher_channel_scores(model, batches, loss_fn)
    assert channels.spearman(joint) > 0.85


def test_passes_are_counted_in_samples():
    model, batches = trained()
    counts = {}
    for name, score in {
        "magnitude": lambda: importance.magnitude_scores(model),
        "gradient": lambda: importance.gradient_scores(model, batches, loss_fn),
        "wanda": lambda: importance.wanda_scores(model, batches),
        "hessian": lambda: importance.hessian_scores(model, batches, loss_fn, probes=3),
        "oracle": lambda: channel_oracle(model, batches, loss_fn, samples=5),
    }.items():
        with count_passes(model) as passes:
            score()
        counts[name] = passes
    assert counts == {
        "magnitude": Passes(0, 0),
        "gradient": Passes(256, 256),
        "wanda": Passes(256, 0),
        "hessian": Passes(256, 256 + 3 * 256),  # once for the gradient, once more for each product
        "oracle": Passes(100 + 6 * 256, 0),  # the first batch to find the channels, then once and five removals
    }
    assert not model._forward_hooks


def test_stability():
    model, batches = trained()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    parts = [(x[i : i + 32], y[i : i + 32]) for i in range(0, 256, 32)]
    magnitude = split_half(lambda part: importance.magnitude_scores(model), parts)
    fisher = split_half(lambda part: importance.fisher_scores(model, part, loss_fn), parts)
    one = split_half(lambda part: importance.fisher_scores(model, part[:1], loss_fn), parts)
    assert magnitude == 1
    assert one < fisher < 1
    with pytest.raises(ValueError, match="1 batches cannot be split in two halves"):
        split_half(lambda part: {}, parts[:1])
