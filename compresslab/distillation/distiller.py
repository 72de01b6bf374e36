"""Distillation in any training loop: a loss to hand over, and a thin function around the loop.

    fit(student, images, loss_fn=Distillation(teacher, soft_weight=0.9))
    distil(student, Distillation(teacher, pairs=[Pair("layer2", "layer2", hint_loss, project=True)]), partial(fit, train=images))

    L = soft_weight L_soft + (1 - soft_weight) L_hard + sum over pairs of weight L_pair

The teacher runs in eval mode, without gradients, and is put back after each batch. Layers are tapped by name through
hooks that are always removed. Projections have to be trained with the student: ``distil`` hands the loop a module that
holds both, so they are in its copies, its optimizer and its averages over processes, and takes the student out of it.

    Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531, section 2; Romero and others, 2015,
    https://arxiv.org/abs/1412.6550, section 2.2
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresslab.distillation.features import evaluating, logits_of, tapped
from compresslab.distillation.logits import check_temperature
from compresslab.distillation.pairs import Pair, WithProjections, add_projections
from compresslab.distillation.soft import soft_target_loss
from compresslab.distillation.triple import hard_label_loss

__all__ = ["Distillation", "Distilled", "distil"]

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Distilled:
    """What ``distil`` made."""

    model: nn.Module  # the trained student; projections are gone
    trained: Any  # what the training loop returned, with its history


class Distillation:
    """A loss for a training loop: called with (model, batch), it gives the loss and a dict of its parts.

    Args:
        teacher: gives logits for the batch's inputs, on their device; None where batches hold its logits as their
            third part (``cache.py``).
        soft_weight: the weight of the teacher's part, 0..1; at 1 no labels are needed.
        temperature: of the default ``soft_loss``.
        soft_loss: of (student_logits, teacher_logits, targets); ``soft_target_loss`` if None.
        pairs: layers to be matched beside the logits.
        mask: called with the batch, gives (B, L) bool, True for the tokens that are no padding; None for all.

    Batches are (inputs, targets, ...); a target of -100 is none, for the hard loss only. Logits have the classes last.

    Raises:
        ValueError: an option out of range, or pairs without a teacher.

    Example:
        >>> teacher, student = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
        >>> teacher.weight.data, student.weight.data = torch.tensor([[2.0], [0.0]]), torch.zeros(2, 1)
        >>> loss, parts = Distillation(teacher, soft_weight=0.5, temperature=1.0)(
        ...     student, (torch.ones(1, 1), torch.tensor([0]))
        ... )
        >>> parts  # log 2 for the label; log 2 less the teacher's entropy, 0.3655
        {'hard': tensor(0.6931), 'soft': tensor(0.3278)}
    """

    def __init__(
        self,
        teacher: nn.Module | None,
        *,
        soft_weight: float = 0.9,
        temperature: float = 4.0,
        soft_loss: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
        pairs: Sequence[Pair] = (),
        mask: Callable[[Batch], Tensor] | None = None,
    ) -> None:
        if not 0 <= soft_weight <= 1:
            raise ValueError(f"soft_weight={soft_weight!r} must be the teacher's share, 0..1; try 0.9")
        check_temperature(temperature)
        if teacher is None and pairs:
            raise ValueError("pairs want a teacher that runs: its logits alone have no layers; pass the teacher")
        self.teacher, self.soft_weight, self.temperature = teacher, soft_weight, temperature
        self.soft_loss, self.pairs, self.mask = soft_loss, tuple(pairs), mask

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        projections = model.projections if isinstance(model, WithProjections) else [nn.Identity()] * len(self.pairs)
        if any(pair.project and isinstance(p, nn.Identity) for pair, p in zip(self.pairs, projections, strict=True)):
            raise ValueError("a pair with project=True wants a trained projection: train through distil(...)")
        student = model.model if isinstance(model, WithProjections) else model
        inputs, targets = batch[:2]
        asked = self.soft_weight > 0 or self.pairs  # else this is plain training
        taught, theirs = self._ask_teacher(batch) if asked else (None, {})
        with tapped(student, [pair.student for pair in self.pairs]) as ours:
            logits = logits_of(student(inputs))

        total, parts = logits.new_zeros(()), {}
        if self.soft_weight < 1:
            parts["hard"] = hard_label_loss(logits, targets)
            total = total + (1 - self.soft_weight) * parts["hard"]
        if self.soft_weight > 0:
            if self.mask is not None:
                counted = self.mask(batch)
                logits, taught, targets = logits[counted], taught[counted], targets[counted]  # (n, V)
            if self.soft_loss is None:
                parts["soft"] = soft_target_loss(logits, taught, temperature=self.temperature)
            else:
                parts["soft"] = self.soft_loss(logits, taught, targets)
            total = total + self.soft_weight * parts["soft"]
        for pair, projection in zip(self.pairs, projections, strict=True):
            part = pair.loss(projection(ours[pair.student]), theirs[pair.teacher])
            parts[f"{getattr(pair.loss, '__name__', 'pair')} {pair.student}"] = part
            total = total + pair.weight * part
        return total, {name: part.detach() for name, part in parts.items()}

    def _ask_teacher(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.teacher is None:
            if len(batch) < 3:
                raise ValueError(
                    f"a batch of {len(batch)} parts must hold the teacher's logits as its third; see WithLogits"
                )
            return batch[2], {}
        names = [pair.teacher for pair in self.pairs]
        with torch.no_grad(), evaluating(self.teacher), tapped(self.teacher, names) as seen:
            return logits_of(self.teacher(batch[0])), seen


def distil(
    student: nn.Module,
    loss: Distillation,
    train: Callable[..., Any],
    *,
    example_inputs: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Distilled:
    """A trained copy of the student.

    Args:
        student: is left as it is.
        loss: holds the teacher, which is left as it is.
        train: called as ``train(model, loss_fn=loss)``; gives a trained model, or something that has it as ``.model``.
            ``functools.partial(fit, train=images, epochs=5)`` is one.
        example_inputs: a few, to see how wide layers are; needed where a pair is projected.
        generator: of the projections' weights.

    Raises:
        ValueError: a pair is to be projected and there are no example inputs, or a layer is not there.
        TypeError: ``train`` gave no model.

    Example:
        >>> def one_step(model, loss_fn):
        ...     value, _ = loss_fn(model, (torch.ones(1, 1), torch.tensor([0])))
        ...     value.backward()
        ...     torch.optim.SGD(model.parameters(), lr=1.0).step()
        ...     return model
        >>> teacher, student = nn.Linear(1, 2, bias=False), nn.Linear(1, 2, bias=False)
        >>> teacher.weight.data, student.weight.data = torch.tensor([[9.0], [0.0]]), torch.zeros(2, 1)
        >>> distil(student, Distillation(teacher, temperature=1.0), one_step).model.weight.round(decimals=3).tolist()
        [[0.5], [-0.5]]
    """
    model = copy.deepcopy(student)
    if any(pair.project for pair in loss.pairs):
        if example_inputs is None:
            raise ValueError(
                "a pair with project=True needs example_inputs to see how wide the layers are; pass a batch"
            )
        model = add_projections(model, loss.teacher, loss.pairs, example_inputs, generator=generator)
    trained = train(model, loss_fn=loss)
    model = trained if isinstance(trained, nn.Module) else getattr(trained, "model", None)
    if not isinstance(model, nn.Module):
        raise TypeError(f"train must give a module, or something that has it as .model; got {type(trained).__name__}")
    return Distilled(model.model if isinstance(model, WithProjections) else model, trained)
