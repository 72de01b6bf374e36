"""Codes: torch's own bits as the oracle, and there and back again for every code."""

from __future__ import annotations

import pytest
import torch

from compresslab.formats import FLOATS, bit_string, decode, encode

BITS_IN_TORCH = {
    "fp16": (torch.float16, torch.int16),
    "bf16": (torch.bfloat16, torch.int16),
    "fp8_e4m3": (torch.float8_e4m3fn, torch.uint8),
    "fp8_e5m2": (torch.float8_e5m2, torch.uint8),
}


@pytest.mark.parametrize("name", BITS_IN_TORCH)
def test_codes_are_torchs_bits(name):
    fmt, (dtype, integer) = FLOATS[name], BITS_IN_TORCH[name]
    codes = torch.arange(2**fmt.bits)
    as_torch = codes.to(torch.int32).to(torch.uint16).view(dtype) if fmt.bits == 16 else codes.to(integer).view(dtype)
    values = as_torch.float()
    ours = decode(codes, fmt)
    assert torch.equal(ours.isnan(), values.isnan())
    number = ~values.isnan()
    assert torch.equal(ours[number], values[number])
    assert torch.equal(encode(values[number], fmt), codes[number])


@pytest.mark.parametrize("name", [name for name, fmt in FLOATS.items() if fmt.bits <= 8])
def test_there_and_back_for_every_code(name):
    fmt = FLOATS[name]
    codes = torch.arange(2**fmt.bits)
    values = decode(codes, fmt)
    keep = ~values.isnan()
    assert torch.equal(encode(values[keep], fmt), codes[keep])


def test_by_hand():
    """E4M3, 0 1000 101: 2^(8 - 7) x (1 + 5/8) = 3.25; 1 0000 001: -2^-6 x 1/8 = -2^-9."""
    fmt = FLOATS["fp8_e4m3"]
    assert decode(torch.tensor([0b0_1000_101, 0b1_0000_001]), fmt).tolist() == [3.25, -(2**-9)]
    assert bit_string(encode(torch.tensor(3.25), fmt).item(), fmt) == "0 1000 101"
    assert bit_string(0x7F, fmt) == "0 1111 111"
    assert encode(torch.tensor(float("nan")), fmt).item() == 0x7F


def test_bad_input():
    fmt = FLOATS["fp4_e2m1"]
    with pytest.raises(ValueError, match=r"codes must be in 0..15, got 3..16"):
        decode(torch.tensor([3, 16]), fmt)
    with pytest.raises(ValueError, match=r"code=-1 must be in 0..15"):
        bit_string(-1, fmt)
    with pytest.raises(ValueError, match="1 of 2 elements of x are NaN"):
        encode(torch.tensor([1.0, float("nan")]), fmt)
