"""The calculator: bytes as files have them, bounds by hand, and a widget that says what does not go together."""

from __future__ import annotations

import pytest
import torch

from compresslab.course.calculator import (
    DEVICES,
    INDICES,
    Device,
    calculate,
    calculator,
    calculator_widget,
    explain_cost,
    measured_device,
)
from compresslab.pruning import prune_magnitude
from compresslab.pruning.encodings import encode
from compresslab.quantization.affine import quantize


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, None), (4, 32), (3, 16), (2, 64)])
def test_bytes_are_those_of_packed_weights(bits, group_size):
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0))
    quantized = quantize(weight, bits=bits, axis=None if group_size else 0, group_size=group_size)
    found = calculate(96, 128, bits=bits, group_size=group_size).weight_bytes
    scales = quantized.scale.numel()
    assert found == 96 * 128 * bits // 8 + 2 * scales  # two bytes for each scale that ours has


@pytest.mark.parametrize("index", [each for each in INDICES if each != "none"])
def test_bytes_are_those_of_sparse_files(index):
    layer = torch.nn.Linear(256, 64, bias=False)
    if index == "2:4":
        mask = torch.tensor([True, False, True, False]).repeat(64, 64)
        layer.weight.data.masked_fill_(~mask, 0.0)
        sparsity = 0.5
    else:
        sparsity = 0.8
        layer = prune_magnitude(layer, sparsity).model
    wanted = sum(part.nbytes for part in encode(layer.weight, index).values())
    assert calculate(64, 256, sparsity=sparsity, index=index).weight_bytes == wanted


def test_structure_and_rank_by_hand():
    half = calculate(100, 200, ratio=0.5)
    assert (half.weight_bytes, half.macs, half.bits_per_weight) == (4 * 50 * 100, 50 * 100, 8.0)
    thin = calculate(100, 200, rank=10, batch=3)
    assert (thin.weight_bytes, thin.macs) == (4 * 10 * 300, 3 * 10 * 300)
    zeros = calculate(100, 200, sparsity=0.9)
    assert zeros == calculate(100, 200)  # a dense file and a dense kernel know of no zeros
    assert calculate(100, 200, sparsity=0.9, index="bitmask").macs == 100 * 200


def test_the_roofline_by_hand():
    device = Device("d", "by hand", bandwidth=1000.0, peak={32: 100.0, 16: 200.0, 8: 400.0})
    one = calculate(10, 10, device=device)  # 200 operations, 400 + 80 bytes
    assert (one.moved_bytes, one.limit, one.bound_s) == (480, "compute", 2.0)
    assert one.intensity == pytest.approx(200 / 480)
    integers = calculate(10, 10, bits=8, integer_compute=True, device=device)  # 100 + 20 + 20 bytes, 200 / 400 s
    assert (integers.moved_bytes, integers.limit, integers.bound_s) == (140, "compute", 0.5)
    slow = calculate(10, 10, bits=4, device=Device("d", "by hand", 1.0, {16: 1e9}))
    assert (slow.limit, slow.bound_s) == ("memory", 50 + 20 + 40)
    assert all(device.peak[8] >= device.peak[16] >= device.peak[32] for device in DEVICES.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 0}, "bits=0 must be in 1..32"),
        ({"batch": 0}, "batch=0 must be at least 1"),
        ({"group_size": 0}, "group_size=0 must be at least 1"),
        ({"sparsity": 2}, r"sparsity=2 must be in 0\.\.1"),
        ({"ratio": 1}, "ratio=1 from 0 to below 1"),
        ({"index": "csc"}, "index='csc' must be one of none, bitmask"),
        ({"index": "2:4", "sparsity": 0.6}, r"sparsity=0\.6 must be 0\.5 for index='2:4'"),
        ({"rank": 9}, r"rank=9 must be in 1\.\.8"),
    ],
)
def test_what_it_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        calculate(8, 16, **options)


def test_the_widget_reacts_and_says_what_is_wrong():
    box = calculator_widget(out_features=512, in_features=512)
    fields = {field.description: field for field in box.children[0].children}
    text = box.children[1]
    assert "1,048,576 bytes" in text.value
    fields["bits of a weight"].value = 8
    assert "263,168 bytes" in text.value
    fields["stored as"].value = "2:4"
    assert "must be 0.5 for index=" in text.value
    fields["zeros"].value = 0.5
    assert "5.03 bits" in text.value  # 4 for the values, 1 for the places, 0.03 for the scales
    fields["rank (0: whole)"].value = 64
    assert "so at most" in text.value


def test_the_output_carries_the_text(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: shown.append(bundle))
    calculator(bits=4, group_size=128)
    assert shown[0]["text/plain"] == explain_cost(4096, 4096, bits=4, group_size=128)


def test_this_machine_has_limits_too():
    device = measured_device()
    assert device.bandwidth > 1e8
    assert min(device.peak.values()) > 1e8
    assert calculate(64, 64, device=device).bound_s > 0
