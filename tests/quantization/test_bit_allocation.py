"""Bit allocation: by hand, and every combination tried as the oracle."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.quantization.bit_allocation import allocate_bits, allocate_bits_greedy

WIDTHS = (2, 3, 4)
choices = st.fixed_dictionaries({width: st.tuples(st.integers(0, 20), st.integers(1, 12)) for width in WIDTHS})


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.lists(choices, min_size=1, max_size=5), st.integers(0, 40))
def test_exact_by_trying_all(layers, spare):
    errors = {f"l{i}": {width: float(pair[0]) for width, pair in layer.items()} for i, layer in enumerate(layers)}
    sizes = {f"l{i}": {width: pair[1] for width, pair in layer.items()} for i, layer in enumerate(layers)}
    budget = sum(min(layer.values()) for layer in sizes.values()) + spare
    every = []
    for widths in itertools.product(WIDTHS, repeat=len(layers)):
        size = sum(sizes[layer][width] for layer, width in zip(errors, widths, strict=True))
        if size <= budget:
            every.append((sum(errors[layer][width] for layer, width in zip(errors, widths, strict=True)), size))
    found, greedy = (allocate(errors, sizes, budget) for allocate in (allocate_bits, allocate_bits_greedy))
    assert (found.error, found.size_bytes) == min(every)
    for result in (found, greedy):
        assert result.size_bytes == sum(sizes[layer][width] for layer, width in result.bits.items()) <= budget
        assert result.error == sum(errors[layer][width] for layer, width in result.bits.items())
    assert greedy.error >= found.error


def test_greedy_misses_by_hand():
    # Budget 7 over the smallest choices 1 + 1: a step of 3 bytes takes off 6 (2 a byte), one of 5 bytes takes off 9
    # (1.8 a byte). Greedy takes the first, and the second no longer fits.
    errors, sizes = {"a": {2: 6.0, 4: 0.0}, "b": {2: 9.0, 4: 0.0}}, {"a": {2: 1, 4: 4}, "b": {2: 1, 4: 6}}
    greedy, exact = allocate_bits_greedy(errors, sizes, 7), allocate_bits(errors, sizes, 7)
    assert (greedy.bits, greedy.error) == ({"a": 4, "b": 2}, 9)
    assert (exact.bits, exact.error, exact.size_bytes) == ({"a": 2, "b": 4}, 6, 7)


@pytest.mark.parametrize("allocate", [allocate_bits, allocate_bits_greedy])
def test_errors(allocate):
    with pytest.raises(ValueError, match="budget_bytes=2 is below the smallest choice; give at least 3"):
        allocate({"a": {2: 1.0}}, {"a": {2: 3}}, 2)
    with pytest.raises(ValueError, match="must have the same layers and widths"):
        allocate({"a": {2: 1.0}}, {"a": {4: 3}}, 9)
    with pytest.raises(ValueError, match="must hold a layer, and a width for each, got"):
        allocate({}, {}, 9)
    with pytest.raises(ValueError, match="the error of 'a' at 2 bits must be finite and at least 0, got nan"):
        allocate({"a": {2: float("nan")}}, {"a": {2: 3}}, 9)
