from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.measure import Predictions, predict, predict_batches

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
LABELS = torch.tensor([0, 1])


def test_batches_are_put_together_in_order():
    predictions = predict(nn.Identity(), [(LOGITS, LABELS), (LOGITS[:1] * 3, LABELS[1:])])
    assert predictions.logits.tolist() == [[2, 1, 0], [0, 1, 2], [6, 3, 0]]
    assert predictions.labels.tolist() == [0, 1, 1]
    assert predictions.predicted.tolist() == [0, 2, 0]
    assert predictions.correct.tolist() == [True, False, False]


def test_language_models_answer_for_every_token():
    predictions = predict(nn.Embedding(5, 5), [(torch.zeros(2, 3).long(), torch.ones(2, 3).long())])
    assert predictions.logits.shape == (2, 3, 5)
    assert predictions.predicted.shape == predictions.correct.shape == predictions.nll.shape == (2, 3)


def test_nll_by_hand():
    """Logits 0 and log 3: probabilities 1/4 and 3/4."""
    predictions = Predictions(torch.tensor([[0.0, torch.tensor(3.0).log()]] * 2), torch.tensor([0, 1]))
    assert predictions.nll.exp().tolist() == pytest.approx([4, 4 / 3], rel=1e-6)
    assert predictions.nll.dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_double_is_kept(dtype):
    assert predict(lambda x: x.to(dtype), [(LOGITS, LABELS)]).logits.dtype is torch.float32
    assert predict(lambda x: x.double(), [(LOGITS, LABELS)]).logits.dtype is torch.float64


def test_inputs_may_be_several():
    batches = [((LOGITS, LOGITS), LABELS)]
    assert predict(lambda a, b: a + b, batches).logits.tolist() == (2 * LOGITS).tolist()
    assert predict(lambda a: a, [({"a": LOGITS}, LABELS)]).logits.tolist() == LOGITS.tolist()


def test_no_graph_is_recorded():
    assert not predict(nn.Linear(3, 3), [(LOGITS, LABELS)]).logits.requires_grad


def test_batches_come_one_at_a_time():
    """The next batch is not read before the last one is used: memory holds one."""
    read = []

    def batches():
        for place in range(3):
            read.append(place)
            yield LOGITS, LABELS

    for place, _ in enumerate(predict_batches(nn.Identity(), batches())):
        assert read == list(range(place + 1))


def test_minus_infinity_is_a_masked_class_not_an_error():
    logits = torch.tensor([[0.0, -torch.inf]])
    assert Predictions(logits, torch.tensor([0])).correct.all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(bad):
    broken = LOGITS.clone()
    broken[1, 2] = bad
    with pytest.raises(ValueError, match=r"batch 1: 1 of 6 logits are NaN or \+inf"):
        predict(nn.Identity(), [(LOGITS, LABELS), (broken, LABELS)])


@pytest.mark.parametrize("label", [-1, 3, -100])
def test_labels_that_are_no_class_are_refused(label):
    with pytest.raises(ValueError, match=f"batch 0: label {label} must be one of the 3 classes, 0..2"):
        predict(nn.Identity(), [(LOGITS, torch.tensor([0, label]))])


@pytest.mark.parametrize("batches", [[], iter([])])
def test_no_batches_are_refused(batches):
    with pytest.raises(ValueError, match="batches is empty"):
        predict(nn.Identity(), batches)


@pytest.mark.parametrize(
    ("model", "labels", "error", "message"),
    [
        (lambda x: {"logits": x}, LABELS, TypeError, r"logits must be a Tensor, got dict; wrap the model"),
        (nn.Identity(), [0, 1], TypeError, "labels must be a Tensor, got list"),
        (lambda x: x.long(), LABELS, TypeError, "got torch.int64 and torch.int64"),
        (nn.Identity(), LABELS.int(), TypeError, r"got torch.float32 and torch.int32; try labels.long\(\)"),
        (nn.Identity(), LABELS[:1], ValueError, r"logits \(2, 3\) and labels \(1,\) must have the shapes"),
        (lambda x: x[0], LABELS, ValueError, r"logits \(3,\) and labels \(2,\) must have"),
        (lambda x: x[:0], LABELS[:0], ValueError, r"labels is empty, of shape \(0,\)"),
    ],
)
def test_what_does_not_fit_is_refused(model, labels, error, message):
    with pytest.raises(error, match=f"batch 0: .*{message}"):
        predict(model, [(LOGITS, labels)])


@pytest.mark.parametrize("batch", [LOGITS, (LOGITS,), (LOGITS, LABELS, LABELS)])
def test_a_batch_is_a_pair(batch):
    with pytest.raises(TypeError, match=r"batch 0 must be a pair \(inputs, labels\), got (Tensor|tuple)"):
        predict(nn.Identity(), [batch])
