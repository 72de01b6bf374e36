"""Schedules: values by hand, the published table, ends that are exact."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.pruning.schedule import constant_sparsity, cubic_sparsity, linear_sparsity


def test_cubic_by_hand():
    # 0.9 - 0.9 (1 - p)^3: at p = .1 0.9 (1 - .729) = .2439, .25 -> .5203, .5 -> .7875, .75 -> .8859
    values = [cubic_sparsity(step, end=100) for step in (0, 10, 25, 50, 75, 100, 101)]
    assert values == pytest.approx([0, 0.2439, 0.5203125, 0.7875, 0.8859375, 0.9, 0.9])
    # from 0.2 at step 40 to 0.6 at step 60: half way 0.6 - 0.4 / 8
    assert cubic_sparsity(50, start=40, end=60, initial=0.2, final=0.6) == pytest.approx(0.55)
    assert [cubic_sparsity(step, start=40, end=60, initial=0.2) for step in (0, 39)] == [0, 0]
    assert cubic_sparsity(40, start=40, end=60, initial=0.2) == pytest.approx(0.2)


def test_linear_and_constant_by_hand():
    assert linear_sparsity(25, end=100) == pytest.approx(0.225)
    assert linear_sparsity(50, start=40, end=60, initial=0.2, final=0.6) == pytest.approx(0.4)
    assert [constant_sparsity(step, final=0.7, start=3) for step in (0, 2, 3, 99)] == [0, 0, 0.7, 0.7]


def test_changes_at_every_so_many_steps_and_at_the_end():
    # 10 steps, every 4: changes at 0, 4 and 8, and at 10, which 4 does not divide
    values = [cubic_sparsity(step, end=10, every=4, final=0.5) for step in range(12)]
    at = [0.5 - 0.5 * (1 - p) ** 3 for p in (0, 0.4, 0.8, 1)]
    assert values == pytest.approx([at[0]] * 4 + [at[1]] * 4 + [at[2]] * 2 + [at[3]] * 2)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    start=st.integers(0, 50),
    length=st.integers(0, 50),
    every=st.integers(1, 60),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_rises_from_the_first_to_the_last_value_exactly(start, length, every, ends):
    initial, final = sorted(ends)
    options = {"start": start, "end": start + length, "initial": initial, "final": final, "every": every}
    for schedule in (linear_sparsity, cubic_sparsity):
        values = [schedule(step, **options) for step in range(start + length + 3)]
        assert all(0 <= value <= 1 for value in values)
        assert all(second >= first - 1e-12 for first, second in itertools.pairwise(values))
        assert values[start + length :] == [final] * 3
        assert values[:start] == [0.0] * start
        changes = {step - start for step in range(start + 1, start + length + 1) if values[step] != values[step - 1]}
        assert all(step % every == 0 or step == length for step in changes)


def test_errors():
    for schedule in (linear_sparsity, cubic_sparsity):
        with pytest.raises(ValueError, match="end=3 must not be before start=4; the way takes end - start steps"):
            schedule(0, start=4, end=3)
        with pytest.raises(ValueError, match="every=0 must be at least 1 step; try 1"):
            schedule(0, end=3, every=0)
        for options in ({"final": 1.5}, {"initial": 1.5}):
            with pytest.raises(ValueError, match=r"sparsity=1\.5 must be the fraction removed"):
                schedule(0, end=3, **options)
    with pytest.raises(ValueError, match=r"sparsity=-1 must be the fraction removed"):
        constant_sparsity(0, final=-1)
