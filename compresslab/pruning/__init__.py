"""Lessons 05, 06 and 10: less of a network.

words          masks (scores, sparsity, what stays), weights (which parameters are pruned, how many are zero)
one by one     unstructured (magnitude, per layer or global), n_m (2:4 and the like, with the best order of inputs)
when           schedule (constant, linear, cubic), iterative (in rounds, or while training), lottery (rewinding)
from inputs    wanda, sparsegpt
storage        encodings (bitmask, CSR, COO, runs of zeros, 2:4), storage (their files, and how large they are)
inside         layer_inputs (what a layer gets), sequential (layer after layer)

A function that has the name of its file is imported from there: ``from compresslab.pruning.wanda import wanda``.
"""

from compresslab.pruning.encodings import FORMATS, decode, encode
from compresslab.pruning.iterative import GradualPruner, IterativelyPruned, prune_iteratively
from compresslab.pruning.layer_inputs import InputStatistics, input_statistics
from compresslab.pruning.lottery import Ticket, find_ticket, random_masks, shuffle_weights
from compresslab.pruning.masks import apply_masks, enforce, global_masks, layer_masks
from compresslab.pruning.n_m import NMSparse, n_m_mask, permute_columns, prune_n_m
from compresslab.pruning.schedule import constant_sparsity, cubic_sparsity, linear_sparsity
from compresslab.pruning.sequential import SparseLayers, prune_in_order
from compresslab.pruning.sparsegpt import SparseGPTWeight, sparsegpt_model
from compresslab.pruning.storage import Stored, load_sparse, save_sparse, sizes
from compresslab.pruning.unstructured import magnitude_masks, prune_magnitude
from compresslab.pruning.wanda import row_masks, wanda_model, wanda_scores
from compresslab.pruning.weights import Sparse, Sparsity, choose_weights, prunable, sparsity_of

__all__ = [
    "FORMATS", "GradualPruner", "InputStatistics", "IterativelyPruned", "NMSparse", "Sparse", "SparseGPTWeight",
    "SparseLayers", "Sparsity", "Stored", "Ticket", "apply_masks", "choose_weights", "constant_sparsity",
    "cubic_sparsity", "decode", "encode", "enforce", "find_ticket", "global_masks", "input_statistics", "layer_masks",
    "linear_sparsity", "load_sparse", "magnitude_masks", "n_m_mask", "permute_columns", "prunable", "prune_in_order",
    "prune_iteratively", "prune_magnitude", "prune_n_m", "random_masks", "row_masks", "save_sparse", "shuffle_weights",
    "sizes", "sparsegpt_model", "sparsity_of", "wanda_model", "wanda_scores",
]  # fmt: skip
