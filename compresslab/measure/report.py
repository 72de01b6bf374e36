"""A comparison as one page that can be mailed: the figure, the table in words, and how it was measured.

See ``page.py`` for what such a page promises.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compresslab.measure.page import software, write_page
from compresslab.measure.plots import plot_comparison
from compresslab.measure.tables import readable

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["write_html"]


def write_html(path: str | Path, table: pd.DataFrame, metric: str, *, title: str, setting: Mapping[str, str]) -> Path:
    """Write the page to ``path``, all or nothing, and return the path.

    Args:
        path: of the page; its folder is made.
        table: of a comparison.
        metric: the column of the quality, "accuracy" or "perplexity".
        title: heading of the page.
        setting: how it was measured; torch, Python and the processor are added.

    Example:
        >>> import tempfile, torch
        >>> from compresslab.measure import compare
        >>> comparison = compare({"a<b": torch.nn.Linear(2, 2)}, [(torch.eye(2), torch.tensor([0, 1]))])
        >>> page = comparison.to_html(Path(tempfile.mkdtemp()) / "report.html").read_text(encoding="utf-8")
        >>> "a&lt;b" in page, "<script" in page
        (True, False)
    """
    from matplotlib.figure import Figure

    words = readable(table, metric)
    alt = f"{metric} against the size of the saved file. " + " ".join(
        f"{name}: {row[metric]} at {row['size']}, {row['latency, median']}." for name, row in words.iterrows()
    )
    figure = Figure(figsize=(8, 4.5), layout="constrained")  # not pyplot's: nobody else sees it
    plot_comparison(table, metric, ax=figure.subplots())
    told = "Square brackets hold 95 % intervals. Differences and agreement are against the reference."
    parts = [(figure, alt), told, words, "# How it was measured", {**setting, **software()}]
    return write_page(path, title=title, parts=parts)
