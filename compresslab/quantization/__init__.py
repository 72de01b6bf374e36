"""Lessons 02 to 04: integers instead of floats, and how little is lost.

words       affine (a grid of integers over the real line), packing (levels in as many bytes as they need)
ranges      what a grid should span, from batches that pass by once
weights     weight_only, bit_allocation          activations too     dynamic
before      batchnorm (folded), equalization     after               bias_correction
"""

from compresslab.quantization.affine import Grid, Quantized, choose_grid, integer_levels, quantize
from compresslab.quantization.batchnorm import Folded, fold_batchnorm
from compresslab.quantization.bias_correction import Corrected, correct_bias
from compresslab.quantization.bit_allocation import Allocation, allocate_bits, allocate_bits_greedy
from compresslab.quantization.dynamic import Dynamic, DynamicLinear, quantize_dynamic
from compresslab.quantization.equalization import Equalized, equalize
from compresslab.quantization.packing import pack, unpack
from compresslab.quantization.ranges import OBSERVERS, Range, calibrate
from compresslab.quantization.weight_only import WeightOnly, quantize_weights

__all__ = [
    "OBSERVERS", "Allocation", "Corrected", "Dynamic", "DynamicLinear", "Equalized", "Folded", "Grid", "Quantized",
    "Range", "WeightOnly", "allocate_bits", "allocate_bits_greedy", "calibrate", "choose_grid", "correct_bias",
    "equalize", "fold_batchnorm", "integer_levels", "pack", "quantize", "quantize_dynamic", "quantize_weights",
    "unpack",
]  # fmt: skip
