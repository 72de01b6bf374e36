"""Compression in steps: each is a plain function of a model, measured when it is done, stored, and undone if it costs too much.

    run = run_steps(model, {"prune": prune, "train": train, "8 bits": quantize}, measure, floor={"accuracy": 0.88}, ...)
    run.model, run.records

``measure`` gives figures of a model by name. A step after which a figure lies below its floor is undone: the next one
starts from the last model that was good. Some steps do harm that the next one repairs (cut channels, then train): those
are ``Step(..., judged=False)``, and go with it if the repair fails.

With a ``folder`` a run can be stopped and goes on where it was. What is stored is weights (safetensors, no code), so a
step that keeps the names and shapes of its input (training, masks, rounding) is read back, and one that makes another
network (cutting, converting, which take seconds) is done again. The key of a file is made from the step's name, its
``version`` and the weights that it started from: whatever changes before a step, the step is done anew.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compresslab.workbench.files import CorruptArtifact, load_tensors, save_tensors

__all__ = ["PipelineRun", "Record", "Step", "run_steps"]

Measure = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True)
class Step:
    """One step with what is to be known of it; a plain function is ``Step(function)``."""

    run: Callable[[nn.Module], nn.Module]  # gives a new model, leaves the given one as it is
    judged: bool = True  # False: its harm is repaired by the next step, which is judged for both
    version: str = ""  # change it when the function changes, and stored results are not used


@dataclass(frozen=True)
class Record:
    """What became of one step."""

    step: str
    figures: dict[str, float]  # of the model right after the step
    seconds: float  # the step itself took, when it was run
    kept: bool  # False: it was undone
    stored: bool  # True: read from the folder


@dataclass(frozen=True, eq=False)
class PipelineRun:
    """The last good model, and what each step did."""

    model: nn.Module
    records: tuple[Record, ...]  # the first is the model as it was given


def run_steps(
    model: nn.Module,
    steps: Mapping[str, Step | Callable[[nn.Module], nn.Module]],
    measure: Measure,
    *,
    floor: Mapping[str, float] | None = None,
    folder: Path | None = None,
) -> PipelineRun:
    """Run the steps in order.

    Args:
        model: left as it is.
        steps: by name.
        measure: figures of a model by name; higher is better for those that have a floor.
        floor: the least that a figure may be after a judged step.
        folder: for the results of steps, made if it is not there; None keeps nothing.

    Raises:
        ValueError: no steps, the last one is not judged, a floor has no figure, or a step does not give a model. Errors
            of a step pass through, with its name.

    Example:
        >>> double = lambda m: nn.Sequential(*m, *m)
        >>> run = run_steps(
        ...     nn.Sequential(nn.ReLU()),
        ...     {"x2": double, "x4": Step(double)},
        ...     lambda m: {"left": -len(m)},
        ...     floor={"left": -3},
        ... )
        >>> [(record.step, record.figures["left"], record.kept) for record in run.records]
        [('as given', -1, True), ('x2', -2, True), ('x4', -4, False)]
        >>> len(run.model)
        2
    """
    known = {name: step if isinstance(step, Step) else Step(step) for name, step in steps.items()}
    if not known or not list(known.values())[-1].judged:
        raise ValueError("steps must hold at least one step, and the last one must be judged; set judged=True")
    figures = dict(measure(model))
    missing = sorted(set(floor or {}) - set(figures))
    if missing:
        raise ValueError(f"floor has {missing[0]!r}, but measure gives {', '.join(sorted(figures))}")
    good = current = copy.deepcopy(model)
    records = [Record("as given", figures, 0.0, True, False)]
    pending: list[int] = []  # records of steps that wait for the repair
    for name, step in known.items():
        made, figures, seconds, stored = _result(name, step, current, measure, folder)
        records.append(Record(name, figures, seconds, True, stored))
        pending.append(len(records) - 1)
        current = made
        if not step.judged:
            continue
        if any(not figures[key] >= least for key, least in (floor or {}).items()):
            for place in pending:
                old = records[place]
                records[place] = Record(old.step, old.figures, old.seconds, False, old.stored)
            current = good
        good, pending = current, []
    return PipelineRun(good, tuple(records))


def _result(
    name: str, step: Step, current: nn.Module, measure: Measure, folder: Path | None
) -> tuple[nn.Module, dict[str, float], float, bool]:
    """The model after a step, its figures, the step's seconds, and whether they were read."""
    path = None if folder is None else Path(folder) / f"{_key(name, step, current)}.safetensors"
    if path is not None and path.is_file():
        try:
            tensors, metadata = load_tensors(path)
            told = json.loads(metadata["record"])
            made = copy.deepcopy(current)
            made.load_state_dict(tensors)
            return made, told["figures"], told["seconds"], True
        except (CorruptArtifact, KeyError, RuntimeError):
            path.unlink()  # of no use to anybody: the step is run again
    start = time.perf_counter()
    try:
        made = step.run(current)
    except Exception as error:
        error.add_note(f"in step {name!r}")
        raise
    seconds = time.perf_counter() - start
    if not isinstance(made, nn.Module):
        raise ValueError(f"step {name!r} gave a {type(made).__name__}; it must give a model")
    figures = dict(measure(made))
    if path is not None and _shapes(made) == _shapes(current):
        save_tensors(path, made.state_dict(), {"record": json.dumps({"figures": figures, "seconds": seconds})})
    return made, figures, seconds, False


def _shapes(model: nn.Module) -> dict[str, tuple[type, torch.Size, torch.dtype]]:
    """What two models have in common if one's weights can be loaded into the other and it then does the same."""
    classes = [type(module) for module in model.modules()]
    tensors = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    return {"": classes, **tensors}


def _key(name: str, step: Step, model: nn.Module) -> str:
    """A name for the result of a step on these weights."""
    classes = " ".join(type(module).__qualname__ for module in model.modules())
    digest = hashlib.sha256(f"{name}\n{step.version}\n{classes}\n".encode())
    for key, value in model.state_dict().items():
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
