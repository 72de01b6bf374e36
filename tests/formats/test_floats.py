"""Floating point formats: worked numbers, torch's own casts as the oracle, and what rounding must never do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.formats import FLOATS, FloatFormat, round_float, round_to_format

IN_TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "fp32": torch.float32,
}


def equal_to_the_bit(a: torch.Tensor, b: torch.Tensor) -> bool:
    number = ~a.isnan()
    same_nan = torch.equal(a.isnan(), b.isnan())
    return same_nan and torch.equal(a[number].view(torch.int32), b[number].view(torch.int32))


def every_half() -> torch.Tensor:
    return torch.arange(65536).to(torch.uint16).view(torch.float16).float()


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    halves = every_half()
    finite = halves[halves.isfinite()]
    return {
        "every float16": halves,
        "every bfloat16": torch.arange(65536).to(torch.uint16).view(torch.bfloat16).float(),
        "random bits": torch.randint(-(2**31), 2**31, (500_000,), generator=generator).to(torch.int32).view(torch.float32),
        "around one": torch.randn(200_000, generator=generator),
        "ties of float16": finite * (1 + 2**-11),
        "ties of bfloat16": finite * (1 + 2**-8),
        "ties of fp8": finite * (1 + 2**-4),
        "just off a tie": finite * (1 + 2**-4 + 2**-20),
        "specials": torch.tensor(
            [0.0, -0.0, math.inf, -math.inf, math.nan, 2**-149, -(2**-149), 2**-126, 3.4e38, -3.4e38, 65504, 65519.99,
             65520, 448, 464, 464.01, 480, 57344, 61440, 61439.99, 2**-24, 2**-25, 1.0001 * 2**-25, 2**-9, 2**-10,
             1.5 * 2**-9, 2**-16, 2**-17, 1.01 * 2**-17]
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", IN_TORCH)
@pytest.mark.parametrize("kind", list(inputs()))
def test_equal_to_torchs_cast_to_the_bit(name, kind):
    x = inputs()[kind]
    assert equal_to_the_bit(round_to_format(x, name), x.to(IN_TORCH[name]).float())


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp4_e2m1"])
def test_the_nearest_value_by_brute_force(name):
    """Against the list of all values: the nearest, and of two equally near ones the even code."""
    fmt = FLOATS[name]
    values = fmt.values().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20_000, generator=generator, dtype=torch.float64) * 1.2 * fmt.max_value
    x = torch.cat([x, (values[1:] + values[:-1]) / 2, values])
    distance = (x[:, None] - values).abs()
    nearest = distance.amin(1, keepdim=True)
    codes = torch.arange(len(values)).expand_as(distance)
    candidates = torch.where(distance == nearest, codes, -1)
    best = candidates.amax(1)
    tie = (distance == nearest).sum(1) == 2
    best = torch.where(tie & (best % 2 == 1), best - 1, best)
    if fmt.special == "ieee":
        x, best = x[x < fmt.max_value], best[x < fmt.max_value]
    assert torch.equal(round_float(x, fmt, saturate=True), values[best])


@pytest.mark.parametrize(
    ("name", "largest", "tiny", "smallest"),
    [
        ("fp16", 65504.0, 2**-14, 2**-24),  # (2 - 2^-10) 2^15
        ("bf16", (2 - 2**-7) * 2.0**127, 2.0**-126, 2.0**-133),
        ("tf32", (2 - 2**-10) * 2.0**127, 2.0**-126, 2.0**-136),
        ("fp8_e4m3", 448.0, 2**-6, 2**-9),  # 1.75 x 2^8: mantissa 111 at the largest exponent is NaN
        ("fp8_e5m2", 57344.0, 2**-14, 2**-16),  # 1.75 x 2^15
        ("fp6_e2m3", 7.5, 1.0, 0.125),  # 1.875 x 2^2
        ("fp6_e3m2", 28.0, 0.25, 0.0625),  # 1.75 x 2^4
        ("fp4_e2m1", 6.0, 1.0, 0.5),  # 1.5 x 2^2
    ],
)
def test_range_by_hand(name, largest, tiny, smallest):
    fmt = FLOATS[name]
    assert (fmt.max_value, fmt.tiny, fmt.smallest) == (largest, tiny, smallest)
    if fmt.bits <= 16:
        values = fmt.values()
        assert (values[0], values[1], values[-1]) == (0, smallest, largest)
        assert (values.diff() > 0).all()


def test_fp16_values_are_all_the_positive_halves():
    halves = torch.arange(0x7C00).to(torch.uint16).view(torch.float16).float()
    assert torch.equal(FLOATS["fp16"].values(), halves)


@pytest.mark.parametrize(
    ("fmt", "saturate", "result"),
    [
        ("fp16", None, math.inf), ("fp16", True, 65504.0), ("fp16", False, math.inf),
        ("fp8_e4m3", None, 448.0), ("fp8_e4m3", False, math.nan), ("fp4_e2m1", False, 6.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [1e6, math.inf])
def test_beyond_the_largest(fmt, saturate, result, value):
    rounded = round_to_format(torch.tensor([value, -value]), fmt, saturate=saturate).tolist()
    assert str(rounded) == str([result, -result if not math.isnan(result) else result])


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(2, 8), st.integers(0, 23), st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=30),
    st.sampled_from(["nearest", "stochastic"]),
)  # fmt: skip
def test_rounding_is_idempotent_symmetric_and_monotone(exponent_bits, mantissa_bits, numbers, rounding):
    fmt, x = FloatFormat(exponent_bits, mantissa_bits), torch.tensor(numbers, dtype=torch.float32)
    rounded = round_float(x, fmt, rounding=rounding)
    assert equal_to_the_bit(round_float(rounded, fmt, rounding=rounding), rounded)
    assert equal_to_the_bit(round_float(-x, fmt, rounding=rounding), -rounded)
    if rounding == "nearest":
        order = x.argsort()
        assert (rounded[order].nan_to_num().diff() >= 0).all() or not rounded.isfinite().all()
    finite = rounded.isfinite() & x.isfinite()
    step = torch.maximum(
        2.0 ** (torch.frexp(x[finite].double()).exponent - 1 - mantissa_bits), torch.tensor(fmt.smallest)
    )
    error = (rounded - x)[finite].double().abs()
    assert (error <= step * (0.5 if rounding == "nearest" else 1)).all()


def test_float64_is_rounded_once_not_twice():
    """1 + 2^-11 + 2^-40 lies above the tie between 1 and 1 + 2^-10; through float32 it would fall onto the tie."""
    x = torch.tensor([1 + 2**-11 + 2**-40], dtype=torch.float64)
    assert round_to_format(x, "fp16").item() == 1 + 2**-10
    assert round_to_format(x.float(), "fp16").item() == 1.0
    assert round_to_format(x, "fp16").dtype is torch.float64


def test_stochastic_rounding_has_the_right_mean():
    """2.3 in steps of 0.5 (FP4 between 2 and 4 has steps of 1): up to 3 with probability 0.3."""
    x = torch.full((40_000,), 2.3)
    rounded = round_to_format(x, "fp4_e2m1", rounding="stochastic", generator=torch.Generator().manual_seed(1))
    assert set(rounded.tolist()) == {2.0, 3.0}
    assert abs(rounded.mean().item() - 2.3) < 0.01  # four standard errors: 4 * 0.458 / 200


def test_stochastic_rounding_repeats_with_its_generator():
    x = torch.randn(1000)
    first = round_to_format(x, "bf16", rounding="stochastic", generator=torch.Generator().manual_seed(3))
    again = round_to_format(x, "bf16", rounding="stochastic", generator=torch.Generator().manual_seed(3))
    other = round_to_format(x, "bf16", rounding="stochastic", generator=torch.Generator().manual_seed(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shapes_strides_and_inputs_are_left_alone():
    x = torch.randn(7, 5).t()
    before = x.clone()
    rounded = round_to_format(x, "fp8_e4m3")
    assert rounded.shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(rounded, round_to_format(x.contiguous(), "fp8_e4m3"))
    assert round_to_format(torch.tensor(1.1), "bf16").shape == ()
    assert round_to_format(torch.empty(0, 3), "bf16").shape == (0, 3)
    assert round_to_format(torch.tensor([1.1], dtype=torch.float16), "fp4_e2m1").dtype is torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FloatFormat(9, 2), r"\(exponent_bits, mantissa_bits\)=\(9, 2\) must be in 1..8 and 0..23"),
        (lambda: FloatFormat(4, 24), r"=\(4, 24\) must be in 1..8 and 0..23"),
        (lambda: FloatFormat(4, 3, "inf"), "special='inf' must be 'ieee', 'nan' or 'none'"),
        (lambda: FloatFormat(1, 3), "exponent_bits=1 with special='ieee'"),
        (lambda: FloatFormat(4, 0, "nan"), "mantissa_bits=0 with special='nan'"),
        (lambda: FLOATS["fp32"].values(), "a format of 32 bits has too many values"),
        (lambda: round_float(torch.ones(2), FLOATS["bf16"], rounding="up"), "rounding='up' must be"),
        (lambda: round_to_format(torch.ones(2), "fp7"), "fmt='fp7' is not known; choose one of fp32"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"x must be floating point, got torch.int64; call .float\(\) first"):
        round_to_format(torch.arange(3), "bf16")
