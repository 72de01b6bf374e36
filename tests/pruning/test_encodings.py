"""Encodings: bytes by hand, bit for bit there and back, scipy's CSR, and nothing damaged is decoded."""

from __future__ import annotations

import gzip
import math

import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.pruning.encodings import FORMATS, decode, encode, raw_bytes
from compresslab.pruning.n_m import n_m_mask

ANY = [format for format in FORMATS if format != "2:4"]
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.uint8, torch.int64, torch.bool)


def sparse(shape: tuple[int, ...], density: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    return (torch.randn(shape, generator=generator) * 50).to(dtype).masked_fill(~kept, 0)  # times a mask gives -0.0


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and raw_bytes(a.contiguous()) == raw_bytes(b.contiguous())


def there_and_back(x: torch.Tensor, format: str) -> torch.Tensor:
    return decode(encode(x, format), format=format, shape=tuple(x.shape), dtype=x.dtype)


def test_by_hand():
    x = torch.tensor([[0.0, 5.0, 0.0, 7.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 2.0]])

    def parts(format: str) -> dict[str, list]:
        return {name: part.tolist() for name, part in encode(x, format).items()}

    assert parts("dense") == {"dense": x.tolist()}
    # bits from the first place on, lowest first: 0101 0000 is 2 + 8, 1001 is 1 + 8
    assert parts("bitmask") == {"values": [5, 7, 1, 2], "bits": [10, 9]}
    assert parts("csr") == {"values": [5, 7, 1, 2], "columns": [1, 3, 0, 3], "starts": [0, 2, 2, 4]}
    assert parts("coo") == {"values": [5, 7, 1, 2], "rows": [0, 0, 2, 2], "columns": [1, 3, 0, 3]}
    assert parts("run_length") == {"values": [5, 7, 1, 2], "gaps": [1, 1, 4, 2]}
    # places 1 and 3; then none: 0 and 1 hold zeros; 0 and 3. Two bits each: 1 + 3 * 4 + 0 + 1 * 64; 0 + 3 * 4.
    assert parts("2:4") == {"values": [5, 7, 0, 0, 1, 2], "indices": [77, 12]}
    assert gzip.decompress(raw_bytes(encode(x, "gzip")["gzip"])) == raw_bytes(x)
    assert encode(x, "csr")["columns"].dtype == torch.int16
    for format in FORMATS:
        assert same_bits(there_and_back(x, format), x)


def test_long_runs_of_zeros():
    # 255 zeros and a value: one code. 256 zeros: a zero is stored at the end of the first 256, then no zeros, the value.
    for zeros, gaps in ((255, [255]), (256, [255, 0]), (600, [255, 255, 88])):
        x = torch.zeros(zeros + 3)
        x[zeros] = 5
        found = encode(x, "run_length")
        assert found["gaps"].tolist() == gaps
        assert found["values"].tolist() == [0] * (len(gaps) - 1) + [5]
        assert same_bits(there_and_back(x, "run_length"), x)


def test_bytes_are_those_of_the_formulas():
    x = sparse((256, 512), 0.1)
    n, values = x.numel(), int(x.count_nonzero())

    def nbytes(format: str, x: torch.Tensor) -> int:
        return sum(part.nbytes for part in encode(x, format).values())

    assert nbytes("dense", x) == 4 * n
    assert nbytes("bitmask", x) == n / 8 + 4 * values
    assert nbytes("csr", x) == values * (2 + 4) + 257 * (2 if values < 2**15 else 4)
    assert nbytes("coo", x) == values * (2 + 2 + 4)
    assert values * 5 <= nbytes("run_length", x) < values * 5.01
    assert nbytes("gzip", x) < nbytes("run_length", x) * 1.1
    half = x.masked_fill(~n_m_mask(x.abs()), 0)
    assert nbytes("2:4", half) == n / 8 + 2 * n  # two bits for each of n / 2 values
    wide = sparse((2, 40_000), 0.1)  # columns that take 4 bytes
    assert encode(wide, "csr")["columns"].dtype == torch.int32
    assert encode(wide, "coo")["rows"].dtype == torch.int16


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    shape=st.sampled_from([(), (0,), (1,), (7,), (3, 5), (0, 4), (4, 0), (2, 3, 4), (5, 4, 3, 3), (700,), (2, 999)]),
    density=st.sampled_from([0.0, 0.01, 0.3, 0.97, 1.0]),
    dtype=st.sampled_from(DTYPES),
    format=st.sampled_from(ANY),
    seed=st.integers(0, 99),
)
def test_bit_for_bit(shape, density, dtype, format, seed):
    x = sparse(shape, density, seed, dtype)
    before = x.clone()
    assert same_bits(there_and_back(x, format), x)
    assert same_bits(x, before)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    shape=st.sampled_from([(1, 4), (3, 8), (2, 12), (2, 4, 3), (3, 8, 3, 3), (0, 4), (4, 0)]),
    n=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
    seed=st.integers(0, 99),
)
def test_two_of_four_bit_for_bit(shape, n, dtype, seed):
    x = sparse(shape, 1.0, seed, torch.float32)
    x = x.masked_fill(~n_m_mask(x.abs(), n=n, m=4), 0).to(dtype)
    assert same_bits(there_and_back(x, "2:4"), x)


def test_a_mask_that_is_multiplied_leaves_values():
    """-1 times False is -0.0, which has a bit set: masks are filled in, not multiplied."""
    x, mask = -torch.ones(2, 4), torch.tensor([[True, False, True, False]] * 2)
    assert len(encode(x * mask, "bitmask")["values"]) == 8
    assert len(encode(x.masked_fill(~mask, 0), "bitmask")["values"]) == 4


@pytest.mark.parametrize("format", ANY)
def test_what_no_arithmetic_keeps(format):
    bits = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 0x7F800000, 1, 0], dtype=torch.int32)
    x = bits.view(torch.float32)  # two kinds of NaN, -0.0, infinity, the smallest number, 0.0
    assert math.isnan(x[0])
    assert same_bits(there_and_back(x, format), x)
    columns = sparse((6, 4), 0.5).T  # not contiguous
    assert same_bits(there_and_back(columns, format), columns.contiguous())


def test_csr_is_that_of_scipy():
    x = sparse((30, 50), 0.2)
    theirs, ours = scipy.sparse.csr_array(x.numpy()), encode(x, "csr")
    assert theirs.indices.tolist() == ours["columns"].tolist()
    assert theirs.indptr.tolist() == ours["starts"].tolist()
    assert theirs.data.tolist() == ours["values"].tolist()
    coo, ours = scipy.sparse.coo_array(x.numpy()), encode(x, "coo")
    assert (coo.row.tolist(), coo.col.tolist()) == (ours["rows"].tolist(), ours["columns"].tolist())


@pytest.mark.parametrize("format", FORMATS)
def test_parts_that_are_missing_or_short_are_refused(format):
    x = sparse((6, 8), 1.0)
    x = x.masked_fill(~n_m_mask(x.abs()), 0)
    parts = encode(x, format)

    def refused(
        parts: dict[str, torch.Tensor], shape: tuple[int, ...] = (6, 8), dtype: torch.dtype = torch.float32
    ) -> None:
        with pytest.raises(ValueError, match=rf"the parts are no {format} of .*; encode the tensor anew"):
            decode(parts, format=format, shape=shape, dtype=dtype)

    for name, part in parts.items():
        refused({other: parts[other] for other in parts if other != name})
        refused(parts | {name: part[:-1]})
        if format != "gzip":  # what follows a gzip stream is not read
            refused(parts | {name: torch.cat([part, part[-1:]])})
    refused(parts, shape=(5, 8))
    refused(parts, dtype=torch.float64)


def test_places_outside_or_twice_are_refused():
    x = sparse((6, 8), 0.5)

    def refused(format: str, **parts: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=f"the parts are no {format} of"):
            decode(encode(x, format) | parts, format=format, shape=(6, 8), dtype=x.dtype)

    for format in ("csr", "coo"):
        columns = encode(x, format)["columns"]
        for place, value in ((0, 8), (0, -1), (1, columns[0])):
            wrong = columns.clone()
            wrong[place] = value
            refused(format, columns=wrong)
    rows = encode(x, "coo")["rows"].clone()
    for value in (6, -1):
        rows[-1] = value
        refused("coo", rows=rows)
    starts = encode(x, "csr")["starts"].clone()
    starts[1] = starts[-1] + 1
    refused("csr", starts=starts)
    gaps = encode(x, "run_length")["gaps"].clone()
    gaps[-1] += 60
    refused("run_length", gaps=gaps)
    bits = encode(x, "bitmask")["bits"].clone()
    refused("bitmask", bits=bits ^ 1)
    pattern = x.masked_fill(~n_m_mask(x.abs()), 0)
    twice = encode(pattern, "2:4")
    with pytest.raises(ValueError, match=r"the parts are no 2:4 of \(6, 8\)"):
        decode(twice | {"indices": torch.zeros_like(twice["indices"])}, format="2:4", shape=(6, 8), dtype=x.dtype)
    zipped = encode(x, "gzip")["gzip"].clone()
    zipped[20] ^= 1
    refused("gzip", gzip=zipped)


def test_errors():
    with pytest.raises(ValueError, match="format='zip' must be one of dense, bitmask, csr"):
        encode(torch.ones(2), "zip")
    with pytest.raises(ValueError, match=r"the parts are no zip of \(2,\) .* the format must be one of dense"):
        decode({"values": torch.ones(2)}, format="zip", shape=(2,), dtype=torch.float32)
    with pytest.raises(TypeError, match=r"x must have elements of 1, 2, 4 or 8 bytes, got torch\.complex128"):
        encode(torch.ones(2, dtype=torch.complex128), "dense")
    for wrong in (torch.ones(4), torch.ones(2, 6)):
        with pytest.raises(ValueError, match=r"format='2:4' needs inputs \(axis 1\) that 4 divides, got \((4,|2, 6)\)"):
            encode(wrong, "2:4")
    with pytest.raises(
        ValueError, match=r"format='2:4' needs at most 2 values in every 4 inputs \(-0.0 is one\), got 3; try prune_n_m"
    ):
        encode(torch.tensor([[1.0, 2.0, 3.0, 0.0]]), "2:4")
