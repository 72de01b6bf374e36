"""What is kept of a model's answers to compare it with others: some bytes for each label, never the logits.

A classifier is judged by the labels it hits, a language model (labels (N, L)) by the likelihood of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compresslab.measure.estimates import Estimate, bootstrap, wilson
from compresslab.measure.metrics import perplexity_of, sequence_nll
from compresslab.measure.paired import Paired, mcnemar, paired_bootstrap
from compresslab.measure.predictions import Predictions, predict_batches

__all__ = ["Answers", "collect_answers"]


@dataclass(frozen=True, eq=False)
class Answers:
    """Labels, predicted classes and, of language models, the negative log likelihood of each sequence."""

    labels: Tensor  # (N,) or (N, L)
    predicted: Tensor  # the same shape
    sums: Tensor | None  # (N, 2): nats and tokens of each sequence; None for classifiers

    @property
    def metric(self) -> str:
        """The name of the quality: "accuracy" or "perplexity"."""
        return "accuracy" if self.sums is None else "perplexity"

    def quality(self, *, generator: torch.Generator | None = None) -> Estimate:
        """Accuracy with Wilson's interval, or perplexity with a bootstrap interval over sequences."""
        if self.sums is None:
            return wilson(int((self.predicted == self.labels).sum()), len(self.labels))
        return bootstrap(lambda index: perplexity_of(self.sums[index]), len(self.sums), generator=generator)[0]

    def against(self, reference: Answers, *, generator: torch.Generator | None = None) -> Paired:
        """The difference in quality from ``reference`` on the same samples, own less reference, and its p-value.

        Raises:
            ValueError: the labels are not the same, in the same order.
        """
        if not torch.equal(self.labels, reference.labels):
            shapes = f"{tuple(self.labels.shape)} and {tuple(reference.labels.shape)}"
            raise ValueError(f"labels of shapes {shapes} differ between two passes; read the data in a fixed order")
        if self.sums is None:
            return mcnemar(reference.predicted == reference.labels, self.predicted == self.labels)
        return paired_bootstrap(reference.sums, self.sums, statistic=perplexity_of, generator=generator)


def collect_answers(model: Callable[[Any], Tensor], batches: Iterable[tuple[Any, Tensor]]) -> Answers:
    """Run ``model`` over all batches and keep what comparing needs.

    Args:
        model: a module or a callable that turns the inputs of a batch into logits (N, C) or (N, L, C).
        batches: pairs of inputs and labels, (N,) or (N, L), integers in 0..C-1.

    Raises:
        TypeError: logits or labels are no tensors, or of the wrong kind.
        ValueError: there is no batch, shapes do not fit, logits hold NaN or +inf, or a label is no class.

    Example:
        >>> answers = collect_answers(torch.nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))])
        >>> answers.metric, answers.predicted.tolist(), answers.quality().value
        ('accuracy', [0, 1], 0.5)
    """
    parts = [_keep(predictions) for predictions in predict_batches(model, batches)]
    labels, predicted = (torch.cat([getattr(p, field) for p in parts]) for field in ("labels", "predicted"))
    return Answers(labels, predicted, None if labels.dim() == 1 else torch.cat([part.sums for part in parts]))


def _keep(predictions: Predictions) -> Answers:
    sums = sequence_nll(predictions) if predictions.labels.dim() == 2 else None
    return Answers(predictions.labels, predictions.predicted, sums)
