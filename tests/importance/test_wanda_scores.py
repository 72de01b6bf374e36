"""Wanda: by hand, against im2col, groups, and what it cannot see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.importance import input_norms, wanda_scores
from compresslab.testing import hostile


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand():
    # Inputs (3, 1) and (4, 0) in two batches: norms 5 and 1, not 3 + 4 and 1. |W| times that.
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[1.0, -2.0], [0.0, 10.0]])
    batches = [(torch.tensor([[3.0, 1.0]]), None), (torch.tensor([[4.0, 0.0]]), None)]
    assert input_norms(layer, batches)["weight"].tolist() == [[5, 1]]
    assert wanda_scores(layer, batches)["weight"].tolist() == [[5, 2], [0, 10]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolutions_by_im2col(groups):
    layer = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=groups)
    x = noise(5, 4, 9, 9)
    columns = F.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, groups, 4 // groups, 3, 3)
    norms = columns.square().sum(0).sqrt().repeat_interleave(8 // groups, 0)  # one for each output channel
    found = wanda_scores(nn.Sequential(layer), [(x[:2], None), (x[2:], None)])["0.weight"]
    torch.testing.assert_close(found, (layer.weight.abs() * norms).detach())


def test_tokens_and_repeated_calls_are_all_counted():
    layer = nn.Linear(3, 3)
    x = noise(2, 5, 3)
    twice = nn.Sequential(layer, layer)
    seen = torch.cat([x.flatten(0, 1), layer(x).flatten(0, 1)]).square().sum(0).sqrt()
    torch.testing.assert_close(input_norms(twice, [(x, None)])["0.weight"], seen[None].detach())


def test_half_precision_is_summed_in_float32():
    layer = nn.Linear(1, 1).half()
    x = torch.full((5000, 1), 200.0).half()  # 5000 * 40000 is beyond float16
    assert input_norms(layer, [(x, None)])["weight"].item() == pytest.approx(200 * 5000**0.5, rel=1e-5)


def test_what_it_cannot_see_is_named():
    case = hostile("attention")
    with pytest.raises(
        ValueError,
        match=r"\['attention.in_proj_weight', 'attention.out_proj.weight'\] must be.*names=\['head.weight'\]",
    ):
        wanda_scores(case.model, case.batches)
    assert list(wanda_scores(case.model, case.batches, names=["head.weight"])) == ["head.weight"]
    model = nn.Sequential(nn.ConvTranspose1d(2, 2, 1))
    with pytest.raises(ValueError, match=r"\['0.weight'\] must be weights of Linear.*choose a criterion that needs no"):
        wanda_scores(model, [(torch.ones(1, 2, 3), None)])


def test_wanda_orders_the_error_of_the_output():
    # Removing w_ij alone changes the output by w_ij x_j: its norm over the tokens is the score.
    layer, x = nn.Linear(6, 3, bias=False), noise(50, 6) * torch.arange(1, 7)
    scores = wanda_scores(layer, [(x, None)])["weight"]
    y = layer(x)
    for i in range(3):
        for j in range(6):
            weight = layer.weight.detach().clone()
            weight[i, j] = 0
            torch.testing.assert_close((x @ weight.T - y).norm().detach(), scores[i, j], rtol=1e-4, atol=1e-4)
