"""GPTQ against the algorithm as public packages write it, on one core: error on inputs not seen, perplexity, time.

The peer inverts the Hessian, takes the upper Cholesky factor of the inverse and updates what is left of a block by one
rank at a time: in our own words, with act-order and static groups, on the grid from minimum to maximum.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, against_limit, against_peer, benchmark
from compresslab import measure
from compresslab.measure import compare_latency, use_threads
from compresslab.quantization.affine import quantize
from compresslab.quantization.column_rounding import round_columns
from compresslab.quantization.dynamic import quantize_dynamic
from compresslab.quantization.gptq import gptq, gptq_model
from compresslab.quantization.hessian import layer_hessian
from compresslab.quantization.joints import find_joints, move_scales
from compresslab.quantization.smooth import smooth_model
from compresslab.quantization.weight_only import quantize_weights
from compresslab.workbench import checkpoints, data

EMBEDDINGS = ("embed", "pos_embed")  # the first is also the head


@torch.no_grad()
def public_style(weight: Tensor, hessian: Tensor, *, bits: int = 4, group_size: int = 128) -> Tensor:
    """The dequantized weight."""
    w, h = weight.clone(), hessian.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    grid = quantize(weight, bits=bits, symmetric=False, group_size=group_size).grid
    order = h.diagonal().argsort(descending=True)
    w, h = w[:, order], h[order][:, order]
    h.diagonal().add_(0.01 * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    result, losses = torch.zeros_like(w), torch.zeros_like(w)
    for start in range(0, w.shape[1], 128):
        stop = min(start + 128, w.shape[1])
        block, factor = w[:, start:stop].clone(), upper[start:stop, start:stop]
        rounded, errors, lost = torch.zeros_like(block), torch.zeros_like(block), torch.zeros_like(block)
        for i in range(stop - start):
            column, pivot, group = block[:, i], factor[i, i], order[start + i] // group_size
            scale, zero_point = grid.scale[:, group], grid.zero_point[:, group]
            q = (torch.clamp(torch.round(column / scale) + zero_point, 0, 2**bits - 1) - zero_point) * scale
            rounded[:, i] = q
            lost[:, i] = (column - q) ** 2 / pivot**2
            errors[:, i] = (column - q) / pivot
            block[:, i:] -= errors[:, i : i + 1].matmul(factor[i : i + 1, i:])
        result[:, start:stop], losses[:, start:stop] = rounded, lost / 2
        w[:, stop:] -= errors.matmul(upper[start:stop, stop:])
    return result[:, order.argsort()]


def correlated(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, and the Hessians of two sets of inputs: a quarter of the rank, noise, columns of different size."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(columns // 4, columns, generator=generator) / (columns // 4) ** 0.5
    x = torch.randn(8 * columns, columns // 4, generator=generator) @ basis
    x += 0.5 * torch.randn(len(x), columns, generator=generator)
    x *= (0.5 * torch.randn(columns, generator=generator)).exp()
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    return weight, *(half.T @ half / len(half) for half in x.chunk(2))


def relative_error(weight: Tensor, found: Tensor, held: Tensor, bits: int, group_size: int) -> float:
    """Squared error of the output on inputs with Hessian ``held``, over that of rounding to nearest."""
    nearest = quantize(weight, bits=bits, symmetric=False, group_size=group_size).dequantize()
    ours, theirs = (((weight - w) @ held * (weight - w)).sum().item() for w in (found, nearest))
    return ours / theirs


def relative_row(work: str, ours: float, peer: float, target: float) -> Row:
    text, other = (f"{value:.3f} of the error of nearest" for value in (ours, peer))
    return Row(work, text, other, peer / ours, peer / ours, peer / ours, target)


@benchmark
def gptq_layer_error() -> Iterator[Row]:
    """Held-out error of a layer, groups of 128, over that of nearest: ours with its defaults, the peer's."""
    with use_threads(1):
        weight, hessian, held = correlated(256, 512)
        for bits, limit in ((4, 0.32), (3, 0.33)):
            ours = relative_error(weight, gptq(weight, hessian, bits=bits).dequantize(), held, bits, 128)
            peer = relative_error(weight, public_style(weight, hessian, bits=bits), held, bits, 128)
            work = f"512 correlated inputs, {bits} bits, groups of 128"
            yield against_limit(work, [ours], limit, unit="of the error of nearest")
            yield relative_row(f"{work}, against the public algorithm", ours, peer, 0.34 / limit)

        model, (calibration, validation) = checkpoints.load("gpt").eval(), texts()
        found = hessians(model, calibration), hessians(model, validation)
        for bits, limit in ((4, 0.32), (3, 0.33)):
            ours, peer = [], []
            for name, hessian in found[0].items():
                weight, held = model.get_submodule(name).weight.detach(), found[1][name]
                size = 128 if weight.shape[1] % 128 == 0 else weight.shape[1]
                options = {"bits": bits, "group_size": size}
                ours.append(relative_error(weight, gptq(weight, hessian, **options).dequantize(), held, bits, size))
                peer.append(relative_error(weight, public_style(weight, hessian, **options), held, bits, size))
            ours, peer = (math.exp(sum(map(math.log, values)) / len(values)) for values in (ours, peer))
            work = f"the course's GPT, 16 layers, {bits} bits, geometric mean"
            yield against_limit(work, [ours], limit, unit="of the error of nearest")
            yield relative_row(f"{work}, against the public algorithm", ours, peer, 0.34 / limit)


@benchmark
def gptq_time() -> Iterator[Row]:
    """A layer at 4 bits with the same levels as the peer; and with the defaults, which also search scales and descend."""
    for rows, columns, size in ((384, 96, 96), (96, 384, 128), (512, 512, 128), (1024, 1024, 128)):
        weight, hessian, _ = correlated(rows, columns)
        grid = quantize(weight, bits=4, symmetric=False, group_size=size).grid
        runs: dict[str, Callable] = {
            "peer": lambda w=weight, h=hessian, s=size: public_style(w, h, group_size=s),
            "rounding": lambda w=weight, h=hessian, g=grid: round_columns(w, h, g, sweeps=0),
            "with nearest": lambda w=weight, h=hessian, s=size: gptq(w, h, group_size=s, method="minmax", sweeps=0),
            "defaults": lambda w=weight, h=hessian, s=size: gptq(w, h, group_size=s),
        }
        found = compare_latency(runs, reference="peer", rounds=9)
        times = {name: f"{1000 * found.latency[name].median_s:.1f} ms" for name in runs}
        for name, work, target in (
            ("rounding", "the same algorithm", 2.0),
            ("with nearest", "and the error of both it and nearest", 0.0),
            ("defaults", "scales of least error, two sweeps", 0.0),
        ):
            speedup = found.speedup[name]
            yield against_peer(f"{rows} x {columns}, {work}", times[name], times["peer"], speedup, target=target)


@benchmark
def gptq_perplexity() -> Iterator[Row]:
    """The course's GPT on held-out text, its embeddings left as they are; and what GPTQ takes for the whole model."""
    model, (calibration, validation) = checkpoints.load("gpt").eval(), texts()
    with use_threads(1):
        whole, spent = perplexity(model, validation), []
        for size in (None, 32):
            for bits in (8, 4, 3, 2):
                options = {"bits": bits, "symmetric": False, "group_size": size, "skip": EMBEDDINGS}
                start = time.perf_counter()
                found = gptq_model(model, calibration, **options)
                spent.append(time.perf_counter() - start)
                ours = perplexity(found.model, validation)
                nearest = perplexity(quantize_weights(model, **options).model, validation)
                lost = (nearest - whole) / max(ours - whole, 1e-9)
                yield Row(
                    f"{bits} bits, {f'groups of {size}' if size else 'per row'}, what is lost to float ({whole:.3f})",
                    f"{ours:.3f}", f"nearest {nearest:.3f}", lost, lost, lost, 1.3 if bits < 8 else 0.0,
                )  # fmt: skip
        yield against_limit("the course's GPT, 8,192 tokens", spent, 5, unit="s")


@benchmark
def smooth_cosine() -> Iterator[Row]:
    """W8A8 of the course's GPT, a scale per token: 1 - cosine of a window's mean last hidden state with that in floats.

    It has no outliers, so three channels behind every norm are also made 60 times louder, the function unchanged. The
    limits are what a sentence transformer of six layers reached, as it is and smoothed.
    """
    model, (calibration, validation) = checkpoints.load("gpt").eval(), texts()
    loud, scales = copy.deepcopy(model), torch.ones(model.norm.weight.numel())
    scales[:3] = 1 / 60
    for joint in find_joints(model, calibration[0][0]).found:
        if "norm" in joint.source:
            move_scales(loud, joint, scales)
    with use_threads(1):
        right = last_hidden(model, validation)
        for name, source in (("the course's GPT", model), ("with planted outliers", loud)):
            smoothed = {f"smoothed, alpha {a}": smooth_model(source, calibration, alpha=a).model for a in (0.5, 0.75)}
            cosines = {}
            for kind, candidate in {"as it is": source, **smoothed}.items():
                quantized = quantize_dynamic(candidate, per_token=True, skip=["head"]).model
                cosines[kind] = torch.cosine_similarity(last_hidden(quantized, validation), right).mean().item()
            if source is model:
                work = f"{name}, as it is: 1 - cosine"
                yield against_limit(work, [1 - cosines["as it is"]], 1 - 0.9974, unit="")
            for kind in smoothed:
                work = f"{name}, {kind} ({1 - cosines['as it is']:.2g} without): 1 - cosine"
                yield against_limit(work, [1 - cosines[kind]], 1 - 0.9989, unit="")


@torch.no_grad()
def last_hidden(model: nn.Module, batches: list) -> Tensor:
    """(windows, width): what the head reads, the mean over a window."""
    found = []
    with model.norm.register_forward_hook(lambda layer, args, output: found.append(output.mean(1))):
        for tokens, _ in batches:
            model(tokens)
    return torch.cat(found)


def texts() -> tuple[list, list]:
    """8,192 tokens to calibrate with, and the whole validation text."""
    splits, generator = data.load("python-docs"), torch.Generator().manual_seed(0)
    batches = splits.train.batches(16, shuffle=True, generator=generator)
    return [batch for batch, _ in zip(batches, range(4), strict=False)], list(splits.val.batches(32))


def hessians(model: nn.Module, batches: list) -> dict[str, Tensor]:
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and name != "head"]
    inputs = [tokens for tokens, _ in batches]
    return {name: layer_hessian(model, name, inputs, [1] * len(inputs)).mean[0] for name in names}


def perplexity(model: nn.Module, batches: list) -> float:
    return measure.perplexity(measure.predict_batches(model, batches), resamples=1).value
