"""Structured pruning: every torchvision classifier proved, time and memory beside Torch-Pruning, ResNet-20 repaired.

``COMPRESSLAB_MODELS=resnet18,vit_b_16`` limits the table of all models to those named (``all`` takes an hour or so), and
``COMPRESSLAB_EPOCHS=1`` adds fine-tuning to the ResNet-20 (a few minutes an epoch on one core).
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, against_limit, benchmark
from benchmarks.real_data import resnet20
from compresslab.measure import use_threads
from compresslab.pruning.batchnorm_statistics import reestimate_batchnorm
from compresslab.pruning.channels import count_macs, prune_channels, prune_to
from compresslab.pruning.dependency import find_dependencies, untried_dependencies
from compresslab.pruning.proof import FunctionChanged, assert_same_function
from compresslab.pruning.reconstruction import reconstruct
from compresslab.pruning.rounds import prune_in_rounds
from compresslab.workbench import train
from compresslab.workbench.vision import torchvision

USUAL = ("resnet50", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0", "googlenet", "convnext_tiny", "swin_t", "vit_b_16")  # fmt: skip
IN_FLOAT32 = ("vit_h_14", "regnet_y_128gf")  # float64 copies want too much memory


def classifier(name: str) -> tuple[nn.Module, Tensor]:
    """A model with weights and statistics that matter (a fresh ViT's head is zero), and an image or clip."""
    module = torchvision().models
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith(("fcn", "deeplab", "lraspp")):
        options = {"weights_backbone": None}
    model = enliven(module.get_model(name, weights=None, **options))
    clip = name in module.list_models(module.video) if hasattr(module, "video") else False
    side = 224 if clip or name.startswith(("vit", "maxvit")) else 96  # those have their size written down
    x = torch.randn((1, 3, 16, side, side) if clip else (2, 3, side, side), generator=torch.Generator().manual_seed(1))
    return model, x


def enliven(model: nn.Module) -> nn.Module:
    """Weights and statistics that matter, so that a wrong channel shows: a fresh ViT's head is zero."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.eval().modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.normal_(0, 0.1, generator=generator)
        elif isinstance(layer, nn.Linear):
            layer.weight.data.normal_(0, layer.in_features**-0.5, generator=generator)
        if hasattr(layer, "layer_scale"):
            layer.layer_scale.data.uniform_(0.5, 1.5, generator=generator)
    return model


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@benchmark
def structured_models() -> Iterator[Row]:
    """Half the units of each group; the error to the masked original in float64 must be rounding."""
    module = torchvision().models
    chosen = os.environ.get("COMPRESSLAB_MODELS", ",".join(USUAL))
    with use_threads(1):
        for name in module.list_models(module) if chosen == "all" else chosen.split(","):
            model, x = classifier(name)
            start = time.perf_counter()
            found = find_dependencies(model, x)
            graph = time.perf_counter() - start
            pruned = prune_channels(model, x)
            seconds = time.perf_counter() - start - graph
            left = parameters(pruned.model) / parameters(model), count_macs(pruned.model, x) / count_macs(model, x)
            limit, dtype = (1e-4, torch.float32) if name in IN_FLOAT32 else (1e-12, torch.float64)
            try:
                same = assert_same_function(model, pruned, x, tolerance=limit, dtype=dtype).error
            except FunctionChanged as error:
                same, limit = float("inf"), str(error)
            text = (f"{len(found.groups)} groups, {left[0]:.1%} of the parameters, {left[1]:.1%} of the MACs, graph"
                    f" {graph:.1f} s, pruning {seconds:.1f} s, error {same:.1e}, {len(pruned.unprunable)} layers stay")  # fmt: skip
            ratio = 1.0 if isinstance(limit, float) and same <= limit else 0.0
            yield Row(name, text, f"error at most {limit}", ratio, ratio, ratio, 1.0)


@benchmark
def structured_against_peer() -> Iterator[Row]:
    """Finding the groups, and removing half of each, ours and Torch-Pruning's, interleaved.

    Theirs cuts the model that is given; ours makes a new one, and runs it with labels to see that it is the same.
    """
    if importlib.util.find_spec("torch_pruning") is None:
        yield Row("Torch-Pruning is not installed ([bench])", "not run", "not run", 1.0, 1.0, 1.0, 0.0)
        return
    with use_threads(1):
        for name in ("resnet50", "mobilenet_v2", "densenet121", "vit_b_16"):
            runs = [once(name) for _ in range(5)]
            for place, work in enumerate(("groups", "half of each group")):
                pairs = [run[2 * place : 2 * place + 2] for run in runs]
                ratios = sorted(theirs / ours for ours, theirs in pairs)
                ours, theirs = (f"{sorted(side)[2]:.3f} s" for side in zip(*pairs, strict=True))
                if place:
                    ours, theirs = (
                        f"{t}, {left:.2f} M left" for t, left in zip((ours, theirs), runs[0][4:], strict=True)
                    )
                yield Row(f"{name}: {work}", ours, theirs, ratios[2], ratios[0], ratios[-1], 1.0)


def once(name: str) -> tuple[float, ...]:
    """Seconds to find the groups by us and by the peer, and to prune; and millions of parameters left."""
    import torch_pruning as tp

    model, x = classifier(name)
    x = x[:1]
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    options = {"pruning_ratio": 0.5, "ignored_layers": [head]}
    score = tp.importance.GroupMagnitudeImportance(p=2)
    graph = tp.DependencyGraph()
    found, _ = timed(lambda: untried_dependencies(model, x))
    built, _ = timed(lambda: list(graph.build_dependency(model, x).get_all_groups(ignored_layers=[head])))
    ours, pruned = timed(lambda: prune_channels(model, x))
    theirs, _ = timed(lambda: tp.pruner.BasePruner(model, x, score, **options).step())  # changes the model
    return found, built, ours, theirs, parameters(pruned.model) / 1e6, parameters(model) / 1e6


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result, with no rubbish of earlier work to be cleared away within."""
    gc.collect()
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


@benchmark
def structured_memory() -> Iterator[Row]:
    """What pruning a model adds to the process, over the size of its weights, in a process of its own."""
    for name in ("resnet50", "vit_b_16"):
        code = f"from benchmarks.bench_structured import peak; print(peak({name!r}))"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        yield against_limit(f"{name}: peak memory, the model itself among it", [float(run.stdout.split()[-1])], 3.0, unit="x the weights")  # fmt: skip


def peak(name: str) -> float:
    """The highest resident memory while a model is pruned, less what there was without the model, over its weights."""
    with use_threads(1):
        model, x = classifier(name)
        weights = 4 * parameters(model)
        with torch.inference_mode():
            model(x[:1])  # libraries and activations are not ours
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
        prune_channels(model, x[:1])
        # VmHWM is of this process alone; ru_maxrss starts at what the parent holds, for Linux hands it on to a child.
        status = Path("/proc/self/status").read_text().splitlines()
        highest = next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return (highest - resident + weights) / weights


@benchmark
def structured_resnet20() -> Iterator[Row]:
    """The public ResNet-20 at half the MACs: cut, batch norms renewed, reconstructed from 512 images; fine-tuned if asked."""
    model, splits = resnet20()
    generator = torch.Generator().manual_seed(0)
    batches = [
        batch for batch, _ in zip(splits.train.batches(64, shuffle=True, generator=generator), range(8), strict=False)
    ]
    epochs = int(os.environ.get("COMPRESSLAB_EPOCHS", "0"))
    with use_threads(1):
        whole = accuracy(model, splits.test)
        for scope in ("group", "global"):
            pruned = prune_to(model, batches[0][0][:1], target=0.5, scope=scope)
            repaired = reconstruct(model, pruned, batches)
            rounds = prune_in_rounds(model, batches, target=0.5, scope=scope)
            steps = {
                "right after": (pruned.model, 15.0),
                "batch norms renewed": (reestimate_batchnorm(pruned.model, batches), 45.0),
                "reconstructed": (repaired.model, 75.0),
                "in five rounds": (rounds.model, 81.0 if scope == "global" else 75.0),
            }
            if epochs:
                trained = train.fit(rounds.model, splits.train, epochs=epochs, batch_size=128, lr=1e-3)
                steps[f"{epochs} epochs of fine-tuning"] = trained.model, 86.0
            for step, (candidate, limit) in steps.items():
                found = accuracy(candidate, splits.test)
                work = f"scope {scope}, {step} (whole: {whole:.1f} %)"
                yield against_limit(work, [found], limit, unit="%", less_is_better=False)


@torch.no_grad()
def accuracy(model: nn.Module, part) -> float:
    """In percent."""
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in part.batches(250))
    return 100 * right / len(part)
