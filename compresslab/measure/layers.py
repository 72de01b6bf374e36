"""A table of the layers: where the parameters are, where the arithmetic is, and where the time goes.

They are three different places. A layer is here whatever module runs without calling another one inside, so
``nn.MultiheadAttention`` is one layer. What no layer holds (functions called between them, parameters of their own in
the modules around, Python itself) stands in a last row, so that every column adds up.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from torch import nn

from compresslab.measure.latency import check_timing, time_once
from compresslab.measure.macs import count_macs
from compresslab.measure.roofline import Work
from compresslab.measure.running import call, evaluating, require_module, synchronize, tensors_in, use_threads

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["profile_layers", "works"]

REST = "(between layers)"


def profile_layers(
    model: nn.Module, inputs: Any, *, repeats: int = 20, warmup: int = 3, threads: int = 1
) -> pd.DataFrame:
    """One row for each layer that runs, in the order of their first call, and a last row for what is between them.

    Times are medians over ``repeats`` passes with hooks, which cost some microseconds for each layer: most of that is
    in the last row. ``table.attrs`` tells how much: ``latency_s`` of the model without hooks, ``hook_overhead_s``.

    Args:
        model: run in eval mode and without gradients.
        inputs: a tensor, a tuple of arguments or a mapping of keywords.
        repeats: passes that are timed, at least 1.
        warmup: passes before them, at least 0.
        threads: CPU threads of torch.

    Returns:
        Columns: layer, type, output_shape, parameters (elements), size_bytes (parameters and buffers, without a
        file's header), size_share, macs, mac_share, latency_s, latency_share, bytes_moved (weights, inputs and
        outputs; of an embedding the rows looked up) and intensity (FLOPs / byte moved). Shares are of the whole, 0..1.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``repeats``, ``warmup`` or ``threads`` is too small.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> table = profile_layers(model, torch.zeros(1, 4), repeats=3)
        >>> print(table[["layer", "type", "parameters", "macs"]].to_string(index=False))
                   layer   type  parameters  macs
                       0 Linear          40    32
                       1   ReLU           0     0
                       2 Linear          18    16
        (between layers)                  0     0
    """
    import pandas as pd

    require_module(model)
    check_timing(repeats, warmup, 0.0)
    macs = count_macs(model, inputs)
    with evaluating(model), use_threads(threads):
        layers = _trace(model, inputs)
        run = partial(call, model, inputs)
        for _ in range(warmup):
            run()
        plain_s = median(time_once(run) for _ in range(repeats))
        seconds = _time(model, inputs, layers, repeats)
    seen: set[int] = set()
    modules = dict(model.named_modules())
    rows = []
    for name, layer in layers.items():
        made_of = _made_of(modules[name], seen)
        counted = macs.by_module[name] if name else macs.total
        rows.append({"layer": name or "(model)", **made_of, **layer, "macs": counted, "latency_s": seconds[name]})
    left = macs.total - sum(row["macs"] for row in rows)
    rest = {"layer": REST, "type": "", "output_shape": None, "macs": left, "latency_s": seconds[REST], "bytes_moved": 0}
    table = pd.DataFrame([*rows, _made_of(model, seen) | rest])
    for share, column in (("size_share", "size_bytes"), ("mac_share", "macs"), ("latency_share", "latency_s")):
        table[share] = table[column] / table[column].sum()
    table["intensity"] = 2 * table["macs"] / table["bytes_moved"].where(table["bytes_moved"] > 0)
    table.attrs.update(latency_s=plain_s, hook_overhead_s=seconds["(pass)"] - plain_s)
    return table[_COLUMNS]


_COLUMNS = ["layer", "type", "output_shape", "parameters", "size_bytes", "size_share", "macs", "mac_share"]
_COLUMNS += ["latency_s", "latency_share", "bytes_moved", "intensity"]


@contextlib.contextmanager
def _hooked(modules: Mapping[str, nn.Module], begin: Callable, end: Callable) -> Iterator[None]:
    """Call ``begin(name, module, args, kwargs)`` and ``end(name, module, args, kwargs, output)`` around each module."""
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(partial(begin, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(end, name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _trace(model: nn.Module, inputs: Any) -> dict[str, dict[str, Any]]:
    """Name to output shape and bytes moved, for each module inside of which no other one runs."""
    running, callers, found = [], set(), {}

    def begin(name: str, *_: Any) -> None:
        callers.update(running[-1:])
        running.append(name)

    def end(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        running.pop()
        results = list(tensors_in(output))
        moved = sum(tensor.nbytes for tensor in [*tensors_in([args, kwargs]), *results])
        weights = results if isinstance(module, nn.Embedding) else [*module.parameters(), *module.buffers()]
        layer = found.setdefault(name, {"output_shape": None, "bytes_moved": 0})
        layer["output_shape"] = tuple(results[0].shape) if results else None
        layer["bytes_moved"] += moved + sum(tensor.nbytes for tensor in weights)

    with _hooked(dict(model.named_modules()), begin, end):
        call(model, inputs)
    return {name: layer for name, layer in found.items() if name not in callers}


def _time(model: nn.Module, inputs: Any, layers: Mapping[str, Any], repeats: int) -> dict[str, float]:
    """Median seconds over passes, for each layer, for the rest and for the whole pass with hooks."""
    modules = dict(model.named_modules())
    spent, began, passes = Counter(), {}, []

    def begin(name: str, *_: Any) -> None:
        synchronize()
        began[name] = time.perf_counter()

    def end(name: str, *_: Any) -> None:
        synchronize()
        spent[name] += time.perf_counter() - began[name]

    with _hooked({name: modules[name] for name in layers}, begin, end):
        for _ in range(repeats):
            spent.clear()
            whole = time_once(partial(call, model, inputs))
            passes.append({**spent, REST: max(whole - spent.total(), 0.0), "(pass)": whole})
    return {name: median(seconds[name] for seconds in passes) for name in passes[0]}


def _made_of(module: nn.Module, seen: set[int]) -> dict[str, Any]:
    """Type, elements of the parameters and bytes of all tensors, of those that no earlier row has counted."""
    parameters = [tensor for tensor in module.parameters() if id(tensor) not in seen]
    buffers = [tensor for tensor in module.buffers() if id(tensor) not in seen]
    seen.update(map(id, [*parameters, *buffers]))
    size = sum(tensor.nbytes for tensor in [*parameters, *buffers])
    elements = sum(tensor.numel() for tensor in parameters)
    return {"type": type(module).__name__, "parameters": elements, "size_bytes": size}


def works(table: pd.DataFrame) -> dict[str, Work]:
    """The rows of a profile that compute something, and the whole model, as points for ``plot_roofline``.

    The bytes of the whole are the sum over layers: in eager mode each reads what the one before it wrote.

    Example:
        >>> import torch
        >>> table = profile_layers(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(1, 4), repeats=3)
        >>> {name: work.macs for name, work in works(table).items()}
        {'0': 32, '(whole model)': 32}
    """
    rows = table[(table["macs"] > 0) & (table["bytes_moved"] > 0)]
    points = {row.layer: Work(row.macs, row.bytes_moved, row.latency_s) for row in rows.itertuples()}
    whole = Work(int(table["macs"].sum()), int(table["bytes_moved"].sum()), table.attrs["latency_s"])
    return {**points, "(whole model)": whole}
