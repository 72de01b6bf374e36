"""Depthwise-separable convolutions: costs of the papers, the nearest product against a search, every option."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.factorization import (
    Cost,
    compound_scaling,
    conv_cost,
    inverted_residual_cost,
    separable_conv,
    separable_cost,
    separate_convs,
)
from compresslab.testing import check_compressor

OPTIONS = [
    {}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}, {"groups": 2}, {"padding": "same"},
    {"padding": 1, "padding_mode": "replicate"}, {"bias": False},
]  # fmt: skip


def test_costs_of_the_papers():
    # MobileNets, table 2: a 3x3 layer of 512 to 512 channels at 14 x 14 has 462 M MACs and 2.36 M parameters
    whole, split = conv_cost(512, 512, pixels=196), separable_cost(512, 512, pixels=196)
    assert whole == Cost(2_359_296, 462_422_016)
    assert split == Cost(9 * 512 + 512 * 512, 196 * (9 * 512 + 512 * 512))  # 0.27 M and 52.3 M in the paper
    assert split.macs / whole.macs == pytest.approx(1 / 512 + 1 / 9)
    # MobileNetV2, section 3: h w d' t (d' + k^2 + d'') at stride 1
    block = inverted_residual_cost(24, 32, expansion=6, kernel=3, pixels=28 * 28)
    assert block.macs == 28 * 28 * 24 * 6 * (24 + 9 + 32)
    strided = inverted_residual_cost(24, 32, pixels=100, stride=2)
    assert strided.parameters == 24 * 144 + 9 * 144 + 144 * 32
    assert strided.macs == 400 * 24 * 144 + 100 * (9 * 144 + 144 * 32)
    assert inverted_residual_cost(32, 16, expansion=1) == separable_cost(32, 16)
    with pytest.raises(ValueError, match="groups=3 must divide 8 and 6 channels"):
        conv_cost(8, 6, groups=3)


def test_costs_are_those_of_torchs_layers():
    for groups in (1, 4):
        layer = nn.Conv2d(8, 12, 5, groups=groups, bias=False)
        assert conv_cost(8, 12, kernel=5, groups=groups).parameters == layer.weight.numel()


def test_compound_scaling():
    # EfficientNet, section 3.3: 1.2 * 1.1^2 * 1.15^2 = 1.92 for each step
    found = compound_scaling(2)
    assert (found.depth, found.width, found.resolution) == pytest.approx((1.44, 1.21, 1.3225))
    assert found.macs == pytest.approx(1.44 * 1.21**2 * 1.3225**2)
    assert compound_scaling(0).macs == 1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_enough_terms_are_exact(options):
    layer = nn.Conv2d(4, 6, 3, **options).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    terms = min(6 // layer.groups, 9)
    assert torch.allclose(separable_conv(layer, terms)(x), layer(x), atol=1e-9)
    with pytest.raises(ValueError, match=rf"terms={terms + 1} must be a whole number in 1\.\.{terms}"):
        separable_conv(layer, terms + 1)


def test_one_term_by_hand_and_against_a_search():
    layer = nn.Conv1d(1, 2, 2, bias=False)
    layer.weight.data = torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]])  # singular values 3 and 1
    new = separable_conv(layer)
    product = new[1].weight.squeeze(-1) * new[0].weight.squeeze(1)  # (2, 1) * (1, 2)
    assert torch.allclose(product, torch.tensor([[3.0, 0.0], [0.0, 0.0]]), atol=1e-6)
    layer = nn.Conv2d(3, 5, 3, bias=False)
    new = separable_conv(layer)
    assert new[0].groups == 3 and new[0].weight.shape == (3, 1, 3, 3) and new[1].weight.shape == (5, 3, 1, 1)
    product = new[1].weight * new[0].weight.squeeze(1)  # (5, 3, 1, 1) * (3, 3, 3)
    error = (product - layer.weight).square().sum()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):  # alternating least squares from anywhere ends no lower
        d = torch.randn(3, 9, generator=generator)
        w = layer.weight.detach().flatten(2)
        for _ in range(200):
            p = torch.einsum("ock,ck->oc", w, d) / d.square().sum(1)
            d = torch.einsum("ock,oc->ck", w, p) / p.square().sum(0).unsqueeze(1)
        assert error <= (w - p.unsqueeze(2) * d).square().sum() * (1 + 1e-4)


def test_conv1d_conv3d_and_more_terms_are_better():
    for kind, shape in ((nn.Conv1d, (9,)), (nn.Conv3d, (5, 5, 5))):
        layer = kind(4, 6, 3, padding=1)
        x = torch.randn(2, 4, *shape)
        assert torch.allclose(separable_conv(layer, 3 if kind is nn.Conv1d else 6)(x), layer(x), atol=1e-5)
    layer, x = nn.Conv2d(4, 8, 3), torch.randn(4, 4, 9, 9)
    errors = [(separable_conv(layer, terms)(x) - layer(x)).square().sum().item() for terms in range(1, 9)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-6


def test_a_model_and_what_it_skips():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1), nn.Linear(8, 2))
    result = separate_convs(model)
    assert result.ranks == {"0": (1,)}
    assert result.skipped["1"] == "1 terms save nothing: 80 numbers in place of 72"
    assert result.skipped["3"] == "Linear: only Conv1d, Conv2d, Conv3d is replaced"
    assert result.parameters_before - result.parameters == 9 * 32 - 9 * 4 - 32
    assert "2" in separate_convs(model, skip=["2"]).skipped
    with pytest.raises(ValueError, match="terms=0 must be a whole number"):
        separate_convs(model, terms=0)


def test_the_common_checks():
    verdicts = check_compressor(lambda model, batches: separate_convs(model).model, must_accept=["conv_bn"])
    right = {verdict.model for verdict in verdicts if verdict.outcome == "right"}
    assert right >= {"conv_bn", "residual", "depthwise", "conv1d"}
