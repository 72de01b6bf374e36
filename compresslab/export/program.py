"""A PyTorch program that no longer needs the Python it was written in: ``torch.export``, with axes that stay free.

Export runs the model once on stand-ins that have a shape and no values, and writes down each operation. What was a
Python decision is then fixed: a loop is unrolled, an ``if`` has gone one way, and so has ``model.training``. An axis is
a number unless it is declared free. Free are here the first axis of every input (the batch) and, if asked for, the
second (the sequence). An ``if`` on a value that only a run can know stops the export: ``torch.where`` and ``torch.cond``
are written down.

TorchScript (``torch.jit``, 2018) was the way before. It has been deprecated since PyTorch 2.9 (2025); do not start with it.

    Reed, DeVito, He, Ussery and Ansel, "torch.fx: Practical program capture and transformation for deep learning in
    Python", 2021, https://arxiv.org/abs/2112.08429 (the graph that is written down)
    https://docs.pytorch.org/docs/stable/export.html
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["as_inputs", "export_program", "quiet"]

LOGGERS = ("torch", "torch.export", "torch.onnx", "torch.utils._pytree", "onnxscript", "onnx_ir", "torchao")


def export_program(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    dynamic_batch: bool = True,
    dynamic_sequence: bool = False,
) -> torch.export.ExportedProgram:
    """The model as a program of torch operations; ``.module()`` of it runs, ``torch.export.save`` writes it.

    Args:
        model: in eval mode; it is not changed.
        example_inputs: one tensor or a tuple of them, as the model is called. An axis to be free has at least 2.
        dynamic_batch: whether axis 0 of all inputs may have any size later.
        dynamic_sequence: whether axis 1 of all inputs may, up to what the model allows.

    Raises:
        ValueError: the model is in train mode, decides something by a value, or needs a fixed size of an axis.
        TypeError: the inputs are not tensors.

    Example:
        >>> program = export_program(nn.Linear(2, 1).eval(), torch.ones(2, 2))
        >>> program.module()(torch.ones(5, 2)).shape
        torch.Size([5, 1])
    """
    inputs = tuple(x.detach().clone() for x in as_inputs(example_inputs))  # of a view, torch 2.13 makes what ONNX lacks
    if training := [name or type(model).__name__ for name, part in model.named_modules() if part.training]:
        text = f"{training[0]} and {len(training) - 1} more modules are" if len(training) > 1 else f"{training[0]} is"
        raise ValueError(f"{text} in train mode, which export would make permanent (dropout); call model.eval() first")
    free = [axis for axis, wanted in enumerate((dynamic_batch, dynamic_sequence)) if wanted]
    axes = tuple({axis: torch.export.Dim.DYNAMIC for axis in free if axis < x.dim()} for x in inputs)
    shapes = [tuple(x.shape) for x in inputs]
    if any(x.shape[axis] < 2 for x, places in zip(inputs, axes, strict=True) for axis in places):
        raise ValueError(f"example_inputs have shapes {shapes}; an axis that stays free needs at least 2 of everything")
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, inputs, dynamic_shapes=axes, strict=False)
    except Exception as error:
        raise _in_words(error, model, shapes) from error


def as_inputs(example_inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs as a tuple.

    Raises:
        TypeError: there is none, or one is not a tensor.

    Example:
        >>> len(as_inputs(torch.ones(2)))
        1
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        got = [type(x).__name__ for x in inputs]
        raise TypeError(f"example_inputs must be a tensor or a tuple of tensors, got {got}")
    return inputs


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it exporters neither print, log nor warn; errors still come.

    Example:
        >>> with quiet():
        ...     print("[torch.onnx] Obtain model graph ...")
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        said = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _in_words(error: Exception, model: nn.Module, shapes: list[tuple[int, ...]]) -> ValueError:
    """The reason in one line instead of a page of frames."""
    text, name = str(error), type(model).__name__
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if "data-dependent" in text or "DataDependent" in type(error).__name__ or "Dynamic control flow" in text:
        where = next((line.strip() for line in text.splitlines() if "Caused by:" in line), "")
        advice = "write it with torch.where or torch.cond"
        return ValueError(f"{name} decides something by a value that only a run can know; {advice}. {where}".strip())
    if "specialized it to be a constant" in text:
        line = next(line.strip(" -") for line in text.splitlines() if "specialized it to be a constant" in line)
        advice = "pass dynamic_batch=False or dynamic_sequence=False, or reshape with -1 in the model"
        return ValueError(f"{name} fixes the size of an axis that should stay free; {advice}. {line}")
    return ValueError(f"{name} cannot be exported from inputs of shapes {shapes}: {type(error).__name__}: {first}")
