"""The output channels of a layer, and the place where all that belongs to a channel alone has been done to it.

A channel is not one row of weights: a bias, a batch norm and an activation follow, and a channel with zero weights
still puts out relu(bias). So a layer's output is followed through batch norm, activations and dropout, as far as nothing
else uses it. There a channel can be watched as the next layer sees it, or closed, which is the same as taking it out.

Where that is, is seen by running the model once. Layers whose output is the model's own are left out: their channels are
its answer.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compresslab.importance.scored import (
    LAYERS,
    NORMS,
    scored_weights,
    scoring,
)

__all__ = ["Channels", "at_gates", "find_channels"]

FOLLOWED = {
    *("relu", "relu_", "relu6", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu"),
    *("selu", "softplus", "tanh", "sigmoid", "batch_norm", "dropout", "dropout1d", "dropout2d", "dropout3d"),
}


@dataclass(frozen=True)
class Channels:
    """The output channels of one layer, and where their gates stand."""

    count: int
    axis: int  # of the layer's output along which they lie: 1 for convolutions, -1 for Linear
    positions: int  # numbers that one channel puts out for one sample
    steps: tuple[int, ...]  # by call of the layer: behind so many operations that follow it
    norm: str | None  # the batch norm among them


class _Follow(TorchFunctionMode):
    """Sees every torch function; a tensor carries on it (layer, call, step) as long as it is that layer's alone."""

    def __init__(self, visit: Callable[[Callable, tuple, Tensor], Tensor]) -> None:
        super().__init__()
        self.visit = visit

    def __torch_function__(self, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None):
        out = function(*args, **(kwargs or {}))
        has_tensor = isinstance(out, Tensor) or (isinstance(out, tuple | list) and any(map(torch.is_tensor, out)))
        return self.visit(function, (*args, *(kwargs or {}).values()), out) if has_tensor else out


@contextlib.contextmanager
def _following(model: nn.Module, layers: Mapping[str, str], visit: Callable) -> Iterator[None]:
    """Call ``visit`` whenever a layer's output is made or used; a key is (weight name, call, step).

    visit(key, tensor, others): made by the layer (step 0) or by an operation that is followed, from ``others``; what it
    returns takes the place. visit(key, None, goes_on): used, by one that is followed or not.
    """
    calls: Counter[str] = Counter()

    def mark(key: tuple[str, int, int], tensor: Tensor, others: tuple) -> Tensor:
        changed = visit(key, tensor, others)
        if changed is tensor:
            tensor.followed = key
        return changed

    def step(function: Callable, others: tuple, out: Tensor) -> Tensor:
        flat = [item for value in others for item in (value if isinstance(value, tuple | list) else (value,))]
        keys = [key for item in flat if isinstance(item, Tensor) and (key := getattr(item, "followed", None))]
        goes_on = function.__name__ in FOLLOWED and getattr(others[0], "followed", None) is not None
        for key in keys:
            visit(key, None, goes_on)
        if not goes_on:
            return out
        name, call, place = keys[0]
        return mark((name, call, place + 1), out, others)

    def begin(name: str) -> Callable:
        def hook(layer: nn.Module, args: object, output: Tensor) -> Tensor:
            calls[name] += 1
            return mark((name, calls[name] - 1, 0), output, ())

        return hook

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(model.register_forward_pre_hook(lambda *_: calls.clear()))
        for name, path in layers.items():
            hooks.enter_context(model.get_submodule(path).register_forward_hook(begin(name)))
        hooks.enter_context(_Follow(step))
        yield


def find_channels(model: nn.Module, inputs: Tensor, names: Collection[str] | None = None) -> dict[str, Channels]:
    """The channels of every Linear and convolution that runs, by the name of its weight, output layers left out.

    Args:
        model: any module; it runs once.
        inputs: a batch.
        names: exactly these weights; then output layers too.

    Raises:
        ValueError: a name belongs to no layer that is called, or no layer is left.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
        >>> find_channels(model, torch.zeros(2, 1, 1, 1))
        {'0.weight': Channels(count=3, axis=1, positions=1, steps=(2,), norm='1')}
    """
    layers = _layers(model, names)
    scales = {
        name: getattr(module, "weight", None) for name, module in model.named_modules() if isinstance(module, NORMS)
    }
    owners = {id(scale): name for name, scale in scales.items() if scale is not None}
    uses: Counter[tuple] = Counter()
    ends: set[tuple] = set()  # used by something that is not followed
    shapes: dict[tuple, torch.Size] = {}
    norms: dict[tuple, str] = {}

    def visit(key: tuple[str, int, int], tensor: Tensor | None, others: object) -> Tensor | None:
        if tensor is None:
            uses[key] += 1
            if not others:
                ends.add(key)
        else:
            shapes[key] = tensor.shape
            norms.update({key: owners[id(other)] for other in others if id(other) in owners})  # noqa: B035
        return tensor

    with scoring(model), _following(model, layers, visit):
        output = model(inputs)
    answer = getattr(output, "followed", ("",))[0] if names is None else ""
    found = {}
    for name, path in layers.items():
        steps, calls = [], sum(key[0] == name and key[2] == 0 for key in shapes)
        for call in range(calls):
            key = (name, call, 0)
            while uses[key] == 1 and key not in ends:
                key = (name, call, key[2] + 1)
            steps.append(key[2])
        if name == answer or not calls:
            continue
        axis = -1 if isinstance(model.get_submodule(path), nn.Linear) else 1
        count = shapes[key][axis]
        norm = next((norms[name, 0, place] for place in range(1, steps[0] + 1) if (name, 0, place) in norms), None)
        found[name] = Channels(count, axis, shapes[key][1:].numel() // count, tuple(steps), norm)
    missing = [name for name in names or () if name not in found]
    if missing or not found:
        way = "name weights of Linear or convolution layers that are called and feed other layers"
        raise ValueError(f"{missing or type(model).__name__} must have channels to gate; {way}")
    return found


@contextlib.contextmanager
def at_gates(
    model: nn.Module, channels: Mapping[str, Channels], visit: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """While it lasts, call ``visit(name, tensor)`` where a gate stands; a tensor that it returns takes the place.

    Args:
        model: the one that the channels were found in, or a copy.
        channels: some of ``find_channels``.
        visit: gets the weight's name and the channels' values, (B, C, ...) or (B, ..., C).

    Example:
        >>> model, seen = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)), []
        >>> x = torch.ones(1, 1)
        >>> with at_gates(model, find_channels(model, x), lambda name, tensor: seen.append((name, tensor.shape))):
        ...     output = model(x)
        >>> seen
        [('0.weight', torch.Size([1, 2]))]
    """

    def stop(key: tuple[str, int, int], tensor: Tensor | None, others: object) -> Tensor | None:
        name, call, step = key
        if call >= len(channels[name].steps):
            raise ValueError(f"{name} is called more often than when its channels were found; use a batch of that kind")
        if tensor is None or channels[name].steps[call] != step:
            return tensor
        changed = visit(name, tensor)
        return tensor if changed is None else changed

    with _following(model, {name: name.rpartition(".")[0] for name in channels}, stop):
        yield


def _layers(model: nn.Module, names: Collection[str] | None) -> dict[str, str]:
    """Name of the weight -> name of the layer."""
    paths = {name: name.rpartition(".")[0] for name in scored_weights(model, names)}
    return {name: path for name, path in paths.items() if isinstance(model.get_submodule(path), LAYERS)}
