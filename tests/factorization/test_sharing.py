"""Shared layers: one module under several names, counted once, with the sum of the gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.factorization import share_layers, unique_state
from compresslab.testing import check_compressor
from compresslab.workbench import models


def test_blocks_of_the_gpt():
    model = models.build("gpt", width=32, depth=4)
    result = share_layers(model, [["blocks.0", "blocks.1"], ["blocks.2", "blocks.3"]])
    new = result.model
    assert new.blocks[0] is new.blocks[1] and new.blocks[2] is new.blocks[3] and new.blocks[0] is not new.blocks[2]
    block = sum(p.numel() for p in model.blocks[0].parameters())
    assert result.parameters_before - result.parameters == 2 * block
    assert result.nbytes_before - result.nbytes == 2 * 4 * block
    assert result.parameters == len(
        torch.cat([t.flatten() for t in unique_state(new).values()])
    )  # the head is tied too
    assert result.groups == [("blocks.0", "blocks.1"), ("blocks.2", "blocks.3")]
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    model.blocks[1].load_state_dict(model.blocks[0].state_dict())
    model.blocks[3].load_state_dict(model.blocks[2].state_dict())
    assert torch.equal(new(tokens), model(tokens))


def test_the_gradient_is_the_sum_over_uses():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    for layer in model:
        nn.init.constant_(layer.weight, 3.0)
    new = share_layers(model, [["0", "1"]]).model
    new(torch.tensor([[2.0]])).backward()  # w^2 x: 2 w x = 12
    assert new[0].weight.grad.item() == 12


def test_the_mean_by_hand():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1))
    for layer, value, steps in ((model[0], 1.0, 3), (model[1], 2.0, 4)):
        layer.weight.data.fill_(value)
        layer.running_mean.fill_(10 * value)
        layer.num_batches_tracked.fill_(steps)
    new = share_layers(model, [["0", "1"]], start="mean").model
    assert new[1].weight.item() == 1.5 and new[1].running_mean.item() == 15 and new[1].num_batches_tracked.item() == 3
    assert share_layers(model, [["0", "1"]]).model[1].weight.item() == 1.0
    assert model[0].weight.item() == 1.0


def test_errors():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3), nn.Sequential(nn.Linear(2, 2)), nn.Dropout(0.1), nn.Dropout(0.2))  # fmt: skip
    for groups, message in (
        ([["0", "9"]], r"groups name \['9'\], which must be modules inside the model"),
        ([["0", ""]], r"groups name \[''\]"),
        ([["3", "3.0"]], "must name each module once, none inside another"),
        ([["0", "1"], ["1", "2"]], "must name each module once"),
        ([["0"]], "must hold groups of at least two names"),
        ([], "must hold groups of at least two names"),
        ([["0", "2"]], "0 and 2 differ in their options and cannot be one"),
        ([["0", "3"]], "0 and 3 differ in their modules"),
        ([["4", "5"]], "4 and 5 differ in their options"),
    ):
        with pytest.raises(ValueError, match=message):
            share_layers(model, groups)
    with pytest.raises(ValueError, match="start='last' must be 'first' or 'mean'"):
        share_layers(model, [["0", "1"]], start="last")
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match="0 and 1 differ in the shapes of their weights"):
        share_layers(mixed, [["0", "1"]])


def test_the_original_stays_as_it_was():
    model = models.build("gpt", width=32, depth=2).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = share_layers(model, [["blocks.0", "blocks.1"]], start="mean").model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.blocks[0] is not model.blocks[1] and not new.training
    assert new.head.weight is new.embed.weight
    assert not {id(p) for p in new.parameters()} & {id(p) for p in model.parameters()}


def test_the_common_checks():
    def compress(model, batches):  # hostile models have no two layers that are alike: a precise refusal, or nothing
        names = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
        return share_layers(model, [names[:2] or ["0"]]).model

    verdicts = check_compressor(compress, must_accept=[])
    assert {verdict.outcome for verdict in verdicts} == {"refused"}
