"""Skipping: against the same routing with the weak gates' logits at minus infinity, and work that is really saved."""

from __future__ import annotations

import pytest
import torch
from test_expert_layers import Layer, random_moe
from test_experts import HOSTILE, add_moe, output
from test_routing import moe, tokens
from torch import nn

from compresslab.pruning.expert_skipping import SkippingLayer, skip_experts
from compresslab.pruning.routing import routing_statistics
from compresslab.testing import check_compressor


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [2, 3])
def test_equals_weak_logits_at_minus_infinity(threshold, top_k):
    model, x = moe(top_k=top_k).eval(), tokens()
    skipping = skip_experts(model, threshold)

    def mask(router, args, logits):
        probs = logits.softmax(-1)
        return logits.masked_fill(probs < threshold * probs.amax(-1, keepdim=True), -torch.inf)

    handles = [block.moe.router.register_forward_hook(mask) for block in model.blocks]
    wanted = output(model, x)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(output(skipping.model, x), wanted, rtol=1e-12, atol=1e-13)
    if threshold:
        assert (wanted - output(model, x)).abs().max() > 1e-4
    assert all(block.moe.layer.top_k == top_k for block in skipping.model.blocks)  # put back


def test_rows_that_experts_see_are_fewer():
    model, x, rows = moe().eval(), tokens(rows=9), []
    seen = routing_statistics(model, [(x, None)])
    threshold = {name: found.skip_threshold(0.5) for name, found in seen.items()}
    skipping = skip_experts(model, threshold)
    assert skipping.thresholds == threshold
    for block in skipping.model.blocks:
        for expert in block.moe.layer.experts:
            expert.register_forward_hook(lambda _, args, out: rows.append(len(args[0])))
    output(skipping.model, x)
    total = 2 * 2 * x.numel()  # layers, k, tokens
    ran = sum(rows)
    assert 0.70 * total < ran < 0.80 * total
    measured = routing_statistics(skipping.model, [(x, None)])
    assert sum(s.experts_per_token for s in measured.values()) * x.numel() == pytest.approx(ran)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_transformers(name):
    model, x = random_moe(name), tokens(32)
    torch.testing.assert_close(output(skip_experts(model, 0.0).model, x), output(model, x), rtol=1e-4, atol=1e-5)
    alone = skip_experts(model, 1.0).model
    for layer in model.model.layers:
        layer.mlp.gate.top_k = 1
    torch.testing.assert_close(output(alone, x), output(model, x), rtol=1e-4, atol=1e-5)


def test_no_tokens_and_training():
    model = moe().train()
    skipping = skip_experts(model, {"blocks.1.moe": 0.5}).model
    assert skipping.training and isinstance(skipping.blocks[1].moe, SkippingLayer)
    assert not isinstance(skipping.blocks[0].moe, SkippingLayer)
    assert output(skipping, tokens(rows=3)[:0]).shape == (0, 12, 256)
    loss, _ = skipping.loss(tokens(), tokens(seed=1))
    loss.backward()
    assert skipping.blocks[1].moe.layer.router.weight.grad is not None


def test_k_is_put_back_after_an_error():
    skipping = skip_experts(moe().eval(), 1.0).model
    skipping.blocks[0].moe.layer.experts[0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output(skipping, tokens())
    assert skipping.blocks[0].moe.layer.top_k == 2


def test_what_is_refused():
    model = moe()
    for threshold, message in (
        (1.5, "threshold=1.5 of blocks.0.moe must be a share of the largest gate"),
        ({"a": 0.5}, "'a' is no layer of experts; those are blocks.0.moe"),
    ):
        with pytest.raises(ValueError, match=message):
            skip_experts(model, threshold)
    with pytest.raises(ValueError, match=r"has a SkippingLayer already"):
        skip_experts(skip_experts(model, 0.5).model, 0.5)
    with pytest.raises(ValueError, match=r"no layer could skip experts: .*one expert works for each token"):
        skip_experts(moe(top_k=1), 0.5)
    with pytest.raises(ValueError, match=r"the model itself is the layer of experts"):
        skip_experts(Layer(), 0.5)
    mixed = nn.Sequential(Layer(), Layer(top_k=1))
    assert list(skip_experts(mixed, 0.5).unprunable) == ["1"]


def test_hostile_models(monkeypatch):
    add_moe(monkeypatch)

    def skip(model, batches):
        return skip_experts(model, 0.5).model

    verdicts = check_compressor(skip, models=(*HOSTILE, "moe"), must_accept=("moe",))
    assert [v.model for v in verdicts if v.outcome == "right"] == ["moe"]
