"""Formats with a shared scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal

from compresslab.formats import FLOATS, FORMATS, MX, BlockFormat, bits_per_element, round_mx, round_nf4, round_to_format
from compresslab.formats.blocks import NF4_VALUES


def test_integers_by_hand():
    """int4: 7 steps to each side of zero, scale 14 / 7 = 2: 3 -> 1.5 steps, ties to even -> 2 steps -> 4."""
    x = torch.tensor([14.0, 3.0, 5.0, -13.1, 0.9])
    assert round_to_format(x, "int4").tolist() == [14.0, 4.0, 4.0, -14.0, 0.0]


def test_integers_have_at_most_their_levels():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert len(round_to_format(x, "int8").unique()) <= 255
    assert len(round_to_format(x, "int4").unique()) == 15
    assert (round_to_format(x, "int8") - x).abs().max() <= x.abs().max() / 127 / 2 + 1e-7


def test_mx_by_hand():
    """Largest 24 = 1.5 x 2^4, e_max of E2M1 is 2, so the scale is 4: 24 -> 6, 5 -> 1.25 -> 1, 7 -> 1.75 -> 2 (tie)."""
    assert round_to_format(torch.tensor([24.0, 5.0, 7.0, -0.9]), "mxfp4").tolist() == [24.0, 4.0, 8.0, -0.0]
    # 31 / 4 = 7.75 is beyond 6: it saturates
    assert round_to_format(torch.tensor([31.0]), "mxfp4").item() == 24.0


def test_blocks_do_not_see_one_another():
    x = torch.cat([torch.full((32,), 1000.0), torch.full((32,), 0.001)])
    rounded = round_to_format(x, "mxfp8")
    assert (rounded[32:] - 0.001).abs().max() < 0.001 * 2**-4
    assert rounded[:32].unique().tolist() == [896.0]  # 1000 / 2^(9 - 8) = 500 saturates at 448; times 2


def test_mx_against_the_definition_in_plain_python():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 70, generator=generator) * 10 ** torch.randn(3, 70, generator=generator)
    for name, fmt in MX.items():
        values = fmt.element.values().tolist()
        rounded = round_to_format(x, name)
        for row, got in zip(x.tolist(), rounded.tolist(), strict=True):
            for start in range(0, len(row), 32):
                block = row[start : start + 32]
                scale = 2.0 ** (math.floor(math.log2(max(map(abs, block)))) - fmt.element.max_exponent)
                for value, result in zip(block, got[start : start + 32], strict=True):
                    scaled = abs(value) / scale
                    best = min(abs(scaled - candidate) for candidate in values)
                    assert abs(abs(abs(result) / scale - scaled) - best) < 1e-6
                    assert result == 0 or (result > 0) == (value > 0)


def test_nf4_values_come_from_the_normal_distribution():
    """The appendix of QLoRA: quantiles at equal areas, 8 above zero and 7 below, normalized; offset 0.9677083."""
    normal, offset = Normal(0.0, 1.0), 0.9677083
    above = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    below = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    values = torch.cat([above, below, torch.zeros(1)]).sort().values
    assert torch.allclose(values / values.max(), torch.tensor(NF4_VALUES), atol=1e-6)


def test_nf4_takes_the_nearest_value():
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    values, scale = torch.tensor(NF4_VALUES), x.abs().max()
    nearest = values[(x[:, None] / scale - values).abs().argmin(1)] * scale
    assert torch.allclose(round_nf4(x), nearest)


@pytest.mark.parametrize(
    ("name", "bits"), [("fp32", 32), ("tf32", 19), ("int8", 8), ("nf4", 4.5), ("mxfp8", 8.25), ("mxfp6", 6.25)]
)
def test_bits_count_the_scales(name, bits):
    assert bits_per_element(name) == bits


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.sampled_from(["int8", "int4", "nf4", "mxfp8", "mxfp6", "mxfp4"]), st.integers(1, 70), st.integers(0, 10**6))
def test_rounding_twice_changes_nothing_and_the_error_is_bounded(name, length, seed):
    x = torch.randn(2, length, generator=torch.Generator().manual_seed(seed))
    rounded = round_to_format(x, name)
    assert torch.allclose(round_to_format(rounded, name), rounded, rtol=1e-5, atol=1e-7)
    assert (rounded - x).abs().max() <= 0.34 * x.abs().max()
    assert rounded.shape == x.shape


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_and_empty_tensors(name):
    assert torch.equal(round_to_format(torch.zeros(3, 40), name), torch.zeros(3, 40))
    assert round_to_format(torch.zeros(0), name).shape == (0,)
    assert round_to_format(torch.tensor(1.0), name).shape == ()


def test_tiny_and_huge_blocks_stay_finite():
    x = torch.tensor([2.0**-149, 2.0**-140] + [0.0] * 30 + [3e38, -3e38])
    for name in MX:
        assert round_to_format(x, name).isfinite().all()


def test_stochastic_blocks_have_the_right_mean():
    x = torch.full((32_000,), 1.2)
    x[::32] = 6.0  # scale 1: 1.2 lies between 1 and 1.5
    rounded = round_mx(x, MX["mxfp4"], rounding="stochastic", generator=torch.Generator().manual_seed(0))
    assert set(rounded.unique().tolist()) == {1.0, 1.5, 6.0}
    assert abs(rounded[rounded < 2].mean().item() - 1.2) < 0.006
    integers = round_to_format(torch.tensor([127.0] + [0.3] * 30_000), "int8", rounding="stochastic")
    assert abs(integers[1:].mean().item() - 0.3) < 0.012


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: round_to_format(torch.tensor([1.0, math.nan, math.inf]), "mxfp4"),
            "2 of 3 elements of x are not finite",
        ),
        (lambda: round_to_format(torch.ones(3), "nf4", rounding="stochastic"), "'nearest' for nf4"),
        (lambda: round_to_format(torch.ones(3), "int8", rounding="down"), "rounding='down' must be"),
        (lambda: round_mx(torch.ones(3), BlockFormat(FLOATS["fp4_e2m1"], block=0)), "block=0 must be at least 1"),
        (lambda: bits_per_element("fp7"), "fmt='fp7' is not known"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_bits():
    from compresslab.formats import round_integer

    with pytest.raises(ValueError, match=r"bits=1 must be in 2..16"):
        round_integer(torch.ones(2), 1)
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        round_integer(torch.arange(2), 8)
