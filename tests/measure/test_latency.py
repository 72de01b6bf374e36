"""Times are made up here: a clock that the functions under test move on themselves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.measure import Latency, measure_latency
from compresslab.measure import latency as module


def test_median_and_percentiles_by_hand(clock):
    """Cold 9 s; two warm-up calls; then 1..5 s: median 3, 10th percentile 1.4, 90th 4.6 (between two neighbors)."""
    run = clock.taking(9, 7, 7, 5, 1, 4, 2, 3)
    latency = measure_latency(run, torch.zeros(6, 2), repeats=5, warmup=2, min_time_s=0)
    assert latency.cold_s == 9
    assert (latency.median_s, latency.p10_s, latency.p90_s) == pytest.approx((3, 1.4, 4.6))
    assert (latency.repeats, latency.batch_size, latency.threads) == (5, 6, 1)
    assert latency.throughput == pytest.approx(2)
    assert run.state["call"] == 1 + 2 + 5


def test_quick_calls_are_repeated_until_they_took_long_enough(clock):
    assert measure_latency(clock.taking(0.25), repeats=2, min_time_s=2).repeats == 8
    assert measure_latency(clock.taking(5.0), repeats=2, min_time_s=2).repeats == 2


def test_a_clock_that_stands_still_does_not_hold_us_up(clock, monkeypatch):
    monkeypatch.setattr(module, "MOST_REPEATS", 50)
    latency = measure_latency(clock.taking(0.0))
    assert latency.repeats == 50
    assert latency.median_s == 1e-9


def test_the_model_runs_as_it_is_deployed():
    seen = []

    class Watching(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
            return x

    model = Watching().train()
    measure_latency(model, torch.zeros(1), repeats=2, warmup=1, min_time_s=0, threads=3)
    assert seen == [(False, False, 3)] + [(False, True, 3)] * 3
    assert model.training


def test_callables_without_inputs(clock):
    assert measure_latency(clock.taking(1.0), min_time_s=0).batch_size == 1


def test_latency_reads_well():
    text = str(Latency(0.0012345, 0.0011, 0.0021, 0.1, 30, 8, 2))
    assert text == "1.23 ms [1.1, 2.1] at batch size 8, threads: 2"


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"warmup": -1}, {"min_time_s": -1.0}, {"min_time_s": float("nan")}])
def test_bad_numbers_are_refused(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value}.* must be at least 1, 0 and 0"):
        measure_latency(lambda: None, **bad)


def test_bad_thread_counts_and_models_are_refused():
    with pytest.raises(ValueError, match="threads=0 must be an integer"):
        measure_latency(lambda: None, threads=0)
    with pytest.raises(TypeError, match="must be a module or a callable, got Tensor"):
        measure_latency(torch.zeros(1))
