"""ONNX Runtime's own quantization of an ONNX file, with the settings that a processor wants.

Static: calibration data fixes a grid for each activation. Integer products of x86 (AVX2's pmaddubsw, AVX512-VNNI's
vpdpbusd) multiply *unsigned* by *signed* bytes, so activations are uint8 and weights int8 (U8S8), and a ReLU's output
from 0 to max uses all 256 levels. With int8 activations (S8S8, the default of ONNX Runtime) a ReLU's output gets 128
levels, the ReLU stays an operation of its own between the layer and its grid, and the layer stays in floating point.
ARM's sdot takes S8S8.

Dynamic: only weights are quantized ahead, each activation when it comes. For matrix products that is a pass over small
inputs. Convolutions become ConvInteger, for which there is no fast kernel: slower than floating point.

Both begin with preprocessing: shapes inferred, batch norms folded, constants computed.

    https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from compresslab.export.checking import check_file
from compresslab.export.files import whole_file
from compresslab.export.program import quiet

__all__ = ["quantize_onnx_dynamic", "quantize_onnx_static"]

TYPES = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
METHODS = {
    "minmax": quantization.CalibrationMethod.MinMax,
    "percentile": quantization.CalibrationMethod.Percentile,
    "entropy": quantization.CalibrationMethod.Entropy,
}


def quantize_onnx_static(
    source: str | os.PathLike,
    path: str | os.PathLike,
    batches: Iterable[tuple[Tensor, object]],
    *,
    activations: str = "uint8",
    per_channel: bool = True,
    method: str = "minmax",
) -> Path:
    """The path of a QDQ file whose weights are int8 and whose activations are on grids that calibration fixed.

    Args:
        source: an ONNX file in floating point, with one input.
        path: where to write; ends in ``.onnx``.
        batches: of (inputs, labels); the labels are not used.
        activations: "uint8" or "int8".
        per_channel: a scale for each output channel of a weight, or one for the tensor.
        method: how a range is chosen: "minmax", "percentile" or "entropy".

    Raises:
        ValueError: an option is unknown, a file is refused, or there is no batch.

    Example:
        >>> quantize_onnx_static("a.onnx", "b.onnx", [], activations="int4")
        Traceback (most recent call last):
        ...
        ValueError: activations='int4' must be one of uint8, int8
    """
    _check("activations", activations, TYPES)
    _check("method", method, METHODS)
    source = check_file(source)
    with whole_file(path) as temporary, quiet():
        prepared = temporary.with_name(f".prepared.{temporary.name}")
        quant_pre_process(source, prepared)
        reader = _Reader(batches, onnx.load(prepared, load_external_data=False).graph.input[0].name)
        quantization.quantize_static(
            prepared, temporary, reader, quant_format=quantization.QuantFormat.QDQ, per_channel=per_channel,
            activation_type=TYPES[activations], weight_type=TYPES["int8"], calibrate_method=METHODS[method],
        )  # fmt: skip
        prepared.unlink()
    return Path(path)


def quantize_onnx_dynamic(
    source: str | os.PathLike, path: str | os.PathLike, *, weights: str = "int8", per_channel: bool = False
) -> Path:
    """The path of a file whose weights are integers and whose activations are quantized as they come.

    Args:
        source: an ONNX file in floating point.
        path: where to write; ends in ``.onnx``.
        weights: "int8" or "uint8".
        per_channel: a scale for each output channel of a weight, or one for the tensor.

    Raises:
        ValueError: ``weights`` is unknown, or a file is refused.

    Example:
        >>> quantize_onnx_dynamic("a.onnx", "b.onnx", weights="int4")
        Traceback (most recent call last):
        ...
        ValueError: weights='int4' must be one of uint8, int8
    """
    _check("weights", weights, TYPES)
    source = check_file(source)
    with whole_file(path) as temporary, quiet():
        prepared = temporary.with_name(f".prepared.{temporary.name}")
        quant_pre_process(source, prepared)
        quantization.quantize_dynamic(prepared, temporary, weight_type=TYPES[weights], per_channel=per_channel)
        prepared.unlink()
    return Path(path)


class _Reader(quantization.CalibrationDataReader):
    """Batches as ONNX Runtime asks for them, one at a time, until there are none."""

    def __init__(self, batches: Iterable[tuple[Tensor, object]], name: str) -> None:
        self.batches: Iterator = iter(batches)
        self.name, self.count = name, 0

    def get_next(self) -> dict[str, numpy.ndarray] | None:
        batch = next(self.batches, None)
        if batch is None:
            if not self.count:
                raise ValueError("batches are empty; pass some (inputs, labels) to calibrate with")
            return None
        self.count += 1
        return {self.name: batch[0].numpy()}


def _check(option: str, value: str, known: dict) -> None:
    if value not in known:
        raise ValueError(f"{option}={value!r} must be one of {', '.join(known)}")
