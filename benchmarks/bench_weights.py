"""Few bits for each weight, nothing for the activations: rounding to nearest, clipped, AdaRound, mixed widths.

Real images and public weights where they are (``real_data.py``), else only the course's own network. Calibration sees
training images only; activations stay in floating point; batch norm is folded first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from torch import nn

from benchmarks import real_data
from benchmarks.harness import Row, benchmark
from compresslab.measure import predict, sqnr_db, use_threads
from compresslab.measure.predictions import Predictions
from compresslab.measure.sensitivity import scan_sensitivity
from compresslab.quantization.adaround import adaround_model
from compresslab.quantization.batchnorm import fold_batchnorm
from compresslab.quantization.bit_allocation import allocate_bits
from compresslab.quantization.weight_only import WeightOnly, quantize_weights
from compresslab.workbench import checkpoints, data
from compresslab.workbench.files import DataUnavailable

SAMPLES = 8192  # positions of each layer's output that AdaRound sees, twice its default


@benchmark
def weights_resnet20() -> Iterator[Row]:
    """The public ResNet-20 on 10,000 test images: accuracy, its target, and the error of the logits."""
    try:
        model, splits = real_data.resnet20()
    except DataUnavailable as error:
        print(f"  left out: {error}")
        return
    model, calibration = fold_batchnorm(model).model, list(splits.train.take(1024).batches(128))
    test = list(splits.test.batches(500))
    with use_threads(1):
        whole = predict(model, test)

        def row(work: str, make: Callable[[], WeightOnly], accuracy: float = 0.0, db: float = 0.0) -> Row:
            return measured(f"ResNet-20, {work}", make, whole, test, accuracy, db)

        for bits in (4, 3):
            for symmetric in (True, False):
                options = {"bits": bits, "symmetric": symmetric}
                kind = f"{bits} bits per channel, {'symmetric' if symmetric else 'asymmetric'}"
                yield row(f"{kind}, nearest", lambda o=options: quantize_weights(model, **o))
                yield row(f"{kind}, clipped", lambda o=options: quantize_weights(model, **o, method="mse"))
                yield row(
                    f"{kind}, AdaRound",
                    lambda o=options: adaround_model(model, calibration, **o, samples=SAMPLES),
                    *((87.3, 22.0) if bits == 4 else (86.5, 0.0)),
                )
        widths = mixed(model, calibration[:2])
        kind = f"mixed {', '.join(map(str, sorted({*widths.values()})))} bits, 3 on average"
        yield row(f"{kind}, clipped", lambda: quantize_weights(model, bits=widths, symmetric=False, method="mse"))
        yield row(
            f"{kind}, AdaRound",
            lambda: adaround_model(model, calibration, bits=widths, symmetric=False, samples=SAMPLES),
            87.0,
        )


@benchmark
def weights_course() -> Iterator[Row]:
    """The course's ResNet on its validation glyphs, in the time of a lesson."""
    splits = data.load("glyphs")
    model, calibration = fold_batchnorm(checkpoints.load("resnet")).model, list(splits.train.take(512).batches(128))
    held = list(splits.val.batches(500))
    with use_threads(1):
        whole = predict(model, held)
        for bits in (4, 3, 2):
            options = {"bits": bits, "symmetric": bits > 2}
            methods = {
                "nearest": lambda o=options: quantize_weights(model, **o),
                "clipped": lambda o=options: quantize_weights(model, **o, method="mse"),
                "AdaRound": lambda o=options: adaround_model(model, calibration, **o),
            }
            for name, make in methods.items():
                yield measured(f"glyphs ResNet, {bits} bits per channel, {name}", make, whole, held)


def mixed(model: nn.Module, batches: list) -> dict[str, int]:
    """Widths of 2 to 6 bits in the bytes that 3 would take, by the error of the logits of each layer alone."""
    widths = (2, 3, 4, 5, 6)
    exact = predict(model, batches).logits

    def change(model: nn.Module, name: str, bits: int) -> nn.Module:
        return quantize_weights(model, bits={name: bits}, symmetric=False, method="mse").model

    def harm(changed: nn.Module) -> float:
        return (predict(changed, batches).logits - exact).square().mean().item()

    plain = {bits: quantize_weights(model, bits=bits, symmetric=False).weights for bits in widths}
    names = list(plain[3])
    scan = scan_sensitivity(model, change, harm, layers=names, settings=widths)
    sizes = {name: {bits: plain[bits][name].nbytes for bits in widths} for name in names}
    return allocate_bits(scan.errors, sizes, sum(weight.nbytes for weight in plain[3].values())).bits


def measured(
    work: str, make: Callable[[], WeightOnly], whole: Predictions, batches: list, accuracy: float = 0.0, db: float = 0.0
) -> Row:
    """The row of one method: accuracy over that of the float model. Missed if either is below what is asked (0: no)."""
    start = time.perf_counter()
    result = make()
    seconds = time.perf_counter() - start
    found = predict(result.model, batches)
    share, full = (100 * predictions.correct.double().mean().item() for predictions in (found, whole))
    noise = sqnr_db(whole.logits, found.logits)
    ours = f"{share:.2f} %, {noise:.1f} dB, {result.bits_per_weight:.2f} bits/weight, {seconds:.1f} s"
    wanted = f", at least {accuracy:g} %" if accuracy else ""
    wanted += f" and {db:g} dB" if db else ""
    ratio = share / full if noise >= db else 0.0
    return Row(work, ours, f"float {full:.2f} %{wanted}", ratio, ratio, ratio, accuracy / full)
