"""Each runtime: how its file is written, and how it is opened. The shortest way that its makers document.

What ``runtimes.py`` puts one interface over. Packages are imported when they are asked for. OpenVINO computes in
bfloat16 on processors that are quick at it unless told not to, and we tell it. OpenVINO and TensorRT read the ONNX file,
so quantized layers arrive as integers; ExecuTorch and LiteRT read the torch program.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compresslab.export.nvidia import load_engine, save_engine
from compresslab.export.program import export_program, quiet
from compresslab.export.sessions import OnnxModule
from compresslab.export.to_onnx import export_onnx

__all__ = ["TARGETS", "Run", "Target", "open_openvino"]

Run = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Target:
    """A runtime."""

    package: str  # to import
    suffix: str
    command: str
    build: Callable[[nn.Module, tuple[Tensor, ...], Path, bool], None]  # writes the file
    load: Callable[[Path, int], Run]
    notes: tuple[str, ...] = ()


def _save_program(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    with quiet():
        torch.export.save(export_program(model, inputs, dynamic_batch=dynamic), path)


def _load_program(path: Path, threads: int) -> Run:
    with quiet():
        module = torch.export.load(path).module()
    return torch.no_grad()(module)


def _save_onnx(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    export_onnx(model, inputs, path, dynamic_batch=dynamic)


def _load_onnx(path: Path, threads: int) -> Run:
    return OnnxModule(path, threads=threads)


def _openvino() -> Any:
    """OpenVINO without its telemetry: importing it would report that to Intel and write to the home folder."""
    sys.modules.setdefault("openvino_telemetry", None)  # OpenVINO then takes the stub that it has for this case
    return importlib.import_module("openvino")


def _save_openvino(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    openvino = _openvino()
    source = path.with_name("source.onnx")  # by way of ONNX, so that quantized layers arrive as integers
    export_onnx(model, inputs, source, dynamic_batch=dynamic)
    openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
    source.unlink()


def open_openvino(path: str | os.PathLike, threads: int = 1) -> Run:
    """An .xml or .onnx file in OpenVINO, in 32-bit floats where it has floats, as a function of tensors.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    openvino = _openvino()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    return _with_numpy(openvino.Core().compile_model(Path(path), "CPU", options), lambda found: list(found.values()))


def _save_executorch(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = export_program(model, inputs, dynamic_batch=False)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    path.write_bytes(lowered.buffer)


def _load_executorch(path: Path, threads: int) -> Run:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def run(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = tuple(output.clone() for output in method.execute([x.contiguous() for x in inputs]))
        return found[0] if len(found) == 1 else found

    return run


def _save_litert(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, dynamic: bool) -> None:
    with quiet():
        import litert_torch

        litert_torch.convert(model, inputs).export(str(path))


def _load_litert(path: Path, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    takes, gives = interpreter.get_input_details(), interpreter.get_output_details()

    def run(*arrays: object) -> list:
        for value, array in zip(takes, arrays, strict=True):
            interpreter.set_tensor(value["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(value["index"]) for value in gives]

    return _with_numpy(run, list)


def _with_numpy(call: Callable, outputs: Callable) -> Run:
    def run(*inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = tuple(torch.from_numpy(x) for x in outputs(call(*(x.detach().cpu().numpy() for x in inputs))))
        return found[0] if len(found) == 1 else found

    return run


EDGE = 'pip install "compresslab[edge]"'
TARGETS: dict[str, Target] = {
    "torch.export": Target("torch", ".pt2", "", _save_program, _load_program, ("torch.set_num_threads sets threads",)),
    "onnxruntime": Target("onnxruntime", ".onnx", 'pip install "compresslab[export]"', _save_onnx, _load_onnx),
    "openvino": Target("openvino", ".xml", EDGE, _save_openvino, open_openvino, ("INFERENCE_PRECISION_HINT=f32",)),
    "executorch": Target("executorch", ".pte", EDGE, _save_executorch, _load_executorch, ("XNNPACK", "fixed batch")),
    "litert": Target(
        "litert_torch", ".tflite", "pip install litert-torch", _save_litert, _load_litert, ("fixed batch",)
    ),
    "tensorrt": Target("tensorrt", ".engine", "pip install tensorrt", save_engine, load_engine, ("one kind of GPU",)),
}
