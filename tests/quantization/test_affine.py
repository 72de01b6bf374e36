"""Affine quantization: numbers by hand, torch's fake quantization as the oracle, and what must hold for any tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.quantization.affine import Grid, check_finite, choose_grid, integer_levels, quantize

steady = settings(derandomize=True, deadline=None, max_examples=60)
values = st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=24)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_symmetric_by_hand():
    # max|x| = 7, 4 bits: levels -7..7, so the scale is 1. 0.5 and 1.5 are ties: to even, 0 and 2.
    quantized = quantize(torch.tensor([7.0, -7.0, 0.5, 1.5, -2.4]), bits=4)
    assert quantized.scale.item() == 1
    assert quantized.zero_point.item() == 0
    assert quantized.levels.tolist() == [7, -7, 0, 2, -2]
    assert (quantized.grid.quant_min, quantized.grid.quant_max, quantized.bits) == (-7, 7, 4)


def test_asymmetric_by_hand():
    # -1..2 in 3 steps: scale 1, zero point 1, levels x + 1. -0.6 -> -1 + 1 = 0.
    quantized = quantize(torch.tensor([-1.0, 2.0, 0.0, -0.6]), bits=2, symmetric=False)
    assert quantized.levels.tolist() == [0, 3, 1, 0]
    assert quantized.dequantize().tolist() == [-1, 2, 0, -1]


def test_a_range_of_one_sign_is_widened_to_zero():
    # 3..15 becomes 0..15: scale 1, zero point 0. -15..-3 becomes -15..0: zero point 15.
    assert quantize(torch.tensor([3.0, 15.0]), bits=4, symmetric=False).levels.tolist() == [3, 15]
    negative = quantize(torch.tensor([-3.0, -15.0]), bits=4, symmetric=False)
    assert negative.zero_point.item() == 15
    assert negative.levels.tolist() == [12, 0]


def test_one_bit_by_hand():
    # mean|x| = (1 + 3 + 2) / 3 = 2; signs + - +.
    quantized = quantize(torch.tensor([1.0, -3.0, 2.0]), bits=1)
    assert quantized.levels.tolist() == [1, -1, 1]
    assert quantized.dequantize().tolist() == [2, -2, 2]
    assert quantize(torch.zeros(3), bits=1).dequantize().abs().max() <= torch.finfo(torch.float32).tiny
    assert quantize(torch.tensor([0.0, 4.0]), bits=1, symmetric=False).levels.tolist() == [0, 1]


def test_channels_and_groups_by_hand():
    x = torch.tensor([[7.0, 1.0, 0.7, 0.1], [70.0, 10.0, -14.0, 2.0]])
    channels = quantize(x, bits=4, axis=0)  # scales 1 and 10
    assert channels.scale.tolist() == [1, 10]
    assert channels.levels.tolist() == [[7, 1, 1, 0], [7, 1, -1, 0]]
    groups = quantize(x, bits=4, group_size=2)  # scales 1, 0.1 and 10, 2
    assert torch.allclose(groups.scale, torch.tensor([[1, 0.1], [10, 2]]))
    assert groups.levels.tolist() == [[7, 1, 7, 1], [7, 1, -7, 1]]
    assert quantize(x.T, bits=4, axis=-1).levels.T.tolist() == channels.levels.tolist()


def test_bytes_by_hand():
    # 6 weights of 3 bits: 18 bits, 3 bytes. Two float32 scales: 8 bytes. Two zero points of 3 bits: 1 byte.
    x = torch.arange(6.0).reshape(2, 3)
    assert quantize(x, bits=3, axis=0).nbytes == 3 + 8
    quantized = quantize(x, bits=3, axis=0, symmetric=False)
    assert quantized.nbytes == 3 + 8 + 1
    assert quantized.bits_per_weight == 8 * 12 / 6
    assert quantize(torch.zeros(0)).bits_per_weight == math.inf


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_equal_to_torch_to_the_last_bit(bits, symmetric, size):
    if bits == 1 and symmetric:
        return  # torch's levels would include 0
    x = (noise(6, 500) + 0.3) * size
    for axis in (None, 0):
        q = quantize(x, bits=bits, symmetric=symmetric, axis=axis)
        low, high = q.grid.quant_min, q.grid.quant_max
        if axis is None:
            theirs = torch.fake_quantize_per_tensor_affine(x, q.scale, q.zero_point, low, high)
        else:
            theirs = torch.fake_quantize_per_channel_affine(x, q.scale, q.zero_point, axis, low, high)
        assert torch.equal(q.dequantize(), theirs)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, symmetric):
    x = noise(40, 7).to(dtype)
    quantized = quantize(x, symmetric=symmetric)
    back = quantized.dequantize()
    assert back.dtype == dtype
    theirs = torch.fake_quantize_per_tensor_affine(
        x, quantized.scale.float(), quantized.zero_point, quantized.grid.quant_min, quantized.grid.quant_max
    )
    assert (back - theirs).abs().max() <= 2 * max(torch.finfo(dtype).eps, 1e-7) * x.abs().max()
    assert quantized.scale.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@steady
@given(values, st.integers(1, 16), st.booleans())
def test_an_error_is_at_most_half_a_step(numbers, bits, symmetric):
    x = torch.tensor(numbers)
    quantized = quantize(x, bits=bits, symmetric=symmetric)
    levels = integer_levels(bits, symmetric=symmetric)
    assert set(quantized.levels.tolist()) <= set(levels)
    assert quantized.levels.shape == x.shape
    scale = quantized.scale.double()
    if not (bits == 1 and symmetric):
        error = (quantized.dequantize().double() - x.double()).abs().max()
        assert error <= scale * 0.5 * (1 + 1e-3) + 1e-5 * x.double().abs().max()
        assert quantized.zero_point.item() in levels  # 0.0 is a level


@steady
@given(values, st.integers(1, 16))
def test_symmetric_means_odd(numbers, bits):
    x = torch.tensor(numbers)
    x = x[x != 0]
    assert torch.equal(quantize(-x, bits=bits).levels, -quantize(x, bits=bits).levels)


@steady
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(2, 8), st.booleans())
def test_groups_are_rows_and_channels_are_slices(rows, groups, size, bits, symmetric):
    x = noise(rows, groups * size, seed=rows + 10 * groups)
    grouped = quantize(x, bits=bits, symmetric=symmetric, group_size=size)
    as_rows = quantize(x.reshape(-1, size), bits=bits, symmetric=symmetric, axis=0)
    assert torch.equal(grouped.levels, as_rows.levels.reshape(x.shape))
    assert torch.equal(grouped.dequantize(), as_rows.dequantize().reshape(x.shape))
    assert grouped.scale.shape == (rows, groups)
    for axis in (0, 1):
        whole = quantize(x, bits=bits, symmetric=symmetric, axis=axis).dequantize()
        parts = [quantize(part, bits=bits, symmetric=symmetric).dequantize() for part in x.unbind(axis)]
        assert torch.equal(whole, torch.stack(parts, axis))


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_ranges_and_constants(symmetric):
    x = torch.tensor([[0.0, 0.0], [3.0, 3.0], [-3.0, -3.0], [1e-45, 0.0]])
    quantized = quantize(x, symmetric=symmetric, axis=0)
    assert quantized.scale[0] == 1
    assert quantized.levels[0].tolist() == [0, 0]
    assert torch.allclose(quantized.dequantize()[:3], x[:3])
    assert (quantized.scale >= torch.finfo(torch.float32).tiny).all()
    huge = torch.tensor([3e38, -3e38])
    assert torch.allclose(quantize(huge, symmetric=symmetric).dequantize(), huge, rtol=0.01)


def test_shapes_that_are_rare():
    assert quantize(torch.tensor(0.5), bits=4).levels.item() == 7
    assert quantize(torch.tensor(0.5), bits=4, group_size=1).scale.shape == (1,)
    assert quantize(torch.zeros(0, 3), axis=0).scale.shape == (0,)
    assert quantize(torch.zeros(2, 0), axis=0).scale.tolist() == [1, 1]
    assert quantize(torch.zeros(0)).levels.shape == (0,)
    x = noise(5, 6)
    assert torch.equal(quantize(x.T, group_size=5).levels, quantize(x.T.contiguous(), group_size=5).levels)
    assert torch.equal(quantize(x[:, ::2], axis=0).levels, quantize(x[:, ::2].contiguous(), axis=0).levels)


def test_what_was_given_is_left_alone():
    x = noise(4, 4).requires_grad_()
    before = x.detach().clone()
    assert not quantize(x, axis=0).dequantize().requires_grad
    assert torch.equal(x, before)


def test_a_narrower_grid_clips():
    # -1..1 in 8 bits: 3.0 lies outside and gets the last level; an int8 cast alone would wrap 381 to 125.
    quantized = choose_grid(-1.0, 1.0).quantize(torch.tensor([3.0, -300.0]))
    assert quantized.levels.tolist() == [127, -127]
    # by hand: scale 4 / 255 and zero point round(1 / (4 / 255)) = round(63.75) = 64; uint8 must not wrap below it
    below = choose_grid(-1.0, 3.0, symmetric=False).quantize(torch.tensor([-1.0]))
    assert below.zero_point.item() == 64
    assert below.dequantize().item() == pytest.approx(-64 * 4 / 255)


def test_integer_types_are_wide_enough():
    kinds = {(8, True): torch.int8, (8, False): torch.uint8, (9, True): torch.int16, (16, False): torch.int32}
    for (bits, symmetric), dtype in kinds.items():
        assert quantize(noise(9), bits=bits, symmetric=symmetric).levels.dtype == dtype
    assert [list(integer_levels(2)), list(integer_levels(2, symmetric=False))] == [[-1, 0, 1], [0, 1, 2, 3]]


@pytest.mark.parametrize("bits", [0, 17, -1, 4.0])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match=rf"bits={bits} must be an integer in 1\.\.16"):
        quantize(torch.ones(2), bits=bits)


def test_errors():
    x = torch.ones(2, 12)
    with pytest.raises(ValueError, match=r"group_size=5 must divide the last axis \(12\); try \[4, 6, 3\]"):
        quantize(x, group_size=5)
    with pytest.raises(ValueError, match="group_size=0 must divide"):
        quantize(x, group_size=0)
    with pytest.raises(ValueError, match=r"axis=2 must be an axis of x, whose shape is \(2, 12\)"):
        quantize(x, axis=2)
    with pytest.raises(ValueError, match="axis=0 and group_size=4 exclude each other"):
        quantize(x, axis=0, group_size=4)
    x[0, :3] = math.nan
    x[1, 0] = math.inf
    with pytest.raises(ValueError, match="x must be finite, got 3 NaN and 1 infinite of 24"):
        quantize(x)
    with pytest.raises(ValueError, match="weight is on the meta device"):
        check_finite(torch.ones(2, device="meta"), "weight")
    with pytest.raises(TypeError, match=r"x must be floating point, got torch\.int64"):
        quantize(torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"finite and ordered, got 2\.\.1"):
        choose_grid(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"finite and ordered, got nan\.\.1"):
        choose_grid(math.nan, 1.0)


def test_a_grid_keeps_its_layout():
    grid = quantize(noise(3, 4), group_size=2).grid
    assert isinstance(grid, Grid)
    assert torch.equal(grid.quantize(noise(3, 4)).levels, quantize(noise(3, 4), group_size=2).levels)
