"""A model run with labels beside its values: every operation it calls, by whatever code, joins what must go together.

The model runs once on small inputs while ``TorchDispatchMode`` shows each ATen operation. No list of layer types and
no graph is needed: whatever a module is, what it does is one of a few hundred operations (``rules.py``), and one that
has no rule freezes the channels that it touches and is named as the reason.

Labels do not hang on values, so the costly part is left out: of a convolution or matrix product only one channel is
computed, which checks the sizes, and the result is zeros (``hollow``). Code that looks at values (which expert a token
goes to) cannot be followed so; then the run ends, and is made again with all values.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from compresslab.pruning.labels import Classes, Operand, shrink, varies
from compresslab.pruning.rules import RULES, tensors
from compresslab.pruning.running import call, tensors_in

__all__ = ["NeedsValues", "Step", "Trace"]


# Sizes of the result hang on values, or a number is taken out of a tensor.
RAGGED = {"nonzero", "nonzero_numpy", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim"}
LOOKS = RAGGED | {"_local_scalar_dense", "item", "equal", "is_nonzero", "allclose", "bincount", "histc"}
PICKS = ("index", "index_select")
LEAVES = (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__, torch.Tensor.data_ptr)
IN_PLACE = ("t", "transpose", "squeeze", "unsqueeze", "swapaxes")  # that change the shape of what they are given
ONLY_SHAPE = {"view", "_unsafe_view", "_reshape_alias"}


class NeedsValues(Exception):
    """The code looks at values, which a hollow run does not have."""


class _Note:
    """What is known of one tensor; kept on the tensor itself, so that it goes when the tensor goes."""

    __slots__ = ("hollow", "layers", "live", "merges", "ragged", "trace", "used")

    def __init__(self, trace: Trace, layers: list[Tensor]) -> None:
        self.trace, self.layers, self.merges = trace, layers, -1
        self.live = self.hollow = self.ragged = self.used = False


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operation's results."""

    name: str
    shapes: list[torch.Size]
    layers: list[list[Tensor]]  # of each result
    ragged: bool  # sizes hang on values (the tokens that an expert gets)


class Trace(TorchDispatchMode):
    """What running a model tells about its labels; a mode to run it under.

    Args:
        labels: with each parameter and buffer, one vector for each axis, or None for an axis of size 1.
        classes: that the labels belong to.
        through_norms: statistics over channels may change (LayerNorm), so they do not freeze.
    """

    def __init__(
        self, labels: Iterable[tuple[Tensor, list[Tensor | None]]], classes: Classes, *, through_norms: bool,
        hollow: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.through_norms, self.hollow = classes, through_norms, hollow
        self.name = ""  # of the operation that runs
        self.grids: list[Tensor] = []  # layers of axes that were split in two
        self.seen: list[list[Tensor]] = []  # layers that each operation touched, the latest last
        self.heads: list[Tensor] = []  # labels of channels that attention keeps apart
        self.touched: list[Tensor] = []  # layers of the operation that runs
        self.unused: dict[str, str] = {}  # parameters that no operation read
        self.produced: list[Tensor] = []  # labels of what layers put out
        self.steps: list[Step] = []
        for tensor, vectors in labels:
            self._note(tensor).layers = [
                vector.reshape([-1 if d == axis else 1 for d in range(tensor.dim())])
                for axis, vector in enumerate(vectors) if vector is not None
            ]  # fmt: skip

    def _note(self, tensor: Tensor) -> _Note:
        note = getattr(tensor, "_labels", None)
        if note is None or note.trace is not self:  # of an earlier run, on a tensor that the model's code keeps
            note = tensor._labels = _Note(self, [])
        return note

    def of(self, tensor: Tensor) -> list[Tensor]:
        """The layers of labels of a tensor, with the class of each element."""
        note = self._note(tensor)
        if note.merges != len(self.classes.clashes):
            layers = [self.classes.settle(layer) for layer in note.layers]
            note.layers, note.merges = [layer for layer in layers if varies(layer)], len(self.classes.clashes)
        return note.layers

    def put(self, tensor: Tensor, layers: Iterable[Tensor]) -> None:
        kept = []
        for layer in layers:
            layer = shrink(self.classes.find(layer))
            if not varies(layer):  # nothing tells any more to which channel it belongs
                self.freeze(layer, "one channel is picked out by itself")
            elif any(n not in (1, size) for n, size in itertools.zip_longest(layer.shape, tensor.shape)):
                self.freeze(layer, f"{self.name} changes how many there are")
            else:
                kept.append(layer)
        note = self._note(tensor)
        note.layers, note.merges = kept, len(self.classes.clashes)

    def join(self, operands: list[Operand]) -> list[Tensor]:
        return self.classes.join(
            operands, f"{self.name} joins them with values that are no channels (an input, a mask, a constant)"
        )

    def live(self, tensor: Tensor) -> bool:
        """Whether it was computed from the model's input."""
        return self._note(tensor).live

    def is_hollow(self, tensor: Tensor) -> bool:
        """Whether its values were left out."""
        return self._note(tensor).hollow

    def used(self, tensor: Tensor) -> bool:
        """Whether an operation read it."""
        return self._note(tensor).used

    def produce(self, weight: Tensor, layers: Iterable[Tensor], axis: int) -> None:
        """A layer with this weight puts out channels along ``axis`` of it."""
        if not self.live(weight):
            self.produced += [layer.flatten() for layer in layers if varies(layer) == {axis % weight.dim()}]

    def freeze(self, layer: Tensor, reason: str) -> None:
        self.classes.freeze(layer, reason)

    def give_up(self, tensors: Iterable[Tensor], reason: str = "") -> list[Tensor]:
        """All channels of these tensors stay."""
        for tensor in tensors:
            for layer in self.of(tensor):
                self.freeze(layer, reason or f"{self.name} is not understood in this form")
        return []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name, defaults = _signature(func)
        inputs = tensors(args, kwargs)
        self.touched = touched = [layer for tensor in inputs for layer in self.of(tensor)]
        if touched:
            self.seen.append(touched)
        if name not in RULES and inputs:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        self.name = name
        notes = [self._note(tensor) for tensor in inputs]
        live, hollow = any(note.live for note in notes), any(note.hollow for note in notes)
        if name in PICKS and inputs[0].dim() > 2 and not notes[0].live:
            live = False  # the matrices of the experts that tokens go to are weights still
        if hollow and (name in LOOKS or (name == "where" and len(inputs) == 1)):
            raise NeedsValues(name)
        given = defaults | dict(zip(defaults, args, strict=False)) | kwargs
        out = _sized(func, name, given) if live and self.hollow else None
        hollow = hollow or out is not None
        out = func(*args, **kwargs) if out is None else out
        results = tensors(out)
        for note in notes:
            note.used = True
        if touched:
            reshaped = name in IN_PLACE and any(result is tensor for result in results for tensor in inputs)
            if name in RULES and not reshaped:
                if name in ONLY_SHAPE:  # whatever the strides
                    self.again = lambda labels: labels.reshape(args[1])
                else:
                    self.again = lambda labels: func(labels, *args[1:], **kwargs)
                try:
                    RULES[name](self, given, out)
                except Exception as error:  # a form of it that the rule does not foresee: as if it had none
                    self.give_up(inputs, f"{name} is not understood in this form ({type(error).__name__}: {error})")
                    for tensor in results:
                        self._note(tensor).layers = []
            else:
                self.give_up(inputs, f"{name} is not understood")
                for tensor in results:
                    self._note(tensor).layers = []
        own = notes[:1] if name.startswith(("index_", "scatter", "masked_")) and name != "index_select" else notes
        ragged = name in RAGGED or (name == "where" and len(inputs) == 1) or any(note.ragged for note in own)
        layers = []
        for tensor in results:
            note = self._note(tensor)
            note.live, note.hollow, note.ragged = note.live or live, note.hollow or hollow, note.ragged or ragged
            layers.append(note.layers)
        self.steps.append(Step(name, [tensor.shape for tensor in results], layers, ragged))
        return out

    @torch.inference_mode()  # where whole operations are seen that are taken apart otherwise (linear, lstm)
    def run(self, model: nn.Module, example_inputs: Any) -> None:
        """Run the model, and freeze what it puts out."""
        inputs = tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, example_inputs)
        for tensor in tensors(inputs):
            self._note(tensor).live = True
        # Any function mode keeps nn.MultiheadAttention off its fast path, which is one opaque operation.
        with _Watch(self), self:
            out = call(model, inputs)
        for tensor in tensors_in(out):
            self.give_up([tensor], "it is an output of the model")


class _Watch(BaseTorchFunctionMode):
    """Ends a hollow run whose values are taken out of torch: that is no operation which a dispatch mode sees."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in LEAVES and self.trace.is_hollow(args[0]):
            raise NeedsValues(func.__name__)
        return func(*args, **(kwargs or {}))


@functools.cache
def _signature(func: Any) -> tuple[str, dict[str, Any]]:
    """The name of an operation, without the mark of those in place, and its arguments with their defaults."""
    name = func._schema.name.removeprefix("aten::")
    name = name if name.startswith("__") else name.removesuffix("_")
    return name, {argument.name: argument.default_value for argument in func._schema.arguments}


def _sized(func: Any, name: str, a: dict[str, Any]) -> Tensor | None:
    """The result of a product with zeros for values; None if it must be computed.

    One output channel, row or query is computed, so that what does not fit together is refused as ever.
    """
    if name in ("mm", "bmm", "matmul"):
        x, y = a["self"], a.get("mat2", a.get("other"))
        if min(x.dim(), y.dim()) < 2:
            return None
        one = func(x[..., :1, :], y[..., :1])
        return x.new_zeros(*one.shape[:-2], x.shape[-2], y.shape[-1])
    if name == "_grouped_mm" and a["self"].shape[-1] == a["mat2"].shape[-2]:
        return a["self"].new_zeros(len(a["self"]), a["mat2"].shape[-1])
    if name == "scaled_dot_product_attention":
        q, mask = a["query"], a["attn_mask"]
        mask = mask[..., :1, :] if mask is not None and mask.dim() > 1 else mask
        one = func(**a | {"query": q[..., :1, :], "attn_mask": mask})
        return q.new_zeros(*one.shape[:-2], *q.shape[-2:-1], one.shape[-1])
    if name != "linear" and not name.startswith("conv"):
        return None
    x, w, bias = a["input"], a["weight"], a["bias"]
    at = int(a.get("transposed", name.startswith("conv_transpose")))
    if w.dim() < 2 or a.get("groups", 1) > 1 or (bias is not None and bias.shape != w.shape[at : at + 1]):
        return None
    if name == "linear":
        func(x.reshape(-1, x.shape[-1])[:1], w[:1])
        return x.new_zeros(*x.shape[:-1], len(w))
    one = func(**a | {"weight": w.narrow(at, 0, 1), "bias": None})
    channels = one.dim() - w.dim() + 1  # without a batch there is an axis less
    return one.new_zeros(*one.shape[:channels], w.shape[at], *one.shape[channels + 1 :])
