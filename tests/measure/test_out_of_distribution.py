from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from compresslab.measure import (
    Predictions,
    auroc,
    calibration_error,
    detect,
    energy_score,
    fit_temperature,
    softmax_score,
)

scores = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.75, 1.0, 2.0]), min_size=1, max_size=40)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(known=scores, other=scores)
def test_auroc_and_fpr_are_those_of_scikit_learn(known, other):
    found = detect(torch.tensor(known), torch.tensor(other))
    truth, values = [1] * len(known) + [0] * len(other), known + other
    assert found.auroc == pytest.approx(roc_auc_score(truth, values))
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    assert found.fpr == pytest.approx(fpr[tpr >= 0.95 - 1e-9].min())
    assert auroc(torch.tensor(other), torch.tensor(known)) == pytest.approx(1 - found.auroc)


def test_threshold_by_hand():
    """95 % of 20 are 19: the second smallest score is the threshold, and ties pass."""
    known = torch.arange(20.0)
    assert detect(known, torch.tensor([0.0, 1.0, 5.0])).threshold == 1
    assert detect(known, torch.tensor([0.0, 1.0, 5.0])).fpr == pytest.approx(2 / 3)
    assert detect(known, torch.tensor([0.0]), recall=1.0).threshold == 0
    assert detect(known, torch.tensor([0.9995])).fpr == 0


def test_scores_by_hand():
    """softmax(log 3, 0) = 3/4; log(3 + 1) = log 4; at T = 2: 2 log(sqrt(3) + 1)."""
    logits = torch.tensor([[3.0, 1.0]]).log()
    assert softmax_score(logits).item() == pytest.approx(0.75)
    assert energy_score(logits).item() == pytest.approx(1.3862944)
    assert energy_score(logits, temperature=2.0).item() == pytest.approx(2 * 1.0050525)
    assert softmax_score(logits + 7).item() == pytest.approx(0.75)  # the softmax does not see it
    assert energy_score(logits + 7).item() == pytest.approx(8.3862944)  # the energy does
    assert energy_score(torch.tensor([[2000.0, 0.0]])).item() == 2000


def test_bad_scores():
    one = torch.ones(3)
    with pytest.raises(ValueError, match=r"known \(0,\) must be \(N,\) with at least one"):
        auroc(torch.ones(0), one)
    with pytest.raises(ValueError, match=r"other \(1, 3\) must be"):
        auroc(one, one[None])
    with pytest.raises(ValueError, match="other holds 1 NaN"):
        detect(one, torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match=r"recall=0 must lie in 0..1"):
        detect(one, one, recall=0)
    with pytest.raises(ValueError, match="temperature=0 must be above 0"):
        energy_score(one[None], temperature=0)


# Calibration


def drawn(count: int, seed: int = 0, classes: int = 3) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return Predictions(logits, torch.multinomial(logits.softmax(-1), 1, generator=generator).flatten())


def by_brute_force(predictions: Predictions, bins: int) -> float:
    confidence, error = predictions.logits.double().softmax(-1).amax(-1), 0.0
    for m in range(bins):
        here = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if here.any():
            gap = predictions.correct[here].double().mean() - confidence[here].mean()
            error += here.double().mean().item() * abs(gap.item())
    return error


@settings(derandomize=True, deadline=None, max_examples=40)
@given(count=st.integers(1, 80), bins=st.integers(1, 20), seed=st.integers(0, 5))
def test_ece_is_its_definition(count, bins, seed):
    predictions = drawn(count, seed)
    found = calibration_error(predictions, bins=bins)
    assert found.ece == pytest.approx(by_brute_force(predictions, bins))
    assert found.count.sum() == count and (found.count > 0).all()
    mass = calibration_error(predictions, bins=bins, equal_mass=True)
    assert mass.count.max() - mass.count.min() <= 1 and mass.count.sum() == count
    assert mass.overconfidence == pytest.approx(found.overconfidence)
    assert (mass.confidence.diff() >= -1e-12).all()


def test_ece_by_hand():
    """Two bins. Confidences 0.5, 0.5 (one right: gap 0), 0.9 (wrong: gap 0.9), 0.7 (right: gap 0.3).
    Bin 0..0.5 holds the first two: 0. Bin 0.5..1: mean confidence 0.8, accuracy 0.5: 2/4 * 0.3 = 0.15.
    By mass, in order of confidence, the same two pairs. Four bins of mass: (0.5 + 0.5 + 0.3 + 0.9) / 4 = 0.55."""
    share = torch.tensor([0.5, 0.5, 0.9, 0.7])
    predictions = Predictions(torch.stack([share, 1 - share], 1).log(), torch.tensor([0, 1, 1, 0]))
    assert calibration_error(predictions, bins=2).ece == pytest.approx(0.15)
    assert calibration_error(predictions, bins=2, equal_mass=True).ece == pytest.approx(0.15)
    assert calibration_error(predictions, bins=4, equal_mass=True).ece == pytest.approx(0.55)
    assert calibration_error(predictions).overconfidence == pytest.approx(0.65 - 0.5)


def test_bins_end_where_they_should():
    """Confidences 0.4, right, and 0.9, wrong, in two bins: (0.6 + 0.9) / 2. And 0.5 belongs to the bin that it ends."""
    share = torch.tensor([[0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
    assert calibration_error(Predictions(share.log(), torch.tensor([0, 1])), bins=2).ece == pytest.approx(0.75)
    edge = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert calibration_error(Predictions(edge, torch.tensor([0, 1])), bins=2).count.tolist() == [1, 1]


def test_labels_drawn_from_the_softmax_are_calibrated_and_sharper_logits_are_not():
    honest = drawn(20_000)
    sharp = Predictions(3 * honest.logits, honest.labels)
    assert calibration_error(honest).ece < 0.02 and abs(calibration_error(honest).overconfidence) < 0.01
    assert calibration_error(sharp).ece > 0.1 and calibration_error(sharp).overconfidence > 0.1
    assert fit_temperature(honest) == pytest.approx(1, abs=0.05)
    assert fit_temperature(sharp) == pytest.approx(3 * fit_temperature(honest), rel=1e-6)


def test_the_temperature_has_the_least_loss_of_all():
    predictions = drawn(300, 4)
    best = fit_temperature(predictions)
    loss = lambda t: Predictions(predictions.logits.double() / t, predictions.labels).nll.mean().item()  # noqa: E731
    assert loss(best) < min(loss(best * 1.02), loss(best / 1.02))


def test_bad_bins_and_nothing_wrong():
    with pytest.raises(ValueError, match="bins=0 must be a whole number"):
        calibration_error(drawn(3), bins=0)
    with pytest.raises(ValueError, match="all 2 samples are right"):
        fit_temperature(Predictions(torch.eye(2), torch.tensor([0, 1])))
