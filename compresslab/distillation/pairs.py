"""Which layers of the student learn from which of the teacher, and the projections between them.

A projection has to be trained with the student. So both go into one module, which a training loop can copy, optimize and
average over processes like any other; afterwards the student is taken out of it.

    Romero, Ballas, Kahou, Chassang, Gatta and Bengio, "FitNets: hints for thin deep nets", 2015,
    https://arxiv.org/abs/1412.6550, section 2.2
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compresslab.distillation.features import evaluating, tapped
from compresslab.distillation.hints import Projection

__all__ = ["Pair", "WithProjections", "add_projections"]


@dataclass(frozen=True)
class Pair:
    """A layer of the student, the layer of the teacher that it learns from, and by which loss."""

    student: str  # names, as in named_modules
    teacher: str
    loss: Callable[[Tensor, Tensor], Tensor]  # of (student_features, teacher_features)
    weight: float = 1.0
    project: bool = False  # a trained linear map of the student's channels to the teacher's stands between


class WithProjections(nn.Module):
    """A student and the projections of its hints, as one module to train; it answers as the student does.

    Args:
        model: the student.
        projections: one for each pair, ``nn.Identity`` where none is needed.

    Example:
        >>> student = WithProjections(nn.Linear(2, 3), nn.ModuleList([Projection(3, 5)]))
        >>> student(torch.zeros(1, 2)).shape, student.out_features
        (torch.Size([1, 3]), 3)
    """

    def __init__(self, model: nn.Module, projections: nn.ModuleList) -> None:
        super().__init__()
        self.model, self.projections = model, projections

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What only the student has, such as the length of its context."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":  # a copy in the making has none yet
                raise
            return getattr(self.model, name)


@torch.no_grad()
def add_projections(
    student: nn.Module,
    teacher: nn.Module,
    pairs: Sequence[Pair],
    inputs: Tensor,
    *,
    generator: torch.Generator | None = None,
) -> WithProjections:
    """The student and a new projection for each pair that wants one, to train as one module.

    Args:
        student: is held, not copied.
        teacher: is left as it is.
        pairs: of layers.
        inputs: a few, to see how wide the layers are.
        generator: of the projections' weights; None starts from seed 0.

    Raises:
        ValueError: a layer that is not there.

    Example:
        >>> student, teacher = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 5))
        >>> pair = Pair("0", "0", nn.functional.mse_loss, project=True)
        >>> add_projections(student, teacher, [pair], torch.zeros(1, 2)).projections[0].weight.shape
        torch.Size([5, 3])
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    outputs = []
    for model, names in ((student, [pair.student for pair in pairs]), (teacher, [pair.teacher for pair in pairs])):
        with evaluating(model), tapped(model, names) as seen:
            model(inputs)
        outputs.append([seen[name] for name in names])
    projections = nn.ModuleList()
    for pair, first, second in zip(pairs, *outputs, strict=True):
        widths = [part.shape[1 if part.dim() == 4 else -1] for part in (first, second)]
        projections.append(Projection(*widths, generator=generator).to(first) if pair.project else nn.Identity())
    return WithProjections(student, projections)
