"""Lesson 08: a small network that learns from a large one.

words        logits (probabilities at a temperature), features (layers tapped by name)
logits       soft (soft targets; the other way round; Jensen-Shannon), decoupled (DKD)
layers       hints (with a trained projection), attention (where), relational (how samples lie to one another)
language     triple (DistilBERT's three)
training     pairs (of layers), distiller (a loss for any loop; ``distil``), cache (the teacher's logits in a file)
the way      ladder (every other block, assistants, born again)
"""

from compresslab.distillation.attention import attention_loss, attention_map
from compresslab.distillation.cache import WithLogits, cached_logits
from compresslab.distillation.decoupled import Decoupled, decoupled_loss, decoupled_parts
from compresslab.distillation.distiller import Distillation, Distilled, distil
from compresslab.distillation.features import tapped
from compresslab.distillation.hints import Projection, hint_loss
from compresslab.distillation.ladder import every_other_block, match_blocks, progressive
from compresslab.distillation.pairs import Pair, WithProjections, add_projections
from compresslab.distillation.relational import angle_loss, distance_loss, relational_loss
from compresslab.distillation.soft import jensen_shannon_loss, reverse_kl_loss, soft_target_loss
from compresslab.distillation.triple import TripleLoss, cosine_loss, hard_label_loss, triple_loss

__all__ = [
    "Decoupled", "Distillation", "Distilled", "Pair", "Projection", "TripleLoss", "WithLogits", "WithProjections",
    "add_projections", "angle_loss", "attention_loss", "attention_map", "cached_logits", "cosine_loss", "decoupled_loss",
    "decoupled_parts", "distance_loss", "distil", "every_other_block", "hard_label_loss", "hint_loss",
    "jensen_shannon_loss", "match_blocks", "progressive", "relational_loss", "reverse_kl_loss", "soft_target_loss",
    "tapped", "triple_loss",
]  # fmt: skip
