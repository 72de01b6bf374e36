"""Squared gradients of each sample by itself, for a whole batch in one pass.

A layer's gradient for one sample is delta^T x, summed over its positions: x is what the layer gets, delta what flows back
into its output. So one pass for a batch and one matrix product for each layer and sample give all of them, instead of a
pass for each sample. Where there is one position, not even that: the square of a product is the product of the squares.

A layer for which it does not hold (its weight is also used elsewhere, or samples do not lie along its first axis) is
found by comparing the first sample of each batch with autograd, and done sample by sample.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from compresslab.importance.patches import columns
from compresslab.importance.scored import Loss, Scores, checked_loss, wide

__all__ = ["Answers", "sample_losses", "sum_of_squares"]

CHUNK = 2**18  # elements of patches or per-sample gradients of one layer held at once: what a core's cache takes
Answers = Sequence[tuple[Tensor, Tensor]]  # labels for the batch, and the share with which each sample's counts


def sample_losses(outputs: Tensor, targets: Tensor, loss_fn: Loss) -> Tensor:
    """(B,): the loss of each sample as if it were alone, so that no reduction of ``loss_fn`` matters.

    Args:
        outputs, targets: samples along the first axis.
        loss_fn: (outputs, targets) -> a number, given one sample at a time (all at once by ``torch.vmap`` if it can).

    Raises:
        ValueError: a loss that is no single finite number.

    Example:
        >>> sample_losses(torch.tensor([[1.0, 3.0], [5.0, 5.0]]), torch.zeros(2), lambda y, t: y.mean()).tolist()
        [2.0, 5.0]
    """
    with contextlib.suppress(RuntimeError, ValueError):  # what a loss does that vmap cannot: numbers in Python, chance
        losses = torch.vmap(lambda o, t: loss_fn(o[None], t[None]))(outputs, targets)
        if losses.shape == outputs.shape[:1] and losses.isfinite().all():
            return losses
    return torch.stack([checked_loss(loss_fn(o, t)) for o, t in zip(outputs.split(1), targets.split(1), strict=True)])


def sum_of_squares(
    model: nn.Module, inputs: Tensor, answers: Answers, loss_fn: Loss, *, weights: Mapping[str, nn.Parameter]
) -> Scores:
    """The sum over the samples (and over the answers, each times its share) of squared gradients, by weight.

    Args:
        model: inside ``scoring``; one sample's output must not depend on the others.
        inputs: samples along the first axis.
        answers: labels, with shares (B,) >= 0.
        loss_fn: called for each sample by itself.
        weights: from ``scored_weights``.

    Raises:
        ValueError: a loss that is not finite.

    Example:
        >>> from compresslab.importance.scored import scored_weights
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> answers = [(torch.zeros(2), torch.ones(2))]
        >>> weights, inputs = scored_weights(layer), torch.tensor([[1.0], [-3.0]])
        >>> sum_of_squares(layer, inputs, answers, lambda y, t: y.sum(), weights=weights)["weight"].item()  # 1 + 9
        10.0
    """
    found, left = _by_layer(model, inputs, answers, loss_fn, weights=weights)
    for place in range(len(inputs) if left else 0):
        alone = slice(place, place + 1)
        one = [(labels[alone], shares[alone]) for labels, shares in answers]
        for name, square in _alone(model, inputs[alone], one, loss_fn, weights=left).items():
            found[name] = found.get(name, 0) + square
    return found


def _alone(
    model: nn.Module, inputs: Tensor, answers: Answers, loss_fn: Loss, *, weights: Mapping[str, nn.Parameter]
) -> Scores:
    """The squared gradients of one sample, by autograd."""
    outputs, found = model(inputs), defaultdict(float)
    for place, (targets, shares) in enumerate(answers):
        gradients = torch.autograd.grad(
            sample_losses(outputs, targets, loss_fn) @ shares.sqrt().to(outputs),  # squared, it counts share times
            list(weights.values()),
            retain_graph=place + 1 < len(answers),
            allow_unused=True,
            materialize_grads=True,
        )
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            found[name] = found[name] + gradient.to(wide(weight)).square()
    return dict(found)


def _by_layer(
    model: nn.Module, inputs: Tensor, answers: Answers, loss_fn: Loss, *, weights: Mapping[str, nn.Parameter]
) -> tuple[Scores, dict[str, nn.Parameter]]:
    """The sums of squared gradients over a batch, from what layers get and what flows back; and the weights left."""
    names, calls = {id(weight): name for name, weight in weights.items()}, []

    def keep(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        # the edge of the graph, since a ReLU in place may change the output itself
        calls.append((names[id(layer.weight)], layer, x, torch.autograd.graph.get_gradient_edge(output)))

    with contextlib.ExitStack() as hooks:
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and id(layer.weight) in names:
                hooks.enter_context(layer.register_forward_hook(keep, with_kwargs=True))
        outputs = model(inputs)
    fits = {name: all(len(x) == len(inputs) for n, _, x, _ in calls if n == name) for name, *_ in calls}
    calls = [call for call in calls if fits[call[0]] and call[2].dim() >= 2]
    found, first = defaultdict(float), defaultdict(float)
    for place, (targets, shares) in enumerate(answers if calls else ()):
        loss = sample_losses(outputs, targets, loss_fn) @ shares.sqrt().to(outputs)
        edges, retain = [edge for *_, edge in calls], place + 1 < len(answers)
        deltas = torch.autograd.grad(loss, edges, retain_graph=retain, allow_unused=True)
        rows = defaultdict(list)
        for (name, layer, x, _), delta in zip(calls, deltas, strict=True):
            if delta is not None:
                rows[name].append((layer, x, delta))
        for name, uses in rows.items():
            total, one = _squares(uses, weights[name])
            found[name], first[name] = found[name] + total, first[name] + one
    alone = slice(0, 1)
    one = [(targets[alone], shares[alone]) for targets, shares in answers]
    truth = _alone(model, inputs[alone], one, loss_fn, weights=weights)
    left = {name: weight for name, weight in weights.items() if not _same(first[name], truth[name])}
    return {name: square for name, square in found.items() if name not in left}, left


def _same(first: Tensor | float, truth: Tensor) -> bool:
    tolerance = 1e-3 * float(truth.abs().max())
    return bool(((truth - first).abs() <= tolerance).all())


def _squares(uses: list[tuple[nn.Module, Tensor, Tensor]], weight: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the samples of the squared gradient, and that of the first sample alone."""
    dtype, (layer, x, delta) = wide(weight), uses[0]
    if len(uses) == 1 and isinstance(layer, nn.Linear) and x.dim() == 2:  # one position: a product of squares
        rows, delta = (part.to(dtype).square() for part in (x, delta))
        return delta.T @ rows, torch.outer(delta[0], rows[0])
    groups, total, first = getattr(layer, "groups", 1), torch.zeros_like(weight, dtype=dtype).flatten(), None
    positions = max(delta[0].numel() // len(weight) for _, _, delta in uses)
    size = max(1, CHUNK // max(weight.numel(), positions * groups * weight[0].numel()))
    for start in range(0, len(x), size):
        chunk, gradient = slice(start, start + size), None
        for layer, x, delta in uses:
            rows = columns(layer, x[chunk].to(dtype)).unflatten(1, (groups, -1))  # (b, groups, I, P)
            d, linear = delta[chunk].to(dtype), isinstance(layer, nn.Linear)
            d = (
                d.reshape(len(d), -1, 1, len(weight)).permute(0, 2, 3, 1)
                if linear
                else d.flatten(2).unflatten(1, (groups, -1))
            )
            product = d @ rows.mT  # (b, groups, O / groups, I)
            gradient = product if gradient is None else gradient + product
        squares = gradient.flatten(1).square_()
        first = squares[0].clone() if first is None else first
        total += squares.sum(0)
    return total.reshape(weight.shape), first.reshape(weight.shape)
