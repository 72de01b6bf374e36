"""Hostile models and the checks that every compression method passes, like scikit-learn's ``check_estimator``."""

from compresslab.testing.checks import CompressorFault, Verdict, check_compressor, verdict_table
from compresslab.testing.hostile import HOSTILE, Hostile, hostile

__all__ = ["HOSTILE", "CompressorFault", "Hostile", "Verdict", "check_compressor", "hostile", "verdict_table"]
