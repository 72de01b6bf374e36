"""A checkpoint quantized shard by shard: its peak of memory, its time beside a copy; and what a packed layer costs.

The memory is read from /proc, so on Linux only. ``COMPRESSLAB_STREAM_GB`` makes the checkpoint smaller or larger than
8 GB; it takes 1.7 times that in the temporary folder, and is cut to what is free there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.harness import Row, against_limit, against_peer, benchmark
from compresslab.measure import compare_latency, use_threads
from compresslab.quantization.affine import quantize
from compresslab.quantization.packed_linear import PackedLinear, use_kernels

SHARDS, ROWS, COLUMNS = 4, 16384, 4096  # a weight has 128 MiB in bfloat16, 256 MiB in float32
CHUNK = 2**20

STREAM = """
import json, sys, time
import torch
from compresslab.quantization.streaming import quantize_folder
torch.set_num_threads(1)
def peak():  # ru_maxrss would start at what the parent holds: Linux hands it on to a child
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))
before, start = peak(), time.perf_counter()
report = quantize_folder(sys.argv[1], sys.argv[2])
print(json.dumps([time.perf_counter() - start, before, peak(), report.source_bytes, report.nbytes]))
"""


def checkpoint(folder: Path, gigabytes: float) -> None:
    """Shards of bfloat16 matrices, one after the other, so that making them takes the memory of one shard at most."""
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    count = max(1, round(gigabytes * 1e9 / SHARDS / weight.nbytes))
    for shard in range(SHARDS):
        layers = {f"layers.{shard * count + i}.weight": weight.roll(i, 0) for i in range(count)}
        save_file(layers, folder / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors")


def copied(source: Path, target: Path, written: int) -> float:
    """Seconds to read every shard and to write and flush as many bytes as the packed shards have."""
    start, chunk = time.perf_counter(), bytearray(CHUNK)
    with open(target, "wb") as new:
        for path in source.iterdir():
            with open(path, "rb") as old:
                while old.readinto(chunk):
                    pass
        for place in range(0, written, CHUNK):
            new.write(chunk[: min(CHUNK, written - place)])
        new.flush()
        os.fsync(new.fileno())
    return time.perf_counter() - start


@benchmark
def stream_checkpoint() -> Iterator[Row]:
    """Peak memory of a process that quantizes the checkpoint to 4 bits in groups of 32, and its time."""
    wanted = float(os.environ.get("COMPRESSLAB_STREAM_GB", "8"))
    with tempfile.TemporaryDirectory() as name:
        folder, gigabytes = Path(name), min(wanted, shutil.disk_usage(name).free / 1e9 / 2.5)
        (folder / "source").mkdir()
        checkpoint(folder / "source", gigabytes)
        command = [sys.executable, "-c", STREAM, str(folder / "source"), str(folder / "target")]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, before, peak, read, written = json.loads(run.stdout)
        plain = copied(folder / "source", folder / "plain", written)
    work = f"{read / 1e9:.1f} GB in {SHARDS} shards to {written / 1e9:.1f} GB"
    yield against_limit(f"{work}, peak of the process", [peak / 1e9], 1.5, unit="GB")
    yield against_limit(f"{work}, over {before / 1e9:.2f} GB of the imports", [(peak - before) / 1e9], 0.5, unit="GB")
    rate, other = (f"{read / 1e6 / took:.0f} MB/s" for took in (seconds, plain))
    share = plain / seconds
    yield Row(f"{work}, beside reading and writing those bytes", rate, other, share, share, share, 0.0)


@benchmark
def packed_layer_time() -> Iterator[Row]:
    """A 2048 x 2048 layer of 4 bits in groups of 32: written out at each call, and by torch's kernel."""
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    with use_threads(1), torch.no_grad():
        for kind, where in (("4 bits", {"bits": 4, "symmetric": False, "group_size": 32}), ("8 bits", {"axis": 0})):
            packed = PackedLinear(quantize(weight, **where)).eval()
            fast, whole = use_kernels(packed), nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16).eval()
            for rows in (1, 8, 32, 128, 512):
                x = torch.randn(rows, 2048, generator=torch.Generator().manual_seed(1)).bfloat16()
                runs = {
                    name: calls(layer, x) for name, layer in (("float", whole), ("packed", packed), ("kernel", fast))
                }
                found = compare_latency(runs, reference="float", rounds=9)
                times = {name: f"{1000 * found.latency[name].median_s:.2f} ms" for name in runs}
                for name in ("packed", "kernel"):
                    work = f"{kind}, {rows} rows, {name}, against a bfloat16 layer"
                    yield against_peer(work, times[name], times["float"], found.speedup[name], target=0.0)


def calls(layer: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """The layer on this input, as something to time."""
    return lambda: layer(x)
