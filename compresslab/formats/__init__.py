"""Lesson 01: what a number costs, and what it loses.

floats      any pair of exponent and mantissa bits      blocks      integers, NF4, MX: elements that share a scale
rounding    one function for all of them                codes       numbers as bits, and back
model       the weights of a whole model
"""

from compresslab.formats.blocks import MX, BlockFormat, round_integer, round_mx, round_nf4
from compresslab.formats.codes import bit_string, decode, encode
from compresslab.formats.floats import FLOATS, FloatFormat, round_float
from compresslab.formats.model import RoundedModel, round_model
from compresslab.formats.rounding import FORMATS, bits_per_element, round_to_format

__all__ = [
    "FLOATS", "FORMATS", "MX", "BlockFormat", "FloatFormat", "RoundedModel", "bit_string", "bits_per_element", "decode",
    "encode", "round_float", "round_integer", "round_model",
    "round_mx", "round_nf4", "round_to_format",
]  # fmt: skip
