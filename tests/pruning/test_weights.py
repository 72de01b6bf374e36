"""Which parameters are weights, why the others are not, and how many are zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.pruning.weights import Sparse, choose_weights, prunable, sparsity_of
from compresslab.testing import hostile
from compresslab.workbench import checkpoints


def test_by_type_and_not_by_name():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 2), "conv": nn.Conv1d(2, 2, 1), "up": nn.ConvTranspose2d(2, 2, 1),
            "norm": nn.BatchNorm2d(2), "group": nn.GroupNorm(1, 2), "embedding": nn.Embedding(3, 2), "bag": nn.EmbeddingBag(3, 2),
            "attention": nn.MultiheadAttention(2, 1, kdim=3, add_bias_kv=True), "lstm": nn.LSTM(2, 2), "cell": nn.GRUCell(2, 2),
            "prelu": nn.PReLU(2),
        }
    )  # fmt: skip
    assert prunable(model) == [
        "linear.weight", "conv.weight", "up.weight",
        "attention.q_proj_weight", "attention.k_proj_weight", "attention.v_proj_weight", "attention.out_proj.weight",
        "lstm.weight_ih_l0", "lstm.weight_hh_l0", "cell.weight_ih", "cell.weight_hh",
    ]  # fmt: skip
    assert prunable(hostile("attention").model) == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "head.weight",
    ]


def test_ties_once_and_not_with_an_embedding():
    assert prunable(hostile("shared").model) == ["first.weight", "head.weight"]
    assert prunable(hostile("tied").model) == ["mix.weight"]
    assert prunable(hostile("embedding").model) == ["mix.weight", "head.weight"]
    twins = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    twins[1].weight = twins[0].weight
    assert prunable(twins) == ["0.weight"]
    weights, skipped = choose_weights(hostile("tied").model, ["head.weight"])  # asked for, by its second name
    assert list(weights) == ["embedding.weight"]
    assert skipped["mix.weight"] == "left out by the caller"


@pytest.mark.parametrize("name", ["attention", "recurrent", "extras", "tied", "shared", "conv_bn"])
def test_nothing_is_left_unsaid(name):
    model = hostile(name).model
    weights, skipped = choose_weights(model)
    assert {*weights, *skipped} == {*dict(model.named_parameters())}
    assert not {*weights} & {*skipped}


def test_reasons():
    _, skipped = choose_weights(hostile("tied").model)
    known = "only Linear, convolutional, attention and recurrent layers are pruned unasked"
    assert skipped["embedding.weight"] == f"Embedding: {known}"
    assert skipped["mix.bias"] == "Linear: only matrices and kernels are pruned"
    weights, _ = choose_weights(hostile("conv_bn").model, ["1.weight", "1.bias"])  # a norm, because it was asked for
    assert list(weights) == ["1.weight", "1.bias"]


def test_table():
    model = hostile("mlp").model
    model[0].weight.data[:4] = 0
    table = sparsity_of(model)
    assert table.zeros == {"0.weight": 24, "2.weight": 0}
    assert table.elements == {"0.weight": 96, "2.weight": 80}
    assert table.overall == 24 / 176
    assert str(table).splitlines() == [
        "| parameter | zeros | elements | sparsity |",
        "|---|---|---|---|",
        "| 0.weight | 24 | 96 | 25.0% |",
        "| 2.weight | 0 | 80 | 0.0% |",
        "| all | 24 | 176 | 13.6% |",
    ]
    assert sparsity_of(model, ["0.bias"]).elements == {"0.bias": 16}
    assert sparsity_of(nn.ReLU()).overall == 0
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor([False, False])}
    assert Sparse(model, masks, {}).sparsity == 0.75


def test_the_courses_models():
    assert all(name.endswith("weight") for name in prunable(checkpoints.load("resnet")))
    gpt = prunable(checkpoints.load("gpt"))
    assert not any("embed" in name or "norm" in name for name in gpt)
    assert len(gpt) == 16


def test_errors():
    for wrong in (["nothing"], ["2.weight", "steps"]):
        with pytest.raises(
            ValueError, match=rf"\['{wrong[-1]}'\] must be weights of the model; choose from \['0.weight'"
        ):
            choose_weights(hostile("mlp").model, wrong)
    with pytest.raises(ValueError, match=r"2\.weight must be finite, got 1 NaN"):
        choose_weights(hostile("nan").model, ["0.weight"])
    with pytest.raises(ValueError, match="Sequential has no weight to prune: it has no parameters"):
        choose_weights(hostile("no_layers").model)
    with pytest.raises(ValueError, match=r"LayerNorm has no weight to prune: \{'weight': 'LayerNorm: only matrices"):
        choose_weights(nn.LayerNorm(2))
    with pytest.raises(
        ValueError, match=r"\['x'\] must be parameters of the model; choose from \['0\.weight', '0\.bias'"
    ):
        sparsity_of(hostile("mlp").model, ["x"])
