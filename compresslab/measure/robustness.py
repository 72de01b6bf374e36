"""What an average hides: the same two models compared class by class, font by font, corruption by corruption.

Top-1 may stay where it was while one class falls by twenty points and another gains them. So accuracy is taken in
groups of samples, for the original and for the compressed model on the same samples. Of many groups some fall by
chance alone, so each p-value is raised by Holm's rule: p of the r-th smallest of k groups counts k - r + 1 times.

    Hooker, Courville, Clark, Dauphin and Frome, "What do compressed deep neural networks forget?", 2019,
    https://arxiv.org/abs/1911.05248 (classes and examples that compression breaks first)
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979
    Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", 2019,
    https://arxiv.org/abs/1903.12261 (corruptions at five strengths)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compresslab.measure.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from compresslab.measure.estimates import Estimate, wilson
from compresslab.measure.paired import Paired, mcnemar
from compresslab.measure.predictions import Predictions, predict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["GroupChange", "accuracy_by_group", "compare_groups", "scan_corruptions"]


@dataclass(frozen=True)
class GroupChange:
    """One group of samples, under both models."""

    reference: Estimate  # accuracy of the original
    other: Estimate  # accuracy of the compressed model on the same samples
    change: Paired  # other less reference; McNemar's p-value, raised by Holm's rule for all groups


def accuracy_by_group(
    predictions: Predictions,
    groups: Tensor,
    *,
    names: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> dict[str, Estimate]:
    """The accuracy in each group of samples, with Wilson's interval.

    Args:
        predictions: of a classifier, N samples.
        groups: (N,) integers, at least 0: the labels for classes, or a font, a camera, a country.
        names: of group 0, 1, ...; None names them by their number.
        confidence: 0..1, ends excluded.

    Returns:
        By name, in the order of the numbers; groups without a sample are left out.

    Raises:
        ValueError: groups are not one integer for each sample, or there is one without a name.

    Example:
        >>> predictions = Predictions(torch.eye(2)[[0, 1, 1]], torch.tensor([0, 0, 1]))
        >>> by_class = accuracy_by_group(predictions, predictions.labels, names=["cat", "dog"])
        >>> {name: estimate.value for name, estimate in by_class.items()}
        {'cat': 0.5, 'dog': 1.0}
    """
    members = _members(predictions, groups, names)
    return {
        name: wilson(int(predictions.correct[here].sum()), int(here.sum()), confidence=confidence)
        for name, here in members.items()
    }


def compare_groups(
    reference: Predictions, other: Predictions, groups: Tensor, *, names: Sequence[str] | None = None
) -> dict[str, GroupChange]:
    """The accuracy in each group under two models, and which of the differences are more than chance.

    Args:
        reference: predictions of the original on N samples.
        other: of the compressed model on the same samples.
        groups: (N,) integers, at least 0.
        names: of group 0, 1, ...; None names them by their number.

    Returns:
        By name, the greatest loss first.

    Raises:
        ValueError: the labels differ between the two, or groups do not fit.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1])
        >>> before, after = (Predictions(torch.eye(2)[c], labels) for c in ([0, 0, 1, 1], [1, 1, 1, 1]))
        >>> changes = compare_groups(before, after, labels)
        >>> [(name, group.change.difference.value) for name, group in changes.items()], changes["0"].change.p_value
        ([('0', -1.0), ('1', 0.0)], 1.0)
    """
    if not torch.equal(reference.labels, other.labels):
        shapes = f"{tuple(reference.labels.shape)} and {tuple(other.labels.shape)}"
        raise ValueError(f"labels of shapes {shapes} must be the same: predict both models on the same samples")
    members = _members(reference, groups, names)
    tests = {name: mcnemar(reference.correct[here], other.correct[here]) for name, here in members.items()}
    raised, least = {}, 0.0
    for rank, name in enumerate(sorted(tests, key=lambda name: tests[name].p_value)):
        least = max(least, min(1.0, (len(tests) - rank) * tests[name].p_value))  # never below a smaller one's
        raised[name] = least
    accuracies = [accuracy_by_group(given, groups, names=names) for given in (reference, other)]
    changes = {
        name: GroupChange(accuracies[0][name], accuracies[1][name], Paired(test.difference, raised[name]))
        for name, test in tests.items()
    }
    return dict(sorted(changes.items(), key=lambda item: item[1].change.difference.value))


def scan_corruptions(
    models: Mapping[str, Callable[[Any], Tensor]],
    images: Tensor,
    labels: Tensor,
    *,
    normalize: Callable[[Tensor], Tensor],
    kinds: Sequence[str] = CORRUPTIONS,
    strengths: Sequence[int] = STRENGTHS,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Accuracy of several models on the same images, corrupted in several ways and strengths.

    Args:
        models: name to module or callable.
        images: (N, C, H, W), uint8 in 0..255 or floats in 0..1.
        labels: (N,) int64.
        normalize: from images like those to the inputs of the models, a batch at a time.
        kinds: some of ``CORRUPTIONS``.
        strengths: some of 1..5.
        batch_size: changes no result but for rounding.

    Returns:
        A row for each kind and strength (both in the index), a column of accuracies, 0..1, for each model. The first
        row is ("none", 0), the images as they are. Each row draws anew from seed 0, so all models see the same noise.

    Raises:
        ValueError: there is no model, or images, kinds or strengths are not as said.

    Example:
        >>> bright = lambda x: torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)
        >>> images, labels = torch.tensor([0.15, 0.9]).view(2, 1, 1, 1).expand(2, 1, 4, 4), torch.tensor([0, 1])
        >>> scan_corruptions({"mean": bright}, images, labels, normalize=lambda x: x, kinds=["brightness"])["mean"].tolist()
        [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
    """
    import pandas as pd

    if not models:
        raise ValueError("models is empty; give at least one, as {name: model}")
    rows = {}
    for kind, strength in [("none", 0), *((kind, strength) for kind in kinds for strength in strengths)]:
        changed = corrupt(images, kind, strength) if strength else images
        batches = [(normalize(x), y) for x, y in zip(changed.split(batch_size), labels.split(batch_size), strict=True)]
        found = {name: predict(model, batches).correct for name, model in models.items()}
        rows[kind, strength] = {name: correct.double().mean().item() for name, correct in found.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["corruption", "strength"])


def _members(predictions: Predictions, groups: Tensor, names: Sequence[str] | None) -> dict[str, Tensor]:
    """By name, which samples belong to a group, (N,) bool."""
    if groups.shape != predictions.labels.shape or groups.dim() != 1 or groups.is_floating_point():
        given = f"{groups.dtype} {tuple(groups.shape)}"
        raise ValueError(f"groups, {given}, must be integers (N,), one for each of {len(predictions.labels)} samples")
    numbers = groups.unique().tolist()
    if numbers[0] < 0 or (names is not None and numbers[-1] >= len(names)):
        wrong = numbers[0] if numbers[0] < 0 else numbers[-1]
        raise ValueError(f"group {wrong} must be at least 0 and have one of the {len(names or ())} names")
    return {str(number) if names is None else names[number]: groups == number for number in numbers}
