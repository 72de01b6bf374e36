"""Neurons of experts: exact counts by D'Hondt's rule, the same function as with columns at zero."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_expert_layers import random_moe
from test_experts import HOSTILE, add_moe, output
from test_routing import moe, tokens
from torch import nn

from compresslab.pruning.expert_neurons import expert_parts, kept_neurons, prune_expert_neurons
from compresslab.pruning.routing import routing_statistics
from compresslab.testing import check_compressor


def test_counts_by_hand():
    """E = 3, H = 10, half of 30 stays. D'Hondt from one seat each, shares .6, .3, .1: quotients .3 (2nd seat), .2, .15,
    .12, .1, .0857, .075, .0667, .06 (10th) for the first, .15, .1, .075, .06, .05 for the second, .05 for the
    third. Twelve more seats: all nine of the first, 10 in all; the second takes .15, .1, .075 and has 4."""
    assert kept_neurons(torch.tensor([0.6, 0.3, 0.1]), 10, ratio=0.5).tolist() == [10, 4, 1]
    assert kept_neurons(torch.tensor([0.6, 0.3, 0.1]), 10, ratio=0.5, power=0).tolist() == [5, 5, 5]
    assert kept_neurons(torch.tensor([0.0, 0.0]), 4, ratio=0.0).tolist() == [4, 4]
    assert kept_neurons(torch.tensor([0.7, 0.3]), 4, ratio=1.0).tolist() == [1, 1]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(1, 20), st.floats(0, 1), st.floats(0, 2))
def test_counts_are_exact_and_follow_usage(experts, hidden, ratio, power):
    usage = torch.rand(experts, generator=torch.Generator().manual_seed(hidden))
    counts = kept_neurons(usage, hidden, ratio=ratio, power=power)
    assert counts.sum() == max(round((1 - ratio) * experts * hidden), experts)
    assert counts.min() >= 1 and counts.max() <= hidden
    assert (counts[usage.argsort(stable=True)].diff() >= (0 if power > 0.01 else -1)).all()


@pytest.mark.parametrize(
    ("usage", "options", "message"),
    [
        ([0.5, -0.5], {}, r"usage=\[0.5, -0.5\] must be one number of 0 or more"),
        ([0.5, torch.nan], {}, "usage must be finite"),
        ([0.5], {"ratio": 2}, "ratio=2 must be in 0..1"),
        ([0.5], {"hidden": 0}, "hidden=0 at least 1"),
        ([0.5], {"power": -1}, "power=-1 at least 0"),
    ],
)
def test_counts_refuse(usage, options, message):
    options = {"hidden": 4, "ratio": 0.5} | options
    with pytest.raises(ValueError, match=message):
        kept_neurons(torch.tensor(usage), options.pop("hidden"), **options)


class Gated(nn.Module):
    """Mixtral's names, in the order in which they were registered there: the last one is not the output."""

    def __init__(self, width=4, hidden=6):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden), nn.Linear(hidden, width), nn.Linear(width, hidden)

    def forward(self, x):
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


def test_parts_of_a_gated_expert():
    parts = expert_parts(Gated(4, 4), 4)  # all three have the same shape
    assert (set(parts.up), parts.down, parts.hidden) == ({"w1", "w3"}, "w2", 4)


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (nn.Identity(), r"one from H to 4, ran \[\]"),
        (nn.Linear(4, 4, device="meta"), "weight is on the meta device"),
        (nn.Sequential(nn.Linear(4, 4)), r"must be Linear layers from 4 to H and one from H to 4, ran \['0'\]"),
        (nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 4)), "must be Linear layers from 4 to H"),
        (nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 4)), "the 6 neurons must not mix before '2'"),
        (nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4)), "the 6 neurons must not mix before '2'"),
    ],
)
def test_parts_refuse(expert, message):
    with pytest.raises(ValueError, match=message):
        expert_parts(expert, 4)


def test_equals_columns_at_zero():
    model, x = moe().eval(), tokens()
    counts = {"blocks.0.moe": [1, 6, 3, 2], "blocks.1.moe": torch.tensor([6, 5, 4, 3])}
    slim = prune_expert_neurons(model, counts)
    zeroed = copy.deepcopy(model)
    for name, keeps in slim.kept.items():
        bank, now = zeroed.get_submodule(name).experts, slim.model.get_submodule(name).experts
        assert [len(keep) for keep in keeps] == [int(n) for n in counts[name]]
        for expert, smaller, keep in zip(bank, now, keeps, strict=True):
            gone = sorted(set(range(6)) - set(keep.tolist()))
            size = expert.fc1.weight.norm(dim=1) * expert.fc2.weight.norm(dim=0)
            assert not gone or size[keep].min() >= size[gone].max()
            expert.fc2.weight.data[:, gone] = 0
            assert smaller.fc1.weight.shape == (len(keep), 8) and smaller.fc2.weight.shape == (8, len(keep))
            assert smaller.fc1.out_features == smaller.fc2.in_features == len(keep) == len(smaller.fc1.bias)
    torch.testing.assert_close(output(slim.model, x), output(zeroed, x), rtol=1e-12, atol=1e-13)
    assert (output(model, x) - output(zeroed, x)).abs().max() > 1e-3 and not slim.unprunable


def test_what_stays_and_what_is_refused():
    model = random_moe("mixtral")
    with pytest.raises(ValueError, match=r"could be pruned: .*share one 3-D parameter.*; drop whole experts instead"):
        prune_expert_neurons(model, {"model.layers.0.mlp": [1, 1, 1, 1]})
    model = moe()
    for expert in model.blocks[0].moe.experts:
        expert.act = nn.Softmax(-1)
    slim = prune_expert_neurons(model, {f"blocks.{n}.moe": [3, 3, 3, 3] for n in (0, 1)})
    assert list(slim.kept) == ["blocks.1.moe"] and "must not mix" in slim.unprunable["blocks.0.moe"]
    assert slim.model.blocks[0].moe.experts[0].fc1.out_features == 6
    for kept, message in (
        ({"a": [1]}, r"kept names \['a'\]; the layers of experts are blocks.0.moe"),
        ({}, "kept names no layer"),
        ({"blocks.1.moe": [3, 3, 3]}, r"kept=\[3, 3, 3\] of blocks.1.moe must be one number for each expert"),
        ({"blocks.1.moe": [3, 3, 3, 7]}, r"in 1..\[6, 6, 6, 6\]"),
        ({"blocks.1.moe": [3, 3, 3, 0]}, r"kept=\[3, 3, 3, 0\]"),
    ):
        with pytest.raises(ValueError, match=message):
            prune_expert_neurons(model, kept)


def test_hostile_models(monkeypatch):
    add_moe(monkeypatch)

    def half(model, batches):
        return prune_expert_neurons(model, {"blocks.0.moe": [3, 3, 2, 4]}).model

    verdicts = check_compressor(half, models=(*HOSTILE, "moe"), must_accept=("moe",))
    assert [v.model for v in verdicts if v.outcome == "right"] == ["moe"]


def test_bfloat16():
    model, x = moe().bfloat16().eval(), tokens()
    slim = prune_expert_neurons(model, {"blocks.0.moe": [3, 4, 5, 6]})
    assert slim.model.blocks[0].moe.experts[0].fc1.weight.dtype is torch.bfloat16
    assert output(slim.model, x).isfinite().all()
    seen = routing_statistics(slim.model, [(x, None)])
    assert seen["blocks.0.moe"].contribution.dtype is torch.float64
