"""Convolutions as two: exact at full rank with every option, nearest below it, as much as the SVD says."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from compresslab.factorization import channel_svd, factor_parameters, factorize_convs, spatial_svd, tucker_conv
from compresslab.testing import check_compressor
from compresslab.workbench import models

OPTIONS = [
    {}, {"stride": 2}, {"stride": (1, 2), "padding": (2, 0)}, {"padding": 1, "dilation": 2}, {"groups": 2, "padding": 1},
    {"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"padding": (0, 2), "padding_mode": "circular"},
    {"bias": False}, {"padding": "valid", "dilation": (1, 2)},
]  # fmt: skip


def conv(kind=nn.Conv2d, kernel=3, seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(4, 6, kernel, **options).double()


def image(axes=2):
    return torch.randn(2, 4, *[9, 8, 7][:axes], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("method", ["spatial", "channel", "tucker"])
def test_exact_at_full_rank(method, options):
    layer = conv(**options)
    group_in, group_out = 4 // layer.groups, 6 // layer.groups
    if method == "tucker":
        new = tucker_conv(layer, (group_out, group_in))
    elif method == "spatial":
        new = spatial_svd(layer, min(group_in * 3, group_out * 3))
    else:
        new = channel_svd(layer, group_out)
    assert torch.allclose(new(image()), layer(image()), atol=1e-9)
    assert [part.bias is not None for part in new] == [False] * (len(new) - 1) + [layer.bias is not None]


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("method", ["channel", "tucker"])
def test_other_numbers_of_axes(method, axes):
    layer = conv({1: nn.Conv1d, 3: nn.Conv3d}[axes], kernel=3, padding=1, stride=2)
    new = channel_svd(layer, 6) if method == "channel" else tucker_conv(layer, (6, 4))
    assert torch.allclose(new(image(axes)), layer(image(axes)), atol=1e-9)


def kernel_of(new):
    """The kernel that a stack of convolutions without options amounts to, by what it makes of single pixels."""
    size = [1 + sum(part.kernel_size[axis] - 1 for part in new) for axis in range(2)]
    channels = new[0].in_channels
    pixels = torch.zeros(channels, channels, 2 * size[0] - 1, 2 * size[1] - 1, dtype=torch.float64)
    pixels[range(channels), range(channels), size[0] - 1, size[1] - 1] = 1
    with torch.no_grad():
        return new(pixels).flip(-1, -2).transpose(0, 1)  # cross-correlation: the response is the kernel turned round


@pytest.mark.parametrize("method", ["spatial", "channel"])
def test_below_full_rank_it_is_the_nearest(method):
    layer = conv(kernel=(3, 5), bias=False)
    w = layer.weight.detach()  # (6, 4, 3, 5)
    matrix = w.permute(1, 2, 0, 3).reshape(12, 30) if method == "spatial" else w.flatten(1)
    values = torch.linalg.svdvals(matrix)
    for rank in (1, 2, 5):
        new = (spatial_svd if method == "spatial" else channel_svd)(layer, rank)
        assert float((kernel_of(new) - w).norm()) == pytest.approx(float(values[rank:].norm()), rel=1e-9)


def test_a_sobel_filter_is_separable():
    layer = nn.Conv2d(1, 1, 3, bias=False)
    layer.weight.data = torch.tensor([1.0, 2.0, 1.0])[:, None] * torch.tensor([1.0, 0.0, -1.0]) * torch.ones(1, 1, 3, 3)
    new = spatial_svd(layer, 1)
    x = torch.randn(1, 1, 6, 6)
    assert torch.allclose(new(x), layer(x), atol=1e-5)
    assert sum(p.numel() for p in new.parameters()) == 6
    vertical = new[0].weight.flatten() / new[0].weight.flatten()[0]
    assert torch.allclose(vertical, torch.tensor([1.0, 2.0, 1.0]))


def test_parameters_are_what_is_counted():
    for layer, method in itertools.product(
        (conv(), conv(groups=2), conv(kernel=(3, 5))), ("spatial", "channel", "tucker")
    ):
        ranks = (2, 1) if method == "tucker" else 2
        new = {"spatial": spatial_svd, "channel": channel_svd, "tucker": tucker_conv}[method](layer, ranks)
        assert sum(part.weight.numel() for part in new) == factor_parameters(layer, ranks, method=method)
    with pytest.raises(ValueError, match="method='cp' must be one of channel, spatial, tucker"):
        factor_parameters(conv(), 2, method="cp")


@pytest.mark.parametrize("method", ["spatial", "channel", "tucker"])
@pytest.mark.parametrize("share", [0.3, 0.6])
def test_share_takes_the_largest_ranks_that_fit(method, share):
    model = models.build("resnet", width=8, depth=1)
    result = factorize_convs(model, method=method, share=share)
    layers = dict(model.named_modules())
    assert "layer1.0.conv1" in result.ranks and "linear" in result.skipped
    for name, ranks in result.ranks.items():
        weight = layers[name].weight
        used = sum(part.weight.numel() for part in result.model.get_submodule(name))
        assert used <= share * weight.numel()
        if method != "tucker":
            more = factor_parameters(layers[name], ranks[0] + 1, method=method)
            assert more > share * weight.numel() or ranks[0] == min(weight.shape[0], weight[0].numel())
        elif min(ranks) > 4:
            assert used > (share - 0.25) * weight.numel()
    x = torch.randn(2, 1, 32, 32)
    assert result.model.train()(x).shape == (2, 62)


def test_a_share_is_not_passed_by_a_fraction_of_a_number():
    # 8 * 3 * 9 = 216 numbers; a rank of the channel cut takes 27 + 8 = 35. 0.645 * 216 = 139.3: three ranks, not four (140)
    found = factorize_convs(nn.Sequential(nn.Conv2d(3, 8, 3)), method="channel", share=0.645)
    assert found.ranks == {"0": (3,)}
    assert factorize_convs(nn.Sequential(nn.Conv2d(3, 8, 3)), method="channel", share=140 / 216).ranks == {"0": (4,)}


def test_energy_names_and_reasons():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1))
    with torch.no_grad():  # one output direction has 100 of 101 parts of the energy
        model[0].weight.copy_(torch.randn(8, 1, 1, 1) * torch.randn(1, 8, 3, 3))
    for method in ("channel", "spatial", "tucker"):
        found = factorize_convs(model, method=method, energy=0.999)
        assert list(found.ranks) == ["0"], found.skipped
        assert found.ranks["0"][0] == 1 or method == "spatial"
    assert "1" in found.skipped and "save nothing" in found.skipped["2"]
    found = factorize_convs(model, method="channel", share=1.0)
    assert found.skipped["1"] == "no rank saves parameters"
    named = factorize_convs(model, ranks={"0": (2, 3)})
    assert named.ranks == {"0": (2, 3)} and named.skipped["1"] == "left out by the caller"
    with pytest.raises(ValueError, match=r"'0': 'ranks \(8, 8\) save nothing: 704 numbers in place of 576'"):
        factorize_convs(model, ranks={"0": (8, 8)})  # 64 + 576 + 64


def test_errors():
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match="method='cp' must be one of"):
        factorize_convs(model, method="cp", share=0.5)
    with pytest.raises(ValueError, match="give one of ranks=None, energy=None and share=None"):
        factorize_convs(model)
    with pytest.raises(ValueError, match="share=0 must be greater than 0"):
        factorize_convs(model, share=0)
    with pytest.raises(ValueError, match="energy=2 must be greater than 0"):
        factorize_convs(model, energy=2)
    with pytest.raises(ValueError, match=r"ranks=\['1'\] must name layers that can be replaced: \['0'\]"):
        factorize_convs(model, ranks={"1": (1, 1)})
    with pytest.raises(ValueError, match=r"rank=9 must be a whole number in 1\.\.8"):
        factorize_convs(model, method="channel", ranks={"0": 9})
    with pytest.raises(ValueError, match=r"r_in=9 must be a whole number in 1\.\.8"):
        factorize_convs(model, ranks={"0": (2, 9)})


@pytest.mark.parametrize("method", ["spatial", "channel", "tucker"])
def test_the_common_checks(method):
    def compress(model, batches):
        return factorize_convs(model, method=method, share=0.6).model

    verdicts = check_compressor(compress, must_accept=["conv_bn"])
    right = {verdict.model for verdict in verdicts if verdict.outcome == "right"}
    assert right >= {"conv_bn", "residual", "depthwise", "grouped", "transposed", "one_channel"}
