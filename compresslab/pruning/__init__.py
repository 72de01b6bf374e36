"""Lessons 05, 06 and 10: less of a network.

words          masks (scores, sparsity, what stays), weights (which parameters are pruned, how many are zero)
one by one     unstructured (magnitude, per layer or global), n_m (2:4 and the like, with the best order of inputs)
when           schedule (constant, linear, cubic), iterative (in rounds, or while training), lottery (rewinding)
from inputs    wanda, sparsegpt
channels       labels, trace, rules, running (what depends on what, found by running), groups, dependency, tryout,
               channels (which go), unit_norms, unit_scores, plan, surgery (out they go), proof (the same function), saving
heads, depth   whole attention heads, whole blocks
experts        expert_layers (where they are), routing (who gets what), experts (out), expert_neurons, expert_merging,
               expert_skipping
repair         reconstruction, least_squares (no training), rounds (prune, repair, again), batchnorm_statistics
storage        encodings (bitmask, CSR, COO, runs of zeros, 2:4), storage (their files, and how large they are)
inside         layer_inputs (what a layer gets), sequential (layer after layer), copying

A function that has the name of its file is imported from there: ``from compresslab.pruning.wanda import wanda``.
"""

from compresslab.pruning.batchnorm_statistics import reestimate_batchnorm
from compresslab.pruning.channels import Pruned, count_macs, prune_channels, prune_to, remove_units
from compresslab.pruning.dependency import find_dependencies
from compresslab.pruning.depth import Shortened, angular_distances, block_influences, prune_depth, remove_blocks
from compresslab.pruning.encodings import FORMATS, decode, encode
from compresslab.pruning.expert_layers import MoELayer, MoELayers, find_moe_layers
from compresslab.pruning.expert_merging import MergedExperts, merge_experts
from compresslab.pruning.expert_neurons import SlimExperts, kept_neurons, prune_expert_neurons
from compresslab.pruning.expert_skipping import Skipping, skip_experts
from compresslab.pruning.experts import FewerExperts, drop_experts, expert_oracle, lowest_experts
from compresslab.pruning.groups import Dependencies, Group
from compresslab.pruning.heads import attention_heads, prune_heads
from compresslab.pruning.iterative import GradualPruner, IterativelyPruned, prune_iteratively
from compresslab.pruning.layer_inputs import InputStatistics, input_statistics
from compresslab.pruning.least_squares import ridge_fit
from compresslab.pruning.lottery import Ticket, find_ticket, random_masks, shuffle_weights
from compresslab.pruning.masks import apply_masks, enforce, global_masks, layer_masks
from compresslab.pruning.n_m import NMSparse, n_m_mask, permute_columns, prune_n_m
from compresslab.pruning.proof import FunctionChanged, Sameness, assert_same_function, masked_like
from compresslab.pruning.reconstruction import Reconstructed, reconstruct
from compresslab.pruning.rounds import prune_in_rounds
from compresslab.pruning.routing import RoutingStatistics, load_balance, router_entropy, routing_statistics
from compresslab.pruning.saving import load_pruned, save_pruned
from compresslab.pruning.schedule import constant_sparsity, cubic_sparsity, linear_sparsity
from compresslab.pruning.sequential import SparseLayers, prune_in_order
from compresslab.pruning.sparsegpt import SparseGPTWeight, sparsegpt_model
from compresslab.pruning.storage import Stored, load_sparse, save_sparse, sizes
from compresslab.pruning.surgery import SlimAttention
from compresslab.pruning.unstructured import magnitude_masks, prune_magnitude
from compresslab.pruning.wanda import row_masks, wanda_model, wanda_scores
from compresslab.pruning.weights import Sparse, Sparsity, choose_weights, prunable, sparsity_of

__all__ = [
    "FORMATS", "Dependencies", "FewerExperts", "FunctionChanged", "GradualPruner", "Group", "InputStatistics",
    "IterativelyPruned", "MergedExperts", "MoELayer", "MoELayers", "NMSparse", "Pruned", "Reconstructed",
    "RoutingStatistics", "Sameness", "Shortened", "Skipping", "SlimAttention", "SlimExperts", "Sparse",
    "SparseGPTWeight", "SparseLayers", "Sparsity", "Stored", "Ticket", "angular_distances", "apply_masks",
    "assert_same_function", "attention_heads", "block_influences", "choose_weights", "constant_sparsity",
    "count_macs", "cubic_sparsity", "decode", "drop_experts", "encode", "enforce", "expert_oracle",
    "find_dependencies", "find_moe_layers", "find_ticket", "global_masks", "input_statistics", "kept_neurons",
    "layer_masks", "linear_sparsity", "load_balance", "load_pruned", "load_sparse", "lowest_experts",
    "magnitude_masks", "masked_like", "merge_experts", "n_m_mask", "permute_columns", "prunable", "prune_channels",
    "prune_depth", "prune_expert_neurons", "prune_heads", "prune_in_order", "prune_in_rounds", "prune_iteratively",
    "prune_magnitude", "prune_n_m", "prune_to", "random_masks", "reconstruct", "reestimate_batchnorm",
    "remove_blocks", "remove_units", "ridge_fit", "router_entropy", "routing_statistics", "row_masks", "save_pruned",
    "save_sparse", "shuffle_weights", "sizes", "skip_experts", "sparsegpt_model", "sparsity_of", "wanda_model",
    "wanda_scores",
]  # fmt: skip
