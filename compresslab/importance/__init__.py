"""Lesson 07: which weights and channels matter, by every criterion in use, and the truth to judge them by.

words        scored (what is scored, in which state), channels, gates (where a channel can be closed), ranks, patches,
             per_sample (squared gradients)
size         magnitude, batchnorm_scale          what passes through      activation, wanda
slope        gradient, taylor                    curvature                fisher, hessian
untrained    snip, grasp, synflow                all together             combine
truth        oracle (take it out, measure the loss)      what it costs     passes

Scores are ``dict[str, Tensor]`` by parameter name; higher means keep. Functions that end in ``_channel_scores`` or say
so give one number for each output channel; ``per_channel`` sums the others.
"""

from compresslab.importance.activation import activation_scores
from compresslab.importance.batchnorm_scale import batchnorm_scale_scores
from compresslab.importance.channels import Channels, at_gates, find_channels
from compresslab.importance.combine import combine_scores
from compresslab.importance.fisher import fisher_channel_scores, fisher_diagonal, fisher_scores
from compresslab.importance.gates import gate_gradients, gated
from compresslab.importance.gradient import gradient_scores
from compresslab.importance.grasp import grasp_scores
from compresslab.importance.hessian import HessianDiagonal, hessian_diagonal, hessian_scores
from compresslab.importance.magnitude import magnitude_scores
from compresslab.importance.oracle import Oracle, channel_oracle, split_half, weight_oracle
from compresslab.importance.passes import Passes, count_passes
from compresslab.importance.ranks import average_ranks, spearman
from compresslab.importance.scored import per_channel, scored_weights, scoring
from compresslab.importance.snip import snip_scores
from compresslab.importance.synflow import SynFlow, synflow_masks, synflow_scores
from compresslab.importance.taylor import taylor_channel_scores, taylor_map_scores, taylor_scores
from compresslab.importance.wanda import input_norms, wanda_scores

__all__ = [
    "Channels", "HessianDiagonal", "Oracle", "Passes", "SynFlow", "activation_scores", "at_gates", "average_ranks",
    "batchnorm_scale_scores", "channel_oracle", "combine_scores", "count_passes", "find_channels",
    "fisher_channel_scores", "fisher_diagonal", "fisher_scores", "gate_gradients", "gated", "gradient_scores",
    "grasp_scores", "hessian_diagonal", "hessian_scores", "input_norms", "magnitude_scores", "per_channel",
    "scored_weights", "scoring", "snip_scores", "spearman", "split_half", "synflow_masks", "synflow_scores",
    "taylor_channel_scores", "taylor_map_scores", "taylor_scores", "wanda_scores", "weight_oracle",
]  # fmt: skip
