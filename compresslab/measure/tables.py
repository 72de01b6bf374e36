"""A comparison in words: with units for people, and the part that is the same on every machine for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compresslab.measure.estimates import Estimate, si

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["markdown", "readable"]


def readable(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The table of a comparison as text, with units, for people to read.

    Example:
        >>> import torch
        >>> from compresslab.measure import compare
        >>> models = {"only": torch.nn.Linear(2, 2)}
        >>> table = compare(models, [(torch.eye(2), torch.tensor([0, 1]))]).table
        >>> readable(table, "accuracy").loc["only", ["size", "MACs", "agreement"]].tolist()
        ['152 B', '4', '100.0 %']
    """
    percent = "%" if metric == "accuracy" else ""
    difference = "points" if metric == "accuracy" else ""

    def spread(row: pd.Series, name: str, unit: str) -> str:
        return str(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], 0, unit))

    words = {
        "size": lambda row: si(row["size_bytes"], "B"),
        "compression": lambda row: f"{row['compression']:.2f}x",
        "parameters": lambda row: _whole(row["parameters"]),
        "MACs": lambda row: _whole(row["macs"]),
        "latency, median": lambda row: si(row["latency_s"], "s"),
        "latency, p90": lambda row: si(row["latency_p90_s"], "s"),
        "speed-up": lambda row: spread(row, "speedup", "x"),
        "samples/s": lambda row: f"{row['throughput']:,.0f}",
        metric: lambda row: spread(row, metric, percent),
        "difference": lambda row: spread(row, "difference", difference),
        "p-value": lambda row: f"{row['p_value']:.2g}",
        "agreement": lambda row: f"{100 * row['agreement']:.1f} %",
    }
    return table.apply(lambda row: {name: word(row) for name, word in words.items()}, axis=1, result_type="expand")


def _whole(value: float | None) -> str:
    import pandas as pd

    return "not known" if pd.isna(value) else f"{value:,.0f}"


def markdown(table: pd.DataFrame, metric: str) -> str:
    """The columns that do not depend on the machine, as a Markdown table; after ≈ stands what rounding may move.

    Example:
        >>> import torch
        >>> from compresslab.measure import compare
        >>> table = compare({"only": torch.nn.Linear(2, 2)}, [(torch.eye(2), torch.tensor([0, 0]))]).table
        >>> print(markdown(table, "accuracy").splitlines()[0])
        | name | size (bytes) | compression | parameters | MACs | accuracy | agreement |
    """
    heads = ["name", "size (bytes)", "compression", "parameters", "MACs", metric, "agreement"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, row in table.iterrows():
        quality = f"≈ {100 * row[metric]:.1f} %" if metric == "accuracy" else f"≈ {row[metric]:.2f}"
        exact = [
            _whole(row["size_bytes"]),
            f"{row['compression']:.2f}x",
            _whole(row["parameters"]),
            _whole(row["macs"]),
        ]
        cells = [str(name).replace("|", "\\|"), *exact, quality, f"≈ {100 * row['agreement']:.1f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
