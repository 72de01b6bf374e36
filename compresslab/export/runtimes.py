"""One interface to several runtimes: a model becomes a file, and the file runs without the model.

    torch.export    a program of torch operations, run by PyTorch              needs nothing more
    onnxruntime     an ONNX file, by Microsoft's runtime; on servers, desktops, phones, in browsers
    openvino        an .xml and a .bin file, by Intel's runtime; on Intel's and ARM's processors
    executorch      a .pte file, by PyTorch's runtime for phones and microcontrollers; here with XNNPACK's kernels
    litert          a .tflite file, by Google's runtime for phones (TensorFlow Lite until 2024)
    tensorrt        an engine for one kind of NVIDIA GPU, built there from an ONNX file

Each is an extra package that is imported when it is asked for. ``available`` tells which are here, and what installs the
rest. Not in the list: TorchScript (``torch.jit``, 2018, deprecated since PyTorch 2.9 in 2025).

A file is exported with a free batch where the runtime can run one. OpenVINO computes in bfloat16 on processors that are
quick at it unless told not to, and we tell it: a runtime that answers differently is not faster, it is another model.

    https://docs.openvino.ai, https://docs.pytorch.org/executorch, https://ai.google.dev/edge/litert,
    https://docs.nvidia.com/deeplearning/tensorrt
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from compresslab.export.files import whole_file
from compresslab.export.parity import check_parity
from compresslab.export.program import as_inputs
from compresslab.export.targets import TARGETS, Run, Target

__all__ = ["TARGETS", "Artifact", "Available", "available", "export"]

WRONG = 0.1  # integer kernels are within 0.03; what is off by more is another function


@dataclass(frozen=True)
class Available:
    """Whether a target can run here."""

    can_run: bool
    reason: str  # empty if it can
    command: str  # that installs it; empty if nothing is missing


@dataclass(frozen=True, eq=False)
class Artifact:
    """A model as a file, and a way to run it."""

    target: str
    path: Path
    size_bytes: int  # of all its files
    difference: float  # of its outputs from the model's on the example, largest, in units of the largest output
    run: Run = field(repr=False)  # tensors in, tensors out; a tuple if there are several
    notes: tuple[str, ...]  # what is to be known about it


def available() -> dict[str, Available]:
    """For each target whether it can run here, and if not, why and what would install it.

    Example:
        >>> available()["torch.export"]
        Available(can_run=True, reason='', command='')
    """
    return {name: _available(name, target) for name, target in TARGETS.items()}


def export(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    target: str,
    path: str | os.PathLike,
    dynamic_batch: bool = True,
    threads: int = 1,
) -> Artifact:
    """A file of the model for one runtime, opened there; its answers on the example are compared with the model's.

    Args:
        model: in eval mode; it is not changed.
        example_inputs: one tensor or a tuple of them; at least 2 samples if the batch is free.
        target: a name in ``TARGETS``.
        path: where to write; the ending is the target's own (``.onnx``, ``.pt2``, ``.xml``, ``.pte``, ``.tflite``).
        dynamic_batch: whether the batch may have any size later; ExecuTorch's and LiteRT's never may.
        threads: that ONNX Runtime and OpenVINO compute with.

    Raises:
        ValueError: the target is unknown, the ending is another, the model cannot be exported, or the file
            computes something else.
        ImportError: the target's package is missing; the message says what installs it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "line.pt2"
        ...     artifact = export(nn.Linear(2, 1).eval(), torch.ones(2, 2), target="torch.export", path=path)
        ...     artifact.run(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    if target not in TARGETS:
        raise ValueError(f"target={target!r} must be one of {', '.join(TARGETS)}")
    found, path, inputs = TARGETS[target], Path(path), as_inputs(example_inputs)
    if path.suffix != found.suffix:
        raise ValueError(f"path={str(path)!r} must end in {found.suffix} for {target}")
    state = _available(target, found)
    if not state.can_run:
        raise ImportError(f"{target} cannot run here: {state.reason}" + f"; {state.command}" * bool(state.command))
    with whole_file(path) as temporary:
        found.build(model, inputs, temporary, dynamic_batch)
        gap = check_parity(model, found.load(temporary, threads), inputs, batch_sizes=[len(inputs[0])]).largest
        if not gap < WRONG:
            raise ValueError(
                f"{target} does not compute what the model does: outputs differ by {gap:.0%} of the largest"
            )
        names = [file.name for file in temporary.parent.iterdir()]
    size = sum((path.parent / name).stat().st_size for name in names)
    return Artifact(target, path, size, gap, found.load(path, threads), found.notes)


def _available(name: str, target: Target) -> Available:
    if importlib.util.find_spec(target.package) is None:
        return Available(False, f"the package {target.package} is not installed", target.command)
    if name == "tensorrt" and not torch.cuda.is_available():
        return Available(False, "there is no NVIDIA GPU", "")
    return Available(True, "", "")
