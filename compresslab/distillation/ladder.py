"""Where a student comes from, and the steps on the way down from a large teacher to a small student.

*Every other block*: a student of half the depth starts as every other block of its teacher, embeddings and head
included (DistilBERT), so it starts from what is known. *Teacher assistants*: where the student is much smaller than the
teacher, a model of middle size learns from the teacher and then teaches. *Self-distillation*: a student of the teacher's
own size, several times in a row (born again). The last two are the same chain: each learns from the one before it.

    Sanh, Debut, Chaumond and Wolf, "DistilBERT", 2019, https://arxiv.org/abs/1910.01108, section 3
    Mirzadeh and others, "Improved knowledge distillation via teacher assistant", 2020, https://arxiv.org/abs/1902.03393
    Furlanello and others, "Born-again neural networks", 2018, https://arxiv.org/abs/1805.04770
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

from torch import nn

__all__ = ["every_other_block", "match_blocks", "progressive"]


def every_other_block(teacher: nn.Module, blocks: str, *, keep: Sequence[int] | None = None) -> nn.Module:
    """A copy of the teacher that holds only some of its blocks, in their order; all else is as it was.

    Args:
        teacher: is left as it is. Tied weights stay tied.
        blocks: name of the ``nn.ModuleList`` or ``nn.Sequential`` that holds the blocks.
        keep: numbers of the blocks that stay, from 0, rising; None for 0, 2, 4, ...

    Raises:
        ValueError: there is no such list, or ``keep`` does not name blocks in rising order.

    Example:
        >>> every_other_block(nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid()), "")
        Sequential(
          (0): ReLU()
          (1): Sigmoid()
        )
    """
    student = copy.deepcopy(teacher)
    modules = dict(student.named_modules())
    held = modules.get(blocks)
    if not isinstance(held, nn.Sequential | nn.ModuleList):
        lists = [repr(n) for n, m in modules.items() if isinstance(m, nn.Sequential | nn.ModuleList) and len(m) > 1]
        raise ValueError(f"{blocks!r} is no nn.ModuleList or nn.Sequential; there are {', '.join(lists) or 'none'}")
    total = len(held)
    keep = list(range(0, total, 2)) if keep is None else list(keep)
    if not keep or keep != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= total:
        raise ValueError(f"keep={keep} must be rising numbers of blocks in 0..{total - 1}, at least one")
    for number in sorted(set(range(total)) - set(keep), reverse=True):
        del held[number]
    for number, block in enumerate(held):  # transformers: each attention knows its place in the cache
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    config = getattr(student, "config", None)
    for name in ("num_hidden_layers", "n_layer", "depth"):
        if isinstance(config, dict) and config.get(name) == total:
            config[name] = len(held)
        elif getattr(config, name, None) == total:
            setattr(config, name, len(held))
    return student


def match_blocks(student_blocks: int, teacher_blocks: int) -> list[int]:
    """For each block of the student the block of the teacher that it should match: evenly spread, last with last.

    Args:
        student_blocks: at least 1.
        teacher_blocks: at least as many.

    Raises:
        ValueError: the student has no block, or more than the teacher.

    Example:
        >>> match_blocks(3, 12)  # zip would pair them with 0, 1, 2, and the top would teach nobody
        [3, 7, 11]
    """
    if not 1 <= student_blocks <= teacher_blocks:
        raise ValueError(f"student_blocks={student_blocks} must be in 1..{teacher_blocks}, the teacher's blocks")
    return [(number + 1) * teacher_blocks // student_blocks - 1 for number in range(student_blocks)]


def progressive(
    teacher: nn.Module, students: Iterable[nn.Module], teach: Callable[[nn.Module, nn.Module], nn.Module]
) -> list[nn.Module]:
    """The students, each trained by the one before it, the first by the teacher; the last is the result.

    With assistants of falling size this is distillation in steps, with students of one size it is born-again training.

    Args:
        teacher: teaches the first.
        students: untrained.
        teach: called with (student, teacher), gives the trained student; it may use ``distil``.

    Raises:
        ValueError: there is no student. TypeError: ``teach`` gave no module.

    Example:
        >>> def copies(student, teacher):
        ...     return nn.Flatten(teacher.start_dim + 1)
        >>> [model.start_dim for model in progressive(nn.Flatten(1), [nn.Identity(), nn.Identity()], copies)]
        [2, 3]
    """
    trained = [teacher]
    for student in students:
        trained.append(teach(student, trained[-1]))
        if not isinstance(trained[-1], nn.Module):
            raise TypeError(f"teach must give the trained student, a module; got {type(trained[-1]).__name__}")
    if len(trained) == 1:
        raise ValueError("students is empty; pass at least one model to train")
    return trained[1:]
