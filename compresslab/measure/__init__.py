"""Lesson 00, and the last table of every lesson: what a model costs, how good it is, and how sure that is.

cost        size, macs, memory, latency, speedup, roofline, layers
quality     predictions, metrics, paired, answers
hidden      robustness, corruptions, attacks, out_of_distribution, calibration, shadow (lesson 11)
layers      sensitivity
together    comparison, tables, plots, pareto, report, page
words       running (a model is left as it was), estimates (a number and its interval)
"""

from compresslab.measure.attacks import fgsm, pgd, straight_through
from compresslab.measure.calibration import Calibration, calibration_error, fit_temperature
from compresslab.measure.comparison import Candidate, Comparison, compare
from compresslab.measure.corruptions import CORRUPTIONS, corrupt
from compresslab.measure.estimates import Estimate, bootstrap, si, wilson
from compresslab.measure.latency import Latency, measure_latency
from compresslab.measure.layers import profile_layers, works
from compresslab.measure.macs import Macs, count_macs
from compresslab.measure.memory import Memory, measure_memory, peak_bytes
from compresslab.measure.metrics import accuracy, macro_f1, perplexity, top_k
from compresslab.measure.out_of_distribution import Detection, auroc, detect, energy_score, softmax_score
from compresslab.measure.page import write_page
from compresslab.measure.paired import Paired, agreement, kl_divergence, mcnemar, paired_bootstrap, sqnr_db
from compresslab.measure.pareto import pareto_front, plot_pareto, plot_waterfall
from compresslab.measure.plots import plot_comparison, plot_layers, plot_roofline
from compresslab.measure.predictions import Predictions, predict, predict_batches
from compresslab.measure.robustness import GroupChange, accuracy_by_group, compare_groups, scan_corruptions
from compresslab.measure.roofline import Machine, Work, measure_machine
from compresslab.measure.running import use_threads
from compresslab.measure.sensitivity import Sensitivity, plot_sensitivity, scan_sensitivity
from compresslab.measure.shadow import Verdict, always_valid_p, confidence_sequence, judge_shadow
from compresslab.measure.size import Size, measure_size, size_of
from compresslab.measure.speedup import Speedups, compare_latency

__all__ = [
    "CORRUPTIONS",
    "Calibration",
    "Candidate",
    "Comparison",
    "Detection",
    "Estimate",
    "GroupChange",
    "Latency",
    "Machine",
    "Macs",
    "Memory",
    "Paired",
    "Predictions",
    "Sensitivity",
    "Size",
    "Speedups",
    "Verdict",
    "Work",
    "accuracy",
    "accuracy_by_group",
    "agreement",
    "always_valid_p",
    "auroc",
    "bootstrap",
    "calibration_error",
    "compare",
    "compare_groups",
    "compare_latency",
    "confidence_sequence",
    "corrupt",
    "count_macs",
    "detect",
    "energy_score",
    "fgsm",
    "fit_temperature",
    "judge_shadow",
    "kl_divergence",
    "macro_f1",
    "mcnemar",
    "measure_latency",
    "measure_machine",
    "measure_memory",
    "measure_size",
    "paired_bootstrap",
    "pareto_front",
    "peak_bytes",
    "perplexity",
    "pgd",
    "plot_comparison",
    "plot_layers",
    "plot_pareto",
    "plot_roofline",
    "plot_sensitivity",
    "plot_waterfall",
    "predict",
    "predict_batches",
    "profile_layers",
    "scan_corruptions",
    "scan_sensitivity",
    "si",
    "size_of",
    "softmax_score",
    "sqnr_db",
    "straight_through",
    "top_k",
    "use_threads",
    "wilson",
    "works",
    "write_page",
]  # fmt: skip
