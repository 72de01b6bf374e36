"""The foundation: import time, glyph rendering, what measuring costs."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import torch
from torch.utils.benchmark import Timer

from benchmarks.harness import Row, against_limit, benchmark
from compresslab.measure import compare_latency, count_macs, measure_latency, profile_layers, use_threads
from compresslab.workbench import glyphs, models


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@benchmark
def import_time() -> Iterator[Row]:
    """``import compresslab`` in a fresh interpreter, the interpreter's own start included."""
    command = [sys.executable, "-c", "import compresslab"]
    values = [seconds(lambda: subprocess.run(command, check=True)) for _ in range(11)]
    yield against_limit("python -c 'import compresslab'", values, 0.2, unit="s")


@benchmark
def glyph_rendering() -> Iterator[Row]:
    """20,000 glyphs drawn and warped, without the cache, on one thread."""
    with use_threads(1):
        glyphs.render(256)  # the letters themselves are drawn once a process
        rates = [20_000 / seconds(lambda: glyphs.render(20_000)) for _ in range(3)]
    yield against_limit("render 20,000 glyphs", rates, 4_000, unit="images/s", less_is_better=False)


@benchmark
def measuring_overhead() -> Iterator[Row]:
    """Our timer against torch's, and what a profile or a count costs beside plain forward passes."""
    model, image = models.build("resnet"), torch.randn(1, 1, 32, 32)
    ours = measure_latency(model, image, min_time_s=2.0).median_s
    with torch.inference_mode():
        peer = Timer("model(image)", globals={"model": model.eval(), "image": image}, num_threads=1)
        peer_s = peer.blocked_autorange(min_run_time=2.0).median
    ratio = peer_s / ours
    yield Row(
        "latency of the ResNet, batch 1", f"{ours * 1e3:.3g} ms", f"torch.utils.benchmark {peer_s * 1e3:.3g} ms",
        ratio, ratio, ratio, 0.9,
    )  # fmt: skip
    plain = {"forward": lambda: model(image), "count": lambda: count_macs(model, image)}
    speedups = compare_latency(plain, reference="count", rounds=20)
    count, forward = (speedups.latency[name].median_s for name in ("count", "forward"))
    row = against_limit("count_macs of the ResNet, in forward passes", [count / forward], 100, unit="passes")
    yield row
    profile = seconds(lambda: profile_layers(model, image))
    yield against_limit("profile_layers of the ResNet", [profile], 5, unit="s")
