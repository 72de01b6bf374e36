"""Static quantization against ONNX Runtime's ``quantize_static``: a public ResNet-20, the same 512 calibration images."""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as theirs_static
from torch import Tensor, nn

from benchmarks.harness import Row, against_limit, benchmark
from benchmarks.real_data import resnet20
from compresslab.measure import mcnemar, sqnr_db, use_threads
from compresslab.quantization.static import quantize_static
from compresslab.workbench.files import DataUnavailable

METHODS = {  # name here: name there
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "mse": None,
    "entropy": CalibrationMethod.Entropy,
}
BETWEEN_DB, INTEGER_DB, SPEEDUP = 36.0, 32.0, 10.0  # to reach, by every method


class Reader(CalibrationDataReader):
    """Batches as ONNX Runtime wants them."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.left, None)
        return None if batch is None else {"images": batch.numpy()}


def logits_of(function, batches: list[Tensor]) -> Tensor:
    return torch.cat([torch.as_tensor(function(batch)) for batch in batches])


def in_onnxruntime(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def theirs(model: nn.Module, folder: Path, batches: list[Tensor], method: CalibrationMethod) -> tuple[Path, float]:
    """A quantized file and the seconds it took."""
    source, target = folder / "float.onnx", folder / f"{method.name}.onnx"
    if not source.is_file():
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (batches[0],), source, input_names=["images"], dynamic_shapes=({0: torch.export.Dim("n")},),
                external_data=False, verbose=False,
            )  # fmt: skip
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs_static(
            source, target, Reader(batches), quant_format=QuantFormat.QDQ, per_channel=True, calibrate_method=method,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
    return target, time.process_time() - start


def seconds_of(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


@benchmark
def static_quantization() -> Iterator[Row]:
    """Logits of 10,000 test images against the float model's, top-1, and the time to calibrate on 512."""
    try:
        model, splits = resnet20()
    except DataUnavailable as error:
        print(f"  left out: {error}")
        return
    calibration = list(splits.train.take(512).batches(64))
    images, labels = zip(*splits.test.batches(500), strict=True)
    labels = torch.cat(labels)
    with use_threads(1), torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        reference = logits_of(model, images)
        right = reference.argmax(1) == labels
        for method, peer in METHODS.items():
            plain_seconds, seconds = (
                seconds_of(lambda m=method, r=refine: quantize_static(model, calibration, method=m, refine=r))
                for refine in (False, True)
            )
            result = quantize_static(model, calibration, method=method)
            between = logits_of(quantize_static(model, calibration, method=method, activations="inputs"), images)
            logits = logits_of(result, images)
            for work, values, limit in (
                ("float between layers", between, BETWEEN_DB),
                ("integers", logits, INTEGER_DB),
            ):
                decibels = [sqnr_db(reference, values)]
                yield against_limit(f"{method}: {work}", decibels, limit, unit="dB", less_is_better=False)
            paired = mcnemar(right, logits.argmax(1) == labels)
            top1 = (logits.argmax(1) == labels).double().mean().item()
            work = f"{method}: top-1 {top1:.2%}, float {right.double().mean().item():.2%}; p of the paired test"
            yield against_limit(work, [paired.p_value], 0.05, unit="", less_is_better=False)
            if peer is None:
                continue
            path, peer_seconds = theirs(model, Path(folder), [x for x, _ in calibration], peer)
            session = in_onnxruntime(path)
            peer_logits = logits_of(lambda x, s=session: s.run(None, {"images": x.numpy()})[0], images)
            peer_top1 = (peer_logits.argmax(1) == labels).double().mean().item()
            told = f"{sqnr_db(reference, peer_logits):.1f} dB, {peer_top1:.2%}, {path.stat().st_size:,} bytes"
            nbytes = sum(value.nbytes for value in result.state_dict().values())
            for name, ours in (("ranges alone", plain_seconds), ("with scales and biases", seconds)):
                ratio = peer_seconds / ours
                yield Row(
                    f"{method}: seconds of CPU to quantize, {name}", f"{ours:.2f} s, {nbytes:,} bytes of state",
                    f"onnxruntime {peer_seconds:.2f} s, {told}", ratio, ratio, ratio, SPEEDUP,
                )  # fmt: skip
