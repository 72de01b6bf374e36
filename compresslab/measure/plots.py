"""The figures of measuring: layers, the roofline, and the one that every lesson ends with.

They compute nothing: what they draw is in the table beside them. Color is never the only sign: markers and hatches
differ as well, and the palette (Petroff's) can be told apart by people who see fewer colors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from compresslab.measure.estimates import si
from compresslab.measure.roofline import Machine, Work

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot_comparison", "plot_layers", "plot_roofline"]

MARKERS = "os^DvPX<>hp"  # 11, against 10 colors: no pair comes twice


def plot_comparison(table: pd.DataFrame, metric: str, *, ax: Axes | None = None) -> Axes:
    """Draw quality with its interval against the size of the saved file; the area of a marker is the latency, if known.

    Args:
        table: rows with ``size_bytes``, the metric with its ``_low`` and ``_high``, and perhaps ``latency_s``.
        metric: a column, such as ``"accuracy"``.
        ax: where to draw; None makes a figure.

    Example:
        >>> import torch
        >>> from compresslab.measure import compare
        >>> table = compare({"only": torch.nn.Linear(2, 2)}, [(torch.eye(2), torch.tensor([0, 1]))]).table
        >>> plot_comparison(table, "accuracy").get_ylabel()
        'accuracy (%)'
    """
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    ax = plt.subplots(figsize=(7, 4.2), layout="constrained")[1] if ax is None else ax
    colors = matplotlib.color_sequences["petroff10"]
    factor, timed = 100 if metric == "accuracy" else 1, "latency_s" in table
    for place, (name, row) in enumerate(table.iterrows()):
        color, value = colors[place % len(colors)], factor * row[metric]
        ends = [[max(0.0, value - factor * row[f"{metric}_low"])], [max(0.0, factor * row[f"{metric}_high"] - value)]]
        ax.errorbar(row["size_bytes"], value, yerr=ends, color=color, capsize=4, linewidth=1.2, zorder=1)
        area = max(20.0, 350 * row["latency_s"] / table["latency_s"].max()) if timed else 60
        style = {"marker": MARKERS[place % len(MARKERS)], "edgecolor": color, "linewidth": 2, "zorder": 2}
        label = f"{name}: {si(row['latency_s'], 's')}" if timed else name
        ax.scatter(row["size_bytes"], value, s=area, facecolor=(*to_rgb(color), 0.25), label=label, **style)
    if table["size_bytes"].max() >= 10 * table["size_bytes"].min():
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
    ax.margins(x=0.12, y=0.12)
    ax.set(xlabel="size of the saved file (bytes)", ylabel=f"{metric} (%)" if factor == 100 else metric)
    ax.grid(alpha=0.3)
    title = "latency = area of the marker" if timed else None
    legend = ax.legend(title=title, loc="center left", bbox_to_anchor=(1, 0.5))
    for handle in legend.legend_handles:
        handle.set_sizes([60])
    return ax


def plot_layers(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw each layer's share of the size, the MACs and the time as three bars.

    Args:
        table: rows of ``profile_layers``; for a deep model choose some, such as ``table.nlargest(12, "latency_s")``.
        ax: where to draw; None makes a figure.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from compresslab.measure.layers import profile_layers
        >>> table = profile_layers(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), torch.zeros(1, 4), repeats=3)
        >>> plot_layers(table).get_xlabel()
        'share of the whole model (%)'
    """
    import matplotlib
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=(7, 1.2 + 0.45 * len(table)), layout="constrained")[1] if ax is None else ax
    shares = {"size_share": ("size", ""), "mac_share": ("MACs", "///"), "latency_share": ("latency", "...")}
    for place, (column, (label, hatch)) in enumerate(shares.items()):
        color = matplotlib.color_sequences["petroff10"][place]
        positions = [row + 0.27 * (place - 1) for row in range(len(table))]
        ax.barh(positions, 100 * table[column], 0.27, label=label, hatch=hatch, color=color, edgecolor="white")
    ax.set_yticks(range(len(table)), [f"{row.layer}  {row.type}".strip() for row in table.itertuples()])
    ax.invert_yaxis()
    ax.set_xlabel("share of the whole model (%)")
    ax.legend(ncols=3, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    ax.grid(axis="x", alpha=0.3)
    return ax


def plot_roofline(machine: Machine, works: Mapping[str, Work], *, ax: Axes | None = None) -> Axes:
    """Draw the two roofs, and a point for each work: its distance to the roof is what is left to gain.

    Args:
        machine: the roofs.
        works: name to work, with more than 0 MACs each; a dozen at most can be told apart.
        ax: where to draw; None makes a figure.

    Raises:
        ValueError: a work has no MACs and so no place on a logarithmic axis.

    Example:
        >>> import torch
        >>> axes = plot_roofline(Machine(1e11, 1e10, 1, torch.float32), {"layer": Work(1000, 500, 1e-6)})
        >>> axes.get_xlabel()
        'arithmetic intensity (FLOP / byte)'
    """
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, NullFormatter

    for name, work in works.items():
        if work.macs < 1:
            raise ValueError(f"works[{name!r}] has macs={work.macs} and no place on this plot; leave it out")
    ax = plt.subplots(figsize=(7, 4.5), layout="constrained")[1] if ax is None else ax
    intensities = [machine.ridge, *(work.intensity for work in works.values())]
    left, right = min(intensities) / 4, max(intensities) * 4
    roof = [left, machine.ridge, right]
    label = f"roof: {si(machine.bytes_per_s, 'B/s')}, {si(machine.flops_per_s, 'FLOP/s')}, threads: {machine.threads}"
    ax.plot(roof, [machine.attainable(intensity) for intensity in roof], color="black", label=label)
    ax.axvline(machine.ridge, color="gray", linestyle=":", linewidth=1, label=f"ridge: {machine.ridge:.3g} FLOP/byte")
    colors = matplotlib.color_sequences["petroff10"]
    for place, (name, work) in enumerate(works.items()):
        style = {"marker": MARKERS[place % len(MARKERS)], "color": colors[place % len(colors)]}
        ax.plot(work.intensity, work.flops_per_s, linestyle="", markersize=8, label=name, **style)
    lowest = min([machine.attainable(left), *(work.flops_per_s for work in works.values())])
    ax.set(xscale="log", yscale="log", ylim=(lowest / 3, 3 * machine.flops_per_s))
    ax.set(xlabel="arithmetic intensity (FLOP / byte)", ylabel="arithmetic (FLOP / s)")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter(EngFormatter())
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
