"""Factorization: deep compression of the course's VGG from end to end, Tucker-2, Huffman decoding, k-means.

``COMPRESSLAB_DEEP_EPOCHS`` says how long the network is trained while it is pruned (a quick look takes 1: its targets are
then not asked).
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, against_limit, against_peer, benchmark
from compresslab.factorization import (
    entropy_bits,
    finish_codebooks,
    huffman_decode,
    huffman_encode,
    kmeans,
    load_compressed,
    save_compressed,
    share_weights,
    train_codebooks,
    tucker2,
)
from compresslab.measure import compare_latency, predict, use_threads
from compresslab.pruning import GradualPruner, cubic_sparsity
from compresslab.workbench import checkpoints, data, train

SPARSITY, CLUSTERS = 0.80, 8
EPOCHS = 6  # of pruning; one more for the tables


def distilled(teacher: nn.Module, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Labels, and the answers of the network as it was."""
    logits, temperature = model(batch[0]), 2.0
    with torch.no_grad():
        soft = F.softmax(teacher(batch[0]) / temperature, -1)
    hints = F.kl_div(F.log_softmax(logits / temperature, -1), soft, reduction="batchmean") * temperature**2
    return 0.3 * F.cross_entropy(logits, batch[1]) + 0.7 * hints


@benchmark
def factorization_deep_compression() -> Iterator[Row]:
    """The VGG pruned, clustered, tuned and coded; three seeds, on the test split; the file is read back."""
    epochs = int(os.environ.get("COMPRESSLAB_DEEP_EPOCHS", EPOCHS))
    asked = epochs >= EPOCHS
    splits, network = data.load("glyphs"), checkpoints.load("vgg").eval()
    options = {"batch_size": 64, "weight_decay": 0.0, "augment": train.jitter, "loss_fn": partial(distilled, network)}
    steps = epochs * -(-len(splits.train) // options["batch_size"])
    test = list(splits.test.batches(500))
    ratios, losses, bounds, gzips = [], [], [], []
    with use_threads(1), tempfile.TemporaryDirectory() as folder:
        full = _accuracy(network, test)
        for seed in range(3):
            pruner = GradualPruner(partial(cubic_sparsity, end=steps // 2, final=SPARSITY))
            pruned = train.fit(
                network, splits.train, epochs=epochs, lr=4e-3, seed=seed, after_step=pruner, **options
            ).model
            shared = share_weights(pruned, clusters=CLUSTERS, masks=pruner.masks)
            tables = train_codebooks(shared.model, shared.codebooks)
            tuned = finish_codebooks(train.fit(tables, splits.train, epochs=1, lr=1e-3, seed=seed, **options).model)
            file = save_compressed(tuned.state_dict(), Path(folder) / "vgg")
            again = checkpoints.load("vgg")
            again.load_state_dict(load_compressed(file.path))
            ratios.append(file.ratio)
            bounds.append(file.nbytes / file.bound_bytes)
            gzips.append(file.gzip_bytes / file.nbytes)
            losses.append(full - _accuracy(again, test))
    work = f"Deep Compression, VGG, {SPARSITY:.0%} zeros, {CLUSTERS} clusters, {epochs} + 1 epochs"
    target = 1.0 if asked else 0.0
    size = against_limit(f"{work}: file against FP32", ratios, 20, unit="times smaller", less_is_better=False)
    yield Row(size.work, size.ours, size.against, size.ratio, size.low, size.high, target)
    lost = sorted(losses)
    spread = f"{lost[1]:.2f} points lost [{lost[0]:.2f}, {lost[-1]:.2f}]"
    kept = sorted((full - loss) / (full - 1) for loss in losses)
    yield Row(f"{work}: accuracy on test", spread, f"{full:.2f} %, at most 1 point", kept[1], kept[0], kept[-1], target)
    yield against_limit(f"{work}: file against the entropy bound", bounds, 1.05, unit="times the bound")
    yield against_limit(f"{work}: zlib of the same weights", gzips, 1.0, unit="times our file", less_is_better=False)


@benchmark
def factorization_huffman() -> Iterator[Row]:
    """Ten million indices of 16 clusters: symbols decoded a second (a byte each), and bits against the entropy."""
    generator = torch.Generator().manual_seed(0)
    symbols = (torch.randn(10_000_000, generator=generator) * 2.5 + 8).round().clamp(0, 15).to(torch.uint8)
    encoded, rates = huffman_encode(symbols), []
    with use_threads(1):
        for _ in range(5):
            start = time.perf_counter()
            decoded = huffman_decode(encoded)
            rates.append(len(symbols) / (time.perf_counter() - start) / 1e6)
    if not torch.equal(decoded.to(torch.uint8), symbols):
        raise RuntimeError("decoded symbols are not those that were encoded")
    yield against_limit("Huffman, decode 10 M symbols", rates, 20, unit="MB/s", less_is_better=False)
    excess = 8 * encoded.nbytes / entropy_bits(symbols)
    yield against_limit("Huffman, bits of 10 M symbols", [excess], 1.05, unit="times the entropy")


@benchmark
def factorization_tucker() -> Iterator[Row]:
    """The error of a kernel at equal ranks, and the time, against tensorly's partial_tucker."""
    if importlib.util.find_spec("tensorly") is None:
        print("  left out: tensorly is not installed (pip install tensorly)")
        return
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    convs = [module for module in checkpoints.load("resnet").modules() if isinstance(module, nn.Conv2d)]
    weight = max((conv.weight.detach().double() for conv in convs), key=lambda weight: weight.numel())
    ranks = (weight.shape[0] // 2, weight.shape[1] // 2)
    (core, factors), _ = partial_tucker(weight, rank=list(ranks), modes=[0, 1], n_iter_max=100, tol=1e-10)
    rebuilt = torch.einsum("pqhw,op,cq->ochw", core, *factors)
    theirs = float((weight - rebuilt).norm() / weight.norm())
    ours = tucker2(weight, ranks, steps=50).error
    ratio = theirs / ours
    work = f"Tucker-2 of {tuple(weight.shape)} at ranks {ranks}, error"
    yield Row(work, f"{ours:.5f}", f"tensorly {theirs:.5f}", ratio, ratio, ratio, 0.999)


@benchmark
def factorization_kmeans() -> Iterator[Row]:
    """A million weights in 16 clusters from the same start, against scikit-learn: time, and the error."""
    from sklearn.cluster import KMeans

    weights = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    column = weights.unsqueeze(1).numpy()
    start = torch.linspace(float(weights.min()), float(weights.max()), 16).unsqueeze(1).numpy()
    theirs = KMeans(16, init=start, n_init=1, max_iter=100, tol=0)
    with use_threads(1):
        measured = compare_latency(
            {"ours": lambda: kmeans(weights, 16), "sklearn": lambda: theirs.fit(column)}, reference="sklearn", rounds=3
        )
    times = {name: f"{latency.median_s:.3g} s" for name, latency in measured.latency.items()}
    work = "k-means of 1 M weights, 16 clusters"
    yield against_peer(work, times["ours"], f"scikit-learn {times['sklearn']}", measured.speedup["ours"], target=2.0)
    error = float((weights - kmeans(weights, 16).weight()).double().square().sum())
    ratio = theirs.inertia_ / error
    yield Row(f"{work}, error", f"{error:.1f}", f"scikit-learn {theirs.inertia_:.1f}", ratio, ratio, ratio, 0.999)


def _accuracy(model: nn.Module, batches: list) -> float:
    return 100 * predict(model, batches).correct.double().mean().item()
