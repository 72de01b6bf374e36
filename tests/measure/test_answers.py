from __future__ import annotations

import pytest
import torch
from torch import nn

from compresslab.measure import mcnemar, perplexity, predict, wilson
from compresslab.measure.answers import collect_answers

CLASSES = [(torch.eye(3), torch.tensor([0, 1, 1])), (torch.eye(3)[:1], torch.tensor([2]))]
TOKENS = [
    (torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 1], [0, 2]])),
    (torch.tensor([[3, 3]]), torch.tensor([[0, 0]])),
]


def table(seed: int) -> nn.Embedding:
    torch.manual_seed(seed)
    return nn.Embedding(4, 4)


def test_classifiers_are_judged_by_accuracy():
    answers = collect_answers(nn.Identity(), CLASSES)
    assert answers.metric == "accuracy"
    assert answers.predicted.tolist() == [0, 1, 2, 0]
    assert answers.quality() == wilson(2, 4)
    other = collect_answers(lambda x: x.flip(0), CLASSES)  # 2, 1, 0, and 0
    assert other.against(answers) == mcnemar(torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 0, 0]).bool())
    assert other.against(answers).difference.value == -0.25


def test_language_models_are_judged_by_perplexity():
    answers, other = collect_answers(table(0), TOKENS), collect_answers(table(1), TOKENS)
    assert answers.metric == "perplexity"
    assert answers.quality() == perplexity(predict(table(0), TOKENS))
    assert answers.sums.shape == (3, 2)
    difference = other.against(answers).difference
    assert difference.value == pytest.approx(other.quality().value - answers.quality().value)
    assert difference.count == 3


def test_answers_on_other_labels_cannot_be_compared():
    answers = collect_answers(nn.Identity(), CLASSES)
    with pytest.raises(ValueError, match=r"labels of shapes \(4,\) and \(4,\) differ between two passes"):
        collect_answers(nn.Identity(), CLASSES[::-1]).against(answers)
