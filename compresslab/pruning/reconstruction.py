"""Repair without training: what is left is fitted, layer after layer, to what the original put out.

When channels are gone, the weights that are left need not stay as they were: with X' the inputs that a layer of the
smaller model gets (N, I') and Y the outputs of the same layer of the original (N, O), the new weight is the solution of

    min_W  |Y - X' W^T|^2 / N + ridge * mean(diag(X'^T X' / N)) * |W - W_0|^2

from a few hundred images, with W_0 the weight that was cut. Layers go in the order in which they run, so each is fitted
to inputs that were repaired before; one whose output is added to a shortcut also makes good what the shortcut has lost
(Y is then what makes the sum right). Batch norms keep their statistics, which are those of the original's outputs.

    He, Zhang and Sun, "Channel pruning for accelerating very deep neural networks", 2017,
    https://arxiv.org/abs/1707.06168, equation 2 and section 3.2 (W_0 = 0 there); Luo, Wu and Lin, "ThiNet", 2017,
    https://arxiv.org/abs/1707.06342, equation 7
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from compresslab.pruning.channels import Pruned
from compresslab.pruning.layer_inputs import LAYERS, evaluating, inputs_of, patches
from compresslab.pruning.least_squares import Moments, ridge_fit

__all__ = ["Reconstructed", "reconstruct"]


@dataclass(frozen=True, eq=False)
class Reconstructed(Pruned):
    """A pruned model whose weights were fitted to the original's outputs."""

    errors: dict[str, tuple[float, float]]  # layer: |Y - Y'|^2 / |Y|^2 before and after its own fit
    skipped: dict[str, str]  # layer: why it keeps its weights


def reconstruct(
    model: nn.Module, pruned: Pruned, batches: Iterable, *, ridge: float = 1e-3, positions: int = 64
) -> Reconstructed:
    """The pruned model with the weights of its layers fitted to the outputs of the original.

    Args:
        model: that ``pruned`` was made from; is left as it is, and so is ``pruned``.
        pruned: the result of ``prune_channels`` and its like.
        batches: of (inputs, labels), the labels are not used. Some hundred images do.
        ridge: as in ``ridge_fit``; more for fewer tokens.
        positions: of each image that a convolution is fitted on, spread evenly over it.

    Raises:
        ValueError: there is no batch, inputs are not finite, or an option is out of range.
    """
    if positions < 1:
        raise ValueError(f"positions={positions} must be at least 1; try 64")
    inputs, small = inputs_of(batches), copy.deepcopy(pruned.model)
    calls: list[str] = []
    modules, originals = dict(small.named_modules()), dict(model.named_modules())
    with contextlib.ExitStack() as hooks, evaluating(small):
        for name, layer in modules.items():
            if type(layer) in LAYERS:
                hooks.enter_context(layer.register_forward_hook(lambda *_, name=name: calls.append(name)))
        small(inputs[0])
    errors, skipped = {}, {}
    for name in dict.fromkeys(calls):
        layer = modules[name]
        if getattr(layer, "groups", 1) != 1:
            skipped[name] = "a convolution with groups"
        elif calls.count(name) != 1:
            skipped[name] = "it runs several times for one input"
        elif sum(part is layer.weight for m in modules.values() for part in m.parameters(recurse=False)) > 1:
            skipped[name] = "its weight is used elsewhere too"
        else:
            rows = pruned.kept.get(f"{name}.weight", {}).get(0)
            errors[name] = _fit(small, layer, model, originals[name], rows, inputs, ridge, positions)
    fields = {name: getattr(pruned, name) for name in Pruned.__dataclass_fields__}
    return replace(Reconstructed(**fields, errors=errors, skipped=skipped), model=small, exact=False)


class _Follow(TorchDispatchMode):
    """Follows one layer's output through batch norm into a sum, if it goes into one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.handle = layer.register_forward_hook(self._start)

    def _start(self, layer: nn.Module, args: tuple, out: Tensor) -> None:
        self.x, self.y, self.total, self._now = args[0], out.clone(), out.clone(), out
        self.scale: Tensor | float = 1.0  # d total / d y, by channel
        self.path = ""  # of operations

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        if getattr(self, "_now", None) is not None and any(value is self._now for value in args):
            self.path, self._now = f"{self.path} {name}", None
            if name == "batch_norm" and self.path == " batch_norm":
                _, weight, _, _, variance, _, _, eps, *_ = args
                self.scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
            if name == "batch_norm" or (name == "add" and out.shape == self.y.shape):
                self.total, self._now = out.clone(), out
        return out


@torch.inference_mode()
def _fit(
    small: nn.Module, layer: nn.Module, model: nn.Module, original: nn.Module, rows: Tensor | None,
    inputs: Sequence[Tensor], ridge: float, positions: int,
) -> tuple[float, float]:  # fmt: skip
    ours, theirs, moments = _Follow(layer), _Follow(original), Moments()
    axis = 1 if isinstance(layer, nn.modules.conv._ConvNd) else -1
    with ours.handle, theirs.handle, evaluating(small), evaluating(model):
        for batch in inputs:
            with ours:
                small(batch)
            with theirs:
                model(batch)
            wanted = _part(theirs.y, rows, axis)
            if ours.path == theirs.path and ours.total.shape == ours.y.shape:
                # What is missing in the sum, whichever term it is missing in, is what this layer should put out more.
                total = _part(theirs.total, rows, axis)
                scale = torch.as_tensor(ours.scale).expand(ours.y.shape[axis])
                scale = scale.view([-1 if d == axis % ours.y.dim() else 1 for d in range(ours.y.dim())])
                wanted = torch.where(scale.abs() > 0.01, ours.y + (total - ours.total) / scale, wanted)
            y = wanted.movedim(axis, -1)  # (B, P..., O)
            x = patches(layer, ours.x).reshape(*y.shape[:-1], -1) if axis == 1 else ours.x
            x, y = x.reshape(len(batch), -1, x.shape[-1]), y.reshape(len(batch), -1, y.shape[-1])
            some = torch.linspace(0, x.shape[1] - 1, min(positions, x.shape[1]), device=x.device).long()
            x, y = x[:, some].flatten(0, 1), y[:, some].flatten(0, 1)
            if layer.bias is not None:
                x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            moments.update(x, y)
    weight = layer.weight.flatten(1)
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias[:, None]], 1)
    fitted = ridge_fit(moments.xx, moments.yx, weight, ridge=ridge)
    result = moments.error(weight), moments.error(fitted)
    if layer.bias is not None:
        layer.bias.copy_(fitted[:, -1])
        fitted = fitted[:, :-1]
    layer.weight.copy_(fitted.reshape(layer.weight.shape))
    return result


def _part(x: Tensor, rows: Tensor | None, axis: int) -> Tensor:
    return x if rows is None else x.index_select(axis, rows.to(x.device))
