"""Merging: neurons matched before they are averaged, groups by hand, twins merged without loss."""

from __future__ import annotations

import pytest
import torch
from test_expert_layers import random_moe
from test_experts import HOSTILE, add_moe, output
from test_routing import moe, tokens
from torch import nn

from compresslab.pruning.expert_layers import find_moe_layers
from compresslab.pruning.expert_merging import match_neurons, merge_experts, merge_groups
from compresslab.pruning.expert_neurons import prune_expert_neurons
from compresslab.pruning.routing import routing_statistics
from compresslab.testing import check_compressor


def test_groups_by_hand():
    usage = torch.tensor([0.1, 0.4, 0.3, 0.2])
    alike = torch.tensor([[1.0, 0.2, 0.7, 0.9], [0.2, 1.0, 0.1, 0.6], [0.7, 0.1, 1.0, 0.5], [0.9, 0.6, 0.5, 1.0]])
    assert merge_groups(usage, alike, 2) == [[1, 3], [2, 0]]  # 3 is more like 1 (.6) than 2 (.5); 0 is no lead
    assert merge_groups(usage, alike, 1) == [[1, 0, 2, 3]]
    assert merge_groups(usage, alike, 4) == [[0], [1], [2], [3]]
    for args, message in (
        ((usage, alike[:3], 2), r"similarity \(3, 4\) must be \(4, 4\)"),
        ((usage, alike, 0), "count=0 must be in 1..4"),
        ((usage, alike, 5), "count=5 must be in 1..4"),
        ((usage * torch.nan, alike, 2), "usage must be finite"),
        ((usage, alike / 0, 2), "similarity must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            merge_groups(*args)


def test_matching_finds_a_permutation():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator)
    order = torch.randperm(20, generator=generator)
    noisy = x[order] + 0.01 * torch.randn(20, 5, generator=generator)
    found = match_neurons(x, noisy)
    assert torch.equal(order[found], torch.arange(20)) and sorted(found.tolist()) == list(range(20))


def twins(rows_alike: bool = True) -> nn.Module:
    """In both layers experts 0 and 1 are one function, its neurons in another order, and the router's rows are one."""
    model = moe().eval()
    for block in model.blocks:
        first, second = block.moe.experts[:2]
        order = torch.randperm(6, generator=torch.Generator().manual_seed(3))
        second.fc1.weight.data, second.fc1.bias.data = first.fc1.weight.data[order], first.fc1.bias.data[order]
        second.fc2.weight.data, second.fc2.bias.data = first.fc2.weight.data[:, order], first.fc2.bias.data.clone()
        if rows_alike:
            block.moe.router.weight.data[1] = block.moe.router.weight.data[0]
    return model


def measured(model, x):
    found = routing_statistics(model, [(x, None)])
    return {n: s.usage for n, s in found.items()}, {n: s.similarity for n, s in found.items()}


def test_twins_are_merged_into_what_they_were():
    model, x = twins(), tokens()
    usage, alike = measured(model, x)
    merged = merge_experts(model, usage, alike, ratio=0.25)
    for name, groups in merged.groups.items():
        pair = next(group for group in groups if len(group) == 2)
        lowest = int(usage[name].argmin())
        assert sorted(pair) == [0, 1] or lowest in pair  # the least used joins the most alike
    forced = {name: torch.tensor([0.3, 0.1, 0.3, 0.3]) for name in usage}  # now it is expert 1 that joins expert 0
    merged = merge_experts(model, forced, alike, ratio=0.25)
    assert merged.groups == {name: [[0, 1], [2], [3]] for name in usage}
    for block, old in zip(merged.model.blocks, model.blocks, strict=True):
        for name, value in block.moe.experts[0].named_parameters():
            torch.testing.assert_close(value, old.moe.experts[0].get_parameter(name), rtol=1e-12, atol=1e-14)
        assert torch.equal(block.moe.router.weight, old.moe.router.weight[[0, 2, 3]])
        torch.testing.assert_close(block.moe.experts[1].fc1.weight, old.moe.experts[2].fc1.weight)
    apart = merge_experts(
        model, forced, alike, ratio=0.25, align=False
    )  # without matching the mean is another function
    difference = apart.model.blocks[0].moe.experts[0].fc1.weight - model.blocks[0].moe.experts[0].fc1.weight
    assert difference.abs().max() > 0.1


def test_the_mean_is_weighted_by_usage():
    """Two experts of usage .3 and .1: shares .75 and .25, so of constant experts 2 and 6 becomes .75 * 2 + .25 * 6 = 3."""
    model = moe().eval()
    for block in model.blocks:
        for expert, constant in zip(block.moe.experts, (2.0, 6.0, 0.0, 0.0), strict=True):
            for value in expert.parameters():
                value.data.fill_(constant)
    alike = {f"blocks.{n}.moe": torch.eye(4) + 0.1 for n in (0, 1)}
    for name in alike:
        alike[name][1, 0] = 0.9
    usage = dict.fromkeys(alike, torch.tensor([0.3, 0.1, 0.3, 0.3], dtype=torch.float64))
    merged = merge_experts(model, usage, alike, ratio=0.25).model
    assert all(((value - 3).abs() < 1e-12).all() for value in merged.blocks[1].moe.experts[0].parameters())
    unused = dict.fromkeys(alike, torch.zeros(4))  # no usage at all: lead is 0, everybody counts alike
    merged = merge_experts(model, unused, {n: torch.ones(4, 4) for n in alike}, ratio=1.0)
    assert merged.groups["blocks.0.moe"] == [[0, 1, 2, 3]] and merged.model.blocks[0].moe.top_k == 1
    assert all((value == 2).all() for value in merged.model.blocks[0].moe.experts[0].parameters())
    assert any("top_k 2 is now 1" in note for note in merged.notes)


def test_fused_experts_are_averaged_and_it_is_said():
    model, x = random_moe("mixtral"), tokens(32)
    usage, alike = measured(model, x)
    merged = merge_experts(model, usage, alike, ratio=0.5)
    assert all("without matching" in note for note in merged.notes) and len(merged.notes) == 2
    for name, groups in merged.groups.items():
        for place, group in enumerate(groups):
            weights = usage[name][group] / usage[name][group].sum()
            old = model.get_submodule(name).experts.down_proj[group]
            wanted = (weights[:, None, None] * old).sum(0)
            torch.testing.assert_close(
                merged.model.get_submodule(name).experts.down_proj[place],
                wanted,
                check_dtype=False,
                atol=1e-6,
                rtol=1e-5,
            )
    assert output(merged.model, x).isfinite().all()
    assert not merge_experts(model, usage, alike, align=False).notes


def test_what_is_refused():
    model, x = moe(), tokens()
    usage, alike = measured(model, x)
    with pytest.raises(ValueError, match=r"ratio=1.5 must be the fraction of experts that goes"):
        merge_experts(model, usage, alike, ratio=1.5)
    with pytest.raises(ValueError, match=r"ratio=0.1 merges no expert of blocks.0.moe, blocks.1.moe"):
        merge_experts(model, usage, alike, ratio=0.1)
    with pytest.raises(ValueError, match=r"usage and similarity must have 'blocks.0.moe'"):
        merge_experts(model, {}, alike)
    slim = prune_expert_neurons(model, {"blocks.0.moe": [3, 4, 5, 6]}).model
    for expert in model.blocks[1].moe.experts:
        expert.act = nn.Softmax(-1)
    mixing = merge_experts(model, usage, alike)
    assert "must not mix" in mixing.unprunable["blocks.1.moe"] and list(mixing.groups) == ["blocks.0.moe"]
    assert len(merge_experts(model, usage, alike, align=False).groups) == 2
    merged = merge_experts(slim, usage, alike)
    assert "its experts differ in size" in merged.unprunable["blocks.0.moe"] and list(merged.groups) == ["blocks.1.moe"]


def test_hostile_models(monkeypatch):
    add_moe(monkeypatch)

    def half(model, batches):
        find_moe_layers(model)
        return merge_experts(model, *measured_on(model, batches)).model

    def measured_on(model, batches):
        found = routing_statistics(model, batches)
        return {n: s.usage for n, s in found.items()}, {n: s.similarity for n, s in found.items()}

    verdicts = check_compressor(half, models=(*HOSTILE, "moe"), must_accept=("moe",))
    assert [v.model for v in verdicts if v.outcome == "right"] == ["moe"]
