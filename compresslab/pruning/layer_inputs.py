"""What layers get as input, summed up as it passes by: tokens, squares of each column, and the Gram matrix.

A layer is a matrix W (O, I) that multiplies one column of numbers x for each token: a sample, a position in a text, or
the patch around a position of an image (im2col); a convolution with groups has one matrix and one x for each. What
pruning asks of the inputs are means over all tokens, so nothing has to be kept but sums:

    squares_i = sum_t x_ti^2        gram_ij = mean_t x_ti x_tj        mean_t |D x_t|^2 = trace(D gram D^T)

The last is the error of the output when the weights change by D. Every token counts once, however they are batched.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from compresslab.pruning.masks import check_finite

__all__ = ["LAYERS", "InputStatistics", "evaluating", "in_order", "input_statistics", "inputs_of", "patches"]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CHUNK = 2**22  # elements of patches that are laid out at once


class InputStatistics:
    """Sums over all tokens so far, in float32 or wider.

    Args:
        gram: also sum up x x^T, which takes I * I numbers for each group.

    Example:
        >>> seen = InputStatistics()
        >>> seen.update(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        >>> seen.update(torch.tensor([[1.0, 1.0]]))  # a shorter batch
        >>> seen.tokens, seen.squares.tolist(), seen.mean.tolist()
        (3, [[3.0, 5.0]], [[1.0, 1.0]])
        >>> (seen.gram * 3).tolist()  # 1 + 1 + 1, 0 + 2 + 1, 0 + 4 + 1
        [[[3.0, 3.0], [3.0, 5.0]]]
    """

    def __init__(self, *, gram: bool = True) -> None:
        self.tokens = 0
        self._with_gram = gram
        self._sum: Tensor | float = 0.0  # (groups, I)
        self._squares: Tensor | float = 0.0  # (groups, I)
        self._products: Tensor | float = 0.0  # (groups, I, I)

    def update(self, x: Tensor) -> None:
        """Count in more tokens.

        Args:
            x: (n, I), or (n, groups, I).
        """
        rows = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        rows = (rows if x.dim() == 3 else rows.unsqueeze(1)).movedim(0, 1)  # (groups, n, I)
        self._sum = self._sum + rows.sum(1)
        self._squares = self._squares + rows.square().sum(1)
        if self._with_gram:
            self._products = self._products + rows.mT @ rows
        self.tokens += len(x)

    @property
    def squares(self) -> Tensor:
        """The sum of squares of each input column, (groups, I)."""
        return self._seen(self._squares)

    @property
    def mean(self) -> Tensor:
        """The mean of each input column, (groups, I)."""
        return self._seen(self._sum) / self.tokens

    @property
    def gram(self) -> Tensor:
        """The mean of x x^T, (groups, I, I).

        Raises:
            ValueError: it was not asked for.
        """
        if not self._with_gram:
            raise ValueError("gram=False keeps no Gram matrix; make the statistics with gram=True")
        return self._seen(self._products) / self.tokens

    def _seen(self, total: Tensor | float) -> Tensor:
        if not self.tokens:
            raise ValueError("statistics over 0 tokens are not defined; update them with at least 1")
        return total


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


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, without gradients; the flag of each module is put back behind.

    Example:
        >>> model = nn.Sequential(nn.Dropout()).train()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training, model[0].training
        (True, True)
    """
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in flags.items():
            module.training = training


def input_statistics(
    model: nn.Module, batches: Iterable, names: Iterable[str] | None = None, *, gram: bool = True
) -> dict[str, InputStatistics]:
    """Statistics of what some layers get, all in one pass, by layer in the order in which they first run.

    Args:
        model: any module; it runs in eval mode and is left as it was.
        batches: of (inputs, labels), the labels are not used.
        names: of Linear and Conv layers; all of them if None. A subclass is not found by itself.
        gram: also the Gram matrices.

    Returns:
        By layer. One that no token reaches is not there; one layer under two names has the first.

    Raises:
        ValueError: there is no batch, inputs of the model or of a layer are not finite, or a name is no such layer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 1, 2, bias=False), nn.Flatten(), nn.Linear(1, 1))
        >>> found = input_statistics(model, [(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), None)])
        >>> list(found), found["0"].squares.tolist()
        (['0', '2'], [[1.0, 4.0, 9.0, 16.0]])
    """
    layers = {name: layer for name, layer in model.named_modules() if type(layer) in LAYERS}
    names = list(layers) if names is None else list(names)
    modules = dict(model.named_modules(remove_duplicate=False))
    wrong = [name for name in names if not isinstance(modules.get(name), LAYERS)]
    if wrong:
        raise ValueError(f"{wrong} must be Linear or Conv layers of the model; choose from {list(layers)}")
    found: dict[str, InputStatistics] = {}

    def watch(name: str) -> RemovableHandle:
        def hook(layer: nn.Module, args: tuple, kwargs: dict) -> None:
            every = patches(layer, args[0] if args else kwargs["input"])
            seen = found.setdefault(name, InputStatistics(gram=gram))
            for part in every.split(max(CHUNK // max(every[:1].numel(), 1), 1)):
                seen.update(part.reshape(-1, getattr(layer, "groups", 1), layer.weight[0].numel()))

        return modules[name].register_forward_pre_hook(hook, with_kwargs=True)

    with contextlib.ExitStack() as hooks, evaluating(model):
        for name in names:
            hooks.enter_context(watch(name))
        for inputs in inputs_of(batches):
            model(inputs)
    found = {name: seen for name, seen in found.items() if seen.tokens}
    for name, seen in found.items():
        check_finite(seen.squares, f"the sum of squares of what {name!r} gets")
    return found


def in_order(
    model: nn.Module, batches: Sequence[Tensor], names: Sequence[str], *, gram: bool = True
) -> Iterator[tuple[str, InputStatistics]]:
    """Layer after layer as they run, with statistics of what it gets now: the caller may change each before the next.

    Args:
        model: as in ``input_statistics``. It runs once for each layer, and once before to find the order.
        batches: inputs only (``inputs_of``).
        names: of Linear and Conv layers.
        gram: also the Gram matrices.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1))
        >>> for name, seen in in_order(model, [torch.ones(5, 1)], ["1", "0"]):
        ...     print(name, seen.squares.item() == 5)
        ...     _ = model[0].weight.data.fill_(1.0)
        0 True
        1 True
    """
    rows = [(inputs, None) for inputs in batches]
    for name in input_statistics(model, rows, names, gram=False):
        found = input_statistics(model, rows, [name], gram=gram)
        if name in found:  # a router may send nothing here any more
            yield name, found[name]
