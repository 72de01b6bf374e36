"""What a model answers on labeled data, checked: the ground that every quality metric stands on.

NaN logits have an argmax too (class 0), and a label out of range an index: both would give an accuracy that looks like
any other number. They are refused here, with the batch that holds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compresslab.measure.running import call, evaluating

__all__ = ["Predictions", "predict", "predict_batches"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """Logits beside the labels that they should have hit; for language models every token has both.

    Example:
        >>> predictions = Predictions(torch.tensor([[0.0, 2.0], [1.0, 0.5]]), torch.tensor([1, 1]))
        >>> predictions.predicted.tolist(), predictions.correct.tolist()
        ([1, 0], [True, False])
    """

    logits: Tensor  # (N, C) or (N, L, C), float32 or wider
    labels: Tensor  # (N,) or (N, L), int64, 0..C-1

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError unless logits and labels fit each other; see ``predict``."""
        logits, labels = self.logits, self.labels
        for name, value in (("logits", logits), ("labels", labels)):
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise TypeError(f"{name} must be a Tensor, got {kind}; wrap the model, as in lambda x: model(x).logits")
        if not logits.is_floating_point() or labels.dtype is not torch.int64:
            kinds = f"{logits.dtype} and {labels.dtype}"
            raise TypeError(f"logits must be floats and labels int64, got {kinds}; try labels.long()")
        if logits.dim() not in (2, 3) or logits.shape[:-1] != labels.shape:
            shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
            raise ValueError(f"{shapes} must have the shapes (N, C) and (N,), or (N, L, C) and (N, L)")
        if not labels.numel():
            raise ValueError(f"labels is empty, of shape {tuple(labels.shape)}; give at least one sample")
        if bad := int((logits.isnan() | logits.isposinf()).sum()):
            raise ValueError(
                f"{bad} of {logits.numel()} logits are NaN or +inf; look for the first layer that makes them"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[-1]:
            wrong = low if low < 0 else high
            raise ValueError(f"label {wrong} must be one of the {logits.shape[-1]} classes, 0..{logits.shape[-1] - 1}")

    @property
    def predicted(self) -> Tensor:
        """The class with the largest logit, in the shape of the labels."""
        return self.logits.argmax(-1)

    @property
    def correct(self) -> Tensor:
        """Whether the prediction hit the label, bool."""
        return self.predicted == self.labels

    @property
    def nll(self) -> Tensor:
        """Negative log likelihood of each label in nats, float64."""
        flat = F.cross_entropy(self.logits.double().flatten(0, -2), self.labels.flatten(), reduction="none")
        return flat.reshape(self.labels.shape)


def predict_batches(model: Callable[[Any], Tensor], batches: Iterable[tuple[Any, Tensor]]) -> Iterator[Predictions]:
    """The predictions of one batch after the other, so that memory does not grow with the data.

    Between two batches the model is as it was: its mode is restored after each, also when the loop is left early.

    Args:
        model: a module or a callable that turns the inputs of a batch into logits (N, C) or (N, L, C).
        batches: pairs of inputs and labels, (N,) or (N, L), integers in 0..C-1.

    Raises:
        TypeError: logits or labels are no tensors, or of the wrong kind.
        ValueError: there is no batch, shapes do not fit, logits hold NaN or +inf, or a label is no class.

    Example:
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2), torch.tensor([1, 1]))]
        >>> [predictions.correct.tolist() for predictions in predict_batches(torch.nn.Identity(), batches)]
        [[True, True], [False, True]]
    """
    place = -1
    for place, batch in enumerate(batches):
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"batch {place} must be a pair (inputs, labels), got {type(batch).__name__}")
        inputs, labels = batch
        with evaluating(model):
            logits = call(model, inputs)
        try:
            predictions = Predictions(_at_hand(logits), _at_hand(labels))
        except (TypeError, ValueError) as error:
            raise type(error)(f"batch {place}: {error}") from None
        yield predictions
    if place < 0:
        raise ValueError("batches is empty; give at least one (inputs, labels) pair, or a fresh iterator")


def _at_hand(value: Any) -> Any:
    """A tensor on the CPU, half precision widened; anything else as it is, for Predictions to refuse."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.float() if value.is_floating_point() and value.dtype.itemsize < 4 else value
    return value


def predict(model: Callable[[Any], Tensor], batches: Iterable[tuple[Any, Tensor]]) -> Predictions:
    """The logits of ``model`` on all batches, with their labels, on the CPU.

    All logits are kept: for language models with large vocabularies use ``predict_batches``, one batch at a time.

    Args:
        model: a module or a callable that turns the inputs of a batch into logits (N, C) or (N, L, C).
        batches: pairs of inputs and labels, (N,) or (N, L), integers in 0..C-1.

    Raises:
        TypeError: logits or labels are no tensors, or of the wrong kind.
        ValueError: there is no batch, shapes do not fit, logits hold NaN or +inf, or a label is no class.

    Example:
        >>> predict(torch.nn.Identity(), [(torch.eye(2), torch.tensor([0, 1]))]).correct.tolist()
        [True, True]
    """
    parts = list(predict_batches(model, batches))
    return Predictions(torch.cat([part.logits for part in parts]), torch.cat([part.labels for part in parts]))
