"""Lesson 11: the saving outside PyTorch.

words       program (torch.export, with axes that stay free), files (whole or not there), parity (how far from the model)
ONNX        to_onnx, qdq (int8), low_bits (4-bit weights, integer products), casting (BF16), ort_quantization (its own)
running     checking (hostile files), sessions (ONNX Runtime), operators (which run, and how long)
others      runtimes (one interface), targets (torch.export, ONNX Runtime, OpenVINO, ExecuTorch, LiteRT), nvidia (TensorRT)
"""

from compresslab.export.casting import store_in_bfloat16
from compresslab.export.checking import check_file
from compresslab.export.files import whole_file
from compresslab.export.low_bits import narrow_levels
from compresslab.export.operators import OperatorTime, count_operators, profile_operators
from compresslab.export.ort_quantization import quantize_onnx_dynamic, quantize_onnx_static
from compresslab.export.parity import Parity, check_parity
from compresslab.export.program import as_inputs, export_program, quiet
from compresslab.export.qdq import with_integers
from compresslab.export.runtimes import Artifact, Available, available, export
from compresslab.export.sessions import OnnxModule, bind_tensors, open_session
from compresslab.export.targets import TARGETS, open_openvino
from compresslab.export.to_onnx import export_onnx

__all__ = [
    "TARGETS", "Artifact", "Available", "OnnxModule", "OperatorTime", "Parity", "as_inputs", "available", "bind_tensors", "check_file",
    "check_parity", "count_operators", "export", "export_onnx", "export_program", "narrow_levels", "open_openvino", "open_session",
    "profile_operators", "quantize_onnx_dynamic", "quantize_onnx_static", "quiet", "store_in_bfloat16", "whole_file", "with_integers",
]  # fmt: skip
