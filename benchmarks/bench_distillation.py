"""Distillation: the loss against torch's composition, a step with cached logits against a plain one, what students gain.

``COMPRESSLAB_DISTIL_IMAGES`` and ``COMPRESSLAB_DISTIL_EPOCHS`` say how long students are trained (3,000 images, 12
passes). Every gain is in points of accuracy on 2,000 validation images, over three seeds at equal steps; the ratio of
such a row is one plus a hundredth of the gain, so 1 means that nothing was won.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, benchmark
from compresslab import distillation as d
from compresslab.measure import accuracy, predict, use_threads
from compresslab.pruning import enforce, prune_magnitude
from compresslab.quantization import prepare_qat
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.train import evaluate, fit, jitter

IMAGES = int(os.environ.get("COMPRESSLAB_DISTIL_IMAGES", "3000"))
EPOCHS = int(os.environ.get("COMPRESSLAB_DISTIL_EPOCHS", "12"))
SEEDS = 3


@benchmark
def distillation_loss() -> Iterator[Row]:
    """Forward and backward of the soft-target loss, CPU time, in turns with torch's log_softmax, softmax and kl_div."""

    def composed(student: Tensor, teacher: Tensor) -> Tensor:
        return 16 * F.kl_div(F.log_softmax(student / 4, -1), F.softmax(teacher / 4, -1), reduction="batchmean")

    for shape in ((128, 62), (4096, 256), (512, 32000)):
        student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).unbind()
        student.requires_grad_()
        with use_threads(1):
            times = in_turns(
                lambda: backward(d.soft_target_loss(student, teacher), student),  # noqa: B023
                lambda: backward(composed(student, teacher), student),  # noqa: B023
                repeats=max(2, 2_000_000 // student.numel()),
            )
        yield row_of_times(f"soft targets {shape}, forward and backward", "torch's composition", times, 1.0)


@benchmark
def distillation_cached() -> Iterator[Row]:
    """An epoch with the teacher's logits from a file, against one on the labels alone: at most 15 % slower."""
    few, teacher = data.load("glyphs").train.take(512), checkpoints.load("resnet")
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        taught = d.WithLogits(few, d.cached_logits(teacher, few.batches(), Path(folder) / "logits.safetensors"))
        student = models.build("resnet", width=8, stride=2)
        once = {"epochs": 1, "batch_size": 64}
        plain = partial(fit, student, few, **once)
        for name, run, target in (
            ("logits from a file", partial(fit, student, taught, loss_fn=d.Distillation(None), **once), 1 / 1.15),
            ("the teacher runs", partial(fit, student, few, loss_fn=d.Distillation(teacher), **once), 0.0),
        ):
            times = in_turns(run, plain, repeats=1, rounds=7)
            yield row_of_times(f"an epoch of 512 images, {name}", "labels only", times, target)


@benchmark
def distillation_gains() -> Iterator[Row]:
    """What each way to teach gives a student over plain training at equal steps; no targets, an honest table."""
    splits, teacher = data.load("glyphs"), checkpoints.load("resnet")
    few = splits.train.take(IMAGES)
    with tempfile.TemporaryDirectory() as folder, use_threads(1):
        taught = d.WithLogits(few, d.cached_logits(teacher, few.batches(), Path(folder) / "logits.safetensors"))

        def scores(
            loss: d.Distillation, make: Callable[[int], nn.Module], on: object, **options: object
        ) -> list[float]:
            options = {"epochs": EPOCHS, "batch_size": 64, "lr": 4e-3} | options
            example = few.inputs(slice(2))
            runs = (
                d.distil(make(seed), loss, partial(fit, train=on, seed=seed, **options), example_inputs=example).model
                for seed in range(SEEDS)
            )
            return [100 * accuracy(predict(model, splits.val.batches())).value for model in runs]

        mlp = partial(build, "mlp", width=64)
        plain = scores(d.Distillation(None, soft_weight=0.0), mlp, taught)
        ways = {f"T = {t}": {"temperature": t} for t in (1.0, 2.0, 4.0, 8.0, 20.0)}
        ways |= {f"T = 4, weight {w}": {"soft_weight": w} for w in (0.5, 1.0)}
        ways |= {
            f"DKD, others x {w}": {"soft_weight": 0.5, "soft_loss": partial(d.decoupled_loss, others_weight=w)}
            for w in (1.0, 4.0, 8.0)
        }
        ways["Jensen-Shannon"] = {"soft_loss": lambda s, t, y: d.jensen_shannon_loss(s, t, temperature=4.0)}
        ways["the other way round"] = {"soft_loss": lambda s, t, y: d.reverse_kl_loss(s, t, temperature=4.0)}
        for name, options in ways.items():
            yield gain(f"MLP from the ResNet, {name}", scores(d.Distillation(None, **options), mlp, taught), plain)

        narrow = partial(build, "resnet", width=8, depth=1, stride=2)
        short = {"epochs": max(EPOCHS // 2, 1), "batch_size": 32, "lr": 2e-2}
        plain = scores(d.Distillation(None, soft_weight=0.0), narrow, few, **short)
        stages = ("layer1", "layer2", "layer3")
        pairs = {
            "soft targets": [],
            "and a hint": [d.Pair("layer3", "layer3", d.hint_loss, project=True)],
            "and attention": [d.Pair(stage, stage, d.attention_loss, weight=100.0) for stage in stages],
            "and relations": [d.Pair("linear", "linear", d.relational_loss, weight=5.0)],
        }
        for name, matched in pairs.items():
            found = scores(d.Distillation(teacher, pairs=matched), narrow, few, **short)
            yield gain(f"narrow ResNet, {name}", found, plain)


@benchmark
def distillation_repair() -> Iterator[Row]:
    """One pass over 1,500 images after the ResNet was damaged, with the teacher against the labels alone."""
    splits, teacher = data.load("glyphs"), checkpoints.load("resnet")
    images = splits.train.take(1500)
    once = {"epochs": 1, "batch_size": 64, "weight_decay": 0.0, "augment": jitter}
    jobs: dict[str, tuple[nn.Module, dict]] = {}
    for sparsity in (0.8, 0.9):
        pruned = prune_magnitude(teacher, sparsity)
        jobs[f"{sparsity:.0%} pruned"] = pruned.model, {"lr": 4e-3, "after_step": enforce(pruned.masks)}
    for bits, lr in ((4, 1e-4), (3, 5e-4), (2, 2e-3)):
        calibration = list(images.batches(64))[:4]
        prepared = prepare_qat(teacher, calibration, weight_bits=bits, activation_bits=bits).model
        jobs[f"{bits} bits"] = prepared, {"lr": lr}
    with use_threads(1):
        for name, (model, options) in jobs.items():
            found = {
                weight: [
                    100 * evaluate(
                        fit(model, images, loss_fn=d.Distillation(teacher, soft_weight=weight), seed=s, **options, **once).model,
                        splits.val,
                    ).accuracy
                    for s in range(SEEDS)
                ]
                for weight in (0.0, 0.9)
            }  # fmt: skip
            yield gain(f"repair of the ResNet, {name}", found[0.9], found[0.0])


def build(architecture: str, seed: int, **config: int) -> nn.Module:
    return models.build(architecture, generator=torch.Generator().manual_seed(seed), **config)


def backward(loss: Tensor, student: Tensor) -> None:
    student.grad = None
    loss.backward()


def in_turns(ours: Callable, theirs: Callable, *, repeats: int, rounds: int = 9) -> list[tuple[float, float]]:
    """CPU seconds of both in each round."""
    found = []
    for _ in range(rounds):
        pair = []
        for run in (ours, theirs):
            start = time.process_time()
            for _ in range(repeats):
                run()
            pair.append((time.process_time() - start) / repeats)
        found.append(tuple(pair))
    return found


def row_of_times(work: str, peer: str, times: list[tuple[float, float]], target: float) -> Row:
    ratios = sorted(theirs / ours for ours, theirs in times)
    ours, theirs = (f"{1000 * min(part):.2f} ms" for part in zip(*times, strict=True))
    return Row(work, ours, f"{theirs}, {peer}", ratios[len(ratios) // 2], ratios[0], ratios[-1], target)


def gain(work: str, found: list[float], plain: list[float]) -> Row:
    words = [f"{sum(part) / len(part):.1f} % [{min(part):.1f}, {max(part):.1f}]" for part in (found, plain)]
    mean, low, high = (
        1 + points / 100
        for points in (
            sum(found) / len(found) - sum(plain) / len(plain),
            min(found) - max(plain),
            max(found) - min(plain),
        )
    )
    return Row(work, words[0], f"{words[1]}, labels only", mean, low, high, 0.0)
