"""Importance: the Fisher of each sample against a loop, Hutchinson against the exact diagonal, scores against the oracle."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Row, against_limit, benchmark
from compresslab import importance
from compresslab.importance import per_channel, scored_weights, scoring
from compresslab.measure import use_threads
from compresslab.workbench import checkpoints, data
from compresslab.workbench.sweeps import sweep

CHANNELS, PROBES = 150, 5300


def resnet() -> tuple[nn.Module, list, list]:
    """The course's network, 1,024 training images drawn from all, and 512 validation images."""
    splits = data.load("glyphs")
    drawn = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(0))[:1024]
    calibration = list(splits.train.take(drawn).batches(64))
    return checkpoints.load("resnet"), calibration, list(splits.val.take(512).batches(256))


@benchmark
def importance_fisher() -> Iterator[Row]:
    """Squared gradients of 512 samples by one pass for each batch, and by a pass for each sample; CPU time, in turns.

    How much there is to gain is what a batch gains over single samples: on the ResNet one core is busy with either.
    """
    _, calibration, _ = resnet()
    inputs, labels = (torch.cat(parts) for parts in zip(*calibration[:8], strict=True))
    for name, size, target in (("mlp", 512, 5.0), ("vit", 128, 5.0), ("resnet", 64, 5.0)):
        model, times = checkpoints.load(name), {"batch": [], "loop": [], "gradient": []}
        batches = list(zip(inputs.split(size), labels.split(size), strict=True))
        with use_threads(1):
            for _ in range(3):
                found = timed(times["batch"], lambda: importance.fisher_diagonal(model, batches, F.cross_entropy))  # noqa: B023
                truth = timed(times["loop"], lambda: fisher_by_loop(model, batches))  # noqa: B023
                timed(times["gradient"], lambda: importance.gradient_scores(model, batches, F.cross_entropy))  # noqa: B023
        ratios = sorted(slow / fast for slow, fast in zip(times["loop"], times["batch"], strict=True))
        ours, loop, plain = (f"{min(times[key]):.3f} s" for key in ("batch", "loop", "gradient"))
        work = f"glyphs {name}, Fisher diagonal of 512 samples, batches of {size}"
        against = f"{loop}, a loop over samples ({plain} for the gradient alone)"
        yield Row(work, ours, against, ratios[1], ratios[0], ratios[2], target)
        error = max(float((found[key] - truth[key]).norm() / truth[key].norm()) for key in truth)
        yield against_limit(f"{work}, largest relative L2 difference of a layer", [error], 1e-4, unit="")


@benchmark
def importance_hessian() -> Iterator[Row]:
    """A trained network of 10,904 weights: the relative L2 error of the diagonal, and what it says about itself.

    For 5 % it takes more products with the Hessian than there are weights: that many unit vectors give it exactly.
    """
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 94), nn.Tanh(), nn.Linear(94, 47), nn.Tanh(), nn.Linear(47, 10))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            layer.bias.zero_()
    split = data.load("digits").train.take(512)
    inputs, labels = split.inputs().flatten(1), split.labels
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with use_threads(1):
        for _ in range(100):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        truth = exact_diagonal(model, inputs, labels)
        batches = [(inputs[i : i + 64], labels[i : i + 64]) for i in range(0, 512, 64)]
        found = importance.hessian_diagonal(model, batches, F.cross_entropy, probes=PROBES)
    values, error = (
        torch.cat([t.flatten().double() for t in part.values()]) for part in (found.values, found.standard_error)
    )
    work = f"Hessian diagonal of {len(truth):,} weights, 8 batches of {PROBES:,} probes each"
    yield against_limit(f"{work}: relative L2 error", [float((values - truth).norm() / truth.norm())], 0.05, unit="")
    yield against_limit(f"{work}: its own estimate of it", [float(error.norm() / truth.norm())], 0.05, unit="")


@benchmark
def importance_oracle() -> Iterator[Row]:
    """The rank correlation of every score with the loss of 512 validation images when a channel is taken out."""
    model, calibration, held = resnet()
    with use_threads(1):
        oracle = importance.channel_oracle(
            model, held, F.cross_entropy, samples=CHANNELS, sweep=functools.partial(sweep, n_jobs=1)
        )
        for name, (score, target) in channel_methods(model, calibration).items():
            with importance.count_passes(model) as passes:
                scores = score()
            rho, within = oracle.spearman(scores), oracle.spearman_within(scores)
            cost = f"{passes.forward:,} samples forward, {passes.backward:,} backward"
            yield Row(
                f"glyphs ResNet, {name}, {CHANNELS} channels",
                f"rho {rho:.3f}, within layers {within:.3f}",
                cost,
                rho,
                rho,
                rho,
                target,
            )


def channel_methods(model: nn.Module, batches: list) -> dict[str, tuple[Callable[[], dict[str, Tensor]], float]]:
    """Scores for channels by name, each with the correlation that it must reach (-1: none)."""
    loss = F.cross_entropy
    by_weight = {
        "sum of random numbers": lambda: {
            name: torch.rand(w.shape, generator=torch.Generator().manual_seed(0))
            for name, w in scored_weights(model).items()
        },
        "magnitude, L1": lambda: importance.magnitude_scores(model),
        "magnitude, L2": lambda: importance.magnitude_scores(model, power=2),
        "gradient": lambda: importance.gradient_scores(model, batches, loss),
        "Taylor by weight": lambda: importance.taylor_scores(model, batches, loss),
        "Fisher F, no weight": lambda: importance.fisher_diagonal(model, batches, loss),
        "Fisher 1/2 F w^2": lambda: importance.fisher_scores(model, batches, loss),
        "Fisher, sampled labels": lambda: importance.fisher_scores(model, batches, loss, labels="sampled"),
        "Hessian 1/2 h w^2, 16 x 10 probes": lambda: importance.hessian_scores(model, batches, loss, probes=10),
        "SNIP, one batch": lambda: importance.snip_scores(model, batches[:1], loss),
        "GraSP, four batches": lambda: importance.grasp_scores(model, batches[:4], loss),
        "SynFlow": lambda: importance.synflow_scores(model, batches[:1]),
        "Wanda": lambda: importance.wanda_scores(model, batches),
    }
    targets = {"Fisher 1/2 F w^2": 0.6, "Taylor by weight": 0.5}
    found = {
        name: (lambda score=score: per_channel(score()), targets.get(name, -1.0)) for name, score in by_weight.items()
    }
    found["magnitude, L1, mean"] = (lambda: per_channel(importance.magnitude_scores(model), reduce="mean"), -1.0)
    return found | {
        "activation, mean": (lambda: importance.activation_scores(model, batches), -1.0),
        "activation, APoZ": (lambda: importance.activation_scores(model, batches, statistic="apoz"), -1.0),
        "activation before ReLU": (lambda: importance.activation_scores(model, batches, after_activation=False), -1.0),
        "batch norm's scale": (lambda: importance.batchnorm_scale_scores(model, batches), -1.0),
        "Taylor by channel, 2019": (lambda: importance.taylor_channel_scores(model, batches, loss), 0.65),
        "Taylor of maps, 2017": (lambda: importance.taylor_map_scores(model, batches, loss), 0.5),
        "Fisher by channel": (lambda: importance.fisher_channel_scores(model, batches, loss), 0.65),
    }


def fisher_by_loop(model: nn.Module, batches: list) -> dict[str, Tensor]:
    """The definition, a sample at a time."""
    weights = scored_weights(model)
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    samples = [pair for inputs, labels in batches for pair in zip(inputs.split(1), labels.split(1), strict=True)]
    with scoring(model, weights):
        for x, y in samples:
            gradients = torch.autograd.grad(F.cross_entropy(model(x), y), list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += gradient.detach().square() / len(samples)
    return total


def exact_diagonal(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """One product of the Hessian with a unit vector for each weight."""
    weights = list(scored_weights(model).values())
    g = torch.autograd.grad(F.cross_entropy(model(inputs), labels), weights, create_graph=True)
    rows = []
    for gradient, weight in zip(g, weights, strict=True):
        for chunk in torch.eye(weight.numel()).reshape(-1, *weight.shape).split(256):
            rows += [
                (row * one).sum()
                for row, one in zip(
                    torch.autograd.grad(gradient, weight, chunk, retain_graph=True, is_grads_batched=True)[0],
                    chunk,
                    strict=True,
                )
            ]
    return torch.stack(rows).double()


def timed(times: list[float], work: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    start = time.process_time()
    result = work()
    times.append(time.process_time() - start)
    return result
