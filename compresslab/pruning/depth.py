"""Pruning whole blocks: a block that hardly turns what passes through it can be taken out.

Blocks of a residual network add to a stream, so the stream can do without one. Two measures of what a block does, for
x_l what block l gets, one vector for each token (or position of an image):

    block influence of block l        1 - mean cos(x_l, x_{l+1})                              (Men et al., equation 1)
    angular distance over n blocks    mean arccos(cos(x_l, x_{l+n})) / pi     (Gromov et al., equation 6, all tokens)

The first removes blocks one by one, the second a run of neighbours. Afterwards a short training heals.

    Men et al., "ShortGPT: layers in large language models are more redundant than you expect", 2024,
    https://arxiv.org/abs/2403.03853; Gromov et al., "The unreasonable ineffectiveness of the deeper layers", 2024,
    https://arxiv.org/abs/2403.17887
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.pruning.layer_inputs import evaluating, inputs_of

__all__ = ["Shortened", "angular_distances", "block_influences", "prune_depth", "remove_blocks"]


@dataclass(frozen=True, eq=False)
class Shortened:
    """A model with fewer blocks."""

    model: nn.Module
    kept: list[int]  # numbers of the blocks that stay, as they were in the original
    scores: Tensor  # (blocks,) influence of each block, or (starts,) angular distance over the run from each start


def block_influences(model: nn.Module, batches: Iterable, blocks: str) -> Tensor:
    """How much each block changes the direction of what passes through it: 0 nothing, 1 to a right angle.

    Args:
        model: is run in eval mode and left as it is.
        batches: of (inputs, labels), the labels are not used.
        blocks: name of the ``nn.Sequential`` or ``nn.ModuleList`` that holds them.

    Returns:
        (blocks,) float64; infinite where a block changes the shape, so it cannot go.

    Raises:
        ValueError: there is no such list, no batch, or inputs are not finite.

    Example:
        >>> turn = nn.Linear(2, 2, bias=False)
        >>> _ = turn.weight.data.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))  # by a right angle
        >>> block_influences(nn.Sequential(nn.Identity(), turn), [(torch.ones(3, 2), None)], "").round(decimals=4)
        tensor([0., 1.], dtype=torch.float64)
    """
    return 1 - _mean_over_tokens(model, batches, blocks, 1, lambda cosine: cosine)


def angular_distances(model: nn.Module, batches: Iterable, blocks: str, *, count: int) -> Tensor:
    """The angle between what enters and what leaves each run of ``count`` blocks, in units of pi: 0..1.

    Args:
        model, batches, blocks: as in ``block_influences``.
        count: blocks in a run, 1 <= count < blocks.

    Returns:
        (blocks - count + 1,) float64, by the first block of the run; infinite where the shape changes.

    Raises:
        ValueError: as ``block_influences``, or ``count`` is out of range.

    Example:
        >>> turn = nn.Linear(2, 2, bias=False)
        >>> _ = turn.weight.data.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        >>> model = nn.Sequential(turn, nn.Identity(), nn.Identity())
        >>> found = angular_distances(model, [(torch.ones(3, 2), None)], "", count=2)
        >>> found.round(decimals=4)  # the last two turn nothing
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """
    total = len(_blocks(model, blocks))
    if not 1 <= count < total:
        raise ValueError(f"count={count} must be at least 1 and below the number of blocks ({total})")
    return _mean_over_tokens(model, batches, blocks, count, Tensor.arccos).abs() / math.pi


def prune_depth(
    model: nn.Module, batches: Iterable, blocks: str, *, count: int, method: str = "influence"
) -> Shortened:
    """A new model without the blocks that matter least.

    Args:
        model, batches, blocks: as in ``block_influences``.
        count: how many blocks go.
        method: ``"influence"`` takes those of least influence, ``"angle"`` the run of neighbours with the least angle.

    Raises:
        ValueError: as ``angular_distances``; the method is unknown; or too many blocks change the shape.

    Example:
        >>> turn = nn.Linear(2, 2, bias=False)
        >>> _ = turn.weight.data.copy_(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        >>> prune_depth(nn.Sequential(turn, nn.Identity()), [(torch.ones(3, 2), None)], "", count=1).kept
        [0]
    """
    total = len(_blocks(model, blocks))
    if method not in ("influence", "angle"):
        raise ValueError(f"method={method!r} must be 'influence' or 'angle'")
    if not 1 <= count < total:
        raise ValueError(f"count={count} must be at least 1 and below the number of blocks ({total})")
    if method == "influence":
        scores = block_influences(model, batches, blocks)
        gone = scores.argsort(stable=True)[:count]
        free = scores[gone].isfinite().all()
    else:
        scores = angular_distances(model, batches, blocks, count=count)
        first = int(scores.argmin())
        gone, free = torch.arange(first, first + count), bool(scores[first].isfinite())
    if not free:
        raise ValueError(f"count={count} is too many: some of these blocks change the shape; {scores.tolist()}")
    return Shortened(remove_blocks(model, blocks, gone.tolist()), [n for n in range(total) if n not in gone], scores)


def remove_blocks(model: nn.Module, blocks: str, numbers: Sequence[int]) -> nn.Module:
    """A copy without some blocks; those behind move up.

    Args:
        model: is left as it is.
        blocks: name of the ``nn.Sequential`` or ``nn.ModuleList`` that holds them.
        numbers: of the blocks that go, from 0.

    Raises:
        ValueError: there is no such list or block, or none would be left.

    Example:
        >>> remove_blocks(nn.Sequential(nn.ReLU(), nn.Tanh()), "", [0])
        Sequential(
          (0): Tanh()
        )
    """
    total = len(_blocks(model, blocks))
    wrong = [number for number in numbers if not 0 <= number < total]
    if wrong:
        raise ValueError(f"blocks {wrong} are not there; the model has 0..{total - 1}")
    if len(set(numbers)) == total:
        raise ValueError(f"numbers={list(numbers)} are all blocks; keep one")
    result = copy.deepcopy(model)
    held = _blocks(result, blocks)
    for number in sorted(set(numbers), reverse=True):
        del held[number]
    for number, block in enumerate(held):  # transformers: each attention knows its place in the cache
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    config = getattr(result, "config", None)
    if getattr(config, "num_hidden_layers", None) == total:
        config.num_hidden_layers = len(held)
    return result


def _blocks(model: nn.Module, name: str) -> nn.Sequential | nn.ModuleList:
    modules = dict(model.named_modules())
    if not isinstance(modules.get(name), nn.Sequential | nn.ModuleList):
        lists = [repr(n) for n, m in modules.items() if isinstance(m, nn.Sequential | nn.ModuleList) and len(m) > 1]
        raise ValueError(f"{name!r} is no nn.Sequential or nn.ModuleList of the model; those are {', '.join(lists)}")
    return modules[name]


def _mean_over_tokens(
    model: nn.Module, batches: Iterable, blocks: str, span: int, measure: Callable[[Tensor], Tensor]
) -> Tensor:
    """Of the cosine between what enters each block and what leaves ``span`` blocks later; -inf for other shapes."""
    held, stream = _blocks(model, blocks), []
    sums, tokens = torch.zeros(2, len(held) - span + 1, dtype=torch.float64)

    def enter(block: nn.Module, args: tuple, kwargs: dict) -> None:
        stream.append(args[0] if args else next(iter(kwargs.values())))

    def leave(block: nn.Module, args: tuple, out: object) -> None:
        stream.append(out[0] if isinstance(out, tuple | list) else out)

    with contextlib.ExitStack() as hooks, evaluating(model):
        for block in held:
            hooks.enter_context(block.register_forward_pre_hook(enter, with_kwargs=True))
        hooks.enter_context(held[-1].register_forward_hook(leave))
        for inputs in inputs_of(batches):
            stream.clear()
            model(inputs)
            for first in range(len(sums)):
                x, y = _tokens(stream[first]), _tokens(stream[first + span])
                if x.shape == y.shape:
                    sums[first] += measure(F.cosine_similarity(x, y, dim=-1).clamp(-1, 1)).sum()
                else:
                    sums[first] = torch.nan
                tokens[first] += len(x)
    return (sums / tokens).nan_to_num(nan=-torch.inf)


def _tokens(x: Tensor) -> Tensor:
    """(tokens, width) in float64; the channels of images (B, C, H, W) lie along axis 1."""
    return (x.movedim(1, -1) if x.dim() == 4 else x).flatten(0, -2).double()
