"""A whole model in another format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.formats import FORMATS, round_model, round_to_format
from compresslab.testing import HOSTILE, check_compressor, hostile


@pytest.mark.parametrize("fmt", ["fp8_e4m3", "bf16", "int4", "nf4", "mxfp4"])
def test_the_common_checks(fmt):
    skip = {"equal_weights", "bfloat16"} if fmt == "bf16" else set()  # held exactly: nothing changes
    models = [name for name in HOSTILE if name not in skip]
    check_compressor(lambda model, batches: round_model(model, fmt).model, models=models)


@pytest.mark.parametrize("fmt", FORMATS)
def test_weights_are_rounded_and_the_rest_is_kept(fmt):
    model = hostile("conv_bn").model
    result = round_model(model, fmt)
    assert result.rounded == ("0.weight", "3.weight", "6.weight")
    assert set(result.kept) == {"1.weight", "1.bias", "3.bias", "6.bias"}
    for name, parameter in model.named_parameters():
        flat = parameter.flatten(1) if parameter.dim() > 1 else parameter  # blocks run along one output's weights
        wanted = round_to_format(flat, fmt, saturate=True).view_as(parameter) if name in result.rounded else parameter
        assert torch.equal(result.model.get_parameter(name), wanted)


def test_a_tied_weight_is_rounded_once_and_stays_tied():
    result = round_model(hostile("tied").model, "fp4_e2m1")
    assert result.model.head.weight is result.model.embedding.weight
    assert result.rounded == ("embedding.weight", "mix.weight", "head.weight")


def test_layers_can_be_kept():
    result = round_model(hostile("mlp").model, "int4", keep=["0"])
    assert result.rounded == ("2.weight",)
    assert result.kept["0.weight"] == "asked to be kept"


def test_huge_weights_saturate():
    layer = nn.Linear(2, 2)
    layer.weight.data.fill_(1e6)
    assert round_model(layer, "fp16").model.weight.unique().tolist() == [65504.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nan", {}, "layer '2': 1 of 80 weights are not finite"),
        ("no_layers", {}, "there is no linear layer, convolution or embedding to round"),
        ("mlp", {"keep": ["0", "2"]}, "there is no linear layer"),
        ("mlp", {"keep": ["9"]}, r"keep=\['9'\] are not layers with a weight; choose from 0, 2"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(ValueError, match=message):
        round_model(hostile(name).model, "int8", **options)
