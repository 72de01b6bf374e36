from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from compresslab.measure.estimates import Estimate, bootstrap, normal_quantile, si, wilson


def test_wilson_worked_by_hand():
    """8 of 10, z = 1.959964, z^2 = 3.841459: center (0.8 + 0.19207295) / 1.3841459 = 0.7167403;
    half 1.959964 / 1.3841459 * sqrt(0.016 + 0.00960365) = 1.4160097 * 0.1600114 = 0.2265777."""
    estimate = wilson(8, 10)
    assert estimate.value == 0.8
    assert estimate.low == pytest.approx(0.4901626, abs=1e-6)
    assert estimate.high == pytest.approx(0.9433180, abs=1e-6)
    assert (estimate.count, estimate.unit) == (10, "%")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(count=st.integers(1, 5000), share=st.floats(0, 1), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]))
def test_wilson_is_what_scipy_says(count, share, confidence):
    successes = round(share * count)
    ours = wilson(successes, count, confidence=confidence)
    theirs = binomtest(successes, count).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


@pytest.mark.parametrize(("successes", "count"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, count):
    with pytest.raises(ValueError, match=f"successes={successes} of count={count} must be 0..count"):
        wilson(successes, count)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_lies_between_0_and_1(confidence):
    with pytest.raises(ValueError, match=f"confidence={confidence} must lie between 0 and 1"):
        normal_quantile(confidence)
    with pytest.raises(ValueError, match=f"confidence={confidence}"):
        bootstrap(lambda index: 0.0, 3, confidence=confidence)


def test_bootstrap_of_a_mean_has_the_width_that_theory_gives():
    """Of 400 values with deviation s, the mean has a standard error s / 20: the interval is 1.96 of it to each side."""
    values = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    estimate, drawn = bootstrap(lambda index: values[index].mean().item(), 400, resamples=2000)
    error = values.std(correction=0).item() / 20
    assert estimate.value == values.mean().item()
    assert (estimate.high - estimate.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.08)
    assert drawn.shape == (2000,)
    assert drawn.std().item() == pytest.approx(error, rel=0.08)


def test_confidence_chooses_the_percentiles():
    narrow, _ = bootstrap(lambda index: index.double().mean().item(), 50, confidence=0.5)
    wide, drawn = bootstrap(lambda index: index.double().mean().item(), 50, confidence=0.9)
    assert wide.low == pytest.approx(drawn.quantile(0.05).item())
    assert wide.high == pytest.approx(drawn.quantile(0.95).item())
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_repeats_itself_and_follows_its_generator():
    def draw(seed=None):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return bootstrap(lambda index: index.double().mean().item(), 30, resamples=50, generator=generator)[0]

    before = torch.get_rng_state()
    assert draw() == draw() == draw(0) != draw(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("count", "resamples"), [(0, 10), (3, 0)])
def test_bootstrap_needs_something_to_draw(count, resamples):
    with pytest.raises(ValueError, match=f"count={count} and resamples={resamples} must be at least 1"):
        bootstrap(lambda index: 0.0, count, resamples=resamples)


def test_estimates_read_well():
    assert str(Estimate(0.832, 0.82, 0.843, 4000, "%")) == "83.2 % [82.0, 84.3]"
    assert str(Estimate(5.128, 5.0, 5.25, 40)) == "5.13 [5.00, 5.25]"
    assert str(Estimate(0.004, -0.01, 0.018, 40, "points")) == "+0.4 points [-1.0, +1.8]"
    assert str(Estimate(3.8, 3.7, 3.9, 40, "x")) == "3.80x [3.70, 3.90]"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(999.6, "B", "1 kB"), (999, "B", "999 B"), (-2500, "", "-2.5 k"), (0, "s", "0 s"), (5e-10, "s", "5e-10 s"),
     (1.5e-5, "s", "15 µs"), (17_563_828_224, "MACs", "17.6 GMACs"), (2e12, "", "2 T")],
)  # fmt: skip
def test_si(value, unit, text):
    assert si(value, unit) == text
