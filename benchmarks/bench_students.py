"""Students: a tenth of the teacher's parameters, the same loss by torchdistill on real data, and what a step costs.

``COMPRESSLAB_STUDENT_EPOCHS`` says how long the small student is trained (6 passes over the 16,000 glyphs), at equal
steps however it is taught, over three seeds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import real_data
from benchmarks.harness import Row, against_limit, benchmark
from compresslab import distillation as d
from compresslab.importance import taylor_channel_scores
from compresslab.measure import accuracy, predict, use_threads
from compresslab.pruning import prune_to
from compresslab.workbench import checkpoints, data, models
from compresslab.workbench.files import DataUnavailable
from compresslab.workbench.train import fit, jitter

EPOCHS = int(os.environ.get("COMPRESSLAB_STUDENT_EPOCHS", "6"))
SEEDS = 3
IMAGES, PASSES = 2000, 8  # of CIFAR-10 for the narrow student: 250 steps


@benchmark
def distillation_tenth() -> Iterator[Row]:
    """How much of the way from training alone to its teacher a student of a tenth goes; half of it is asked for."""
    splits, teacher = data.load("glyphs"), checkpoints.load("resnet")
    budget = parameters(teacher) // 10

    def percent(model: nn.Module) -> float:
        return 100 * accuracy(predict(model, splits.val.batches())).value

    def drawn(seed: int) -> nn.Module:
        return models.build("resnet", width=7, depth=1, stride=2, generator=torch.Generator().manual_seed(seed))

    scores = taylor_channel_scores(teacher, list(splits.train.take(512).batches(64)), F.cross_entropy)
    cut = prune_to(teacher, splits.val.inputs(slice(1)), target=0.1, measure=parameters, scores=scores)
    taught = d.Distillation(teacher, soft_weight=0.5, temperature=2.0)
    options = {"epochs": EPOCHS, "batch_size": 64, "lr": 1e-2, "augment": jitter}
    ways: dict[str, tuple[Callable[[int], nn.Module], d.Distillation | None]] = {
        "drawn at random, alone": (drawn, None),
        "drawn at random, taught": (drawn, taught),
        "cut from the teacher, alone": (lambda _: cut.model, None),
        "cut from the teacher, taught": (lambda _: cut.model, taught),
    }
    whole, alone = percent(teacher), 0.0
    with use_threads(1):
        for name, (make, loss) in ways.items():
            size = parameters(make(0))
            if size > budget:
                raise RuntimeError(f"{name}: {size} parameters are more than a tenth, {budget}")
            found = [percent(fit(make(seed), splits.train, seed=seed, loss_fn=loss, **options).model) for seed in range(SEEDS)]  # fmt: skip
            alone = alone or statistics.mean(found)
            share, low, high = (
                (each - alone) / (whole - alone) for each in (statistics.mean(found), min(found), max(found))
            )
            words = f"{statistics.mean(found):.1f} % [{min(found):.1f}, {max(found):.1f}], {share:.0%} of the way"
            against = f"teacher {whole:.1f} %, {parameters(teacher):,} parameters; alone {alone:.1f} %; half of the way"
            target = 1.0 if name == "cut from the teacher, taught" else -10.0
            yield Row(
                f"{size:,} parameters, {name}, {EPOCHS} epochs", words, against, 2 * share, 2 * low, 2 * high, target
            )


@benchmark
def distillation_peer() -> Iterator[Row]:
    """A narrow ResNet-20 on CIFAR-10 (JPEG), taught by the public one: our loss and torchdistill's, the same runs.

    In 250 steps the labels alone are as good as any teaching here; what is compared are the two losses.
    """
    try:
        teacher, splits = real_data.resnet20()
    except DataUnavailable as error:
        print(f"  left out: {error}")
        return
    from torchdistill.losses.mid_level import KDLoss

    from compresslab.workbench.vision import torchvision  # noqa: F401 - beside a CPU torch it needs a hand

    theirs = KDLoss("student", "output", "teacher", "output", temperature=4.0, alpha=0.1)

    def by_torchdistill(student: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        inputs, targets = batch[:2]
        with torch.no_grad():
            wanted = teacher(inputs)
        return theirs({"student": {"output": student(inputs)}}, {"teacher": {"output": wanted}}, targets)

    few = splits.train.take(IMAGES)
    test = list(splits.test.batches(500))
    losses = {
        "labels alone": None,
        "torchdistill's KDLoss": by_torchdistill,
        "our loss": d.Distillation(teacher, soft_weight=0.9, temperature=4.0),
    }
    found: dict[str, list[float]] = {}
    with use_threads(1):
        for name, loss in losses.items():
            found[name] = []
            for seed in range(SEEDS):
                generator = torch.Generator().manual_seed(seed)
                student = models.build(
                    "resnet", width=8, in_channels=3, classes=10, shortcut="pad", generator=generator
                )
                trained = fit(student, few, epochs=PASSES, batch_size=64, lr=1e-2, loss_fn=loss, seed=seed).model
                found[name].append(100 * predict(trained, test).correct.double().mean().item())
    batch = next(iter(few.batches(64)))
    (ours_now, _), theirs_now = losses["our loss"](student, batch), by_torchdistill(student, batch)
    yield against_limit(
        "the same batch, difference of the losses", [abs((ours_now / theirs_now).item() - 1) + 1e-12], 1e-5, unit=""
    )
    told = {name: f"{statistics.mean(each):.1f} % [{min(each):.1f}, {max(each):.1f}]" for name, each in found.items()}
    ours = found.pop("our loss")
    for name, each in found.items():
        ratios = sorted(a / b for a, b in zip(ours, each, strict=True))
        target = 1.0 if name == "labels alone" else 0.995
        mean = statistics.mean(ours) / statistics.mean(each)
        work = f"narrow ResNet-20, {IMAGES:,} images {PASSES} times, taught by the public one"
        yield Row(
            f"{work}, against {name}", told["our loss"], f"{told[name]}, {name}", mean, ratios[0], ratios[-1], target
        )


@benchmark
def distillation_step() -> Iterator[Row]:
    """A step of distillation against a student's step and a teacher's forward pass; at most 1.15 times their sum."""
    splits, teacher = data.load("glyphs"), checkpoints.load("resnet")
    few = splits.train.take(512)
    student = models.build("resnet", width=8, stride=2)
    once = {"epochs": 1, "batch_size": 64}
    batches = list(few.batches(64))

    def asked() -> None:
        with torch.inference_mode():
            for inputs, _ in batches:
                teacher(inputs)

    def seconds(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    with use_threads(1):
        ratios = []
        for _ in range(9):
            parts = seconds(partial(fit, student, few, **once)) + seconds(asked)
            ratios.append(seconds(partial(fit, student, few, loss_fn=d.Distillation(teacher), **once)) / parts)
    yield against_limit("a step, teacher and all", ratios, 1.15, unit="times a student's step and a teacher's forward")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
