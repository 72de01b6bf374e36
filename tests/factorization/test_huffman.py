"""Huffman codes: words by hand, lengths against a heap and against every code, streams of every size, damaged bits."""

from __future__ import annotations

import dataclasses
import heapq
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.factorization import code_lengths, code_words, entropy_bits, huffman_decode, huffman_encode


def heap_cost(counts):
    """Bits of Huffman's own construction: the sum of all merged weights."""
    heap, total = [count for count in counts if count], 0
    if len(heap) == 1:
        return heap[0]
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def test_words_by_hand():
    # 45, 13, 12, 16, 9, 5 (Cormen and others, section 16.3): 1, 3, 3, 3, 4, 4 bits, 224 in all
    counts = torch.tensor([45, 13, 12, 16, 9, 5])
    lengths = code_lengths(counts)
    assert lengths.tolist() == [1, 3, 3, 3, 4, 4] and int((lengths * counts).sum()) == 224
    words = [f"{word:0{n}b}" for word, n in zip(code_words(lengths).tolist(), lengths.tolist(), strict=True)]
    assert words == ["0", "100", "101", "110", "1110", "1111"]


def test_a_stream_by_hand():
    found = huffman_encode(torch.tensor([2, 0, 0, 1, 0, 0]))  # counts 4, 1, 1: words 0, 10, 11
    assert found.bits.tolist() == [0b11001000]
    assert (found.count, found.chunks.tolist(), found.nbytes) == (6, [8], 1 + 2 + 2)
    lone = huffman_encode(torch.tensor([3, 3]))
    assert lone.bits.tolist() == [0] and lone.lengths.tolist() == [0, 0, 0, 1] and lone.chunks.tolist() == [2]


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_lengths_are_those_of_huffmans_construction(counts):
    lengths = code_lengths(torch.tensor(counts))
    assert all((n > 0) == (count > 0) for n, count in zip(lengths.tolist(), counts, strict=True))
    if int(lengths.max()) < 15:  # the bound did not bind
        assert sum(n * count for n, count in zip(lengths.tolist(), counts, strict=True)) == heap_cost(counts)
    used = [n for n in lengths.tolist() if n]
    assert sum(2.0**-n for n in used) == (1 if len(used) > 1 else 0.5 * len(used))
    words = {f"{w:0{n}b}" for w, n in zip(code_words(lengths).tolist(), lengths.tolist(), strict=True) if n}
    assert len(words) == len(used)
    assert not any(a != b and b.startswith(a) for a in words for b in words)


def test_bounded_lengths_against_every_code():
    for counts in ([1, 2, 4, 8, 16], [1, 1, 1, 50, 100], [3, 3, 3, 3, 3], [1, 1, 2, 3, 5]):
        possible = [
            sum(n * c for n, c in zip(lengths, counts, strict=True))
            for lengths in itertools.product(range(1, 4), repeat=5)
            if sum(2.0**-n for n in lengths) <= 1
        ]
        found = code_lengths(torch.tensor(counts), longest=3)
        assert int(found.max()) <= 3 and int((found * torch.tensor(counts)).sum()) == min(possible)
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])  # without a bound up to 29 bits
    assert int(code_lengths(torch.tensor(fibonacci)).max()) == 15


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 5000), st.integers(1, 4096), st.floats(0.05, 3.0), st.integers(0, 10**6))
def test_what_goes_in_comes_out(count, alphabet, skew, seed):
    generator = torch.Generator().manual_seed(seed)
    symbols = (torch.rand(count, generator=generator) ** (1 / skew) * alphabet).long()
    found = huffman_encode(symbols)
    assert torch.equal(huffman_decode(found).long(), symbols)
    assert found.nbytes * 8 >= entropy_bits(symbols)
    assert int(found.chunks.sum()) == sum(int(found.lengths[s]) for s in symbols.tolist())


@pytest.mark.parametrize("count", [0, 1, 7, 1023, 1024, 1025, 2048, 5000])
def test_chunks_of_every_size(count):
    symbols = torch.arange(count) % 11 % 5
    found = huffman_encode(symbols)
    assert len(found.chunks) == -(-count // 1024)
    assert torch.equal(huffman_decode(found).long(), symbols)


def test_near_the_entropy_of_realistic_symbols():
    generator = torch.Generator().manual_seed(0)
    weights = (torch.randn(50_000, generator=generator) * 2.5 + 8).round().clamp(0, 15)
    gaps = torch.empty(50_000).geometric_(0.1, generator=generator)
    for symbols in (weights.long(), gaps.long()):
        assert 1 <= 8 * huffman_encode(symbols).nbytes / entropy_bits(symbols) < 1.05


def test_entropy_by_hand():
    assert entropy_bits(torch.tensor([[0.5, 0.5], [0.25, 1.0]])) == pytest.approx(4 * 1.5)
    assert entropy_bits(torch.zeros(9)) == 0 and entropy_bits(torch.zeros(0)) == 0


def test_damaged_parts_are_refused():
    found = huffman_encode(torch.arange(3000) % 7 // 3)  # words of 1, 2 and 2 bits
    for change in (
        {"count": 2999}, {"count": -1}, {"count": 10**12}, {"chunks": found.chunks[:-1]}, {"bits": found.bits[:-1]},
        {"chunks": found.chunks * -1}, {"lengths": torch.tensor([1, 1, 1], dtype=torch.uint8)},
        {"lengths": torch.tensor([16, 1], dtype=torch.uint8)}, {"lengths": torch.zeros(4, dtype=torch.uint8)},
        {"bits": torch.full_like(found.bits, 255)}, {"lengths": torch.tensor([2, 2], dtype=torch.uint8)},
        {"chunks": found.chunks + torch.tensor([1, -1, 0], dtype=torch.int16)},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"do not fit|do not end|lengths ask|lengths must be in"):
            huffman_decode(dataclasses.replace(found, **change))


def test_errors():
    with pytest.raises(ValueError, match=r"symbols must be integers in 0\.\.4095, got torch.float32"):
        huffman_encode(torch.ones(3))
    with pytest.raises(ValueError, match=r"symbols must be integers in 0\.\.4095"):
        huffman_encode(torch.tensor([4096]))
    with pytest.raises(ValueError, match="symbols must be integers"):
        huffman_encode(torch.tensor([-1]))
    with pytest.raises(ValueError, match="counts must be at most 4096 integers"):
        code_lengths(torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"longest=2 must be in 1\.\.15 and enough for 5 symbols"):
        code_lengths(torch.ones(5, dtype=torch.int64), longest=2)
    with pytest.raises(ValueError, match="longest=16 must be"):
        code_lengths(torch.ones(5, dtype=torch.int64), longest=16)
    with pytest.raises(ValueError, match=r"lengths must be in 0\.\.15"):
        code_words(torch.tensor([16]))
    with pytest.raises(ValueError, match="lengths ask for 49152 of 32768 words"):
        code_words(torch.tensor([1, 1, 1]))
