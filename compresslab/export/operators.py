"""Which operators really run, and where the time goes: a session rewrites the graph, so the file does not tell.

Convolutions that should be integers and are not show as ``Conv`` beside ``QLinearConv``; a ``DequantizeLinear`` in the
middle is a place where floats are computed.

    https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor

from compresslab.export.sessions import open_session

__all__ = ["OperatorTime", "count_operators", "profile_operators"]


@dataclass(frozen=True)
class OperatorTime:
    """What one kind of operator took."""

    operator: str
    calls: int  # in one run
    seconds: float  # in one run, the median
    share: float  # of all operators, 0..1


def count_operators(path: str | os.PathLike, *, optimization: str = "all") -> dict[str, int]:
    """How many of each operator run, in the graph as the session has rewritten it; the most frequent first.

    Args:
        path: an ONNX file.
        optimization: as in ``open_session``; "none" counts what is in the file.

    Example:
        >>> from torch import nn
        >>> import torch
        >>> from compresslab.export.to_onnx import export_onnx
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
        ...     count_operators(export_onnx(model, torch.ones(2, 2), Path(folder) / "layer.onnx"))
        {'FusedGemm': 1}
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, optimization=optimization, optimized_path=optimized)
        nodes = onnx.load(optimized, load_external_data=False).graph.node
    return dict(Counter(node.op_type for node in nodes).most_common())


def profile_operators(path: str | os.PathLike, *inputs: Tensor, runs: int = 10) -> list[OperatorTime]:
    """Where the time of a run goes, by kind of operator, the longest first; one thread.

    Args:
        path: an ONNX file.
        inputs: one batch.
        runs: after one to warm up, 1 or more.

    Raises:
        ValueError: ``runs`` is less than 1.

    Example:
        >>> profile_operators("model.onnx", runs=0)
        Traceback (most recent call last):
        ...
        ValueError: runs=0 must be 1 or more; try 10
    """
    if runs < 1:
        raise ValueError(f"runs={runs} must be 1 or more; try 10")
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, profile_prefix=Path(folder) / "profile")
        feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
        for _ in range(runs + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    nodes = Counter(event["args"]["op_name"] for event in kernels)
    calls = {name: count // (runs + 1) for name, count in nodes.items()}
    by_run: dict[str, list[float]] = {name: [0.0] * (runs + 1) for name in calls}
    seen: Counter = Counter()
    for event in kernels:  # in the order in which they ran
        name = event["args"]["op_name"]
        by_run[name][seen[name] // calls[name]] += event["dur"] * 1e-6
        seen[name] += 1
    seconds = {name: sorted(values[1:])[runs // 2] for name, values in by_run.items()}
    total = sum(seconds.values()) or 1.0
    times = [OperatorTime(name, calls[name], value, value / total) for name, value in seconds.items()]
    return sorted(times, key=lambda time: (-time.seconds, time.operator))
