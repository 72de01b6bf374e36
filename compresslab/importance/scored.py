"""The words of this package: which weights are scored, the state they are scored in, and sums over channels.

Scores are tensors by parameter name, of the weight's shape (or one number for each output channel); higher means keep.
Scored are the matrices and kernels: Linear, convolutions, attention, recurrent layers. Norms, biases and embeddings are
left out unless they are named: a norm's scale and a word's row live on other scales than a matrix, and in one ranking
with it they set the threshold for all.

While it is scored, a model is in eval mode: no dropout, and batch norm is the function that will be used. Everything
that this touches is put back, also after an error or Ctrl-C.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = [
    "LAYERS",
    "NORMS",
    "Batches",
    "Loss",
    "Scores",
    "checked_loss",
    "mean_gradients",
    "per_channel",
    "read",
    "scored_weights",
    "scoring",
    "wide",
]

Scores = dict[str, Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> mean over the samples, a scalar

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
MATRICES = (*LAYERS, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def scored_weights(model: nn.Module, names: Collection[str] | None = None) -> dict[str, nn.Parameter]:
    """The parameters to score, by name and in the model's order; a tied one once, under its first name.

    Args:
        model: any module.
        names: exactly these parameters, of any kind; None for all matrices and kernels. A matrix that is tied to an
            embedding counts as one.

    Raises:
        ValueError: a name is unknown, or a weight is not finite, has no values, or there is none.

    Example:
        >>> list(scored_weights(nn.Sequential(nn.Embedding(5, 2), nn.Linear(2, 2), nn.LayerNorm(2))))
        ['1.weight']
    """
    known = {name: p for name, p in model.named_parameters() if p.is_floating_point() and p.numel()}
    every = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    if names is None:
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)]
        excluded = {id(p) for module in tables for p in module.parameters()}
        found = {
            name: parameter
            for name, parameter in known.items()
            if isinstance(model.get_submodule(name.rpartition(".")[0]), MATRICES)
            and parameter.dim() >= 2
            and "bias" not in name.rpartition(".")[2]
            and id(parameter) not in excluded
        }
    else:
        wanted = {every.get(name) for name in names}
        found = {name: parameter for name, parameter in known.items() if id(parameter) in wanted}
        unknown = sorted(name for name in names if every.get(name) not in {id(p) for p in found.values()})
        if unknown:
            raise ValueError(f"names={unknown} must be float parameters of the model; choose from {list(known)}")
    if not found:
        raise ValueError(f"{type(model).__name__} has no weight to score; name its parameters, of {list(known)}")
    for name, parameter in found.items():
        if parameter.is_meta:
            raise ValueError(f"{name} is on the meta device and has no values; load the weights first")
        if not parameter.isfinite().all():
            raise ValueError(f"{name} must be finite, it holds NaN or infinity; mend or reload the weights")
    return found


@contextlib.contextmanager
def scoring(
    model: nn.Module, weights: Mapping[str, nn.Parameter] | None = None, *, batch_statistics: bool = False
) -> Iterator[None]:
    """Hold a model in eval mode with gradients for ``weights`` alone; then put back modes, flags and buffers.

    Args:
        model: any module.
        weights: need gradients; None records no gradients at all.
        batch_statistics: batch norm uses the statistics of the batch, as in training, since those of a network that
            was never trained mean nothing. Its running statistics are put back.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(False)
        >>> with scoring(model, {"0.weight": model[0].weight}):
        ...     model.training, model[0].weight.requires_grad
        (False, True)
        >>> model.training, model[0].weight.requires_grad
        (True, False)
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(m, name, b, b.clone()) for m in model.modules() for name, b in m.named_buffers(recurse=False)]
    wanted = {id(parameter) for parameter in (weights or {}).values()}
    try:
        for module, _ in modes:
            module.training = batch_statistics and isinstance(module, NORMS)
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in wanted)
        with torch.set_grad_enabled(weights is not None):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        with torch.no_grad():
            for module, name, buffer, kept in buffers:
                setattr(module, name, buffer)
                buffer.copy_(kept)


def read(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches one by one, each looked at.

    Raises:
        ValueError: there is no batch, or inputs are not finite.

    Example:
        >>> [len(inputs) for inputs, _ in read([(torch.ones(3, 2), torch.zeros(3))])]
        [3]
    """
    place = -1
    for place, (inputs, targets) in enumerate(batches):
        if inputs.is_meta or (inputs.is_floating_point() and not inputs.isfinite().all()):
            found = "have no values" if inputs.is_meta else "hold NaN or infinity"
            raise ValueError(f"inputs of batch {place} must be finite, they {found}; mend the data")
        yield inputs, targets
    if place < 0:
        raise ValueError("batches holds no batch; pass at least one of (inputs, targets)")


def checked_loss(loss: Tensor) -> Tensor:
    """The loss, if scores can be made of it.

    Raises:
        ValueError: it is no single finite number.

    Example:
        >>> checked_loss(torch.tensor(1.5)).item()
        1.5
    """
    if loss.numel() != 1 or not loss.isfinite().all():
        got = loss.item() if loss.numel() == 1 else f"shape {tuple(loss.shape)}"
        raise ValueError(f"loss_fn must return one finite number, the mean over the samples, got {got}; check its data")
    return loss.reshape(())


def mean_gradients(
    model: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    weights: Mapping[str, nn.Parameter],
    create_graph: bool = False,
) -> Scores:
    """The gradient of the mean loss over all samples, however they are batched; a weight that is not used has zeros.

    Args:
        model: inside ``scoring``.
        batches: of (inputs, targets).
        loss_fn: mean over the samples of a batch.
        weights: from ``scored_weights``.
        create_graph: for derivatives of the gradient; keeps the graphs of all batches.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> weights, batches = scored_weights(model), [(torch.tensor([[1.0, 3.0]]), torch.zeros(1))]
        >>> with scoring(model, weights):
        ...     mean_gradients(model, batches, lambda y, t: y.mean(), weights=weights)["weight"].tolist()
        [[1.0, 3.0]]
    """
    total, samples = [torch.zeros((), dtype=wide(w), device=w.device) for w in weights.values()], 0
    for inputs, targets in read(batches):
        loss = checked_loss(loss_fn(model(inputs), targets))
        gradients = torch.autograd.grad(
            loss, list(weights.values()), create_graph=create_graph, materialize_grads=True, allow_unused=True
        )
        total = [so_far + len(inputs) * g.to(so_far.dtype) for so_far, g in zip(total, gradients, strict=True)]
        samples += len(inputs)
    return {name: gradient / samples for name, gradient in zip(weights, total, strict=True)}


def per_channel(scores: Mapping[str, Tensor], *, reduce: str = "sum") -> Scores:
    """One number for each output channel: the sum or the mean of the scores of its weights.

    A sum of scores is not always the score of the group: |a| + |b| is not |a + b|. Where a paper adds first and takes
    the absolute value or the square afterwards, this package has a function for channels of its own.

    Args:
        scores: by name, (O, ...): channels lie along the first axis. Those of a transposed convolution lie along the
            second; pass its scores transposed.
        reduce: ``"sum"``, or ``"mean"`` where wide layers should not count for more.

    Raises:
        ValueError: another ``reduce``.

    Example:
        >>> per_channel({"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})["weight"].tolist()
        [3.0, 7.0]
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce={reduce!r} must be 'sum' or 'mean'")
    return {name: getattr(tensor.reshape(len(tensor), -1), reduce)(1) for name, tensor in scores.items()}


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which statistics of a tensor are kept: float32 or wider.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(tensor.dtype, torch.float32)
