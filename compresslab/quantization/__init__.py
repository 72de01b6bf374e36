"""Lessons 02 to 04: integers instead of floats, and how little is lost.

words       affine (a grid of integers over the real line), packing (levels in as many bytes as they need)
ranges      what a grid should span, from batches that pass by once
weights     weight_only, clipping, adaround, bit_allocation         activations too     dynamic, static, integer_only
before      batchnorm (folded), equalization                        after               bias_correction
training    fake_quantize, lsq, qat              language models     gptq
inside      layer_samples (what a layer gets and gives), soft_rounding (AdaRound's search), hessian, column_rounding

A function that has the name of its file is imported from there: ``from compresslab.quantization.lsq import lsq``.
"""

from compresslab.quantization.adaround import AdaRounded, Rounded, adaround_model
from compresslab.quantization.affine import Grid, Quantized, choose_grid, integer_levels, quantize
from compresslab.quantization.batchnorm import Folded, fold_batchnorm
from compresslab.quantization.bias_correction import Corrected, correct_bias
from compresslab.quantization.bit_allocation import Allocation, allocate_bits, allocate_bits_greedy
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.dynamic import Dynamic, DynamicLinear, quantize_dynamic
from compresslab.quantization.equalization import Equalized, equalize
from compresslab.quantization.fake_quantize import FakeQuantize
from compresslab.quantization.gptq import GPTQQuantized, GPTQWeight, gptq_model
from compresslab.quantization.hessian import RunningHessian
from compresslab.quantization.integer_only import quantize_multiplier, requantize
from compresslab.quantization.lsq import LSQ
from compresslab.quantization.packing import pack, unpack
from compresslab.quantization.qat import Converted, Prepared, convert, freeze, prepare_qat
from compresslab.quantization.ranges import OBSERVERS, Range, calibrate
from compresslab.quantization.static import StaticQuantized, quantize_static
from compresslab.quantization.weight_only import WeightOnly, quantize_weights

__all__ = [
    "LSQ", "OBSERVERS", "AdaRounded", "Allocation", "Converted", "Corrected", "Dynamic", "DynamicLinear",
    "Equalized", "FakeQuantize", "Folded", "GPTQQuantized", "GPTQWeight", "Grid", "Prepared", "Quantized", "Range",
    "Rounded", "RunningHessian", "StaticQuantized", "WeightOnly", "adaround_model", "allocate_bits",
    "allocate_bits_greedy", "calibrate", "choose_grid", "clipped_grid", "convert", "correct_bias", "equalize",
    "fold_batchnorm", "freeze", "gptq_model", "integer_levels", "pack", "prepare_qat", "quantize",
    "quantize_dynamic", "quantize_multiplier", "quantize_static", "quantize_weights", "requantize", "unpack",
]  # fmt: skip
