from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.measure import always_valid_p, confidence_sequence, judge_shadow, mcnemar
from compresslab.measure.shadow import BETS


def stream(count: int, won: float, lost: float, seed: int):
    """Whether reference and candidate are right, with these chances that one alone is."""
    u = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    return (u >= won) & (u < 0.9), (u < won) | ((u >= won + lost) & (u < 0.9))


def capital(d: list[int], mean: float) -> float:
    """The bets one after the other, in plain Python."""
    total = 0.0
    for i in range(BETS):
        share, wealth = 10 ** (-3 + 3 * i / BETS), 1.0
        for value in d:
            wealth *= 1 + share / (1 + mean) * (value - mean)
        total += wealth / BETS
    return total


@settings(derandomize=True, deadline=None, max_examples=40)
@given(d=st.lists(st.sampled_from([-1, 0, 0, 1]), min_size=1, max_size=30), margin=st.sampled_from([0.0, 0.01, 0.2]))
def test_p_values_are_one_over_the_most_that_was_won(d, margin):
    reference, candidate = torch.tensor([v < 1 for v in d]), torch.tensor([v > -1 for v in d])
    for worse in (True, False):
        signs = [-v for v in d] if worse else d
        most, expected = 1.0, []
        for seen in range(1, len(d) + 1):
            most = max(most, capital(signs[:seen], margin if worse else -margin))
            expected.append(1 / most)
        found = always_valid_p(reference, candidate, margin=margin, worse=worse)
        assert found.tolist() == pytest.approx(expected)


def test_one_bet_by_hand():
    """One request, lost: capital is the mean of 1 + lambda over the bets; the p-value is one over that."""
    bets = [10 ** (-3 + 3 * i / BETS) for i in range(BETS)]
    found = always_valid_p(torch.tensor([True]), torch.tensor([False]))
    assert found.item() == pytest.approx(1 / (1 + sum(bets) / BETS))
    assert always_valid_p(torch.tensor([True]), torch.tensor([False]), worse=False).item() == 1


def test_watching_costs_nothing_here_and_everything_with_mcnemar():
    """Equal models, looked at every 20 of 1,000 requests: McNemar cries wolf far more often than 5 %, the bet does not."""
    wolves = {"mcnemar": 0, "bet": 0}
    for seed in range(100):
        reference, candidate = stream(1000, 0.1, 0.1, seed)
        looks = range(20, 1001, 20)
        wolves["mcnemar"] += any(mcnemar(reference[:n], candidate[:n]).p_value <= 0.05 for n in looks)
        p = torch.minimum(*(always_valid_p(reference, candidate, worse=worse)[-1] for worse in (True, False)))
        wolves["bet"] += bool(2 * p <= 0.05)  # two-sided, at all 1,000 requests
    assert wolves["mcnemar"] >= 15 and wolves["bet"] <= 5


def test_the_interval_holds_at_all_times_as_often_as_it_says():
    missed = 0
    for seed in range(60):
        reference, candidate = stream(800, 0.02, 0.06, seed)
        intervals = [confidence_sequence(reference[:n], candidate[:n]) for n in range(100, 801, 100)]
        missed += any(not one.low <= -0.04 <= one.high for one in intervals)
    assert missed <= 5


def test_interval_and_p_values_agree():
    """The lower end at confidence 1 - 2 alpha is where the bet on more, at this moment, is worth 1 / alpha."""
    reference, candidate = stream(500, 0.1, 0.02, 3)
    d = (candidate.int() - reference.int()).tolist()
    found = confidence_sequence(reference, candidate, confidence=0.9)
    assert capital(d, found.low) == pytest.approx(20, rel=1e-3)
    assert capital([-v for v in d], -found.high) == pytest.approx(20, rel=1e-3)
    assert found.low < found.value < found.high and found.value == sum(d) / 500
    wider = confidence_sequence(reference, candidate, confidence=0.99)
    assert wider.low < found.low and wider.high > found.high
    swapped = confidence_sequence(candidate, reference, confidence=0.9)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_the_rule_rolls_back_what_is_worse_and_promotes_what_is_not():
    bad = judge_shadow(*stream(4000, 0.01, 0.06, 0), margin=0.01)
    good = judge_shadow(*stream(4000, 0.01, 0.01, 0), margin=0.02)
    assert bad.decision == "roll back" and bad.samples < 2000 and bad.difference.high < -0.005
    assert good.decision == "promote" and good.difference.low > -0.03
    assert judge_shadow(*stream(50, 0.01, 0.01, 0)).decision == "go on"
    assert judge_shadow(*stream(50, 0.01, 0.01, 0)).samples == 50
    reference, candidate = stream(4000, 0.01, 0.06, 0)
    seen_ref, seen = reference[: bad.samples], candidate[: bad.samples]
    assert (bad.won, bad.lost) == (int((seen & ~seen_ref).sum()), int((seen_ref & ~seen).sum()))
    assert bad.difference == confidence_sequence(seen_ref, seen)
    assert always_valid_p(reference, candidate, margin=0.01)[bad.samples - 1] <= 0.05
    assert always_valid_p(reference, candidate, margin=0.01)[bad.samples - 2] > 0.05


def test_the_first_clear_answer_counts():
    """60 requests lost, then 3,000 won: bad first, good later. By then it had been rolled back."""
    candidate = torch.tensor([False] * 60 + [True] * 3000)
    verdict = judge_shadow(~candidate, candidate)
    assert verdict.decision == "roll back" and verdict.samples < 60 and verdict.won == 0
    assert always_valid_p(~candidate, candidate, margin=0.01, worse=False)[-1] < 0.05
    assert judge_shadow(candidate, ~candidate).decision == "promote"


def test_a_stricter_alpha_waits_longer():
    pair = stream(4000, 0.01, 0.06, 1)
    assert judge_shadow(*pair, alpha=0.001).samples > judge_shadow(*pair, alpha=0.1).samples


def test_long_streams_go_in_parts():
    pair = stream(40_000, 0.02, 0.021, 2)
    p = always_valid_p(*pair)
    assert len(p) == 40_000 and (p.diff() <= 0).all()
    assert math.isclose(p[100].item(), always_valid_p(pair[0][:101], pair[1][:101])[-1].item())


def test_bad_streams():
    right = torch.ones(3, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"must be bool, got torch.bool and torch.int64"):
        always_valid_p(right, right.long())
    with pytest.raises(ValueError, match=r"of shapes \(3,\) and \(2,\), must be \(N,\)"):
        judge_shadow(right, right[:2])
    with pytest.raises(ValueError, match="at least one sample"):
        confidence_sequence(right[:0], right[:0])
    with pytest.raises(ValueError, match=r"margin=1 must be a share of accuracy"):
        always_valid_p(right, right, margin=1)
    with pytest.raises(ValueError, match="alpha=0 must lie between 0 and 1"):
        judge_shadow(right, right, alpha=0)
    with pytest.raises(ValueError, match="confidence=1 must lie between 0 and 1"):
        confidence_sequence(right, right, confidence=1)
