"""Magnitude pruning of models: by hand, against torch.nn.utils.prune, counts, ties, and what is left alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from compresslab.pruning.unstructured import prune_magnitude
from compresslab.pruning.weights import sparsity_of
from compresslab.testing import check_compressor, hostile
from compresslab.workbench import checkpoints, data, train


def two_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.data = torch.tensor([[8.0, -7.0], [6.0, -5.0]])
    model[1].weight.data = torch.tensor([[-1.0, 2.0]])
    return model


def test_by_hand():
    # of six weights half go. Together: 1, 2 and 5. By layer: 5 and 6 of four, 1 of two.
    result = prune_magnitude(two_layers(), 0.5)
    assert result.model[0].weight.tolist() == [[8, -7], [6, 0]]
    assert result.model[1].weight.tolist() == [[0, 0]]
    assert result.sparsity == 0.5
    assert set(result.skipped) == {"0.bias", "1.bias"}
    result = prune_magnitude(two_layers(), 0.5, scope="layer")
    assert result.model[0].weight.tolist() == [[8, -7], [0, 0]]
    assert result.model[1].weight.tolist() == [[0, 2]]
    assert {name: mask.tolist() for name, mask in result.masks.items()} == {
        "0.weight": [[True, True], [False, False]],
        "1.weight": [[False, True]],
    }


def test_by_name():
    result = prune_magnitude(two_layers(), {"0.weight": 0.25}, scope="layer")
    assert result.model[0].weight.tolist() == [[8, -7], [6, 0]]
    assert result.skipped["1.weight"] == "left out by the caller"
    result = prune_magnitude(two_layers(), 0.5, names=["1.weight"])
    assert list(result.masks) == ["1.weight"]
    assert result.model[1].weight.tolist() == [[0, 2]]


def test_equal_to_torch():
    model = checkpoints.load("resnet")
    theirs = copy.deepcopy(model)
    layers = [layer for layer in theirs.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    torch.nn.utils.prune.global_unstructured(
        [(layer, "weight") for layer in layers], torch.nn.utils.prune.L1Unstructured, amount=0.8
    )
    result = prune_magnitude(model, 0.8)
    ours = [layer.weight for layer in result.model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert all(torch.equal(a, layer.weight) for a, layer in zip(ours, layers, strict=True))
    assert sparsity_of(result.model).overall == pytest.approx(0.8, abs=1e-5)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_to_ask_twice_does_not_compound(scope):
    model = hostile("prime_sizes").model
    first = prune_magnitude(model, 0.9, scope=scope)
    again = prune_magnitude(first.model, 0.9, scope=scope)
    assert all(torch.equal(first.masks[name], again.masks[name]) for name in first.masks)
    for sparsity in (0.3, 0.5, 0.9):  # in steps, or at once: the same
        model = prune_magnitude(model, sparsity, scope=scope).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), first.model.parameters(), strict=True))


def test_none_all_and_ties():
    model = hostile("equal_weights").model
    assert prune_magnitude(model, 0.0).sparsity == 0
    everything = prune_magnitude(model, 1.0)
    assert everything.sparsity == 1
    assert not any(everything.model.get_parameter(name).any() for name in everything.masks)
    fifth = prune_magnitude(model, 0.2, names=["0.weight"])  # 96 equal weights: 19 go
    assert int((fifth.model[0].weight == 0).sum()) == 19


def test_weights_on_a_coarse_grid():
    # With a threshold, asked for .2, .5 and .7 of weights of 4 bits, .31, .73 and .73 go.
    layer = nn.Linear(100, 100)
    layer.weight.data.mul_(70).round_()
    for sparsity in (0.2, 0.5, 0.7):
        assert int((~prune_magnitude(layer, sparsity).masks["weight"]).sum()) == round(sparsity * 10_000)


def test_it_can_be_copied_and_trained():
    case = hostile("conv_bn")
    result = copy.deepcopy(prune_magnitude(case.model, 0.5).model)
    result(case.batches[0][0]).sum().backward()
    assert [type(m) for m in result.modules()] == [type(m) for m in case.model.modules()]
    assert result.state_dict().keys() == case.model.state_dict().keys()


def test_global_beats_the_same_share_of_each():
    """The course's network without training: half of all weights together cost less than half of each layer."""
    model, held = checkpoints.load("resnet"), data.load("glyphs").val.take(1000)
    whole = train.evaluate(model, held).accuracy
    together, each = (
        train.evaluate(prune_magnitude(model, 0.6, scope=scope).model, held).accuracy for scope in ("global", "layer")
    )
    assert each < together < whole


def test_errors():
    model = two_layers()
    with pytest.raises(ValueError, match="scope='all' must be 'global' or 'layer'"):
        prune_magnitude(model, 0.5, scope="all")
    with pytest.raises(ValueError, match="scope='global' takes one sparsity, got 1 by name; try scope='layer'"):
        prune_magnitude(model, {"0.weight": 0.5})
    with pytest.raises(ValueError, match=r"sparsity must have the names of the scores, \['0\.weight', '1\.weight'\]"):
        prune_magnitude(model, {"0.weight": 0.5}, scope="layer", names=["0.weight", "1.weight"])
    with pytest.raises(ValueError, match=r"sparsity=90 must be the fraction removed, in 0\.\.1; try 0\.9"):
        prune_magnitude(model, 90)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_common_checks(scope):
    check_compressor(
        lambda model, batches: prune_magnitude(model, 0.5, scope=scope).model,
        must_accept=("mlp", "conv_bn", "transposed", "attention", "recurrent", "tied", "shared", "float16", "bfloat16"),
    )
