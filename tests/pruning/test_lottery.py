"""Lottery tickets: rewound to the bit, controls with the same counts, and a ticket that beats them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.pruning.lottery import find_ticket, random_masks, shuffle_weights
from compresslab.pruning.masks import enforce
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import train


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_by_hand():
    """Two rounds: half, then half of what is left; each training starts at the same weights."""
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    starts = []

    def learn(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
        starts.append((model.weight.tolist(), {name: mask.tolist() for name, mask in masks.items()}))
        model.weight.data *= torch.tensor([[9.0, 1.0, 2.0, 0.1]])  # 9 2 6 0.4: the first and the third are large then
        return model

    ticket = find_ticket(layer, learn, sparsity=0.75, rounds=2)
    assert starts == [
        ([[1, 2, 3, 4]], {}),
        ([[1, 0, 3, 0]], {"weight": [[True, False, True, False]]}),
    ]
    assert ticket.model.weight.tolist() == [[1, 0, 0, 0]]  # rewound, not trained
    assert ticket.dense.weight.tolist() == [[9, 2, 6, pytest.approx(0.4)]]
    assert ticket.history == (0.5, 0.75)
    assert layer.weight.tolist() == [[1, 2, 3, 4]]


def test_training_that_forgets_the_masks_brings_nothing_back():
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])

    def forget(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
        model.weight.data = 10 - model.weight.data
        return model

    # round 1 removes 3 and 4; round 2 sees 9 8 10 10, and of the 9 and the 8 that are left takes the 8
    ticket = find_ticket(layer, forget, sparsity=0.75, rounds=2)
    assert ticket.model.weight.tolist() == [[1, 0, 0, 0]]


def test_buffers_and_biases_are_rewound_too():
    case = hostile("conv_bn")
    ticket = find_ticket(
        case.model.train(),
        lambda model, masks: train.fit(model, case.batches, epochs=1, lr=0.05, after_step=enforce(masks)).model,
        sparsity=0.5,
        rounds=2,
    )
    start = case.model.state_dict()
    for name, tensor in ticket.model.state_dict().items():
        mask = ticket.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor, start[name] * mask)
    assert not torch.equal(ticket.dense.state_dict()["1.running_mean"], start["1.running_mean"])
    assert ticket.model.training


def test_controls_have_the_same_counts():
    model = hostile("prime_sizes").model
    ticket = find_ticket(model, lambda model, masks: model, sparsity=0.7, rounds=1)
    drawn = random_masks(ticket.masks, generator=seeded(0))
    assert {name: int(mask.sum()) for name, mask in drawn.items()} == {
        name: int(mask.sum()) for name, mask in ticket.masks.items()
    }
    assert all(mask.shape == ticket.masks[name].shape for name, mask in drawn.items())
    assert any(not torch.equal(mask, ticket.masks[name]) for name, mask in drawn.items())
    again, other = (random_masks(ticket.masks, generator=seeded(seed)) for seed in (0, 1))
    assert all(torch.equal(again[name], drawn[name]) for name in drawn)
    assert any(not torch.equal(other[name], drawn[name]) for name in drawn)

    shuffled = shuffle_weights(model, ticket.masks, generator=seeded(0))
    everything = shuffle_weights(
        model, {name: torch.ones_like(mask) for name, mask in ticket.masks.items()}, generator=seeded(0)
    )
    for name, mask in ticket.masks.items():
        assert torch.equal(shuffled.get_parameter(name) != 0, mask)
        before, after = model.get_parameter(name), everything.get_parameter(name)
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
        assert not torch.equal(before, after)
    assert torch.equal(shuffled[0].bias, model[0].bias)


def test_the_ticket_learns_better_than_random_masks():
    """Four inputs of sixty-four say which class it is; the ticket keeps weights that look at them."""
    x = torch.randn(256, 64, generator=seeded(0))
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long()
    batches = list(zip(x.split(32), y.split(32), strict=True))
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    for index, layer in enumerate((model[0], model[2])):
        layer.weight.data = torch.randn(layer.weight.shape, generator=seeded(index)) / 8
        layer.bias.data.zero_()

    def learn(model: nn.Module, masks: dict[str, torch.Tensor]) -> nn.Module:
        options = {"epochs": 12, "lr": 1e-2, "weight_decay": 0.0, "after_step": enforce(masks)}
        return train.fit(model, batches, **options).model

    def loss(start: nn.Module, masks: dict[str, torch.Tensor]) -> float:
        return train.evaluate(learn(start, masks), batches).loss

    ticket = find_ticket(model, learn, sparsity=0.95, rounds=3)
    chance = random_masks(ticket.masks, generator=seeded(5))
    from_ticket = loss(ticket.model, ticket.masks)
    assert from_ticket < 0.85 * loss(shuffle_weights(model, chance, generator=seeded(6)), chance)


def test_errors():
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="rounds=0 must be an integer of at least 1"):
        find_ticket(layer, lambda model, masks: model, rounds=0)
    with pytest.raises(TypeError, match=r"must return the trained nn\.Module, got str"):
        find_ticket(layer, lambda model, masks: "model")
    with pytest.raises(ValueError, match=r"mask weight must be bool and fit the model, \(2, 2\)"):
        shuffle_weights(layer, {"weight": torch.ones(3, dtype=torch.bool)}, generator=seeded(0))


def test_the_common_checks():
    check_compressor(lambda model, batches: find_ticket(model, lambda model, masks: model, sparsity=0.5).model)
