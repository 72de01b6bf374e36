"""Routing statistics: the Switch Transformer's numbers by hand, the model's own routing, every token one by one."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_expert_layers import random_moe
from torch import nn

from compresslab.pruning.routing import RoutingStatistics, load_balance, router_entropy, routing_statistics
from compresslab.workbench import models


def tokens(vocab: int = 256, length: int = 12, rows: int = 3, seed: int = 0):
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def moe(**options):
    return models.build("moe_gpt", **{"width": 8, "depth": 2, "heads": 2, "hidden": 6, "experts": 4} | options).double()


def test_load_balance_by_hand():
    """E = 4, T = 2, k = 2: assignments 0, 1, 0, 2, so f = (.5, .25, .25, 0);
    P = ((.4 + .5) / 2, (.3 + .1) / 2, (.2 + .3) / 2, .1) = (.45, .2, .25, .1);
    4 * (.225 + .05 + .0625 + 0) = 1.35."""
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.3, 0.1]], dtype=torch.float64)
    assert load_balance(probs, torch.tensor([[0, 1], [0, 2]])).item() == pytest.approx(1.35, abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 20), st.data())
def test_load_balance_is_one_where_probability_is_even_and_e_where_all_is_one(experts, count, draw):
    k = draw.draw(st.integers(1, experts))
    chosen = torch.rand(count, experts, generator=torch.Generator().manual_seed(count)).topk(k).indices
    even = torch.full((count, experts), 1 / experts, dtype=torch.float64)
    assert load_balance(even, chosen).item() == pytest.approx(1)
    one = torch.zeros(count, experts, dtype=torch.float64)
    one[:, -1] = 1
    assert load_balance(one, torch.full((count, 1), experts - 1)).item() == pytest.approx(experts)


def test_load_balance_has_a_gradient_and_checks_shapes():
    probs = torch.rand(3, 2, requires_grad=True)
    load_balance(probs, torch.zeros(3, 1, dtype=torch.int64)).backward()
    torch.testing.assert_close(probs.grad, torch.tensor([[2 / 3, 0.0]]).expand(3, 2))  # E f_e / T
    with pytest.raises(ValueError, match=r"probs \(3, 2\) must be \(T, E\) and chosen \(2, 1\)"):
        load_balance(probs, torch.zeros(2, 1, dtype=torch.int64))


def test_entropy_against_torch():
    probs = torch.rand(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    torch.testing.assert_close(router_entropy(probs), torch.distributions.Categorical(probs).entropy())
    assert router_entropy(torch.full((8,), 1 / 8)).item() == pytest.approx(math.log(8))


def test_statistics_by_hand():
    """Two tokens, three experts, k = 2. Token 0 goes to 0 (gate .75, norm 2) and 1 (.25, norm 4), token 1 to 0 (.6,
    norm 1) and 2 (.4, norm 5). Contributions: (.75 * 2 + .6 * 1) / 2 = 1.05, 1, 2; gates .675, .25, .4; the
    second gates are 1/3 and 2/3 of the first."""
    seen = RoutingStatistics(3)
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    chosen, gates = torch.tensor([[0, 1], [0, 2]]), torch.tensor([[0.75, 0.25], [0.6, 0.4]])
    seen.update(logits, chosen, gates, torch.tensor([[2.0, 4.0], [1.0, 5.0]]))
    assert seen.tokens == 2 and seen.counts.tolist() == [2, 1, 1] and seen.experts_per_token == 2
    assert seen.usage.tolist() == [0.5, 0.25, 0.25] and seen.relative_usage.tolist() == [1.5, 0.75, 0.75]
    assert seen.contribution.tolist() == pytest.approx([1.05, 1.0, 2.0])
    assert seen.mean_gate.tolist() == pytest.approx([0.675, 0.25, 0.4])
    assert seen.load_balance == pytest.approx(load_balance(logits.softmax(-1), chosen).item())
    assert seen.entropy == pytest.approx(router_entropy(logits.softmax(-1)).mean().item())
    assert seen.similarity.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]  # columns (1, 0), (0, 0), (0, 2)
    assert [seen.skip_threshold(share) for share in (0, 0.5, 1)] == pytest.approx([0.333, 0.666, 1.0])
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"share={share} must be in 0..1"):
            seen.skip_threshold(share)
    alone = RoutingStatistics(2)
    alone.update(torch.zeros(1, 2), torch.tensor([[0]]), torch.ones(1, 1), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"share=0.5 must be in 0..1, of tokens with two experts"):
        alone.skip_threshold(0.5)


def test_equals_the_models_own_routing_however_it_is_batched():
    model, x = moe(), tokens()
    seen = routing_statistics(model, [(x, None)])
    with torch.no_grad():
        _, routings = model.eval().route(x)
    for routing, found in zip(routings, seen.values(), strict=True):
        torch.testing.assert_close(found.usage, routing.load, check_dtype=False)
        assert found.load_balance == pytest.approx(load_balance(routing.probs, routing.chosen).item())
        for expert in range(4):
            gates = routing.weights[routing.chosen == expert]
            assert found.mean_gate[expert].item() == pytest.approx(gates.mean().item() if len(gates) else 0)
    one_by_one = routing_statistics(model, [(row[None], None) for row in x])
    for name, found in seen.items():
        for key in ("usage", "contribution", "similarity", "load_balance", "entropy"):
            torch.testing.assert_close(
                torch.as_tensor(getattr(found, key)), torch.as_tensor(getattr(one_by_one[name], key))
            )


def test_contribution_token_by_token():
    model, x, kept = moe(depth=1).eval(), tokens(), []
    layer = model.blocks[0].moe
    with layer.register_forward_pre_hook(lambda _, args: kept.append(args[0].flatten(0, 1))), torch.no_grad():
        _, (routing,) = model.route(x)
        norms = [[] for _ in range(4)]
        for token, row in enumerate(kept[0]):
            for expert, gate in zip(routing.chosen[token], routing.weights[token], strict=True):
                norms[expert].append((gate * layer.experts[expert](row)).norm().item())
    wanted = [sum(values) / len(values) if values else 0.0 for values in norms]
    found = routing_statistics(model, [(x, None)])["blocks.0.moe"]
    assert found.contribution.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_fused_experts_of_transformers(name):
    model, x = random_moe(name), tokens(32)
    seen = routing_statistics(model, [(x, None)])
    for layer, found in seen.items():
        bank, kept = model.get_submodule(layer).experts, []
        with (
            bank.register_forward_hook(lambda _, args, output, kept=kept: kept.append((*args, output))),
            torch.no_grad(),
        ):
            model(x)
        ((rows, chosen, gates, _),) = kept
        assert found.counts.tolist() == torch.bincount(chosen.flatten(), minlength=4).tolist()
        with torch.no_grad():  # each expert alone: the others' gates at zero
            for expert in range(4):
                alone = bank(rows, chosen, gates * (chosen == expert)).norm(dim=1)
                mean = alone.sum() / (chosen == expert).sum().clamp(min=1)
                assert found.contribution[expert].item() == pytest.approx(mean.item(), rel=1e-4)


class Sum(nn.Module):
    """Experts with gates as they are, or something beside them."""

    def __init__(self, divide: bool, extra: float):
        super().__init__()
        self.top_k, self.router = 2, nn.Linear(4, 3)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.divide, self.extra = divide, extra

    def forward(self, x):
        gates, chosen = self.router(x).softmax(-1).topk(2)
        gates = gates / gates.sum(-1, keepdim=True) if self.divide else gates
        every = torch.stack([expert(x) for expert in self.experts], 1)  # (T, E, D)
        return (gates.unsqueeze(-1) * every.gather(1, chosen[..., None].expand(-1, -1, 4))).sum(1) + self.extra * x


def test_whether_gates_are_divided_is_seen_and_another_part_refused():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    for divide in (True, False):
        layer = Sum(divide, 0.0)
        gates = layer.router(x).softmax(-1).topk(2).values
        gates = gates / gates.sum(-1, keepdim=True) if divide else gates
        found = routing_statistics(layer, [(x, None)])[""]
        assert (found.mean_gate * found.usage * 2).sum().item() == pytest.approx(gates.sum(1).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"0: its output must be the sum of gate times expert; it is not"):
        routing_statistics(nn.Sequential(Sum(True, 1.0)), [(x, None)])


def test_the_model_is_left_alone_also_after_an_error():
    model = moe().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    routing_statistics(model, [(tokens(), None)])
    with pytest.raises(ValueError, match=r"tokens of length 200 are longer"):
        routing_statistics(model, [(tokens(), None), (tokens(length=200), None)])
    with pytest.raises(KeyboardInterrupt):
        routing_statistics(model, interrupted())
    assert model.training and all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def interrupted():
    yield tokens(), None
    raise KeyboardInterrupt


def test_no_batch_and_no_token_are_refused():
    with pytest.raises(ValueError, match=r"batches holds no batch"):
        routing_statistics(moe(), [])

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Sum(True, 0.0)

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match=r"no token reached layer; pass batches"):
        routing_statistics(Around(), [(torch.ones(2, 4), None)])
