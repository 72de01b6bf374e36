"""Joints: where a scale can move from the Linear layers that read a channel into the layer that writes it.

If a layer before divides channel j by s_j and all that read the channel multiply their column j by s_j, nothing changes,

    W x = (W diag(s)) (diag(s)^-1 x)

and both AWQ and SmoothQuant live on it. Which layers those are is found by trying, not from names and not from a list
of operations: the rows of a candidate are scaled by powers of two, which floating point does without rounding. Linear
layers whose inputs are now exactly the old ones times these powers read its channels; their columns take the inverse.
If after that all other Linear layers see the same bits as before, and the output has the same bits, it is a joint. So
norms of any make, a ReLU or the mixing of values by attention between two layers, a gate, and the experts of a mixture
are found, and a residual that also reads the norm is turned down. What the batch does not show is not seen.

    Lin and others, "AWQ", 2023, https://arxiv.org/abs/2306.00978 and Xiao and others, "SmoothQuant", 2022,
    https://arxiv.org/abs/2211.10438, fold into norms and layers that they know by name
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Joint", "Joints", "find_joints", "move_scales", "visit_inputs"]

WRITERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROWS = 64  # inputs that every Linear layer should get in a trial
Seen = dict[str | None, list[Tensor]]  # by Linear layer, what it got in each of its calls; by None, the model's output
Visit = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Joint:
    """Channels that one layer writes and some Linear layers read, and nothing else does."""

    source: str  # the layer that writes them: a norm, or rows of a Linear or Conv layer
    start: int  # its row of channel 0
    layers: tuple[str, ...]  # the Linear layers that read them


@dataclass(frozen=True)
class Joints:
    """All joints of a model, and the Linear layers that are in none."""

    found: tuple[Joint, ...]  # in the order in which their layers run
    unjoined: dict[str, str]  # Linear layer: why its input cannot be scaled


def find_joints(model: nn.Module, inputs: Tensor) -> Joints:
    """Where the function of a model in eval mode stays, to the last bit, while scales move.

    Args:
        model: any module; it is not changed.
        inputs: one batch. So many samples of it are tried that every Linear layer gets some inputs, and what is found
            is then tried with all: a channel that is 0 in all of them tells nothing. While a
            Linear layer gets no input at all, no input of its width is joined.

    Raises:
        ValueError: there is no Linear layer.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 2))
        >>> joints = find_joints(model, torch.randn(8, 4))
        >>> joints.found, list(joints.unjoined)
        ((Joint(source='0', start=0, layers=('1',)),), ['3'])
    """
    model = copy.deepcopy(model).eval()
    if any(
        parameter.dtype == torch.float16 for parameter in model.parameters()
    ):  # an eighth of little is rounded there
        model, inputs = model.float(), inputs.float() if inputs.is_floating_point() else inputs
    widths = {name: module.in_features for name, module in model.named_modules() if type(module) is nn.Linear}
    if not widths:
        raise ValueError(f"{type(model).__name__} has no Linear layer, so no input to scale; use quantize_weights")
    samples, few = 2, _run(model, [*widths], inputs[:2])
    while samples < len(inputs) and min(_count(few, name) for name in widths) < ROWS:
        samples *= 2
        few = _run(model, [*widths], inputs[:samples])
    whole = _run(model, [*widths], inputs)
    silent = {width: name for name, width in widths.items() if not _count(whole, name)}
    order, found, joined, tried = [name for name in whole if name is not None], [], set(), {}
    for source, start, width in _candidates(model, {*widths.values()} - {*silent}):
        factors = _powers(width).to(next(model.parameters()).device)
        readers, new, same = [], [None], False
        while new:
            scaled, same = _try(model, Joint(source, start, tuple(readers)), factors, inputs[:samples], few)
            new = [name for name in scaled if name not in readers]
            readers += new
        tried |= dict.fromkeys(readers, source)
        joint = Joint(source, start, tuple(sorted(readers, key=order.index)))
        if readers and same and not joined & {*readers} and _try(model, joint, factors, inputs, whole)[1]:
            found.append(joint)
            joined |= {*readers}
    found.sort(key=lambda joint: order.index(joint.layers[0]))
    unjoined = dict.fromkeys(widths, "no layer before it passes a scale for each channel on to it")
    unjoined |= {n: f"{source} writes its input, but something else reads it too" for n, source in tried.items()}
    also = "gets no input from the batch, so it may read the same channels; pass more"
    unjoined |= {name: f"{silent[width]} {also}" for name, width in widths.items() if width in silent}
    return Joints(tuple(found), {name: reason for name, reason in unjoined.items() if name not in joined})


@torch.no_grad()
def move_scales(model: nn.Module, joint: Joint, scales: Tensor) -> None:
    """Divide the channels of a joint by ``scales`` where they are written, and multiply where they are read, in place.

    Args:
        model: a copy that may be changed.
        joint: from ``find_joints``.
        scales: (channels,), not 0. With 1 / 60 for some channels it plants outliers instead of removing them.

    Example:
        >>> model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 1))
        >>> move_scales(model, Joint("0", 0, ("1",)), torch.tensor([1.0, 4.0]))
        >>> model[0].weight.tolist()
        [1.0, 0.25]
    """
    source = model.get_submodule(joint.source)
    for part in (source.weight, getattr(source, "bias", None)):
        if part is not None:
            part.data[joint.start : joint.start + len(scales)].div_(scales.reshape(-1, *[1] * (part.dim() - 1)))
    for name in joint.layers:
        model.get_submodule(name).weight.data.mul_(scales)


@torch.no_grad()
def visit_inputs(model: nn.Module, layers: Sequence[str], batches: Sequence[Tensor], visit: Visit) -> None:
    """Call ``visit(name, rows)`` with what each of some Linear layers gets, (N, I), batch by batch.

    Example:
        >>> visit_inputs(nn.Linear(2, 2), [""], [torch.ones(1, 3, 2)], lambda name, rows: None)
    """
    with _watched(model, layers, lambda name, x: visit(name, x.reshape(-1, x.shape[-1]))):
        for inputs in batches:
            model(inputs)


@contextlib.contextmanager
def _watched(model: nn.Module, layers: Sequence[str], visit: Visit) -> Iterator[None]:
    def hook(name: str) -> Callable:
        return lambda layer, args, kwargs: visit(name, args[0] if args else kwargs["input"])

    with contextlib.ExitStack() as hooks:
        for name in layers:
            layer = model.get_submodule(name)
            hooks.enter_context(layer.register_forward_pre_hook(hook(name), with_kwargs=True))
        yield


@torch.no_grad()
def _run(model: nn.Module, linears: Sequence[str], inputs: Tensor) -> Seen:
    """What goes into the Linear layers, in the order in which they run, and what comes out in the end."""
    seen: Seen = {}
    with _watched(model, linears, lambda name, x: seen.setdefault(name, []).append(x.clone())):
        output = model(inputs)
    return seen | {None: _tensors(output)}


def _count(seen: Seen, name: str) -> int:
    return sum(x.shape[:-1].numel() for x in seen.get(name, []))


def _try(model: nn.Module, joint: Joint, factors: Tensor, inputs: Tensor, plain: Seen) -> tuple[list[str], bool]:
    """The layers whose inputs are scaled by ``factors`` while the joint is, and whether they alone have changed."""
    names = [name for name in plain if name is not None]
    with _scaled(model, joint, factors):
        seen = _run(model, names, inputs)
    scaled = [name for name in names if _is_scaled(plain[name], seen.get(name, []), factors)]
    rest = (name for name in plain if name not in joint.layers)
    return scaled, {*scaled} == {*joint.layers} and all(_equal(plain[name], seen.get(name, [])) for name in rest)


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _candidates(model: nn.Module, widths: set[int]) -> Iterator[tuple[str, int, int]]:
    """Layers whose rows are channels, and the part of them that may be a joint's: (name, first row, rows)."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and (type(module) in WRITERS or weight.dim() == 1):
            for width in sorted(width for width in widths if len(weight) % width == 0):
                yield from ((name, start, width) for start in range(0, len(weight), width))


def _powers(width: int) -> Tensor:
    """Powers of two from 1/8 to 8 but 1, in an order that no rearrangement of the channels keeps."""
    exponents = torch.randperm(width, generator=torch.Generator().manual_seed(0)) % 6
    return 2.0 ** (exponents - 3 + (exponents >= 3))


@contextlib.contextmanager
def _scaled(model: nn.Module, joint: Joint, factors: Tensor) -> Iterator[None]:
    """For a while the source is multiplied by ``factors`` and the columns that read it are divided."""
    parts = [model.get_submodule(name) for name in (joint.source, *joint.layers)]
    kept = [(parameter, parameter.detach().clone()) for part in parts for parameter in part.parameters()]
    move_scales(model, joint, 1 / factors)
    try:
        yield
    finally:
        for parameter, before in kept:
            parameter.data.copy_(before)


def _is_scaled(before: list[Tensor], after: list[Tensor], factors: Tensor) -> bool:
    wanted = [x * factors.to(x.dtype) for x in before if x.shape[-1] == len(factors)]
    return bool(after) and _equal(wanted, after) and not _equal(before, after)  # zeros tell nothing


def _equal(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
