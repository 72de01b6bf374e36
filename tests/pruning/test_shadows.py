"""Copies: the same as ``copy.deepcopy`` gives, and shadows that share weights and nothing else."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from compresslab.pruning.copying import copied, shadow
from compresslab.workbench import models


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Odd(nn.Module):
    """What a copy can get wrong: a layer under two names, a tied weight, a shared empty cache, lists, tensors, hooks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.memory = nn.LSTM(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.listed = [self.first, {"norm": self.norm}]
        self.cache: dict = {}
        self.first.cache = self.cache
        self.constant = torch.ones(3)
        self.calls = 0
        self.register_forward_hook(Odd.count)

    def count(self, args, output):
        self.calls += 1

    def forward(self, x):
        y = self.norm(self.again(x) + self.tied(x))
        y = self.memory(y[:, None])[0]
        return self.attention(y, y, y)[0]


def test_a_copy_is_what_deepcopy_makes():
    model = Odd().eval()
    ours, theirs = copied(model, {}), copy.deepcopy(model)
    assert torch.equal(ours(noise(3, 4)), theirs(noise(3, 4)))
    assert (ours.calls, model.calls) == (1, 0)
    assert ours.again is ours.first is ours.listed[0]
    assert ours.listed[1]["norm"] is ours.norm is not model.norm
    assert ours.tied.weight is ours.first.weight is not model.first.weight
    assert ours.cache is ours.first.cache is not model.cache
    assert ours.constant is not model.constant
    assert vars(ours.first).keys() == vars(theirs.first).keys()
    assert type(ours._forward_pre_hooks) is OrderedDict
    assert ours._forward_pre_hooks is not model._forward_pre_hooks
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
        assert ours.state_dict()[name].data_ptr() != model.state_dict()[name].data_ptr()


def test_a_module_with_a_way_of_its_own_goes_that_way():
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            return nn.Identity()

    assert isinstance(copied(nn.Sequential(Own(2, 2)), {})[0], nn.Identity)


def test_the_memo_replaces_under_every_name():
    model = Odd()
    weight = nn.Parameter(torch.zeros(4, 4))
    result = copied(model, {id(model.first.weight): weight})
    assert result.first.weight is result.tied.weight is weight


def test_a_shadow_shares_weights_and_owns_the_rest():
    model = models.build("resnet", width=8, depth=1).train()
    twin = shadow(model)
    assert not twin.training
    assert model.training
    for name, parameter in model.named_parameters():
        assert twin.get_parameter(name) is not parameter
        assert twin.get_parameter(name).data_ptr() == parameter.data_ptr()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    shadow(model, training=True)(noise(2, 1, 32, 32))
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


@pytest.mark.parametrize("name", ["vgg", "vit", "gpt", "lstm"])
def test_models_of_the_course(name):
    model = models.build(name).eval()
    x = torch.zeros(2, 9, dtype=torch.int64) if name in ("gpt", "lstm") else noise(2, 1, 32, 32)
    assert torch.equal(copied(model, {})(x), model(x))
    assert torch.equal(shadow(model)(x), model(x))
