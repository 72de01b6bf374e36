"""Experts dropped: the same as their router logits at minus infinity, and really gone from the file."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from test_expert_layers import random_moe
from test_routing import moe, tokens
from torch import nn

from compresslab.pruning.expert_layers import find_moe_layers
from compresslab.pruning.experts import drop_experts, expert_oracle, lowest_experts
from compresslab.pruning.routing import routing_statistics
from compresslab.testing import check_compressor
from compresslab.testing.hostile import _MAKERS, HOSTILE
from compresslab.workbench import models


@contextlib.contextmanager
def at_minus_infinity(model: nn.Module, experts: dict[str, list[int]]):
    """The original, with the router logits of some experts at -inf, whatever computes them."""
    layers = find_moe_layers(model).layers
    gone = {id(model.get_submodule(layers[name].router).weight): numbers for name, numbers in experts.items()}
    original = F.linear

    def linear(x, weight, bias=None):
        y = original(x, weight, bias)
        return y.index_fill(-1, torch.tensor(gone[id(weight)]), -torch.inf) if id(weight) in gone else y

    F.linear = linear
    try:
        yield model
    finally:
        F.linear = original


def output(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result = model(x)
    return result if isinstance(result, torch.Tensor) else result.logits


@pytest.mark.parametrize("gone", [[0], [3], [1, 2], [0, 1, 3]])
def test_equals_logits_at_minus_infinity(gone):
    model, x = moe().eval(), tokens()
    experts = {"blocks.1.moe": gone}
    smaller = drop_experts(model, experts)
    with at_minus_infinity(model, experts):
        wanted = output(model, x)
    torch.testing.assert_close(output(smaller.model, x), wanted, rtol=1e-12, atol=1e-13)
    assert (wanted - output(model, x)).abs().max() > 1e-3
    assert smaller.removed == experts and smaller.kept["blocks.1.moe"].tolist() == sorted(set(range(4)) - set(gone))
    assert smaller.model.blocks[1].moe.top_k == min(2, 4 - len(gone)) and smaller.model.blocks[0].moe.top_k == 2
    lowered = [note for note in smaller.notes if "top_k 2 is now 1" in note]
    assert len(lowered) == (len(gone) == 3) and any("different numbers" in note for note in smaller.notes)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("gone", [[1], [0, 3], [0, 1, 2]])
def test_equals_logits_at_minus_infinity_in_transformers(name, gone):
    options = {"n_group": 1, "topk_group": 1} if name == "deepseek_v3" else {}
    model, x = random_moe(name, **options), tokens(32)
    if name == "deepseek_v3":
        gone = gone[:2]  # its score of a group is that of its two best experts, so two must stay
    experts = dict.fromkeys(find_moe_layers(model).layers, gone)
    smaller = drop_experts(model, experts)
    with at_minus_infinity(model, experts):
        if name == "deepseek_v3":
            for layer in experts:
                model.get_submodule(layer).gate.e_score_correction_bias[gone] = -9.0  # it chooses by sigmoid plus this
        wanted = output(model, x)
    torch.testing.assert_close(output(smaller.model, x), wanted, rtol=1e-4, atol=1e-5)
    config = smaller.model.config
    assert config.num_local_experts == 4 - len(gone) if name != "qwen2_moe" else config.num_experts == 4 - len(gone)
    assert config.num_experts_per_tok == min(2, 4 - len(gone)) and not smaller.notes[len(experts) :]
    fresh = type(model)(config)
    fresh.load_state_dict(smaller.model.state_dict())
    torch.testing.assert_close(output(fresh.eval(), x), output(smaller.model, x))


def test_transformers_own_loss_still_runs():
    model, x = random_moe("mixtral"), tokens(32)
    smaller = drop_experts(model, {layer: [2] for layer in find_moe_layers(model).layers}).model
    result = smaller(x, output_router_logits=True)
    assert result.router_logits[0].shape[-1] == 3 and result.aux_loss.isfinite()


def test_a_dropped_expert_is_gone_from_the_file():
    model, x = moe().float().eval(), tokens()
    smaller = drop_experts(model, {"blocks.0.moe": [1], "blocks.1.moe": [3]})
    one = sum(p.numel() for p in model.blocks[0].moe.experts[0].parameters()) + 8  # and its row of the router
    count = [sum(p.numel() for p in m.parameters()) for m in (model, smaller.model)]
    assert count[0] - count[1] == 2 * one == 2 * (8 * 6 + 6 + 6 * 8 + 8 + 8)
    states = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, smaller.model)]
    sizes = [len(save(state)) for state in states]
    assert sizes[0] - sizes[1] >= 4 * 2 * one  # the header has fewer names as well
    assert not any("experts.3." in name for name in states[1]) and states[1]["blocks.0.moe.router.weight"].shape == (
        3,
        8,
    )
    again = load(save(states[1]))
    fresh = models.build(**smaller.model.config)
    assert fresh.config["experts"] == 3
    fresh.load_state_dict(again)
    assert torch.equal(output(fresh.eval(), x), output(smaller.model, x))
    by_numbers = drop_experts(moe().float(), smaller.removed).model
    by_numbers.load_state_dict(again)
    assert torch.equal(output(by_numbers.eval(), x), output(smaller.model, x))
    torch.testing.assert_close(
        states[1]["blocks.0.moe.experts.1.fc1.weight"], model.blocks[0].moe.experts[2].fc1.weight
    )


def test_layers_that_differ_leave_the_config_and_say_so():
    smaller = drop_experts(moe(), {"blocks.0.moe": [1]})
    assert smaller.model.config["experts"] == 4
    assert smaller.notes == [
        "layers keep different numbers of experts, which no config says; load weights into drop_experts(original)"
    ]
    again = drop_experts(smaller.model, {"blocks.1.moe": [0, 0]})  # a number named twice goes once
    assert [len(block.moe.experts) for block in again.model.blocks] == [3, 3]


def test_flags_and_ties_stay():
    model = moe().train()
    model.blocks[0].moe.router.weight.requires_grad_(False)
    smaller = drop_experts(model, {"blocks.0.moe": [0]}).model
    assert smaller.training and smaller.head.weight is smaller.embed.weight
    assert not smaller.blocks[0].moe.router.weight.requires_grad and smaller.blocks[0].moe.router.out_features == 3
    loss, _ = smaller.loss(tokens(), tokens(seed=1))  # the balance loss knows the new number
    loss.backward()


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"blocks.7.moe": [0]}, "'blocks.7.moe' is no layer of experts; those are blocks.0.moe, blocks.1.moe"),
        ({"blocks.0.moe": [4]}, r"experts \[4\] of blocks.0.moe must be among 0..3"),
        ({"blocks.0.moe": [-1]}, r"experts \[-1\] of blocks.0.moe must be among"),
        ({"blocks.0.moe": [0, 1, 2, 3]}, r"experts \[0, 1, 2, 3\] of blocks.0.moe are all it has; keep one"),
        ({"blocks.0.moe": []}, "must name at least one expert to drop"),
    ],
)
def test_what_cannot_be_dropped(experts, message):
    with pytest.raises(ValueError, match=message):
        drop_experts(moe(), experts)


def test_lowest_by_hand():
    scores = {"a": torch.tensor([4.0, 3.0, 2.0, 1.0]), "b": torch.tensor([0.1, 0.3, 0.2, 0.2])}
    assert lowest_experts(scores, ratio=0.5) == {"a": [2, 3], "b": [0, 2]}  # of the equal 2 and 3 the first
    assert lowest_experts(scores, ratio=0.5, scope="global") == {"a": [3], "b": [0, 2, 3]}  # b keeps one
    assert lowest_experts(scores, ratio=0.5, scope="global", least=2) == {"a": [2, 3], "b": [0, 2]}
    assert lowest_experts(scores, ratio=1.0) == {"a": [1, 2, 3], "b": [0, 2, 3]}
    assert lowest_experts(scores, ratio=0.0) == {"a": [], "b": []}
    for options, message in (
        ({"ratio": 1.5}, "ratio=1.5 must be the fraction removed"),
        ({"ratio": 0.5, "scope": "all"}, "scope='all' must be 'layer' or 'global'"),
    ):
        with pytest.raises(ValueError, match=message):
            lowest_experts(scores, **options)
    with pytest.raises(ValueError, match=r"scores of a must be finite, got 1 NaN"):
        lowest_experts({"a": torch.tensor([torch.nan])}, ratio=0.5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0, 1), st.sampled_from(["layer", "global"]))
def test_lowest_is_exact(sizes, ratio, scope):
    generator = torch.Generator().manual_seed(sum(sizes))
    scores = {str(n): torch.randint(4, (size,), generator=generator).float() for n, size in enumerate(sizes)}
    chosen = lowest_experts(scores, ratio=ratio, scope=scope)
    free = sum(size - 1 for size in sizes)
    wanted = [round(ratio * size) for size in sizes] if scope == "layer" else [round(ratio * sum(sizes))]
    got = sum(len(numbers) for numbers in chosen.values())
    limits = [size - 1 for size in sizes] if scope == "layer" else [free]
    assert got == sum(min(w, limit) for w, limit in zip(wanted, limits, strict=True))
    for name, numbers in chosen.items():
        left = [s for n, s in enumerate(scores[name].tolist()) if n not in numbers]
        assert left and (not numbers or max(scores[name][numbers].tolist()) <= max(left))


def test_oracle_is_the_loss_without_each():
    model, x = moe().eval(), tokens()

    def loss(m):
        assert not m.training
        return F.cross_entropy(output(m, x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).item()

    found = expert_oracle(copy.deepcopy(model).train(), loss)
    for name in found:
        for expert in range(4):
            with at_minus_infinity(model, {name: [expert]}):
                assert found[name][expert].item() == pytest.approx(loss(model) - loss_of(model, x), abs=1e-12)


def loss_of(model, x):
    restore, F.linear = F.linear, torch._C._nn.linear
    try:
        return F.cross_entropy(output(model, x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).item()
    finally:
        F.linear = restore


def test_a_single_expert_has_no_oracle():
    assert not expert_oracle(moe(experts=1, top_k=1), lambda m: 0.0)


def add_moe(monkeypatch) -> None:
    """One more hostile model, by the name moe: the course's, on tokens below 11."""
    monkeypatch.setitem(_MAKERS, "moe", (lambda: moe(vocab=11, depth=1).float(), None, {}))


def by_contribution(model, batches):
    found = {name: seen.contribution for name, seen in routing_statistics(model, batches).items()}
    return drop_experts(model, lowest_experts(found, ratio=0.5)).model


def test_hostile_models(monkeypatch):
    add_moe(monkeypatch)
    verdicts = check_compressor(by_contribution, models=(*HOSTILE, "moe"), must_accept=("moe",))
    assert [v.model for v in verdicts if v.outcome == "right"] == ["moe"]
    assert all("it has none" in v.detail for v in verdicts if v.model in ("mlp", "conv_bn"))
