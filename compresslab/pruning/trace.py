"""A model run with labels beside its values: every operation it calls, by whatever code, joins what must go together.

The model runs once on small inputs while ``TorchDispatchMode`` shows each ATen operation. No list of layer types and
no graph is needed: whatever a module is, what it does is one of a few hundred operations (``rules.py``), and one that
has no rule freezes the channels that it touches and is named as the reason.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from compresslab.pruning.labels import Classes, Operand, shrink, varies
from compresslab.pruning.rules import RULES
from compresslab.pruning.running import call, tensors_in

__all__ = ["Step", "Trace"]


RAGGED = (
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "where",
    "unique",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
)


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
        self, labels: Iterable[tuple[Tensor, list[Tensor | None]]], classes: Classes, *, through_norms: bool
    ) -> None:
        super().__init__()
        self.classes, self.through_norms = classes, through_norms
        self.name = ""  # of the operation that runs
        self.grids: list[Tensor] = []  # layers of axes that were split in two
        self.seen: list[list[Tensor]] = []  # layers that each operation touched, the latest last
        self.heads: list[Tensor] = []  # labels of channels that attention keeps apart
        self.touched: list[Tensor] = []  # layers of the operation that runs
        self.unused: dict[str, str] = {}  # parameters that no operation read
        self.produced: list[Tensor] = []  # labels of what layers put out
        self.steps: list[Step] = []
        self.used = WeakIdKeyDictionary()
        self._layers, self._live, self._ragged = WeakIdKeyDictionary(), WeakIdKeyDictionary(), WeakIdKeyDictionary()
        for tensor, vectors in labels:
            self._layers[tensor] = [
                vector.reshape([-1 if d == axis else 1 for d in range(tensor.dim())])
                for axis, vector in enumerate(vectors) if vector is not None
            ]  # fmt: skip

    def of(self, tensor: Tensor) -> list[Tensor]:
        """The layers of labels of a tensor, with the class of each element."""
        layers = [shrink(self.classes.find(layer)) for layer in self._layers.get(tensor, [])]
        return [layer for layer in layers if varies(layer)]

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
        self._layers[tensor] = kept

    def join(self, operands: list[Operand]) -> list[Tensor]:
        return self.classes.join(
            operands, f"{self.name} joins them with values that are no channels (an input, a mask, a constant)"
        )

    def live(self, tensor: Tensor) -> bool:
        """Whether it was computed from the model's input."""
        return tensor in self._live

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
        name = func._schema.name.removeprefix("aten::")
        name = name if name.startswith("__") else name.removesuffix("_")
        inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self.touched = touched = [layer for tensor in inputs for layer in self.of(tensor)]
        if touched:
            self.seen.append(touched)
        if name not in RULES and inputs:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        self.name = name
        out = func(*args, **kwargs)
        results = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        for tensor in results if any(self.live(tensor) for tensor in inputs) else ():
            self._live[tensor] = True
        for tensor in inputs:
            self.used[tensor] = True
        if touched:
            reshaped = any(result is tensor for result in results for tensor in inputs) and name in ("t", "transpose",
                "squeeze", "unsqueeze", "swapaxes")  # fmt: skip
            if name in RULES and not reshaped:
                names = [argument.name for argument in func._schema.arguments]
                given = (
                    {a.name: a.default_value for a in func._schema.arguments}
                    | dict(zip(names, args, strict=False))
                    | kwargs
                )
                self.again = lambda labels: func(labels, *args[1:], **kwargs)
                try:
                    RULES[name](self, given, out)
                except Exception as error:  # a form of it that the rule does not foresee: as if it had none
                    self.give_up(inputs, f"{name} is not understood in this form ({type(error).__name__}: {error})")
                    for tensor in results:
                        self._layers[tensor] = []
            else:
                self.give_up(inputs, f"{name} is not understood")
                for tensor in results:
                    self._layers[tensor] = []
        own = inputs[:1] if name.startswith(("index_", "scatter", "masked_")) and name != "index_select" else inputs
        ragged = (name in RAGGED and func._schema.name + str(len(args)) != "aten::where3") or any(
            tensor in self._ragged for tensor in own
        )
        for tensor in results if ragged else ():
            self._ragged[tensor] = True
        layers = [self._layers.get(tensor, []) for tensor in results]
        self.steps.append(Step(name, [tensor.shape for tensor in results], layers, ragged))
        return out

    @torch.inference_mode()  # where whole operations are seen that are taken apart otherwise (linear, lstm)
    def run(self, model: nn.Module, example_inputs: Any) -> None:
        """Run the model, and freeze what it puts out."""
        for value in tree_leaves(example_inputs):
            if isinstance(value, Tensor):
                self._live[value] = True
        # Any function mode keeps nn.MultiheadAttention off its fast path, which is one opaque operation.
        with BaseTorchFunctionMode(), self:
            out = call(model, example_inputs)
        for tensor in tensors_in(out):
            self.give_up([tensor], "it is an output of the model")
