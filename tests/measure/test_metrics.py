from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, top_k_accuracy_score

from compresslab.measure import Predictions, accuracy, macro_f1, perplexity, predict_batches, top_k, wilson
from compresslab.measure.metrics import perplexity_of


def random_predictions(seed: int, count: int, classes: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    return Predictions(logits, torch.randint(classes, (count,), generator=generator))


def test_accuracy_by_hand():
    """Three of four are right."""
    predictions = Predictions(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    assert accuracy(predictions) == wilson(3, 4)
    assert accuracy(predictions, confidence=0.5).low > accuracy(predictions).low


def test_top_k_by_hand():
    """Ranks of the labels, from 1: 1, 2, 3, 4."""
    logits = torch.tensor([[9.0, 5, 3, 1]] * 4)
    predictions = Predictions(logits, torch.tensor([0, 1, 2, 3]))
    assert [top_k(predictions, k).value for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    assert top_k(predictions, 2, confidence=0.5) == wilson(2, 4, confidence=0.5)


def test_a_model_that_always_says_the_same_gains_nothing_from_ties():
    """All logits equal: the first k classes are guessed, so 2 of 10 labels are hit at k = 2."""
    assert top_k(Predictions(torch.zeros(10, 10), torch.arange(10)), 2).value == 0.2


def test_language_models_count_tokens():
    logits = torch.zeros(2, 3, 4)
    logits[..., 1] = 1
    predictions = Predictions(logits, torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert accuracy(predictions) == top_k(predictions, 1) == wilson(3, 6)


@pytest.mark.parametrize("k", [0, 5])
def test_k_lies_within_the_classes(k):
    with pytest.raises(ValueError, match=f"k={k} must be 1..4"):
        top_k(Predictions(torch.eye(4), torch.arange(4)), k)


def test_macro_f1_by_hand():
    """Labels 0 0 0 1 2, predictions 0 0 1 1 1. F1: class 0: 2*2/(2*2+0+1) = 0.8; 1: 2/(2+2) = 0.5; 2: 0. Mean 1.3/3.
    Class 3 is neither label nor prediction."""
    predictions = Predictions(torch.eye(4)[[0, 0, 1, 1, 1]], torch.tensor([0, 0, 0, 1, 2]))
    estimate = macro_f1(predictions)
    assert estimate.value == pytest.approx(1.3 / 3)
    assert estimate.low < estimate.value < estimate.high
    assert (estimate.count, estimate.unit) == (5, "%")


@settings(derandomize=True, deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), classes=st.integers(3, 8))
def test_metrics_are_what_scikit_learn_says(seed, count, classes):
    predictions = random_predictions(seed, count, classes)
    labels, predicted = predictions.labels.numpy(), predictions.predicted.numpy()
    assert accuracy(predictions).value == pytest.approx(accuracy_score(labels, predicted))
    assert macro_f1(predictions, resamples=1).value == pytest.approx(f1_score(labels, predicted, average="macro"))
    ours, theirs = top_k(predictions, 2), top_k_accuracy_score(labels, predictions.logits, k=2, labels=range(classes))
    assert ours.value == pytest.approx(theirs)


def test_the_interval_of_macro_f1_is_the_spread_of_resampled_scores():
    predictions = random_predictions(1, 300, 3)
    generator = torch.Generator().manual_seed(0)
    scores = []
    for _ in range(200):
        index = torch.randint(300, (300,), generator=generator)
        scores.append(f1_score(predictions.labels[index], predictions.predicted[index], average="macro"))
    ends = torch.tensor(scores, dtype=torch.float64).quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    estimate = macro_f1(predictions, resamples=200, confidence=0.9)
    assert [estimate.low, estimate.high] == pytest.approx(ends.tolist())


def test_perplexity_by_hand():
    """Probabilities 1/2, 1/4, 1/8 of the right tokens: mean log2 is 2, so the perplexity is 4."""
    logits = torch.tensor([[[0.5, 0.5], [0.25, 0.75], [0.125, 0.875]]]).log()
    assert perplexity(Predictions(logits, torch.zeros(1, 3).long())).value == pytest.approx(4, rel=1e-6)


def test_perplexity_weighs_tokens_not_sequences():
    """Two tokens at 1/2 in one sequence, four at 1/8 in another: (2 * 1 + 4 * 3) / 6 bits, not (1 + 3) / 2."""
    parts = [
        Predictions(torch.tensor([[[0.5, 0.5]] * 2]).log(), torch.zeros(1, 2).long()),
        Predictions(torch.tensor([[[0.125, 0.875]] * 4]).log(), torch.zeros(1, 4).long()),
    ]
    estimate = perplexity(parts)
    assert estimate.value == pytest.approx(2 ** (14 / 6), rel=1e-6)
    assert estimate.count == 2
    assert (estimate.low, estimate.high) == pytest.approx((2, 8), rel=1e-6)


def test_perplexity_of_a_stream_is_that_of_all():
    torch.manual_seed(3)
    model = torch.nn.Embedding(7, 7)
    batches = [(torch.randint(7, (4, 5)), torch.randint(7, (4, 5))) for _ in range(3)]
    parts = list(predict_batches(model, batches))
    whole = Predictions(torch.cat([part.logits for part in parts]), torch.cat([part.labels for part in parts]))
    nll = torch.nn.functional.cross_entropy(whole.logits.flatten(0, 1).double(), whole.labels.flatten())
    assert perplexity(predict_batches(model, batches)) == perplexity(whole)
    assert perplexity(whole).value == pytest.approx(math.exp(nll))


def test_perplexity_beyond_all_numbers_stays_a_number():
    sure = Predictions(torch.tensor([[[0.0, -torch.inf]]]), torch.ones(1, 1).long())
    assert perplexity(sure).value == pytest.approx(math.exp(700))
    assert perplexity_of(torch.tensor([[math.log(3.0) * 2, 2.0]], dtype=torch.float64)) == pytest.approx(3)


@pytest.mark.parametrize("metric", [macro_f1, perplexity])
def test_bad_numbers_are_refused(metric):
    predictions = Predictions(torch.zeros(2, 3, 4), torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="resamples=0 must be at least 1"):
        metric(predictions, resamples=0)
    with pytest.raises(ValueError, match="confidence=95"):
        metric(predictions, confidence=95)


def test_generators_choose_the_interval_not_the_value():
    predictions = random_predictions(2, 40, 3)
    one, two = (macro_f1(predictions, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one.value == two.value
    assert (one.low, one.high) != (two.low, two.high)
    sequences = Predictions(torch.randn(9, 3, 4), torch.zeros(9, 3).long())
    one, two = (perplexity(sequences, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert one.low != two.low
