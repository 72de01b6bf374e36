"""Ranks: counts by hand, the allocation against every possible choice."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.factorization import allocate_ranks, break_even_rank, energy_rank, error_rank, largest_rank
from compresslab.factorization.ranks import _choices


def test_energy_and_error_by_hand():
    values = torch.tensor([3.0, 2.0, 1.0])  # energies 9, 4, 1 of 14
    assert [energy_rank(values, energy) for energy in (0.5, 9 / 14, 0.65, 13 / 14, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    # errors: sqrt(5/14) = 0.598, sqrt(1/14) = 0.267
    assert [error_rank(values, error) for error in (0.6, 0.59, 0.27, 0.26, 0.0)] == [1, 2, 2, 3, 3]
    assert energy_rank(torch.tensor([1.0, 1.0, 0.0, 0.0]), 1.0) == 2
    assert energy_rank(torch.zeros(3), 0.5) == 1


def test_energy_errors():
    with pytest.raises(ValueError, match="energy=0 must be greater than 0"):
        energy_rank(torch.ones(2), 0)
    with pytest.raises(ValueError, match=r"singular_values must be a vector of at least 1, got \(0,\)"):
        energy_rank(torch.ones(0), 0.5)
    with pytest.raises(ValueError, match="error=1 must be at least 0 and less than 1"):
        error_rank(torch.ones(2), 1)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60))
def test_break_even_is_the_last_that_saves(out, into):
    rank = break_even_rank(out, into)
    assert rank * (out + into) < out * into <= (rank + 1) * (out + into)


def test_largest_rank():
    assert largest_rank(lambda rank: rank * 10, 35, most=8) == 3
    assert largest_rank(lambda rank: rank * 10, 30, most=8) == 2  # equal is no gain
    assert largest_rank(lambda rank: 50, 35, most=8) == 0
    assert largest_rank(lambda rank: 1, 35, most=8) == 8
    noisy = {1: 1.0, 2: 9.0, 3: 2.0}  # a slow rank ends it, whatever comes after
    assert largest_rank(noisy.__getitem__, 5, most=3) == 1


def brute(spectra, shapes, budget):
    best = None
    for points in itertools.product(*(_choices(values, *shapes[name]) for name, values in spectra.items())):
        if sum(point[0] for point in points) <= budget:
            kept = sum(point[1] for point in points)
            best = kept if best is None else max(best, kept)
    return best


def test_choices_by_hand():
    # (4, 4): ranks below 2 save; energies 9 + 1 of 10
    assert _choices(torch.tensor([3.0, 1.0, 0.0, 0.0]), 4, 4) == [(8, pytest.approx(0.9), 1), (16, 1.0, None)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(3, 9), st.integers(3, 9)), min_size=1, max_size=3), st.integers(0, 10**6))
def test_allocation_against_every_choice(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {str(i): size for i, size in enumerate(sizes)}
    spectra = {
        name: torch.rand(min(size), generator=generator).pow(3).sort(descending=True).values + 1e-3
        for name, size in shapes.items()
    }
    cheapest = sum(min(point[0] for point in _choices(spectra[name], *shapes[name])[:1]) for name in shapes)
    whole = sum(out * into for out, into in sizes)
    budget = cheapest + seed % (max(whole - cheapest, 0) + 5)
    found = allocate_ranks(spectra, shapes, budget)
    assert found.parameters <= budget
    assert sum(out * into if (r := found.ranks[n]) is None else r * (out + into) for n, (out, into) in shapes.items()) == found.parameters  # fmt: skip
    best = len(sizes) - brute(spectra, shapes, budget)  # what the optimum loses
    assert best - 1e-9 <= found.error <= best + 1.0
    assert found.error <= 0.25 * len(sizes) + best
    exact = allocate_ranks(spectra, shapes, found.parameters)  # its own budget: nothing better for the same price
    assert exact.error <= found.error + 1e-9


def test_a_budget_for_all_keeps_all():
    shapes = {"a": (6, 6), "b": (4, 9)}
    spectra = {name: torch.ones(min(shape)) for name, shape in shapes.items()}
    found = allocate_ranks(spectra, shapes, 72)
    assert found.ranks == {"a": None, "b": None} and found.parameters == 72 and found.error == 0


def test_equal_prices_are_solved_exactly():
    generator = torch.Generator().manual_seed(3)
    shapes = dict.fromkeys("abc", (8, 24))
    spectra = {name: torch.rand(8, generator=generator).sort(descending=True).values for name in shapes}
    for items in range(3, 16):  # ranks below 6 save: with equal prices and falling gains greedy is exact
        budget = 32 * items
        assert allocate_ranks(spectra, shapes, budget).error == pytest.approx(3 - brute(spectra, shapes, budget))


def test_allocation_errors():
    with pytest.raises(ValueError, match=r"must name the same layers, got \['a'\] and \['b'\]"):
        allocate_ranks({"a": torch.ones(2)}, {"b": (2, 2)}, 9)
    with pytest.raises(ValueError, match="must name the same layers"):
        allocate_ranks({}, {}, 9)
    with pytest.raises(ValueError, match="budget=10 is below rank 1 in every layer; give at least 13"):
        allocate_ranks({"a": torch.ones(4)}, {"a": (4, 9)}, 10)
