"""Layer after layer: what is seen, what is skipped and why, and the model left alone when it breaks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.pruning.layer_inputs import InputStatistics
from compresslab.pruning.sequential import prune_in_order
from compresslab.pruning.wanda import wanda_model
from compresslab.testing import hostile


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_function_gets_the_weight_and_what_the_pruned_layers_before_give():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 5.0], [0.0, 2.0]])
    seen = []

    def without_the_first_input(weight: torch.Tensor, statistics: InputStatistics) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((weight.shape, statistics.squares.tolist(), statistics.gram.tolist()))
        mask = torch.tensor([False, True]).expand(weight.shape)
        return weight * mask + 1 * mask, mask  # what is left may change

    result = prune_in_order(model, [(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), None)], without_the_first_input)
    # inputs (1, 1) and (0, 2); then 6 x_2 and 3 x_2: (6, 3) and (12, 6)
    assert seen == [
        ((2, 2), [[1, 5]], [[[0.5, 0.5], [0.5, 2.5]]]),
        ((1, 2), [[180, 45]], [[[90, 45], [45, 22.5]]]),
    ]
    assert result.model[0].weight.tolist() == [[0, 6], [0, 3]]
    assert result.tokens == {"0.weight": 2, "1.weight": 2}
    assert result.sparsity == 0.5


def test_what_has_no_inputs_to_look_at_is_listed():
    result = wanda_model(hostile("attention").model, hostile("attention").batches)
    assert result.skipped["attention.in_proj_weight"].startswith(
        "MultiheadAttention: only weights of Linear and Conv layers have inp"
    )
    assert list(result.masks) == ["head.weight"]
    result = wanda_model(hostile("mlp").model, hostile("mlp").batches, names=["0.weight", "2.bias"])
    assert list(result.masks) == ["0.weight"]
    assert result.skipped["2.bias"] == "Linear: only weights of Linear and Conv layers have inputs to look at here"
    twins = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    twins[1].weight = twins[0].weight
    result = wanda_model(twins, [(noise(3, 4), None)])
    assert result.skipped["0.weight"] == "it is used elsewhere too"
    assert result.model[1].weight is result.model[0].weight
    shared = wanda_model(hostile("shared").model, hostile("shared").batches)
    assert shared.tokens == {"first.weight": 24, "head.weight": 12}
    fits = wanda_model(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)), [(noise(3, 6), None)], n=2, m=4)
    assert fits.skipped["0.weight"] == "m=4 does not divide its 6 inputs"
    result = wanda_model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), [(noise(3, 2), None)], names=["1.weight"])
    assert result.skipped["0.weight"] == "left out by the caller"


class OneOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.never = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)


def test_a_layer_that_nothing_reaches_stays_dense():
    model = OneOfTwo()
    result = wanda_model(model, [(noise(3, 4), None)])
    assert result.skipped["never.weight"] == "no batch runs through it"
    assert torch.equal(result.model.never.weight, model.never.weight)
    with pytest.raises(ValueError, match=r"OneOfTwo has no layer to prune here: \{.*no batch runs through it"):
        wanda_model(model, [(noise(3, 4), None)], names=["never.weight"])


def test_a_function_that_breaks_leaves_the_model_alone():
    model = hostile("mlp").model
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=r"0\.weight must be finite, got 96 NaN"):
        prune_in_order(model, hostile("mlp").batches, lambda weight, seen: (weight * float("nan"), weight > 0))
    assert torch.equal(model[0].weight, before)
    assert not model[0]._forward_pre_hooks
