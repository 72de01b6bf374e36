"""Lessons 02 to 04: integers instead of floats, and how little is lost.

words       affine (a grid of integers over the real line), packing (levels in as many bytes as they need)
ranges      what a grid should span, from batches that pass by once
weights     weight_only, clipping, adaround, bit_allocation         activations too     dynamic, static, integer_only
before      batchnorm (folded), equalization                        after               bias_correction
training    fake_quantize, lsq, qat
language       gptq, awq, smooth, nf4, hqq, kv_cache, packed_linear, streaming, transposed (GPT-2's layers)
inside      layer_samples (what a layer gets and gives), soft_rounding (AdaRound's search), hessian, column_rounding,
            joints (which layers share an input, and who can take a scale)

A function that has the name of its file is imported from there: ``from compresslab.quantization.lsq import lsq``.
"""

from compresslab.quantization.adaround import AdaRounded, Rounded, adaround_model
from compresslab.quantization.affine import Grid, Quantized, choose_grid, integer_levels, quantize
from compresslab.quantization.awq import AWQ, awq_model, search_clip, search_scales
from compresslab.quantization.batchnorm import Folded, fold_batchnorm
from compresslab.quantization.bias_correction import Corrected, correct_bias
from compresslab.quantization.bit_allocation import Allocation, allocate_bits, allocate_bits_greedy
from compresslab.quantization.clipping import clipped_grid
from compresslab.quantization.dynamic import Dynamic, DynamicLinear, quantize_dynamic
from compresslab.quantization.equalization import Equalized, equalize
from compresslab.quantization.fake_quantize import FakeQuantize
from compresslab.quantization.gptq import GPTQQuantized, GPTQWeight, gptq_model
from compresslab.quantization.hessian import RunningHessian
from compresslab.quantization.hqq import HQQ, hqq_model, quantize_hqq
from compresslab.quantization.integer_only import quantize_multiplier, requantize
from compresslab.quantization.joints import Joint, Joints, find_joints, move_scales
from compresslab.quantization.kv_cache import KVCache, quantize_keys, quantize_values
from compresslab.quantization.lsq import LSQ
from compresslab.quantization.nf4 import NF4, nf4_model, quantize_nf4
from compresslab.quantization.packed_linear import PackedLinear, PackedModel, pack_linears
from compresslab.quantization.packing import pack, unpack
from compresslab.quantization.qat import Converted, Prepared, convert, freeze, prepare_qat
from compresslab.quantization.ranges import OBSERVERS, Range, calibrate
from compresslab.quantization.smooth import Smoothed, smooth_model, smoothing_scales
from compresslab.quantization.static import StaticQuantized, quantize_static
from compresslab.quantization.streaming import PackedFolder, StreamReport, load_packed, quantize_folder
from compresslab.quantization.transposed import Untransposed, use_linear_layers
from compresslab.quantization.weight_only import WeightOnly, packed_state, quantize_weights

__all__ = [
    "AWQ", "HQQ", "LSQ", "NF4", "OBSERVERS", "AdaRounded", "Allocation", "Converted", "Corrected", "Dynamic",
    "DynamicLinear", "Equalized", "FakeQuantize", "Folded", "GPTQQuantized", "GPTQWeight", "Grid", "Joint",
    "Joints", "KVCache", "PackedFolder", "PackedLinear", "PackedModel", "Prepared", "Quantized", "Range", "Rounded",
    "RunningHessian", "Smoothed", "StaticQuantized", "StreamReport", "Untransposed", "WeightOnly", "adaround_model",
    "allocate_bits", "allocate_bits_greedy", "awq_model", "calibrate", "choose_grid", "clipped_grid", "convert",
    "correct_bias", "equalize", "find_joints", "fold_batchnorm", "freeze", "gptq_model", "hqq_model",
    "integer_levels", "load_packed", "move_scales", "nf4_model", "pack", "pack_linears", "packed_state", "prepare_qat", "quantize",
    "quantize_dynamic", "quantize_folder", "quantize_hqq", "quantize_keys", "quantize_multiplier", "quantize_nf4",
    "quantize_static", "quantize_values", "quantize_weights", "requantize", "search_clip", "search_scales",
    "smooth_model", "smoothing_scales", "unpack", "use_linear_layers",
]  # fmt: skip
