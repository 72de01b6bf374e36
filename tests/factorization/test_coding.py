"""One tensor in few bits: gaps by hand, every bit back, the shortest code, and damaged parts."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.factorization.coding import bound_bytes, decode_gaps, decode_tensor, encode_gaps, encode_tensor

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool]  # fmt: skip


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.contiguous().view(integers), b.view(integers))


def test_gaps_by_hand():
    def gaps(count, *places):
        mask = torch.zeros(count, dtype=torch.bool)
        mask[list(places)] = True
        found = encode_gaps(mask)
        assert decode_gaps(found, count).tolist() == list(places)
        return found.tolist()

    assert gaps(5, 0, 1, 4) == [0, 0, 2]
    assert gaps(300, 254) == [254]  # 45 more behind it need no escape
    assert gaps(300, 255) == [255, 0]
    assert gaps(600, 599) == [255, 255, 89]
    assert gaps(600) == [255, 255] and gaps(254) == [] and gaps(0) == []


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 3000), st.floats(0, 1), st.integers(0, 10**6))
def test_gaps_of_any_mask(count, density, seed):
    mask = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < density**3
    assert torch.equal(decode_gaps(encode_gaps(mask), count), mask.nonzero().squeeze(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 0, 2), (5, 40), (4, 3, 3, 3)], ids=str)
def test_every_bit_comes_back(dtype, shape):
    for x in (
        draw(*shape) * 3, torch.zeros(shape), draw(*shape).round() * (draw(*shape, seed=1) > 1),
        draw(*shape) * (draw(*shape, seed=1) > 1),
    ):  # fmt: skip
        x = x.to(dtype)
        assert same(x, decode_tensor(encode_tensor(x), tuple(shape), dtype))


def test_minus_zero_and_nan_are_values():
    x = torch.zeros(1000)
    x[::7], x[3], x[5] = -0.0, float("nan"), float("inf")
    coded = encode_tensor(x)
    assert coded.kind != "raw" and same(x, decode_tensor(coded, (1000,), torch.float32))
    transposed = draw(6, 8).round().t()
    assert same(transposed.contiguous(), decode_tensor(encode_tensor(transposed), (8, 6), torch.float32))


def test_the_shortest_is_taken():
    few, many = draw(4000).sign(), draw(4000)
    sparse = torch.where(draw(4000, seed=1) > 1.6, few, 0.0)
    alone = torch.where(sparse != 0, many, 0.0)  # zeros, and values that do not repeat
    assert [encode_tensor(x).kind for x in (few, many, sparse, alone)] == ["symbols", "raw", "gaps", "sparse"]
    mask = encode_tensor(alone).nbytes - 4 * int((sparse != 0).sum())
    assert 160 < mask < 210  # h(0.055) of 4,000 places is 154 bytes
    assert bound_bytes(alone, encode_tensor(alone)) < encode_tensor(alone).nbytes < 1100
    coded = encode_tensor(few)
    assert coded.nbytes == 8 + 500 + 1 + 2 * 4  # two values, a bit each, two lengths of half a byte, four chunks
    for x in (few, sparse):
        coded = encode_tensor(x)  # short streams: tables and chunks count
        assert bound_bytes(x, coded) <= coded.nbytes < 1.3 * bound_bytes(x, coded)
    assert bound_bytes(many, encode_tensor(many)) == 16_000


def test_the_bound_by_hand():
    x = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0]).repeat(400)  # a quarter of two equally frequent values
    assert encode_tensor(x).kind == "gaps"
    mask = 3200 * (0.25 * 2 + 0.75 * 0.41503749927884376)
    assert bound_bytes(x, encode_tensor(x)) == pytest.approx((mask + 800) / 8 + 8)
    half = torch.tensor([1.0, 2.0]).repeat(400)
    assert bound_bytes(half, encode_tensor(half)) == pytest.approx(100 + 8)


def test_damaged_parts_are_refused():
    sparse = torch.where(draw(4000, seed=1) > 1.6, draw(4000).sign(), 0.0)
    coded = encode_tensor(sparse)
    symbols, _ = coded.streams
    longer = encode_tensor(torch.where(draw(4000, seed=2) > 1.5, 1.0, 0.0)).streams[1]
    for changed, shape, message in (
        (dataclasses.replace(coded, values=coded.values[:1]), (4000,), "points beyond the table of 1 values"),
        (coded, (4300,), "gaps do not lead to 4300 elements"),
        (coded, (3000,), "gaps do not lead to 3000 elements"),
        (coded, (10**15,), "gaps do not lead to"),  # nothing of that size is made
        (dataclasses.replace(coded, streams=(symbols, longer)), (4000,), "values and .* places do not fit each other"),
        (dataclasses.replace(coded, kind="symbols"), (4000,), r"elements do not fit the shape \(4000,\)"),
        (encode_tensor(draw(5)), (6,), r"5 elements do not fit the shape \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_tensor(changed, shape, torch.float32)
    with pytest.raises(ValueError, match=r"are not in 0\.\.255"):
        decode_gaps(torch.tensor([-1, 3]), 3)
    with pytest.raises(ValueError, match=r"are not in 0\.\.255"):
        decode_gaps(torch.tensor([256]), 257)
    with pytest.raises(ValueError, match="x is on the meta device"):
        encode_tensor(torch.ones(2, device="meta"))
    with pytest.raises(TypeError, match=r"x must have real elements of 1, 2, 4 or 8 bytes, got torch\.complex64"):
        encode_tensor(torch.ones(2, dtype=torch.complex64))
