"""ONNX Runtime used well: one thread for each core you have, the optimizer on, and no copies of the inputs.

A session reads the file once, rewrites the graph (folds constants, fuses Conv with ReLU, takes integer kernels for QDQ
pairs, lays tensors out as the processor likes) and keeps it. What it made of the graph decides the speed:
``operators.py`` looks. ``OnnxModule`` is a session as an nn.Module: whatever measures a model of PyTorch measures it
too. ``bind_tensors`` gives the session the addresses of inputs and outputs once (I/O binding).

    https://onnxruntime.ai/docs/performance/tune-performance/
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from compresslab.export.checking import check_file

__all__ = ["OnnxModule", "bind_tensors", "open_session"]

LEVELS = {
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
LEFT_OUT = {"WeightBiasQuantization"}  # it would quantize layers that were left in floats between two grids


def open_session(
    path: str | os.PathLike,
    *,
    threads: int = 1,
    optimization: str = "all",
    optimized_path: str | os.PathLike | None = None,
    profile_prefix: str | os.PathLike | None = None,
) -> onnxruntime.InferenceSession:
    """A session on the processor for a file that ``check_file`` accepts.

    Args:
        path: an ONNX file.
        threads: for the work inside an operator, 1 or more; not more than cores, and fewer if others need them.
        optimization: how far the graph is rewritten: "none", "basic", "extended" or "all".
        optimized_path: where to write the rewritten graph, which fits this processor only.
        profile_prefix: start of the name of a trace file; ``end_profiling()`` of the session writes it.

    Raises:
        ValueError: the file is refused, ONNX Runtime cannot run it, or an option is unknown.

    Example:
        >>> open_session("model.onnx", threads=0)
        Traceback (most recent call last):
        ...
        ValueError: threads=0 must be 1 or more; try 1
    """
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads={threads!r} must be 1 or more; try 1")
    if optimization not in LEVELS:
        raise ValueError(f"optimization={optimization!r} must be one of {', '.join(LEVELS)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = LEVELS[optimization]
    options.log_severity_level = 3  # errors; it warns about every file that it writes
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile_prefix)
    path = check_file(path)
    _check_recurrent(path)
    try:
        return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"], disabled_optimizers=LEFT_OUT)
    except Exception as error:  # its errors have no common class but Exception
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"ONNX Runtime cannot run {path.name} on this processor: {reason}") from error


class OnnxModule(nn.Module):
    """A session as a module: called with torch tensors on the processor, it returns torch tensors.

    Args:
        path: an ONNX file.
        threads, optimization: as in ``open_session``.

    Example:
        >>> from compresslab.export.to_onnx import export_onnx
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(nn.Linear(2, 1, bias=False).eval(), torch.ones(2, 2), Path(folder) / "line.onnx")
        ...     OnnxModule(path)(torch.zeros(3, 2)).tolist()
        [[0.0], [0.0], [0.0]]
    """

    def __init__(self, path: str | os.PathLike, *, threads: int = 1, optimization: str = "all") -> None:
        super().__init__()
        self.session = open_session(path, threads=threads, optimization=optimization)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The output, or a tuple if there are several.

        Raises:
            ValueError: the inputs are not what the file wants.
        """
        wanted = self.session.get_inputs()
        if len(inputs) != len(wanted):
            raise ValueError(f"the file wants {len(wanted)} inputs, {[x.name for x in wanted]}, got {len(inputs)}")
        try:
            arrays = self.session.run(None, {x.name: _array(y) for x, y in zip(wanted, inputs, strict=True)})
        except Exception as error:
            shapes = {x.name: x.shape for x in wanted}
            got = [(tuple(x.shape), str(x.dtype)) for x in inputs]
            raise ValueError(f"the file takes {shapes}, got {got}: {' '.join(str(error).split())}") from error
        found = tuple(torch.from_numpy(array) for array in arrays)
        return found[0] if len(found) == 1 else found


def bind_tensors(session: onnxruntime.InferenceSession, *inputs: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A function that runs a session on the values that the inputs then hold, into outputs made once.

    For a loop that fills one buffer again and again: nothing is looked up, checked or set aside in it. Where a run takes
    microseconds, that is felt.

    Args:
        session: from ``open_session``.
        inputs: contiguous tensors on the processor, in the order of the file's inputs; overwrite them in place.

    Returns:
        The function. It returns the same tensors each time, with new values.

    Raises:
        ValueError: an input is not contiguous.

    Example:
        >>> import tempfile
        >>> from compresslab.export.to_onnx import export_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = export_onnx(nn.Linear(2, 1, bias=False).eval(), torch.ones(2, 2), Path(folder) / "line.onnx")
        ...     run = bind_tensors(open_session(path), torch.zeros(3, 2))
        >>> run()[0].tolist()
        [[0.0], [0.0], [0.0]]
    """
    if wrong := [place for place, x in enumerate(inputs) if not x.is_contiguous()]:
        raise ValueError(f"inputs {wrong} must be contiguous; call .contiguous() and fill what it returns")
    names = [value.name for value in session.get_inputs()]
    arrays = [x.detach().numpy() for x in inputs]
    outputs = tuple(torch.from_numpy(array) for array in session.run(None, dict(zip(names, arrays, strict=True))))
    binding = session.io_binding()
    for name, array in zip(names, arrays, strict=True):
        binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    for value, output in zip(session.get_outputs(), outputs, strict=True):
        array = output.numpy()
        binding.bind_output(value.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run() -> tuple[Tensor, ...]:
        session.run_with_iobinding(binding)
        return outputs

    run.inputs = inputs  # the session knows their addresses only: they must live as long as the function
    return run


def _array(x: Tensor) -> numpy.ndarray:
    x = x.detach().cpu().contiguous()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()  # numpy has no BF16, and no file of ours takes it


def _check_recurrent(path: Path) -> None:
    """ONNX Runtime 1.31 does not refuse 16-bit LSTMs: the process dies."""
    graph = onnx.load(path, load_external_data=False).graph
    types = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.input]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        half = any(types.get(name) == onnx.TensorProto.FLOAT16 for name in node.input)
        if half and node.op_type in ("LSTM", "GRU", "RNN"):
            raise ValueError(
                f"ONNX Runtime cannot run {path.name} on this processor: {node.op_type} of 16 bits; use 32"
            )
