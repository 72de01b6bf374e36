"""What a layer gets and what it puts out, at some positions: every Linear or Conv layer as one small matrix product.

A convolution multiplies its weight, as a matrix, with the patch around each position (im2col). All positions of all
images are far too many, and neighbours are much alike: a few thousand, drawn from all batches, tell as much. The same
positions can be taken in two models, the float one and the quantized one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from compresslab.quantization.affine import check_finite

__all__ = ["SAMPLED", "Samples", "feeds_relu", "inputs_of", "patches", "sample_inputs", "sample_outputs"]

SAMPLED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, eq=False)
class Samples:
    """Positions of a layer's output, by batch, and what it put out there."""

    shapes: list[torch.Size] = field(default_factory=list)  # (positions...) of the whole output
    positions: list[tuple[Tensor, ...]] = field(default_factory=list)  # one index for each axis of the shape
    outputs: list[Tensor] = field(default_factory=list)  # (n, O) each


class _Reached(Exception):
    """Ends a forward pass at the layer that was waited for."""


def inputs_of(batches: Iterable) -> list[Tensor]:
    """The inputs of all batches of (inputs, labels), to be gone through more than once.

    Raises:
        ValueError: there is no batch, or inputs are not finite.

    Example:
        >>> [inputs.tolist() for inputs in inputs_of([(torch.ones(2), None)])]
        [[1.0, 1.0]]
    """
    kept = [inputs for inputs, *_ in batches]
    for place, inputs in enumerate(kept):
        if inputs.is_floating_point():
            check_finite(inputs, f"inputs of batch {place}")
    if not kept:
        raise ValueError("batches holds no batch; pass at least one of (inputs, labels)")
    return kept


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """What each position of the layer's output is computed from, as a view: (positions..., elements of a patch...).

    Args:
        layer: Linear, Conv1d, Conv2d or Conv3d.
        x: what the layer gets.

    Example:
        >>> layer = nn.Conv1d(1, 1, 2, stride=2)
        >>> patches(layer, torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])).tolist()  # (1 image, 2 positions, 1 channel, 2)
        [[[[1.0, 2.0]], [[3.0, 4.0]]]]
    """
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    axes = layer.weight.dim() - 2
    x = x if x.dim() == axes + 2 else x.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)  # also for padding="same"
    for axis, (size, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return x.movedim(1, -1 - axes)  # (B, C, P..., K...) -> (B, P..., C, K...)


@torch.no_grad()
def sample_outputs(
    model: nn.Module,
    layers: Iterable[str],
    batches: Sequence[Tensor],
    *,
    samples: int = 4096,
    generator: torch.Generator | None = None,
) -> dict[str, Samples]:
    """Outputs of some layers at positions that are drawn from all batches alike, in the order in which they run.

    Args:
        model: in eval mode.
        layers: names of Linear and Conv layers.
        batches: inputs.
        samples: how many positions, if there are so many.
        generator: draws them; one seeded with 0 if None.

    Returns:
        By layer. One that is not called exactly once in each batch is not there.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 2))
        >>> found = sample_outputs(model, ["0"], [torch.ones(2, 1, 5, 5)], samples=7)["0"]
        >>> found.shapes, found.outputs[0].shape
        ([torch.Size([2, 4, 4])], torch.Size([7, 3]))
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    share = -(-samples // len(batches))
    found: dict[str, Samples] = {}
    calls: dict[str, list[int]] = {}

    def watch(name: str) -> RemovableHandle:
        def hook(layer: nn.Module, args: object, output: Tensor) -> None:
            axes = layer.weight.dim() - 2
            y = output.reshape(-1, output.shape[-1]) if axes == 0 else output
            y = (y if y.dim() == axes + 2 else y.unsqueeze(0)).movedim(1, -1)  # (positions..., O)
            kept, shape = found.setdefault(name, Samples()), y.shape[:-1]
            drawn = torch.randperm(shape.numel(), generator=generator)[:share].to(y.device)
            kept.shapes.append(shape)
            kept.positions.append(torch.unravel_index(drawn, shape))
            kept.outputs.append(y[kept.positions[-1]])
            calls.setdefault(name, []).append(place)

        return model.get_submodule(name).register_forward_hook(hook)

    with contextlib.ExitStack() as hooks:
        for name in layers:
            hooks.enter_context(watch(name))
        for place, inputs in enumerate(batches):  # noqa: B007 (the hook reads it)
            model(inputs)
    return {name: kept for name, kept in found.items() if calls[name] == list(range(len(batches)))}


@torch.no_grad()
def sample_inputs(model: nn.Module, name: str, batches: Sequence[Tensor], samples: Samples) -> Tensor | None:
    """What the layer gets at the positions of ``samples``, (N, groups, I); None if its output has another shape now.

    Args:
        model: in eval mode; it runs no further than to this layer.
        name: of a Linear or Conv layer.
        batches: the inputs that ``samples`` come from.
        samples: from ``sample_outputs``.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(3, 2)), torch.rand(4, 3)
        >>> samples = sample_outputs(model, ["0"], [x])["0"]
        >>> inputs = sample_inputs(model, "0", [x], samples)
        >>> torch.allclose(model(inputs[:, 0]), samples.outputs[0])
        True
    """
    rows: list[Tensor] = []

    def hook(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        every, place = patches(layer, args[0] if args else kwargs["input"]), len(rows)
        if every.shape[: len(samples.shapes[place])] == samples.shapes[place]:
            rows.append(every[samples.positions[place]].flatten(1))  # (n, groups * I)
        raise _Reached

    with model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True):
        for place, inputs in enumerate(batches):
            with contextlib.suppress(_Reached):
                model(inputs)
            if len(rows) != place + 1:
                return None
    return torch.cat(rows).unflatten(1, (getattr(model.get_submodule(name), "groups", 1), -1))


def feeds_relu(model: nn.Module) -> set[str]:
    """Names of the modules whose output goes into a ReLU and nowhere else; empty if the model cannot be traced.

    Example:
        >>> sorted(feeds_relu(nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.ReLU(), nn.Linear(2, 2))))
        ['0', '1']
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception:  # whatever the model's own code raises when it is given a symbol
        return set()

    def module(node: fx.Node) -> nn.Module | None:
        return model.get_submodule(node.target) if node.op == "call_module" else None

    found = set()
    for node in graph.nodes:
        last = node
        while len(last.users) == 1:
            last = next(iter(last.users))
            if not isinstance(module(last), nn.Identity):
                break
        rectified = isinstance(module(last), nn.ReLU) or last.target in (F.relu, torch.relu, "relu")
        if node.op == "call_module" and last is not node and rectified:
            found.add(node.target)
    return found
