"""The matrix that says how much an error in one weight of a layer matters, and how it adds to errors in the others.

A layer puts out W x. Errors D in its weights make the output wrong by D x; the square of that, on average over the
tokens (the positions of a convolution, whose x is the patch around one), is

    mean_t |D x_t|^2 = trace(D H D^T)        H = mean_t x_t x_t^T

H is the Hessian of this error by a row of W, up to a factor of 2. Every token counts once, however they are batched.

    Frantar and Alistarh, "Optimal Brain Compression: a framework for accurate post-training quantization and pruning",
    2022, https://arxiv.org/abs/2208.11580, section 3 (H = 2 X X^T)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compresslab.quantization.layer_samples import patches

__all__ = ["RunningHessian", "count_calls", "layer_hessian"]

CHUNK = 2**22  # elements of patches that are laid out at once


class RunningHessian:
    """The mean of x x^T over all tokens so far, in float32 or wider.

    Example:
        >>> hessian = RunningHessian()
        >>> hessian.update(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> hessian.update(torch.tensor([[1.0, 1.0]]))  # a shorter batch
        >>> (hessian.mean * 3).tolist(), hessian.tokens  # 1 + 1 + 1, 0 + 2 + 1, 0 + 4 + 1
        ([[3.0, 3.0], [3.0, 5.0]], 3)
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._sum: Tensor | float = 0.0

    def update(self, x: Tensor) -> None:
        """Count in more tokens.

        Args:
            x: (n, I), or (n, groups, I) for a matrix of each group.
        """
        rows = x.detach().to(torch.promote_types(x.dtype, torch.float32)).movedim(0, -2)  # (groups, n, I)
        self._sum = self._sum + rows.mT @ rows
        self.tokens += len(x)

    @property
    def mean(self) -> Tensor:
        """(I, I) or (groups, I, I).

        Raises:
            ValueError: there was no token.
        """
        if not self.tokens:
            raise ValueError("the mean over 0 tokens is not defined; update it with at least 1")
        return self._sum / self.tokens


class _Enough(Exception):
    """Ends a forward pass behind the last call that was waited for."""


@torch.no_grad()
def count_calls(model: nn.Module, names: Iterable[str], batches: Sequence[Tensor]) -> dict[str, list[int]]:
    """How often each batch runs through some layers, in the order in which they first run; not those that never do.

    Args:
        model: in eval mode.
        names: of layers.
        batches: inputs.

    Example:
        >>> count_calls(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), ["1", "0"], [torch.ones(1, 2)])
        {'0': [1], '1': [1]}
    """
    calls: dict[str, list[int]] = {}
    place = 0

    def watch(name: str) -> RemovableHandle:
        def hook(layer: nn.Module, args: object) -> None:
            calls.setdefault(name, [0] * len(batches))[place] += 1

        return model.get_submodule(name).register_forward_pre_hook(hook)

    with contextlib.ExitStack() as hooks:
        for name in names:
            hooks.enter_context(watch(name))
        for place, inputs in enumerate(batches):  # noqa: B007 (the hook reads it)
            model(inputs)
    return calls


@torch.no_grad()
def layer_hessian(model: nn.Module, name: str, batches: Sequence[Tensor], calls: Sequence[int]) -> RunningHessian:
    """The Hessian of a Linear or Conv layer, of all it gets; for a convolution one matrix for each group.

    Args:
        model: in eval mode; it runs no further than to the layer's last call.
        name: of the layer.
        batches: inputs.
        calls: for each batch, how often it runs through the layer (``count_calls``).

    Example:
        >>> layer_hessian(nn.Sequential(nn.Linear(2, 3)), "0", [torch.tensor([[1.0, 2.0]])], [1]).mean.tolist()
        [[[1.0, 2.0], [2.0, 4.0]]]
    """
    found, left = RunningHessian(), 0

    def hook(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal left
        every = patches(layer, args[0] if args else kwargs["input"])
        for part in every.split(max(CHUNK // max(every[:1].numel(), 1), 1)):
            found.update(part.reshape(-1, getattr(layer, "groups", 1), layer.weight[0].numel()))
        left -= 1
        if not left:
            raise _Enough

    with model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True):
        for inputs, left in zip(batches, calls, strict=True):
            if left:
                with contextlib.suppress(_Enough):
                    model(inputs)
    return found
