"""What a model and the layers inside it put out: tapped by name, in eval mode, and two sets of maps at one size."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["check_samples", "evaluating", "logits_of", "same_size", "tapped"]


@contextlib.contextmanager
def tapped(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context: what the named modules put out, by name, as the model is called; afterwards no hook is left.

    A module that gives a tuple gives its first element; of one that is called twice, the last output is kept.

    Args:
        model: any module.
        names: of modules in it, as in ``model.named_modules()``.

    Raises:
        ValueError: there is no such module.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.ReLU(), nn.Flatten())
        >>> with tapped(model, ["0"]) as seen:
        ...     _ = model(torch.tensor([[-1.0, 2.0]]))
        >>> seen
        {'0': tensor([[0., 2.]])}
    """
    seen: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3, cutoff=0.3) or list(modules)[1:4]
            raise ValueError(f"{name!r} is no module of {type(model).__name__}; there are {', '.join(map(repr, near))}")
    with contextlib.ExitStack() as hooks:
        for name in names:

            def keep(module: nn.Module, args: tuple, output: object, name: str = name) -> None:
                seen[name] = output[0] if isinstance(output, tuple | list) else output

            hooks.enter_context(modules[name].register_forward_hook(keep))
        yield seen


def same_size(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller height and width of the two; the larger is averaged over areas.

    Args:
        first, second: (B, C, H, W) each, with any number of channels. Other shapes come back as they are.

    Example:
        >>> import torch
        >>> first, second = same_size(torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, 3, 2, 2))
        >>> first
        tensor([[[[ 2.5000,  4.5000],
                  [10.5000, 12.5000]]]])
    """
    if first.dim() != 4 or second.dim() != 4 or first.shape[2:] == second.shape[2:]:
        return first, second
    size = [min(sides) for sides in zip(first.shape[2:], second.shape[2:], strict=True)]
    return F.adaptive_avg_pool2d(first, size), F.adaptive_avg_pool2d(second, size)


def check_samples(student: Tensor, teacher: Tensor) -> None:
    """Raise unless both hold as many samples.

    Example:
        >>> import torch
        >>> check_samples(torch.zeros(2, 3), torch.zeros(2, 5))
    """
    if student.dim() < 2 or student.dim() != teacher.dim() or len(student) != len(teacher):
        raise ValueError(
            f"student_features {tuple(student.shape)} and teacher_features {tuple(teacher.shape)} must be of the same "
            "samples, with as many axes: (B, D), (B, L, D) or (B, C, H, W)"
        )


def logits_of(output: Any) -> Tensor:
    """The logits of what a model put out: a tensor, an object with ``.logits``, or a tuple that starts with them.

    Raises:
        TypeError: it holds none.

    Example:
        >>> import torch
        >>> logits_of((torch.ones(1), "attention"))
        tensor([1.])
    """
    found = getattr(output, "logits", output[0] if isinstance(output, tuple | list) and output else output)
    if not isinstance(found, Tensor):
        raise TypeError(f"the model gave {type(output).__name__} without logits; take a model with a head")
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within the context the model is in eval mode; afterwards every module's flag is what it was.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     inside = model.training
        >>> inside, model.training
        (False, True)
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag
