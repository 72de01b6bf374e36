"""Multiply-accumulates: the arithmetic of one forward pass, counted while it runs.

``torch.utils.flop_counter`` watches every operation of a run, whatever module or function asks for it. It has no
formula for some that matter here and counts them as nothing: attention on the CPU, the fast path of
``nn.MultiheadAttention``, recurrent layers, integer matrix products. This file adds them.

What counts: products of matrices, convolutions, attention, recurrent layers. One multiply-accumulate is two floating
point operations (FLOPs). Biases, normalization, activations and other element-wise work are not counted; zeros in a
weight and the masked half of causal attention are, because dense kernels multiply them all the same.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from compresslab.measure.running import batch_size_of, call, evaluating, require_module

__all__ = ["Macs", "count_macs"]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass on the inputs given."""

    total: int  # for the whole batch
    batch_size: int  # length of the first axis of the inputs
    by_module: dict[str, int]  # name to MACs, modules inside included; a module called twice counts twice
    by_operation: dict[str, int]  # torch's name of the operation to MACs
    uncounted: tuple[str, ...]  # operations of other libraries that ran, whose arithmetic nobody can know

    @property
    def per_sample(self) -> float:
        """MACs for one sample of the batch; for a language model, for one sequence."""
        return self.total / self.batch_size

    @property
    def flops(self) -> int:
        """Floating point operations of the whole batch: two for each multiply-accumulate."""
        return 2 * self.total


def count_macs(model: nn.Module, inputs: Any) -> Macs:
    """Count the multiply-accumulates of ``model`` on ``inputs``, in all and by module.

    Args:
        model: run once, in eval mode and without gradients.
        inputs: a tensor, a tuple of arguments or a mapping of keywords; the first axis is the batch.

    Raises:
        TypeError: ``model`` is not a module.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 10))
        >>> macs = count_macs(model, torch.zeros(2, 3, 4, 4))
        >>> macs.by_module  # 2 * 16 places * 8 filters * 27 weights, and 2 * 128 * 10
        {'0': 6912, '1': 0, '2': 2560}
        >>> macs.total, macs.per_sample
        (9472, 4736.0)
    """
    require_module(model)
    counter, others = FlopCounterMode(display=False, custom_mapping=_FORMULAS), _OtherLibraries()
    with evaluating(model), _without_fast_path(), counter, others, _watched(model, counter) as by_module:
        call(model, inputs)
    operations = counter.get_flop_counts().get("Global", {})
    by_operation = {str(operation).removeprefix("aten."): flops // 2 for operation, flops in operations.items()}
    return Macs(
        total=counter.get_total_flops() // 2,
        batch_size=batch_size_of(inputs),
        by_module=dict(by_module),
        by_operation=by_operation,
        uncounted=tuple(sorted(others.seen)),
    )


@contextlib.contextmanager
def _watched(model: nn.Module, counter: FlopCounterMode) -> Iterator[Counter]:
    """Count by module: the counter's total when a module ends, less the total when it began."""
    macs, began, hooks = Counter(), {}, []

    def hook(module: nn.Module, name: str) -> None:
        def begin(*_: Any) -> None:
            began.setdefault(name, []).append(counter.get_total_flops())

        def end(*_: Any) -> None:
            macs[name] += (counter.get_total_flops() - began[name].pop()) // 2

        hooks.extend([module.register_forward_pre_hook(begin), module.register_forward_hook(end)])

    try:
        for name, module in model.named_modules():
            if name:
                hook(module, name)
        yield macs
    finally:
        for handle in hooks:
            handle.remove()


@contextlib.contextmanager
def _without_fast_path() -> Iterator[None]:
    """nn.MultiheadAttention and nn.TransformerEncoderLayer in eval mode run one opaque kernel; have them run parts."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _OtherLibraries(TorchDispatchMode):
    """Note the operations from outside of torch's own library: packed kernels, custom operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace not in ("aten", "prim", "prims", "profiler"):
            self.seen.add(func.name())
        return func(*args, **(kwargs or {}))


# The formulas get shapes in place of tensors and answer FLOPs, two for each MAC.


def _product(a: torch.Size, *_: Any, out_shape: Any, **__: Any) -> int:
    """(..., K) times something: each number that comes out is a sum of K products."""
    return 2 * math.prod(out_shape) * a[-1]


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Scores (L, S) from D products each, then outputs (L, V) from S products each, for every head."""
    *heads, length, depth = query
    return 2 * math.prod(heads) * length * key[-2] * (depth + value[-1])


def _recurrent_layer(
    sequence: torch.Size, input_weight: torch.Size, hidden_weight: torch.Size, *_: Any, **__: Any
) -> int:
    """One layer and direction: at each step of each sequence both matrices are used once."""
    return 2 * math.prod(sequence[:-1]) * (math.prod(input_weight) + math.prod(hidden_weight))


def _recurrent_stack(sequence: torch.Size, weights: list[torch.Size], *_: Any, **__: Any) -> int:
    return 2 * math.prod(sequence[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def _bilinear(a: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """y_o = sum over i, j of w_oij a_i b_j: each weight is used once for each sample."""
    return 2 * a[0] * math.prod(weight)


_FORMULAS = {
    getattr(torch.ops.aten, name): formula
    for name, formula in {
        "mv": _product,
        "dot": _product,
        "_int_mm": _product,
        "_weight_int8pack_mm": _product,
        "_weight_int4pack_mm_for_cpu": _product,
        "_grouped_mm": _product,
        "_trilinear": _bilinear,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "mkldnn_rnn_layer": _recurrent_layer,
        "_cudnn_rnn": _recurrent_stack,
    }.items()
    if hasattr(torch.ops.aten, name)
}
