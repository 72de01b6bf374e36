"""Packing: bytes by hand, numpy and Python's own integers as oracles, and there and back for any levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.quantization.affine import quantize
from compresslab.quantization.packing import pack, unpack

steady = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def cases(draw):
    bits, signed = draw(st.integers(1, 8)), draw(st.booleans())
    if bits == 1 and signed:
        level = st.sampled_from([-1, 1])
    else:
        low = -(2 ** (bits - 1)) if signed else 0
        level = st.integers(low, low + 2**bits - 1)
    return bits, signed, draw(st.lists(level, max_size=40))


def test_bytes_by_hand():
    # 2 bits: 3 = 11, 0 = 00, 1 = 01, 2 = 10: byte 10 01 00 11 = 147. The fifth level fills a byte of its own.
    assert pack(torch.tensor([3, 0, 1, 2, 1]), bits=2, signed=False).tolist() == [0b10010011, 1]
    # 3 bits: a..h = 1..7, 0. Byte 0: c low two bits 11, b 010, a 001. Byte 1: f's low bit 0, e 101, d 100, c's high 0.
    # Byte 2: h 000, g 111, f's high bits 11.
    stream = pack(torch.tensor([1, 2, 3, 4, 5, 6, 7, 0]), bits=3, signed=False)
    assert stream.tolist() == [0b11010001, 0b01011000, 0b00011111]
    # two's complement: -1 = 1111, -8 = 1000
    assert pack(torch.tensor([-1, -8]), bits=4).tolist() == [0b10001111]
    assert pack(torch.tensor([1, -1, -1, 1]), bits=1).tolist() == [0b1001]
    assert pack(torch.tensor([-128, 127]), bits=8).tolist() == [128, 127]


@steady
@given(cases())
def test_there_and_back_in_the_size_promised(case):
    bits, signed, levels = case
    levels = torch.tensor(levels, dtype=torch.int64)
    packed = pack(levels, bits=bits, signed=signed)
    assert packed.dtype == torch.uint8
    assert packed.numel() == (len(levels) * bits + 7) // 8
    back = unpack(packed, len(levels), bits=bits, signed=signed)
    assert back.tolist() == levels.tolist()
    assert back.dtype == (torch.int8 if signed else torch.uint8)


@steady
@given(cases())
def test_the_stream_is_one_large_number(case):
    bits, signed, levels = case
    codes = [(level > 0) if bits == 1 and signed else level % 2**bits for level in levels]
    number = sum(int(code) << (bits * place) for place, code in enumerate(codes))
    expected = number.to_bytes((len(levels) * bits + 7) // 8, "little")
    assert bytes(pack(torch.tensor(levels, dtype=torch.int64), bits=bits, signed=signed).tolist()) == expected


def test_one_bit_as_numpy_packs_it():
    bits = torch.randint(0, 2, (77,), generator=torch.Generator().manual_seed(0))
    assert pack(bits, bits=1, signed=False).tolist() == np.packbits(bits.numpy(), bitorder="little").tolist()


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_quantize_makes_fits_and_has_the_size_it_says(bits, symmetric):
    x = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    quantized = quantize(x, bits=bits, symmetric=symmetric, axis=0)
    packed = pack(quantized.levels, bits=bits, signed=symmetric)
    assert torch.equal(unpack(packed, x.shape, bits=bits, signed=symmetric), quantized.levels)
    zero_points = [] if symmetric else [pack(quantized.zero_point, bits=bits, signed=False)]
    assert quantized.nbytes == packed.nbytes + quantized.scale.nbytes + sum(part.nbytes for part in zero_points)


def test_rare_shapes():
    levels = torch.arange(-4, 4).reshape(2, 4)
    assert torch.equal(pack(levels.T, bits=3), pack(levels.T.contiguous(), bits=3))
    assert unpack(pack(torch.tensor(3), bits=3), (), bits=3).shape == ()
    assert pack(torch.zeros(0, dtype=torch.int8), bits=5).shape == (0,)
    assert unpack(torch.zeros(0, dtype=torch.uint8), (0, 3), bits=5).shape == (0, 3)


def test_narrow_types_do_not_wrap_in_the_check():
    assert pack(torch.tensor([5], dtype=torch.uint8), bits=4).tolist() == [5]
    assert pack(torch.tensor([5], dtype=torch.int8), bits=8, signed=False).tolist() == [5]
    with pytest.raises(ValueError, match="the first 250"):
        pack(torch.tensor([250], dtype=torch.uint8), bits=4)


def test_errors():
    with pytest.raises(ValueError, match=r"bits=9 must be an integer in 1\.\.8"):
        pack(torch.tensor([1]), bits=9)
    with pytest.raises(ValueError, match="bits=0 must be"):
        unpack(torch.zeros(1, dtype=torch.uint8), 1, bits=0)
    with pytest.raises(ValueError, match=r"2 of 3 levels do not fit, the first 8; signed levels of 4 bits are -8\.\.7"):
        pack(torch.tensor([8, -9, 7]), bits=4)
    with pytest.raises(ValueError, match=r"the first -1; unsigned levels of 4 bits are 0\.\.15"):
        pack(torch.tensor([-1]), bits=4, signed=False)
    with pytest.raises(ValueError, match=r"the first 0; signed levels of 1 bits are -1\.\.1"):
        pack(torch.tensor([1, 0]), bits=1)
    with pytest.raises(TypeError, match=r"levels must be integers, got torch\.float32"):
        pack(torch.ones(2), bits=4)
    with pytest.raises(TypeError, match=r"packed must be uint8, got torch\.int64"):
        unpack(torch.ones(2, dtype=torch.int64), 4, bits=4)
    with pytest.raises(ValueError, match=r"shape \(2,\), but needs 3 bytes for 5 levels of 4 bits"):
        unpack(torch.zeros(2, dtype=torch.uint8), 5, bits=4)
