"""How good the answers are: accuracy, top-k, macro F1, perplexity, each with its interval.

A difference that is smaller than the intervals may be chance: two models are compared on the same samples with
``paired.py``, which sees far smaller differences than two intervals side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from compresslab.measure.estimates import Estimate, bootstrap, wilson
from compresslab.measure.predictions import Predictions

__all__ = ["accuracy", "macro_f1", "perplexity", "top_k"]


def accuracy(predictions: Predictions, *, confidence: float = 0.95) -> Estimate:
    """The share of predictions that hit their label, with Wilson's interval.

    For language models it is the share of tokens; tokens of one text depend on one another, so that interval is too
    narrow.

    Example:
        >>> print(accuracy(Predictions(torch.tensor([[0.0, 2.0], [1.0, 0.5]]), torch.tensor([1, 1]))))
        50.0 % [9.5, 90.5]
    """
    return wilson(int(predictions.correct.sum()), predictions.labels.numel(), confidence=confidence)


def top_k(predictions: Predictions, k: int = 5, *, confidence: float = 0.95) -> Estimate:
    """The share of labels among the ``k`` largest logits, with Wilson's interval.

    Of equal logits the lower class comes first, so a model that answers the same for all classes gains nothing.

    Raises:
        ValueError: ``k`` is not 1..classes.

    Example:
        >>> print(top_k(Predictions(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.5, 1.0]]), torch.tensor([2, 1])), 2))
        50.0 % [9.5, 90.5]
    """
    logits, labels = predictions.logits, predictions.labels.unsqueeze(-1)
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k={k} must be 1..{logits.shape[-1]}, the number of classes")
    own = logits.gather(-1, labels)
    tied_before = (logits == own) & (torch.arange(logits.shape[-1]) < labels)
    rank = ((logits > own) | tied_before).sum(-1)
    return wilson(int((rank < k).sum()), labels.numel(), confidence=confidence)


def macro_f1(
    predictions: Predictions,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> Estimate:
    """F1 of each class, averaged over the classes that occur: rare classes weigh as much as common ones.

    F1 is 2 TP / (2 TP + FP + FN). Classes that are neither label nor prediction are left out, as scikit-learn does.
    The interval is a bootstrap over samples.

    Raises:
        ValueError: ``resamples`` or ``confidence`` is out of range.

    Example:
        >>> predictions = Predictions(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 1]))  # F1 2/3 and 4/5
        >>> round(macro_f1(predictions).value, 4)
        0.7333
    """
    classes = predictions.logits.shape[-1]
    labels, predicted = predictions.labels.flatten(), predictions.predicted.flatten()

    def statistic(index: Tensor) -> float:
        hit = torch.bincount(labels[index][labels[index] == predicted[index]], minlength=classes)
        total = torch.bincount(torch.cat([labels[index], predicted[index]]), minlength=classes)  # 2 TP + FP + FN
        return (2 * hit[total > 0].double() / total[total > 0]).mean().item()

    estimate, _ = bootstrap(statistic, len(labels), resamples=resamples, confidence=confidence, generator=generator)
    return replace(estimate, unit="%")


def perplexity(
    predictions: Predictions | Iterable[Predictions],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    generator: torch.Generator | None = None,
) -> Estimate:
    """exp of the mean negative log likelihood of the tokens: among how many the model hesitates.

    Args:
        predictions: of all batches, or one batch after the other (``predict_batches``): then only two numbers are
            kept for each sequence.
        resamples: bootstrap samples. Whole sequences are drawn, since the tokens of one depend on one another.
        confidence: 0..1, ends excluded.
        generator: draws the sequences; None starts from seed 0.

    Raises:
        ValueError: ``resamples`` or ``confidence`` is out of range.

    Example:
        >>> even = Predictions(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))  # four equal choices
        >>> print(perplexity(even))
        4.00 [4.00, 4.00]
    """
    parts = [predictions] if isinstance(predictions, Predictions) else predictions
    sums = torch.cat([sequence_nll(part) for part in parts])  # (N, 2)
    estimate, _ = bootstrap(
        lambda index: perplexity_of(sums[index]),
        len(sums),
        resamples=resamples,
        confidence=confidence,
        generator=generator,
    )
    return estimate


def sequence_nll(predictions: Predictions) -> Tensor:
    """Sum of the negative log likelihoods and number of tokens of each sequence, (N, 2) float64.

    Example:
        >>> sequence_nll(Predictions(torch.zeros(1, 3, 4), torch.zeros(1, 3, dtype=torch.long))).tolist()
        [[4.1588830833596715, 3.0]]
    """
    nll = predictions.nll.reshape(len(predictions.labels), -1)
    return torch.stack([nll.sum(1), torch.full_like(nll[:, 0], nll.shape[1])], dim=1)


def perplexity_of(sums: Tensor) -> float:
    """The perplexity of sequences from their ``sequence_nll``.

    Example:
        >>> perplexity_of(torch.tensor([[0.0, 2.0], [0.0, 1.0]]))
        1.0
    """
    total, tokens = sums.sum(0).tolist()
    return math.exp(min(total / tokens, 700.0))  # exp(710) is beyond float64
