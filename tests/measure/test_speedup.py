"""Times are made up here: a clock that the functions under test move on themselves."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import quantile_test

from compresslab.measure import compare_latency


def test_speedup_is_the_median_of_the_ratios_within_rounds(clock):
    """After a cold and a warm-up call, five rounds: ratios 2, 1/2, 2, 8, 2; medians of the times 4 and 2 s."""
    slow = clock.taking(100, 50, 2, 1, 4, 8, 8, name="slow")
    fast = clock.taking(90, 50, 1, 2, 2, 1, 4, name="fast")
    speedups = compare_latency({"slow": slow, "fast": fast}, rounds=5, warmup=1, min_time_s=0)
    assert speedups.reference == "slow"
    assert speedups.latency["slow"].median_s == 4
    assert speedups.latency["fast"].cold_s == 90
    assert speedups.speedup["slow"].value == 1
    fast_ratio = speedups.speedup["fast"]
    assert (fast_ratio.value, fast_ratio.low, fast_ratio.high, fast_ratio.count) == (2, 0.5, 8, 5)
    assert str(fast_ratio) == "2.00x [0.50, 8.00]"


def test_the_interval_of_the_median_is_what_scipy_says(clock):
    """The sign test, inverted; ours takes the normal approximation for the rank, at most one off."""
    ratios = torch.rand(200, generator=torch.Generator().manual_seed(0)).add(1).tolist()
    runs = {"a": clock.taking(9, *ratios), "b": clock.taking(9, 1.0)}
    ours = compare_latency(runs, rounds=200, warmup=0, min_time_s=0).speedup["b"]
    theirs = quantile_test(ratios, p=0.5).confidence_interval()
    ranked = sorted(round(ratio, 9) for ratio in ratios)
    for mine, other in ((ours.low, theirs.low), (ours.high, theirs.high)):
        assert abs(ranked.index(round(mine, 9)) - ranked.index(round(other, 9))) <= 1


def test_the_reference_can_be_chosen(clock):
    runs = {"a": clock.taking(1.0), "b": clock.taking(4.0)}
    assert compare_latency(runs, reference="b", min_time_s=0).speedup["a"].value == 4


def test_each_round_calls_each_candidate_once_in_changing_order(clock):
    runs = {name: clock.taking(1.0, name=name) for name in "abc"}
    compare_latency(runs, rounds=20, warmup=2, min_time_s=0)
    rounds = ["".join(clock.order[9 + 3 * place :][:3]) for place in range(20)]
    assert len(clock.order) == 9 + 60
    assert all(sorted(one) == list("abc") for one in rounds)
    assert len(set(rounds)) > 3


def test_rounds_go_on_until_they_took_long_enough(clock):
    runs = {"a": clock.taking(0.25), "b": clock.taking(0.75)}
    assert compare_latency(runs, rounds=2, min_time_s=2).latency["a"].repeats == 4  # 4 * (0.25 + 0.75) = 2 * 2


def test_a_slow_minute_does_not_change_the_ratio(clock):
    """The machine becomes ten times slower half way: each alone would show it, the ratio does not."""
    runs = {"a": clock.taking(*[4.0] * 12, 40.0), "b": clock.taking(*[2.0] * 12, 20.0)}
    speedup = compare_latency(runs, rounds=20, warmup=0, min_time_s=0).speedup["b"]
    assert (speedup.value, speedup.low, speedup.high) == (2, 2, 2)


def test_comparing_nothing_is_refused():
    with pytest.raises(ValueError, match="candidates is empty"):
        compare_latency({})
    with pytest.raises(ValueError, match=r"reference='c' must be one of the candidates \['a'\]"):
        compare_latency({"a": abs}, reference="c")
    with pytest.raises(TypeError, match=r"candidates\['a'\] must be a module or a callable, got int"):
        compare_latency({"a": 3})
    with pytest.raises(ValueError, match="repeats=0"):
        compare_latency({"a": abs}, rounds=0)
