from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, entropy, ttest_rel

from compresslab.measure import agreement, kl_divergence, mcnemar, paired_bootstrap, sqnr_db, wilson


def outcomes(both: int, lost: int, won: int, neither: int):
    """Right or wrong, of the reference and of the other, with these four counts."""
    reference = [True] * (both + lost) + [False] * (won + neither)
    other = [True] * both + [False] * lost + [True] * won + [False] * neither
    return torch.tensor(reference), torch.tensor(other)


def test_mcnemar_by_hand():
    """1 lost, 6 won: P(at most 1 of 7) = (1 + 7) / 128, doubled 0.125.
    Bonett and Price on n = 20: p12 = 2/22, p21 = 7/22: 0.227273 -+ 1.959964 sqrt((0.409091 - 0.051653) / 22)."""
    result = mcnemar(*outcomes(10, 1, 6, 3))
    assert result.p_value == 0.125
    assert result.difference.value == 0.25
    half = 1.959964 * math.sqrt((0.4090909 - 0.0516529) / 22)
    assert result.difference.low == pytest.approx(0.2272727 - half, abs=1e-6)
    assert result.difference.high == pytest.approx(0.2272727 + half, abs=1e-6)
    assert (result.difference.count, result.difference.unit) == (20, "points")


def test_swapping_the_two_turns_the_sign():
    there, back = mcnemar(*outcomes(10, 1, 6, 3)), mcnemar(*outcomes(10, 6, 1, 3))
    assert there.p_value == back.p_value
    assert there.difference.value == -back.difference.value
    assert there.difference.low == pytest.approx(-back.difference.high)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(both=st.integers(0, 50), lost=st.integers(0, 400), won=st.integers(0, 400), neither=st.integers(1, 50))
def test_mcnemar_is_the_binomial_test_of_scipy(both, lost, won, neither):
    result = mcnemar(*outcomes(both, lost, won, neither))
    expected = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert -1 <= result.difference.low <= result.difference.high <= 1


def test_mcnemar_stays_exact_for_many_samples():
    """Where sums of floats would be 0: P = 2 * 2^-5000 is below the least float, and 0 is then right."""
    assert mcnemar(*outcomes(0, 5000, 0, 1)).p_value == 0
    assert mcnemar(*outcomes(0, 2000, 2000, 1)).p_value == 1
    expected = binomtest(1900, 4000, 0.5).pvalue
    assert mcnemar(*outcomes(0, 1900, 2100, 1)).p_value == pytest.approx(expected, rel=1e-9)


def test_the_same_samples_see_what_two_intervals_do_not():
    """1,000 samples, 80.0 % and 82.0 %: the intervals overlap widely, yet 20 won against none lost is no chance."""
    reference, other = outcomes(800, 0, 20, 180)
    assert wilson(800, 1000).high > wilson(820, 1000).low
    assert mcnemar(reference, other).p_value == 2 / 2**20
    assert mcnemar(reference, other).difference.low > 0


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """True shares 0.1 won and 0.05 lost: of 400 draws of 150 samples, about 95 % of the intervals hold 0.05."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(400):
        u = torch.rand(150, generator=generator)
        low, high = (lambda d: (d.low, d.high))(mcnemar((u >= 0.1) & (u < 0.8), (u < 0.75)).difference)
        held += low <= 0.05 <= high
    assert 0.92 < held / 400 < 0.985


def test_paired_bootstrap_is_narrower_than_two_alone_and_like_a_t_test():
    generator = torch.Generator().manual_seed(5)
    hard = 3 * torch.randn(200, generator=generator)
    reference, other = hard + torch.randn(200, generator=generator), hard + torch.randn(200, generator=generator) + 0.2
    result = paired_bootstrap(reference, other, resamples=4000)
    test = ttest_rel(other, reference)
    interval = test.confidence_interval()
    assert result.difference.value == pytest.approx((other.double() - reference.double()).mean().item())
    assert (result.difference.low, result.difference.high) == pytest.approx((interval.low, interval.high), abs=0.03)
    assert result.p_value == pytest.approx(test.pvalue, abs=0.02)


def test_paired_bootstrap_of_any_statistic():
    """Perplexity of two sequences, (nats, tokens): exp of the ratio of the sums."""
    reference = torch.tensor([[2.0, 2.0], [2.0, 2.0]]).double()
    other = torch.tensor([[4.0, 2.0], [4.0, 2.0]]).double()
    result = paired_bootstrap(reference, other, statistic=lambda rows: math.exp(rows[:, 0].sum() / rows[:, 1].sum()))
    assert result.difference.value == pytest.approx(math.e**2 - math.e)
    assert result.p_value == pytest.approx(2 / 1001)
    swapped = paired_bootstrap(other, reference)
    assert swapped.p_value == pytest.approx(2 / 1001)


def test_no_difference_has_p_value_1():
    values = torch.arange(5.0)
    result = paired_bootstrap(values, values)
    assert (result.p_value, result.difference.low, result.difference.high) == (1, 0, 0)
    assert mcnemar(values > 2, values > 2).p_value == 1


def test_paired_bootstrap_follows_its_generator():
    a, b = torch.arange(9.0), torch.arange(9.0).flip(0)
    one, two = (paired_bootstrap(a, b, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one != two
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)


def test_agreement_by_hand():
    assert agreement(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[0, 1], [2, 0]])) == wilson(3, 4)


def test_sqnr_by_hand():
    """Signal 9 + 16 = 25; noise 1: 10 log10(25) = 13.9794 dB. An error of a hundredth is 40 dB."""
    assert sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])) == pytest.approx(13.9794, abs=1e-4)
    reference = torch.linspace(-1, 1, 100, dtype=torch.float64)
    assert sqnr_db(reference, reference * 1.01) == pytest.approx(40)
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db(reference.int() + 1, reference.int() + 1) == math.inf


def test_kl_is_what_scipy_says_and_zero_only_for_equals():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    expected = sum(entropy(p, q) for p, q in zip(a.softmax(-1), b.softmax(-1), strict=True)) / 6
    assert kl_divergence(a, b) == pytest.approx(expected)
    assert kl_divergence(a, a + 3) == pytest.approx(0, abs=1e-12)  # softmax does not see what all logits share
    assert kl_divergence(a, b) != pytest.approx(kl_divergence(b, a))


@pytest.mark.parametrize("function", [mcnemar, paired_bootstrap, agreement, sqnr_db, kl_divergence])
def test_pairs_must_be_pairs(function):
    with pytest.raises(ValueError, match=r"of shapes \(3,\) and \(2,\), must hold the same samples"):
        function(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="at least one"):
        function(torch.zeros(0), torch.zeros(0))


def test_wrong_kinds_are_refused():
    with pytest.raises(TypeError, match=r"must be bool, got torch.int64 and torch.bool"):
        mcnemar(torch.zeros(2).long(), torch.zeros(2).bool())
    with pytest.raises(TypeError, match=r"must be classes, got torch.float32 and torch.int64"):
        agreement(torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(ValueError, match="1 of 2 pairs hold NaN or infinity"):
        sqnr_db(torch.ones(2), torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match=r"reference is all zeros \(2 values\)"):
        sqnr_db(torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match="confidence=2"):
        mcnemar(torch.ones(2).bool(), torch.ones(2).bool(), confidence=2)
