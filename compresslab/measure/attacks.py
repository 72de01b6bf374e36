"""Inputs made to be misread: changed by at most epsilon a pixel, so as to raise the loss.

The fast gradient sign method goes one step, to the corner that the gradient points to; projected gradient descent goes
many small ones, from a random start, and after each comes back to within epsilon (J is the loss, y the label):

    FGSM    x' = x + epsilon sign(grad_x J(x, y))                                       Goodfellow, section 4
    PGD     x  <- clip(x + alpha sign(grad_x J(x, y)) to [x0 - epsilon, x0 + epsilon])  Madry, section 2.1

Rounding has the gradient 0 almost everywhere. A quantized model has none to follow, so an attack on it fails, and the
model looks safe, which it is not (Athalye calls it a shattered gradient). ``straight_through`` gives it the gradient
of the model that it was made from, at its own outputs: then quantized models are attacked as well as any other.

    Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples", 2014,
    https://arxiv.org/abs/1412.6572
    Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards deep learning models resistant to adversarial attacks", 2017,
    https://arxiv.org/abs/1706.06083
    Athalye, Carlini and Wagner, "Obfuscated gradients give a false sense of security", 2018,
    https://arxiv.org/abs/1802.00420, section 4.1 (BPDA)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compresslab.measure.running import evaluating

__all__ = ["fgsm", "pgd", "straight_through"]

Model = Callable[[Tensor], Tensor]


class _StraightThrough(nn.Module):
    def __init__(self, model: Model, stand_in: Model) -> None:
        super().__init__()
        self.model, self.stand_in = model, stand_in  # modules among them are switched to eval with this one

    def forward(self, x: Tensor) -> Tensor:
        near = self.stand_in(x)
        with torch.no_grad():
            true = self.model(x.detach())
        return true + (near - near.detach())  # true + 0


def straight_through(model: Model, stand_in: Model) -> nn.Module:
    """A model with the outputs of ``model`` and the gradients of ``stand_in``.

    Args:
        model: anything that turns inputs into logits, a runtime's session too; no gradient is asked of it.
        stand_in: a differentiable model of nearly the same function, such as the one that was quantized.

    Example:
        >>> x = torch.tensor([0.6], requires_grad=True)
        >>> y = straight_through(torch.round, lambda x: 3 * x)(x)
        >>> y.item(), torch.autograd.grad(y, x)[0].item()
        (1.0, 3.0)
    """
    return _StraightThrough(model, stand_in)


def fgsm(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
) -> Tensor:
    """The inputs after one step of ``epsilon`` that raises the loss.

    Args:
        model: from inputs to logits (N, C), differentiable; a module is run in eval mode and left as it was.
        inputs: (N, ...) floats within ``low`` and ``high``.
        labels: (N,) int64.
        epsilon: the most that an entry may change, in units of the inputs, at least 0; a tensor is broadcast, for
            channels that are normalized differently.
        low: the least that an entry may be: of a black pixel, after normalization.
        high: the most.

    Returns:
        New inputs.

    Raises:
        ValueError: epsilon is negative, inputs lie outside the bounds, or no gradient comes back.

    Example:
        >>> model = lambda x: torch.stack([x[:, 0], x[:, 1]], 1)
        >>> fgsm(model, torch.tensor([[0.6, 0.5]]), torch.tensor([0]), epsilon=0.1).tolist()
        [[0.5, 0.6000000238418579]]
    """
    _check(inputs, epsilon, low, high)
    with evaluating(model):
        moved = inputs + epsilon * _gradient(model, inputs, labels).sign()
    return _clip(moved, low, high)


def pgd(
    model: Model,
    inputs: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int = 10,
    low: float | Tensor = 0.0,
    high: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The inputs after ``steps`` of 2.5 epsilon / steps each from a random start, never more than ``epsilon`` away.

    Args:
        model: as in ``fgsm``.
        inputs: (N, ...) floats within ``low`` and ``high``.
        labels: (N,) int64.
        epsilon: the most that an entry may change; a tensor is broadcast.
        steps: at least 1. The step size lets each entry cross the whole allowed range, from any start.
        low: the least that an entry may be.
        high: the most.
        generator: draws the start, uniform within epsilon; None starts from seed 0.

    Returns:
        New inputs, for each sample the last that was reached.

    Raises:
        ValueError: ``steps`` is below 1, or as in ``fgsm``.

    Example:
        >>> model = lambda x: torch.stack([x[:, 0], x[:, 1]], 1)
        >>> pgd(model, torch.tensor([[0.75, 0.5]]), torch.tensor([0]), epsilon=0.25).tolist()
        [[0.5, 0.75]]
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be a whole number, at least 1; try 10")
    _check(inputs, epsilon, low, high)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    start = (2 * torch.rand(inputs.shape, generator=generator) - 1).to(inputs)
    x = _clip(inputs + epsilon * start, low, high)
    with evaluating(model):
        for _ in range(steps):
            x = x + 2.5 * epsilon / steps * _gradient(model, x, labels).sign()
            x = _clip(_clip(x, inputs - epsilon, inputs + epsilon), low, high)
    return x


def _gradient(model: Model, inputs: Tensor, labels: Tensor) -> Tensor:
    """Of the loss by the inputs; parameters keep the gradients that they had."""
    x = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(model(x), labels, reduction="sum")  # each sample its own: no share of a mean
        found = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    if found is None or not found.any():
        raise ValueError(
            f"the gradient of {len(inputs)} inputs is 0 everywhere: rounding hides it, and the attack would seem to "
            "fail; pass straight_through(model, the model it was made from)"
        )
    return found


def _clip(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in (low, high))
    return torch.minimum(torch.maximum(x, low), high)


def _check(inputs: Tensor, epsilon: float | Tensor, low: float | Tensor, high: float | Tensor) -> None:
    if not (torch.as_tensor(epsilon) >= 0).all():
        raise ValueError(f"epsilon={epsilon} must be at least 0, in units of the inputs; try 0.03")
    slack = 1e-5 * torch.as_tensor(high - low).abs().max().item()
    if ((inputs < low - slack) | (inputs > high + slack)).any():
        ends = f"{inputs.min().item():.3g}..{inputs.max().item():.3g}"
        raise ValueError(
            f"inputs in {ends} must lie within low and high; for normalized images those are (0 - mean) / std and "
            "(1 - mean) / std"
        )
