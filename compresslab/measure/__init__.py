"""Lesson 00, and the last table of every lesson: what a model costs, how good it is, and how sure that is.

cost        size, macs, memory, latency, speedup, roofline, layers
quality     predictions, metrics, paired, answers
layers      sensitivity
together    comparison, tables, plots, report
words       running (a model is left as it was), estimates (a number and its interval)
"""

from compresslab.measure.comparison import Candidate, Comparison, compare
from compresslab.measure.estimates import Estimate, bootstrap, si, wilson
from compresslab.measure.latency import Latency, measure_latency
from compresslab.measure.layers import profile_layers, works
from compresslab.measure.macs import Macs, count_macs
from compresslab.measure.memory import Memory, measure_memory, peak_bytes
from compresslab.measure.metrics import accuracy, macro_f1, perplexity, top_k
from compresslab.measure.paired import Paired, agreement, kl_divergence, mcnemar, paired_bootstrap, sqnr_db
from compresslab.measure.plots import plot_comparison, plot_layers, plot_roofline
from compresslab.measure.predictions import Predictions, predict, predict_batches
from compresslab.measure.roofline import Machine, Work, measure_machine
from compresslab.measure.running import use_threads
from compresslab.measure.sensitivity import Sensitivity, plot_sensitivity, scan_sensitivity
from compresslab.measure.size import Size, measure_size, size_of
from compresslab.measure.speedup import Speedups, compare_latency

__all__ = [
    "Candidate", "Comparison", "Estimate", "Latency", "Machine", "Macs", "Memory", "Paired", "Predictions",
    "Sensitivity", "Size", "Speedups", "Work", "accuracy", "agreement", "bootstrap", "compare", "compare_latency",
    "count_macs", "kl_divergence", "macro_f1", "mcnemar", "measure_latency", "measure_machine", "measure_memory",
    "measure_size", "paired_bootstrap", "peak_bytes", "perplexity", "plot_comparison", "plot_layers", "plot_roofline",
    "plot_sensitivity", "predict", "predict_batches", "profile_layers", "scan_sensitivity", "si", "size_of",
    "sqnr_db", "top_k", "use_threads", "wilson", "works",
]  # fmt: skip
