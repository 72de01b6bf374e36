"""Pruning: choosing 100 million weights, sparse products against dense ones, and what ResNet-20 keeps.

``COMPRESSLAB_PRUNE_WEIGHTS`` makes the model smaller or larger than 100 million weights. For the training of ResNet-20
``COMPRESSLAB_PRUNE_EPOCHS`` says how long it is, and ``COMPRESSLAB_PRUNE_IMAGES`` takes fewer than all 45,000 images (a
quick look: its target is then not asked).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import scipy.sparse
import torch
from torch import nn

from benchmarks import real_data
from benchmarks.harness import Row, against_peer, benchmark
from compresslab.measure import compare_latency, predict, use_threads
from compresslab.pruning import (
    GradualPruner,
    apply_masks,
    cubic_sparsity,
    enforce,
    prune_magnitude,
    prune_n_m,
    sparsity_of,
)
from compresslab.workbench import train
from compresslab.workbench.files import DataUnavailable

SELECT = """
import json, sys, time
import torch, torch.nn.utils.prune as prune
from torch import nn
from compresslab.pruning.unstructured import prune_magnitude
torch.set_num_threads(1)
def peak():  # ru_maxrss would start at what the parent holds: Linux hands it on to a child
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
torch.manual_seed(0)
count, side = int(sys.argv[2]), 2000
layers = [nn.Linear(side, side, bias=False) for _ in range(max(count // side**2, 1))]
model = nn.Sequential(*layers)
small = nn.Sequential(nn.Linear(2, 2))
if sys.argv[1] == "ours":
    prune_magnitude(small, 0.5)
    before, start = peak(), time.perf_counter()
    model = prune_magnitude(model, 0.9).model
else:
    prune.global_unstructured([(small[0], "weight")], prune.L1Unstructured, amount=0.5)
    before, start = peak(), time.perf_counter()
    prune.global_unstructured([(layer, "weight") for layer in layers], prune.L1Unstructured, amount=0.9)
seconds, more = time.perf_counter() - start, peak() - before
zeros = sum(int((layer.weight == 0).sum()) for layer in model)
print(json.dumps([seconds, more, zeros, sum(layer.weight.numel() for layer in model)]))
"""


@benchmark
def pruning_selection() -> Iterator[Row]:
    """90 % of 100 million weights in 25 layers, global, each in a fresh process: seconds, and memory on top."""
    count, runs = os.environ.get("COMPRESSLAB_PRUNE_WEIGHTS", "100000000"), {}
    for _ in range(3):  # taking turns
        for who in ("ours", "theirs"):
            run = subprocess.run([sys.executable, "-c", SELECT, who, count], capture_output=True, text=True, check=True)
            seconds, more, zeros, total = json.loads(run.stdout)
            if zeros != round(0.9 * total):
                raise RuntimeError(f"{who} removed {zeros} of {total}")
            runs.setdefault(who, []).append((seconds, more))
    work = f"global magnitude, 90 % of {total / 1e6:.0f} M weights, a new model"
    for place, unit, scale, target in ((0, "s", 1, 3.0), (1, "MB on top", 1e-6, 1.0)):
        ours, theirs = (sorted(run[place] * scale for run in runs[who]) for who in ("ours", "theirs"))
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        texts = [f"{values[1]:.3g} {unit} [{values[0]:.3g}, {values[-1]:.3g}]" for values in (ours, theirs)]
        yield Row(
            f"{work}, {unit}", texts[0], f"torch.nn.utils.prune {texts[1]}", ratios[1], ratios[0], ratios[-1], target
        )


@benchmark
def pruning_sparse_products() -> Iterator[Row]:
    """(N, 2048) times a weight (2048, 2048)^T, dense against what stores no zeros; nothing is asked, it is a table."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(2048, 2048, bias=False)
    layer.weight.data = torch.randn(2048, 2048, generator=generator)
    for sparsity in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
        sparse = prune_magnitude(layer, sparsity).model.weight.detach()
        yield from _products(f"{sparsity:.0%} zeros", layer.weight.detach(), sparse, generator)
    pattern = prune_n_m(layer).model.weight.detach()
    yield from _products("2:4 (no CPU kernel for the pattern)", layer.weight.detach(), pattern, generator)


def _products(work: str, dense: torch.Tensor, sparse: torch.Tensor, generator: torch.Generator) -> Iterator[Row]:
    csr, theirs = sparse.to_sparse_csr(), scipy.sparse.csr_array(sparse.numpy())
    for batch in (1, 64):
        x = torch.randn(batch, dense.shape[1], generator=generator)
        columns = x.T.contiguous()
        array = columns.numpy()
        candidates: dict[str, Callable[[], object]] = {
            "dense": lambda x=x: x @ dense.T,
            "the same kernel with the zeros": lambda x=x: x @ sparse.T,
            "torch CSR": lambda columns=columns: csr @ columns,
            "scipy CSR": lambda array=array: theirs @ array,
        }
        with torch.no_grad():
            measured = compare_latency(candidates, rounds=20)
        times = {name: f"{1e3 * latency.median_s:.3g} ms" for name, latency in measured.latency.items()}
        for name in [name for name in candidates if name != "dense"]:
            row = f"{work}, batch {batch}, {name}"
            yield against_peer(row, times[name], f"dense {times['dense']}", measured.speedup[name], target=0.0)


@benchmark
def pruning_resnet20() -> Iterator[Row]:
    """The public ResNet-20 on the 10,000 test images: one-shot, fine-tuned, gradual in as many steps."""
    try:
        model, splits = real_data.resnet20()
    except DataUnavailable as error:
        print(f"  left out: {error}")
        return
    images = int(os.environ.get("COMPRESSLAB_PRUNE_IMAGES", len(splits.train)))
    training, test = splits.train.take(images), list(splits.test.batches(500))
    whole_size = images == len(splits.train)
    epochs = int(os.environ.get("COMPRESSLAB_PRUNE_EPOCHS", "1"))
    options = {"epochs": epochs, "batch_size": 128, "lr": 3e-3, "weight_decay": 0.01}
    steps = epochs * -(-images // options["batch_size"])
    budget = f"{epochs} epoch{'s' if epochs > 1 else ''}"
    with use_threads(1):
        full = _accuracy(model, test)
        dense = _accuracy(train.fit(model, training, **options).model, test)
        yield _row(f"dense, {budget} more", dense, full, dense, 0.0)
        for sparsity in (0.5, 0.8, 0.9, 0.95):
            pruned = prune_magnitude(model, sparsity)
            yield _row(f"{sparsity:.0%} global, one-shot, no training", _accuracy(pruned.model, test), full, dense, 0.0)
            tuned = train.fit(pruned.model, training, after_step=enforce(pruned.masks), **options).model
            yield _row(f"{sparsity:.0%} global, one-shot, {budget}", _accuracy(tuned, test), full, dense, 0.0)
            schedule = partial(cubic_sparsity, end=round(0.6 * steps), final=sparsity, every=max(steps // 50, 1))
            pruner = GradualPruner(schedule)
            gradual = apply_masks(train.fit(model, training, after_step=pruner, **options).model, pruner.masks)
            zeros = sparsity_of(gradual)
            if sum(zeros.zeros.values()) < round(sparsity * sum(zeros.elements.values())):
                raise RuntimeError(f"asked for {sparsity:.0%} zeros, got {zeros.overall:.2%}")
            least = full - 1.5 if sparsity == 0.9 and whole_size else 0.0
            yield _row(f"{sparsity:.0%} global, gradual in {budget}", _accuracy(gradual, test), full, dense, least)


def _accuracy(model: nn.Module, batches: list) -> float:
    return 100 * predict(model, batches).correct.double().mean().item()


def _row(work: str, found: float, full: float, tuned: float, least: float) -> Row:
    wanted = f", at least {least:.2f} %" if least else ""
    against = f"dense {full:.2f} %, trained as long {tuned:.2f} %{wanted}"
    return Row(f"ResNet-20, {work}", f"{found:.2f} %", against, found / full, found / full, found / full, least / full)
