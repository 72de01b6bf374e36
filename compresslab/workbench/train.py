"""One training loop for every lesson: images and text, plain, distilled, pruned or quantized, on one process or several.

``fit`` trains a copy of a model. The same arguments on the same machine with the same number of threads give the same
weights to the bit, also when the run was interrupted and resumed. Started by ``torchrun`` it shares each batch among
the processes: each takes a slice and the gradients are averaged, weighted by the sizes of the slices, so the steps are
those of one process (to rounding). Batch norm is the exception: each process normalizes with its own slice, and the
running statistics of rank 0 are kept.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from compresslab.workbench.files import CorruptArtifact, load_tensors, save_tensors

__all__ = ["Evaluation", "Fitted", "evaluate", "fit", "jitter", "lr_factor"]

Batch = tuple[Tensor, ...]  # inputs, targets, and whatever else a loss_fn wants, all with the samples first
Loss = Tensor | tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """What ``fit`` made."""

    model: nn.Module  # the trained copy, in eval mode
    history: list[dict[str, float]]  # one dict an epoch: epoch, steps, train_loss, parts of the loss, lr, val_...
    seconds: float  # spent in this call


@dataclass(frozen=True)
class Evaluation:
    """The quality of a model on held-out data. Images have an accuracy, text has a perplexity."""

    loss: float  # mean cross-entropy, in nats
    accuracy: float | None  # fraction of the images classified right
    perplexity: float | None  # exp(loss)
    n: int  # predictions measured: images, or tokens

    def as_row(self) -> dict[str, float]:
        """val_loss, and val_accuracy or val_perplexity, as in the history."""
        metric = {"val_perplexity": self.perplexity} if self.accuracy is None else {"val_accuracy": self.accuracy}
        return {"val_loss": self.loss, **metric}


def fit(
    model: nn.Module,
    train: Iterable[Batch],
    *,
    val: Iterable[Batch] | None = None,
    epochs: int = 5,
    batch_size: int = 128,
    lr: float = 2e-3,
    weight_decay: float = 0.05,
    schedule: str = "cosine",
    warmup: float = 0.1,
    clip: float | None = 1.0,
    precision: str = "fp32",
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    loss_fn: Callable[[nn.Module, Batch], Loss] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    after_step: Callable[[nn.Module], object] | None = None,
    resume: str | os.PathLike | None = None,
    progress: bool = False,
    seed: int = 0,
) -> Fitted:
    """Train a copy of a model; what was given stays as it was.

    Args:
        model: maps inputs (B, ...) to logits (B, classes), or tokens (B, L) to logits (B, L, vocabulary).
        train: a split of the course's data, shuffled anew each epoch, or any re-iterable of batches
            (inputs, targets), taken in its own order.
        val: the same kind of data; measured after each epoch.
        epochs: passes over ``train``.
        batch_size: samples a step, over all processes. A re-iterable has its own.
        lr: learning rate at its peak.
        weight_decay: of AdamW, on matrices and kernels only.
        schedule: after the warm-up, ``"cosine"`` or ``"linear"`` down to zero, or ``"constant"``; step by step.
        warmup: fraction of the steps, 0..1, in which the learning rate rises.
        clip: largest norm of the gradient; None leaves it alone.
        precision: ``"fp32"``, or ``"bf16"`` for bfloat16 where autocast allows it.
        optimizer: called with (parameters, lr=lr); AdamW without it.
        loss_fn: called with (model, batch), gives the loss to minimize, or it and a dict of its parts for the
            history. Without it: ``model.loss(inputs, targets)`` where the model has one, else cross-entropy.
        augment: called with (inputs, generator), gives the inputs to train on.
        after_step: called with the model after each step, to put masks back, say.
        resume: a safetensors file, written after each epoch. Where it exists, training goes on from it.
        progress: show a bar for each epoch.
        seed: of the order of the samples, the augmentation and the dropout.

    Returns:
        The trained model in eval mode, the history and the seconds.

    Raises:
        ValueError: an option out of its range, no data, a label that is not a class, nothing to train, or a resume
            file of another run.
        FloatingPointError: the loss or the gradient is not finite; the message says where.

    Example:
        >>> from compresslab.workbench import models
        >>> batch = torch.ones(4, 1, 32, 32), torch.tensor([0, 1, 2, 3])
        >>> fitted = fit(models.build("mlp", width=8), [batch], epochs=2)
        >>> first, second = fitted.history
        >>> second["train_loss"] < first["train_loss"]
        True
    """
    started = time.perf_counter()
    options = {
        **{"epochs": epochs, "batch_size": batch_size, "lr": lr, "weight_decay": weight_decay},
        **{"schedule": schedule, "warmup": warmup, "clip": clip, "precision": precision},
    }
    _check_options(**options)
    rank, processes = _processes()
    model = copy.deepcopy(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no parameter with requires_grad=True; unfreeze what is to be trained")
    device = parameters[0].device
    optimizer = optimizer(parameters, lr=lr) if optimizer else _adamw(parameters, lr, weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        epoch_steps = _count(_batches(train, batch_size, model))
        steps = epochs * epoch_steps
        if loss_fn is None:
            _check_targets(train, model)
            loss_fn = _default_loss
        if processes > 1:
            _broadcast(model)
        start = {"seed": seed, "steps": steps, "processes": processes, "initial_weights": _checksum(model)}
        run = {**options, **start, "optimizer": type(optimizer).__name__}
        history = _load_state(resume, run, model, optimizer) if resume and Path(resume).exists() else []
        for epoch in range(len(history), epochs):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            _seed_global(device, seed * 1_000_003 + epoch + 7919 * rank)
            model.train()
            sums: dict[str, float] = {}
            samples = 0
            batches = _batches(train, batch_size, model, generator)
            bar = tqdm(batches, desc=f"epoch {epoch + 1} of {epochs}", disable=not progress or rank > 0, leave=False)
            for index, batch in enumerate(bar):
                step = epoch * epoch_steps + index
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * lr_factor(step, steps, schedule=schedule, warmup=warmup)
                if augment:
                    batch = (augment(batch[0], generator), *batch[1:])
                total = len(batch[0])
                batch, share = _slice(batch, rank, processes, device)

                optimizer.zero_grad()
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    loss = loss_fn(model, batch)
                    loss, parts = loss if isinstance(loss, tuple) else (loss, {})
                loss.backward()
                losses = {"train_loss": loss.item(), **{name: part.item() for name, part in parts.items()}}
                if processes > 1:
                    losses = _average(parameters, losses, share)
                norm = nn.utils.clip_grad_norm_(parameters, clip or math.inf)
                if not (math.isfinite(losses["train_loss"]) and norm.isfinite()):
                    raise FloatingPointError(
                        f"the loss is {losses['train_loss']}, the norm of the gradient {norm.item()} at epoch {epoch + 1}, "
                        f"step {step + 1}, batch {index + 1}; try a lower lr than {lr}, a longer warmup or a smaller "
                        "clip, and look for NaN in the weights that training started from and in this batch"
                    )
                optimizer.step()
                if after_step:
                    after_step(model)
                samples += total
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value * total

            if processes > 1:
                _broadcast(model)  # the running statistics of rank 0, for all
            row = {"epoch": epoch + 1, "steps": step + 1, **{name: value / samples for name, value in sums.items()}}
            row["lr"] = optimizer.param_groups[0]["lr"]
            if val is not None:
                row |= evaluate(model, val).as_row()
            history.append(row)
            if resume and rank == 0:
                _save_state(resume, run, history, model, optimizer)
            if processes > 1:
                dist.barrier()  # nobody reads the file before it is whole
    optimizer.zero_grad()
    return Fitted(model.eval(), history, time.perf_counter() - started)


def lr_factor(step: int, steps: int, *, schedule: str = "cosine", warmup: float = 0.1) -> float:
    """What the peak learning rate is multiplied by, 0..1.

    Args:
        step: 0 for the first.
        steps: of the whole run.
        schedule: ``"cosine"``, ``"linear"`` or ``"constant"``.
        warmup: fraction of the steps, 0..1.

    Example:
        >>> [lr_factor(step, 4, schedule="linear", warmup=0.5) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[schedule]


def jitter(images: Tensor, generator: torch.Generator, *, pixels: int = 2) -> Tensor:
    """Each image moved by up to some pixels in both directions, around the edge: an ``augment`` for ``fit``.

    Args:
        images: (B, C, H, W).
        generator: source of the shifts.
        pixels: the largest shift, at least 0.

    Returns:
        New images of the same shape.

    Example:
        >>> images = torch.arange(6.0).view(1, 1, 2, 3)
        >>> jitter(images, torch.Generator().manual_seed(0), pixels=1)
        tensor([[[[5., 3., 4.],
                  [2., 0., 1.]]]])
    """
    dy, dx = torch.randint(-pixels, pixels + 1, (2, len(images), 1, 1), generator=generator)
    sample = torch.arange(len(images)).view(-1, 1, 1)
    rows = (torch.arange(images.shape[2]).view(-1, 1) + dy) % images.shape[2]  # (B, H, 1)
    columns = (torch.arange(images.shape[3]) + dx) % images.shape[3]  # (B, 1, W)
    return images.movedim(1, -1)[sample, rows, columns].movedim(-1, 1).contiguous()


@torch.no_grad()
def evaluate(model: nn.Module, data: Iterable[Batch], *, batch_size: int = 256) -> Evaluation:
    """Loss, and accuracy or perplexity, of a model in eval mode; its flags are put back.

    Args:
        model: as in ``fit``.
        data: a split, or any iterable of (inputs, targets); targets (B,) are classes, targets (B, L) are tokens.
        batch_size: for a split.

    Raises:
        ValueError: there is no data.
        FloatingPointError: the loss is not finite.

    Example:
        >>> batch = torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0])
        >>> evaluate(nn.Identity(), [batch]).accuracy
        0.5
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    loss = correct = n = 0
    with _eval_mode(model):
        for inputs, targets, *_ in _batches(data, batch_size, model):
            logits, targets = model(inputs.to(device)).float(), targets.to(device)
            loss += F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum").item()
            correct += (logits.argmax(-1) == targets).sum().item()
            n += targets.numel()
    if n == 0:
        raise ValueError("data is empty: there is nothing to evaluate; pass at least one batch")
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss over {n} predictions is {loss}; look for NaN in the weights and in the data"
        )
    if targets.dim() == 1:
        return Evaluation(loss / n, correct / n, None, n)
    return Evaluation(loss / n, None, torch.tensor(loss / n, dtype=torch.float64).exp().item(), n)


def _check_options(epochs, batch_size, lr, weight_decay, schedule, warmup, clip, precision) -> None:
    rules = [
        ("epochs", epochs, isinstance(epochs, int) and epochs >= 1, "be a whole number, at least 1"),
        ("batch_size", batch_size, isinstance(batch_size, int) and batch_size >= 1, "be at least 1; try 128"),
        ("lr", lr, 0 < lr < math.inf, "be greater than 0; try 2e-3"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "be at least 0"),
        ("schedule", schedule, schedule in ("cosine", "linear", "constant"), "be 'cosine', 'linear' or 'constant'"),
        ("warmup", warmup, 0 <= warmup <= 1, "be a fraction of the steps, 0 to 1"),
        ("clip", clip, clip is None or clip > 0, "be greater than 0, or None"),
        ("precision", precision, precision in ("fp32", "bf16"), "be 'fp32' or 'bf16'"),
    ]
    for name, value, right, rule in rules:
        if not right:
            raise ValueError(f"{name}={value!r} must {rule}")


def _batches(
    data: Iterable[Batch], batch_size: int, model: nn.Module, generator: torch.Generator | None = None
) -> Iterable[Batch]:
    """Batches of a split, shuffled if there is a generator; anything else as it comes."""
    if not hasattr(data, "batches"):
        return data
    options = {"context": model.context} if hasattr(data, "tokens") and hasattr(model, "context") else {}
    return data.batches(batch_size, shuffle=generator is not None, generator=generator, **options)


def _count(batches: Iterable[Batch]) -> int:
    if isinstance(batches, Iterator):
        raise ValueError(f"train is a {type(batches).__name__}, gone after one epoch; pass a list, a loader or a split")
    count = len(batches) if hasattr(batches, "__len__") else sum(1 for _ in batches)
    if count == 0:
        raise ValueError("train is empty: there is no batch to learn from; pass at least one")
    return count


def _check_targets(train: Iterable[Batch], model: nn.Module) -> None:
    """Compare every label with the number of logits: on a GPU a wrong one ends the process."""
    inputs = next(iter(_batches(train, 1, model)))[0][:1]
    with torch.no_grad(), _eval_mode(model):
        outputs = model(inputs.to(next(model.parameters()).device)).shape[-1]
    labels = [train.labels] if hasattr(train, "labels") else (batch[1] for batch in _batches(train, 256, model))
    position = 0
    for targets in labels:
        targets = targets.flatten()
        wrong = ((targets < 0) | (targets >= outputs)).nonzero()
        if len(wrong):
            index = int(wrong[0])
            raise ValueError(
                f"targets must be in 0..{outputs - 1}, for the model has {outputs} outputs; "
                f"got {targets[index].item()} at position {position + index}"
            )
        position += len(targets)


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _adamw(parameters: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]  # biases and norms are not pulled to zero
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr)


def _default_loss(model: nn.Module, batch: Batch) -> Loss:
    inputs, targets = batch[:2]
    if hasattr(model, "loss"):
        return model.loss(inputs, targets)
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def _seed_global(device: torch.device, seed: int) -> None:
    """For dropout and other draws from the global random state; ``fork_rng`` puts that state back."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _checksum(model: nn.Module) -> int:
    checksum = 0
    for name, tensor in model.state_dict().items():
        checksum = zlib.crc32(f"{name} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), checksum)
    return checksum


def _save_state(
    path: str | os.PathLike, run: dict, history: list[dict], model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
    save_tensors(path, tensors, {"run": json.dumps(run), "history": json.dumps(history)})


def _load_state(
    path: str | os.PathLike, run: dict, model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[dict[str, float]]:
    """Put the model and the optimizer where the file left them; the history so far."""
    tensors, metadata = load_tensors(path)
    if not {"run", "history"} <= metadata.keys():
        raise CorruptArtifact(f"resume={str(path)!r} was not written by fit; choose another path or delete the file")
    saved = json.loads(metadata["run"])
    other = [f"{name}={value!r} (there {saved.get(name)!r})" for name, value in run.items() if value != saved.get(name)]
    if other:
        raise ValueError(
            f"resume={str(path)!r} holds another run: {', '.join(other)}; "
            "use its options, choose another path or delete the file"
        )
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = tensor
    prefix = "model."
    model.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads(metadata["history"])


def _processes() -> tuple[int, int]:
    """Rank and number of processes; those that torchrun started are joined on first use."""
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return 0, 1
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def _slice(batch: Batch, rank: int, processes: int, device: torch.device) -> tuple[Batch, float]:
    """This process's samples and their share of the batch. One without samples takes the first, with share 0."""
    mine = tuple(part.tensor_split(processes)[rank] for part in batch)
    share = len(mine[0]) / len(batch[0])
    if share == 0:
        mine = tuple(part[:1] for part in batch)
    return tuple(part.to(device) for part in mine), share


def _average(parameters: list[nn.Parameter], losses: dict[str, float], share: float) -> dict[str, float]:
    """Replace gradients and losses by their sums over all processes, each weighted by its share of the batch."""
    grads = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters]
    values = torch.tensor(list(losses.values()), device=grads[0].device)
    flat = torch.cat([*grads, values]) * share
    dist.all_reduce(flat)
    *grads, values = flat.split([len(grad) for grad in grads] + [len(values)])
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad.view_as(p).to(p.dtype)
    return dict(zip(losses, values.tolist(), strict=True))


@torch.no_grad()
def _broadcast(model: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    for tensor in [*model.parameters(), *model.buffers()]:
        dist.broadcast(tensor, src=0)
