"""The two best orders of lesson 12, also with four times the images: is rounding better in the training, or after it?

The ResNet is cut to half of its MACs (P), then trained on 8,000 images once by its original (D), and its weights are put
on 3 bits (Q): PDQ rounds plainly at the end, PQD trains with the rounding. Three seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize

from benchmarks.harness import Row, benchmark
from compresslab.distillation import Distillation
from compresslab.measure import accuracy, predict, use_threads
from compresslab.pruning import prune_to
from compresslab.quantization import prepare_qat
from compresslab.workbench import checkpoints, data
from compresslab.workbench.train import fit, jitter

SEEDS, IMAGES = 3, (2000, 8000)
OPTIONS = {"epochs": 1, "batch_size": 64, "lr": 1e-2, "weight_decay": 0.0, "augment": jitter}


@benchmark
def orders_with_more_images() -> Iterator[Row]:
    """Accuracy on validation; a ratio above 1 means that training with the rounding is better."""
    splits, network = data.load("glyphs"), checkpoints.load("resnet")
    small = prune_to(network, splits.val.inputs(slice(2)), target=0.5, scope="global").model
    with use_threads(1):
        for count in IMAGES:
            options = {"loss_fn": Distillation(network), **OPTIONS}
            found: dict[str, list[float]] = {"PDQ": [], "PQD": []}
            for seed in range(SEEDS):
                few = splits.train.take(count)
                plain = rounded(with_rounding(fit(small, few, seed=seed, **options).model))
                inside = rounded(fit(with_rounding(small), few, seed=seed, **options).model)
                for order, model in (("PDQ", plain), ("PQD", inside)):
                    found[order].append(100 * accuracy(predict(model.eval(), splits.val.batches())).value)
            told = {order: f"{statistics.mean(v):.1f} % [{min(v):.1f}, {max(v):.1f}]" for order, v in found.items()}
            ratios = sorted(a / b for a, b in zip(found["PQD"], found["PDQ"], strict=True))
            mean = statistics.mean(found["PQD"]) / statistics.mean(found["PDQ"])
            work = f"half of the MACs, 3 bits, {count:,} images: PQD"
            yield Row(work, told["PQD"], f"PDQ {told['PDQ']}", mean, ratios[0], ratios[-1], 0.0)


def with_rounding(model: nn.Module) -> nn.Module:
    """A copy that rounds its weights whenever it runs."""
    return prepare_qat(model, weight_bits=3, activation_bits=None, method="ste", first_last_bits=None, fold=False).model


def rounded(model: nn.Module) -> nn.Module:
    """The rounded weights in place of those beneath."""
    for part in model.modules():
        if parametrize.is_parametrized(part):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    return model
