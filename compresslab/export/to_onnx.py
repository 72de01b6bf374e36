"""ONNX: the program as a file that any runtime reads, checked, in one piece, and equal to the model within a tolerance.

The file holds a graph of standard operators (opset 21: the first with 4-bit integers in blocks) and the weights. It is
written beside its place, read by ONNX's own checker, which infers every shape, and only then renamed: what
stands at the path is whole, or what stood there before. Weights go into the file itself up to the 2 GB that a protobuf
holds, and above into one file beside it, which must travel with it. Layers quantized in this course become integers
in the file (``qdq.py``, ``low_bits.py``).

Whether it computes what the model does is measured by ``parity.py``.

    ONNX: https://onnx.ai/onnx/intro/concepts.html, its limit: https://protobuf.dev/programming-guides/proto-limits/
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from compresslab.export.casting import as_float32, store_in_bfloat16
from compresslab.export.files import whole_file
from compresslab.export.low_bits import narrow_levels
from compresslab.export.program import as_inputs, export_program, quiet
from compresslab.export.qdq import with_integers

__all__ = ["OPSET", "export_onnx"]

OPSET = 21
ONE_FILE = 1_800_000_000  # bytes of weights; a protobuf ends at 2**31


def export_onnx(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike,
    *,
    dynamic_batch: bool = True,
    dynamic_sequence: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Path:
    """The path of an ONNX file of the model, written whole or not at all, and accepted by ONNX's checker.

    Args:
        model: in eval mode; it is not changed. Quantized layers of this course are written as integers;
            BF16 parameters are stored in BF16, and everything is computed in FP32.
        example_inputs: one tensor or a tuple of them, as the model is called; at least 2 samples if the batch is free.
        path: ends in ``.onnx``; its folder is made. What stands there is replaced.
        dynamic_batch: whether axis 0 of all inputs may have any size later, named "batch".
        dynamic_sequence: the same for axis 1, "sequence".
        input_names, output_names: in the file; by default as in ``forward``.

    Raises:
        ValueError: the model is in train mode, cannot be exported, or has an operation that ONNX lacks; ``path`` does
            not end in ``.onnx``. OSError: the folder cannot be written to, or the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(nn.Linear(2, 1).eval(), torch.ones(2, 2), Path(folder) / "line.onnx")
        ...     [dim.dim_param or dim.dim_value for dim in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
        ['batch', 2]
    """
    path, inputs = Path(path), as_inputs(example_inputs)
    if path.suffix != ".onnx":
        raise ValueError(f"path={str(path)!r} must end in .onnx; runtimes go by it")
    with whole_file(path) as temporary:  # first: export takes seconds
        wide = as_float32(model)
        if wide is not None:
            inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        ready = with_integers(model if wide is None else wide)
        program = export_program(ready, inputs, dynamic_batch=dynamic_batch, dynamic_sequence=dynamic_sequence)
        graph = _to_graph(program, type(model).__name__, input_names, output_names)
        _name_axes(graph.model, dynamic_batch, dynamic_sequence)
        _forget_source(graph.model)
        narrow_levels(graph.model)
        if wide is not None:
            store_in_bfloat16(graph.model)
        nbytes = sum(value.const_value.nbytes for value in graph.model.graph.initializers.values())
        with quiet():
            graph.save(temporary, external_data=nbytes > ONE_FILE)
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"ONNX's checker refuses the graph of {type(model).__name__}: {reason}") from error
    return path


def _to_graph(program: torch.export.ExportedProgram, name: str, inputs: object, outputs: object) -> object:
    try:
        with quiet():
            return torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, verbose=False, input_names=inputs, output_names=outputs
            )
    except Exception as error:
        lines = [line.strip() for text in _chain(error) for line in text.splitlines()]
        missing = [re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", line) for line in lines]
        why = [f"{found[1]} has no counterpart; use other operations" for found in missing if found]
        why += [re.sub(r"\x1b\[\d+m", "", line) for line in reversed(lines) if line]  # the first cause
        raise ValueError(f"{name} cannot be written as ONNX: {why[0]}") from error


def _chain(error: BaseException | None) -> list[str]:
    return [str(error), *_chain(error.__cause__ or error.__context__)] if error else []


def _name_axes(model: object, batch: bool, sequence: bool) -> None:
    """Free axes are s34 and the like; call them what they are, wherever they occur."""
    names = {}
    for value in model.graph.inputs:
        for axis, name in enumerate(["batch"] * batch + ["sequence"] * (sequence and batch)):
            if len(value.shape) > axis and not isinstance(value.shape[axis], int):
                names[str(value.shape[axis])] = name
    values = [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape if value.shape is not None else ()):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size.value)


def _forget_source(model: object) -> None:
    """Take out which line of which file each node came from: a third of a small file, and private."""
    model.metadata_props.clear()
    parts = [model.graph, *model.graph.inputs, *model.graph.initializers.values(), *model.graph.all_nodes()]
    for part in [*parts, *(value for node in model.graph.all_nodes() for value in node.outputs)]:
        part.metadata_props.clear()
